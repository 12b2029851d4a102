"""`hf-sane push` and `hf-sane pull` against a server."""

import re
from copy import deepcopy

import pytest
from hub_server import TOKEN

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.cards._tables import fact_text
from hf_sane.hub._adapters import save_network_adapter
from hf_sane.hub._publish import save_network
from hf_sane.hub._pull import parse_size
from hf_sane.records._manifests import MANIFEST
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._finetuning import add_network_lora


# huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_a_zoo_goes_there_and_comes_back(local_hub, tiny_zoo_folder, tmp_path, hf_sane_command):
    listed = hf_sane_command("push", "zoo", tiny_zoo_folder, "org/zoo", "--dry-run").output
    assert not local_hub.repositories
    assert "nothing was sent" in listed
    for path in (tiny_zoo_folder / "data").glob("*.parquet"):
        assert re.search(rf"data/{path.name} +{fact_text(path.stat().st_size)}\n", listed)
    pushed = hf_sane_command("push", "zoo", tiny_zoo_folder, "org/zoo", "--private").output
    assert "/datasets/org/zoo/commit/" in pushed
    assert local_hub.repositories["datasets", "org/zoo"].private
    refused = hf_sane_command("pull", "org/zoo", "--output", tmp_path / "zoo", "--max-size", "1K", exit_code=2).output
    assert "more than the limit of 1,000" in refused
    listed = hf_sane_command("pull", "org/zoo", "--output", tmp_path / "zoo", "--dry-run").output
    assert "nothing was downloaded" in listed
    assert not (tmp_path / "zoo").exists()
    pulled = hf_sane_command("pull", "org/zoo", "--output", tmp_path / "zoo", "--repo-type", "dataset").output
    assert TOKEN not in listed + pushed + refused + pulled
    for path in (tiny_zoo_folder / "data").iterdir():
        if path.name == MANIFEST:  # says what lies in this folder, not what lies on the Hub
            continue
        assert (tmp_path / "zoo" / "data" / path.name).read_bytes() == path.read_bytes()


@pytest.fixture
def artefacts(tiny_sane_folder, tmp_path):
    """Folders by kind, as the commands leave them."""
    network, record = build_model(cnn_digits()), RunRecord(command="x")
    for index in range(2):
        save_network(tmp_path / "samples" / f"network_{index}", network, record)
    adapted = add_network_lora(deepcopy(network), rank=1)
    save_network_adapter(tmp_path / "adapter", adapted, network, record, base_model="org/samples")
    return {"model": tiny_sane_folder, "samples": tmp_path / "samples", "adapter": tmp_path / "adapter"}


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_every_kind_is_listed_sent_and_fetched(local_hub, artefacts, tmp_path, hf_sane_command):
    for kind, folder in artefacts.items():
        repo_id, fetched = f"org/{kind}", tmp_path / "fetched" / kind
        listed = hf_sane_command("push", kind, folder, repo_id, "--dry-run").output
        assert ("models", repo_id) not in local_hub.repositories
        sizes = dict(re.findall(r"^(\S+\.\S+) +([\d,]+)$", listed, flags=re.MULTILINE))
        hf_sane_command("push", kind, folder, repo_id)
        arrived = local_hub.repositories["models", repo_id].files
        assert sizes == {
            path: fact_text(len(content)) for path, content in arrived.items() if path != ".gitattributes"
        }
        hf_sane_command("pull", repo_id, "--output", fetched)
        for path in sizes:
            assert (fetched / path).read_bytes() == arrived[path]


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("500M", 500_000_000), ("1.5GB", 1_500_000_000), ("7", 7), ("2 k", 2_000), ("1T", 10**12)]
)
def test_sizes(text, num_bytes):
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "much", "-1G", "1X"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="expected a size such as 500M or 20G, got"):
        parse_size(text)
