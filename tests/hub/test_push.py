"""Pushing and pulling against a real server: what is listed is what arrives, and what should not leave does not."""

import json
import posixpath
import re
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hub_server import TOKEN, run_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from transformers import AutoModelForImageClassification

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.cards._rendering import address_card
from hf_sane.hub._publish import save_network, save_sane
from hf_sane.hub._pull import check_path, check_size, find_repository, plan_pull, pull
from hf_sane.hub._push import plan_push
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._manifests import MANIFEST, Manifest
from hf_sane.records._outputs import output_folder
from hf_sane.records._run_record import RunRecord
from hf_sane.records._uploads import RepoFile, folder_files
from hf_sane.sampling._export import Provenance
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._dataset import Zoo

# huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
RECORD = RunRecord(command="hf-sane sample", seed=3, results={"test_accuracy": 0.5})


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server takes plain uploads
    with run_hub() as server:
        yield server


@pytest.fixture
def impatient(monkeypatch):
    """The client tries again at once when a connection breaks, and gives up as often as before."""
    hurried = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", hurried)


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.address, token=TOKEN)


@pytest.fixture
def samples(tmp_path):
    """Three networks, the second of them the best on validation images."""
    folder = tmp_path / "samples"
    for index, accuracy in enumerate((0.5, 0.75, 0.25)):
        provenance = Provenance(
            "subsampled", sane_model="org/sane", sane_revision="abc", zoo="org/zoo", anchors=("7", "9"), seed=3,
            index=index, validation_accuracy=accuracy, test_accuracy=accuracy - 0.1,
        )  # fmt: skip
        torch.manual_seed(index)
        parents = {"base_model": "org/sane", "datasets": ["org/zoo"]}
        network = build_model(cnn_digits())
        save_network(folder / f"network_{index}", network, RECORD, **parents, provenance=provenance)
    return folder


@pytest.fixture
def sane(tmp_path):
    extractor = SANEFeatureExtractor(token_dim=20).fit([build_model(cnn_digits())])
    config = SANEConfig(token_dim=20, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2)
    return save_sane(tmp_path / "sane", SANEModel(config), extractor, RECORD)


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/sane"}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text('PeftModel.from_pretrained(model, "org/adapter")')
    return folder


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sampled_networks_become_one_repository_with_the_best_at_its_root(hub, api, samples, tmp_path):
    before = snapshot(samples)
    address = plan_push("samples", samples, "org/sampled", api=api).push(api)
    assert "org/sampled/commit/" in address
    assert snapshot(samples) == before
    files = hub.repositories["models", "org/sampled"].files
    root, other = (files[f"{folder}README.md"].decode() for folder in ("", "network_2/"))
    assert json.loads(files["provenance.json"])["index"] == 1
    for fact in (
        "base_model: org/sane",
        "- org/zoo",
        "value: 0.5",
        "| sane revision | abc |",
        "| anchors | 2 runs: 7, 9 |",
    ):
        assert fact in root
    assert 'from_pretrained("org/sampled")' in root
    assert "| [network_2](network_2/README.md) | 0.25 | 0.15 |" in root
    assert 'from_pretrained("org/sampled", subfolder="network_2")' in other
    assert "Inside this folder" not in root + other
    assert {"modeling_zoo.py", "network_0/modeling_zoo.py"} <= files.keys()
    cards = {path: content.decode() for path, content in files.items() if path.endswith("README.md")}
    links = [
        posixpath.join(posixpath.dirname(path), target)
        for path, card in cards.items()
        for target in re.findall(r"\]\((?!https://)([^)\s]*)\)", card)
    ]
    assert len(links) == 2
    assert set(links) <= files.keys()

    pull("org/sampled", tmp_path / "pulled", api=api)
    for mine, theirs in (("network_1", ""), ("network_2", "network_2")):
        networks = [
            AutoModelForImageClassification.from_pretrained(folder)
            for folder in (samples / mine, tmp_path / "pulled" / theirs)
        ]
        first, second = (network.state_dict() for network in networks)
        assert all(torch.equal(first[name], second[name]) for name in first | second)


def test_one_network_is_a_repository_too(hub, api, samples):
    upload = plan_push("samples", samples / "network_0", "org/one", include_code=False, api=api)
    assert [file.path for file in upload.files] == [
        "README.md", "config.json", "model.safetensors", "provenance.json", "run.json"
    ]  # fmt: skip
    assert "Other networks" not in upload.files[0].content.decode()


def test_what_is_listed_is_what_arrives(hub, api, sane):
    upload = plan_push("model", sane, "org/sane", api=api)
    assert not hub.repositories
    upload.push(api, private=True, revision="draft")
    repository = hub.repositories["models", "org/sane"]
    assert repository.private
    arrived = {
        path: len(content) for path, content in repository.at("draft").files.items() if path != ".gitattributes"
    }
    assert arrived == {file.path: file.num_bytes for file in upload.files}
    assert upload.num_bytes == sum(arrived.values())
    assert "README.md" not in repository.files


def test_zoos_stand_beside_each_other_and_stale_files_go(hub, api, tiny_zoo, tmp_path):
    tiny_zoo.save(tmp_path / "first", "mnist-cnn-s")
    tiny_zoo.save(tmp_path / "second", "usps-cnn-s")
    (tmp_path / "first" / ".cache").mkdir()
    (tmp_path / "first" / ".cache" / "arrow").write_text("a copy")
    shutil.copy(
        tmp_path / "first/mnist-cnn-s/test-00000-of-00001.parquet",
        tmp_path / "first/mnist-cnn-s/test-00001-of-00002.parquet",
    )
    plan_push("zoo", tmp_path / "first", "org/zoo", api=api).push(api)
    (tmp_path / "first/mnist-cnn-s/test-00001-of-00002.parquet").unlink()
    plan_push("zoo", tmp_path / "second", "org/zoo", api=api).push(api)
    again = plan_push("zoo", tmp_path / "first", "org/zoo", api=api)
    assert again.deleted == ("mnist-cnn-s/test-00001-of-00002.parquet",)
    again.push(api)
    files = hub.repositories["datasets", "org/zoo"].files
    card = files["README.md"].decode()
    assert "config_name: mnist-cnn-s" in card
    assert "config_name: usps-cnn-s" in card
    assert 'Zoo.load("org/zoo", "' in card
    assert not [path for path in files if "cache" in path or path.endswith("-00002.parquet")]
    folder = pull("org/zoo", tmp_path / "pulled", api=api)
    for config in ("mnist-cnn-s", "usps-cnn-s"):
        tokens = Zoo.load(folder, config).splits["test"].stacked_tokens()
        assert torch.equal(tokens, tiny_zoo.splits["test"].stacked_tokens())


def test_an_adapter_names_its_base_model(hub, api, adapter):
    plan_push("adapter", adapter, "org/adapter", api=api).push(api)
    assert "adapter_model.safetensors" in hub.repositories["models", "org/adapter"].files


@pytest.mark.parametrize("base", ["/home/me/sane", "./sane", "~/sane", None, "", "a/b/c"])
def test_an_adapter_of_a_local_model_is_refused(adapter, base):
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(ValueError, match="which is not a repository on the Hub; push that model first"):
        plan_push("adapter", adapter, "org/adapter")


def test_an_adapter_of_a_folder_that_looks_like_a_repo_id_is_refused(adapter, tmp_path, monkeypatch):
    (tmp_path / "org" / "sane").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="belongs to 'org/sane', which is not a repository"):
        plan_push("adapter", adapter, "org/adapter")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "model",
            r"is not a complete SANE folder: .*missing \['preprocessor_config.json'\]; save it first",
        ),
        ("adapter", "is not a complete adapter"),
    ],
)
def test_an_incomplete_folder_is_refused(samples, kind, message):
    with pytest.raises(ValueError, match=message):
        plan_push(kind, samples / "network_0", "org/x")


def test_a_network_without_card_is_refused(samples):
    for name in ("README.md", MANIFEST):
        (samples / "network_2" / name).unlink()
    with pytest.raises(ValueError, match=r"network_2 is not a complete network: .*missing \['README.md'\]"):
        plan_push("samples", samples, "org/x")


@pytest.mark.parametrize("cut", ["network_1", "network_2/model.safetensors", "network_0/provenance.json"])
def test_a_folder_that_lost_networks_or_bytes_is_refused(samples, tmp_path, cut):
    with output_folder(tmp_path / "sampled", "sample") as partial:
        shutil.copytree(samples, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    folder, place = tmp_path / "sampled", tmp_path / "sampled" / cut
    assert plan_push("samples", folder, "org/x").files
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.write_bytes(place.read_bytes()[:-1] + b"?")
    with pytest.raises(InvalidFileError, match=f"sampled/{cut}.*: expected .*run the command that wrote it again"):
        plan_push("samples", folder, "org/x")


def test_networks_beside_each_other_are_checked_one_by_one(samples):
    weights = samples / "network_1/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InvalidFileError, match=r"network_1/model\.safetensors: expected [\d,]+ bytes, got"):
        plan_push("samples", samples, "org/x")


def test_large_files_are_compared_byte_by_byte_and_manifests_stay_at_home(sane, monkeypatch):
    monkeypatch.setattr("hf_sane.records._manifests.MAX_BYTES_READ", 0)
    files = {file.path for file in plan_push("model", sane, "org/x").files}
    assert files & {MANIFEST} == set()
    assert Manifest.load(sane).files.keys() - {"README.md"} <= files
    weights = sane / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(InvalidFileError, match=r"model\.safetensors"):
        plan_push("model", sane, "org/x")


def test_an_edited_card_is_pushed_as_it_is(sane):
    card = sane / "README.md"
    card.write_text(card.read_text() + "\nEdited by hand.\n")
    (pushed,) = [file.content for file in plan_push("model", sane, "org/x").files if file.path == "README.md"]
    assert b"Edited by hand." in pushed


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no network in .*; expected config.json in it or in its subfolders"):
        plan_push("samples", tmp_path, "org/x")
    with pytest.raises(FileNotFoundError, match="is not a zoo: expected zoo.json"):
        plan_push("zoo", tmp_path, "org/x")
    with pytest.raises(ValueError, match="missing"):
        plan_push("model", tmp_path / "nothing", "org/x")
    with pytest.raises(
        NotADirectoryError, match="expected a folder to push, got .*nothing; save the artefact there first"
    ):
        folder_files(tmp_path / "nothing")
    with pytest.raises(
        ValueError, match="expected a kind of artefact, one of model, zoo, samples, adapter, got 'cake'"
    ):
        plan_push("cake", tmp_path, "org/x")


def test_a_zoo_without_data_is_refused(api, tiny_zoo, tmp_path):
    tiny_zoo.save(tmp_path, "mnist")
    shutil.rmtree(tmp_path / "mnist")
    with pytest.raises(FileNotFoundError, match=r"has zoo.json but no data in \['mnist'\]; build the zoo again"):
        plan_push("zoo", tmp_path, "org/x", api=api)


@pytest.mark.parametrize("repo_id", ["../x", "a/../b", "a/b/c", "org/x.git", "org/" + "x" * 100, "org/x y"])
def test_repo_ids_are_checked(samples, repo_id):
    for attempt in (lambda: plan_push("samples", samples, repo_id), lambda: find_repository(repo_id)):
        with pytest.raises(HFValidationError):
            attempt()
    with pytest.raises(HFValidationError):
        address_card("text", repo_id)


def test_pickles_links_and_tokens_do_not_leave(samples, tmp_path):
    network = samples / "network_0"
    (network / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="optimizer.pt is a pickle, which can run code where it is loaded"):
        plan_push("samples", samples, "org/x")
    (network / "optimizer.pt").unlink()
    (tmp_path / "passwords.txt").write_text("secret")
    (network / "notes.txt").symlink_to(tmp_path / "passwords.txt")
    with pytest.raises(ValueError, match="notes.txt leads to .*passwords.txt, out of the folder that is pushed"):
        plan_push("samples", samples, "org/x")
    (network / "notes.txt").unlink()
    (network / MANIFEST).unlink()
    (network / "run.json").write_text(json.dumps({"command": "x --token hf_" + "a1B" * 12}))
    with pytest.raises(
        ValueError, match="run.json holds an access token of the Hub; remove it, and revoke that token"
    ):
        plan_push("samples", samples, "org/x")


def test_pushing_after_the_server_died_loses_and_doubles_nothing(hub, api, tmp_path, impatient):
    """Large files that arrived before the connection broke are not sent again, and nothing shows before the commit."""
    folder = tmp_path / "sane"
    extractor = SANEFeatureExtractor(token_dim=20).fit([build_model(cnn_digits())])
    config = SANEConfig(token_dim=20, hidden_size=64, latent_dim=4, num_hidden_layers=1, num_attention_heads=2)
    save_sane(folder, SANEModel(config), extractor, RECORD)
    for index in range(3):
        (folder / f"part_{index}.safetensors").write_bytes(bytes([index]) * 200_000)
    upload = plan_push("model", folder, "org/sane", api=api)
    hub.die_after_uploads = 2
    with pytest.raises(Exception, match=".") as broken:
        upload.push(api)
    assert isinstance(broken.value, OSError | RuntimeError) or "http" in type(broken.value).__module__
    assert len(hub.storage.uploads) == 2
    assert "config.json" not in hub.repositories["models", "org/sane"].files
    hub.die_after_uploads = None
    hub.start()
    upload.push(api)
    assert len(hub.storage.uploads) == len(set(hub.storage.uploads)) == 4
    files = hub.repositories["models", "org/sane"].files
    assert {file.path for file in upload.files} <= files.keys()
    for index in range(3):
        assert files[f"part_{index}.safetensors"] == bytes([index]) * 200_000
    titles = len(hub.repositories["models", "org/sane"].titles)
    upload.push(api)  # a third time: nothing is left to send
    assert len(hub.storage.uploads) == 4
    assert len(hub.repositories["models", "org/sane"].titles) <= titles + 1


def test_pulling_refuses_what_is_too_large_and_leaves_pickles(hub, api, tmp_path):
    hub.storage.add_files(
        "models", "org/mixed", {"weights.bin": b"x" * 50, "a[1].json": b"{}", "model.safetensors": b"y" * 9}
    )
    assert find_repository("org/mixed", api=api)[0] == "model"
    _, refused = plan_pull("org/mixed", repo_type="model", api=api)
    assert refused == ["weights.bin"]
    with pytest.raises(
        ValueError, match=r"org/mixed holds 11 bytes in 2 files, more than the limit of 10; raise the limit"
    ):
        pull("org/mixed", tmp_path / "out", max_bytes=10, api=api)
    assert not (tmp_path / "out").exists()
    assert not hub.sent("resolve")
    pull("org/mixed", tmp_path / "out", api=api)
    assert (tmp_path / "out" / "a[1].json").read_text() == "{}"
    assert not (tmp_path / "out" / "weights.bin").exists()
    pull("org/mixed", tmp_path / "out", allow_pickle=True, api=api)
    assert (tmp_path / "out" / "weights.bin").exists()


def test_a_repository_that_is_not_there_or_not_ours(hub, api):
    hub.storage.create("models", "org/private", private=True)
    for name, client in (("org/nothing", api), ("org/private", HfApi(endpoint=hub.address, token=False))):
        with pytest.raises(RepositoryNotFoundError):
            find_repository(name, api=client)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\b", "C:/x", "x\0y", ""])
def test_names_that_lead_out_of_the_folder_are_refused(path):
    with pytest.raises(ValueError, match="points outside its folder; do not trust it"):
        check_path(path, "org/evil")


@pytest.mark.parametrize("path", ["x", "a/b.json", "a..b", ".gitattributes", "a/b c[1].json"])
def test_ordinary_names_are_fine(path):
    check_path(path, "org/good")
    check_size([RepoFile(path, 10)], 10, "org/good")


def test_a_server_that_names_files_outside_is_not_believed(hub, api, tmp_path):
    hub.storage.add_files("models", "org/evil", {"../evil.json": b"{}"})
    with pytest.raises(ValueError, match=re.escape("org/evil contains the file name '../evil.json'")):
        pull("org/evil", tmp_path / "a" / "b", api=api)
    assert not list(tmp_path.rglob("*.json"))


def test_what_is_pushed_names_no_folder_of_this_machine(hub, api, tmp_path):
    """Neither the card, nor run record and provenance; the files at home keep them."""
    command = "hf-sane finetune /home/ann/networks -o /home/ann/out"
    record = RunRecord(command=command, arguments={"networks": ["/home/ann/networks"], "zoo": "/home/ann/zoo"})
    provenance = Provenance("subsampled", sane_model="/home/ann/sane", zoo="/home/ann/zoo", index=0)
    for name, known in (("with", provenance), ("without", None)):
        folder = save_network(tmp_path / name, build_model(cnn_digits()), record, provenance=known)
        plan_push("samples", folder, f"org/{name}", api=api).push(api)
        files = hub.repositories["models", f"org/{name}"].files
        assert [path for path, content in files.items() if b"/home/ann" in content] == []
        assert "hf-sane finetune networks -o out" in files["README.md"].decode()
        assert json.loads(files["run.json"])["arguments"] == {"networks": ["networks"], "zoo": "zoo"}
        assert RunRecord.load(folder / "run.json").command == command
    assert json.loads(hub.repositories["models", "org/with"].files["provenance.json"])["sane_model"] == "sane"


def test_a_zoo_on_the_hub_names_no_folder_of_this_machine(local_hub, tiny_zoo, tmp_path):
    arguments = {**tiny_zoo.facts.arguments, "folder": "/home/ann/networks"}
    record = RunRecord(command="hf-sane zoo build --output /home/ann/zoo")
    zoo = replace(tiny_zoo, facts=replace(tiny_zoo.facts, arguments=arguments), run_record=record)
    zoo.save(tmp_path / "zoo")
    plan_push("zoo", tmp_path / "zoo", "org/pushed").push()
    zoo.push_to_hub("org/saved", token=TOKEN)
    for name in ("org/pushed", "org/saved"):
        files = local_hub.repositories["datasets", name].files
        assert [path for path, content in files.items() if b"/home/ann" in content] == []
        facts = json.loads(files["zoo.json"])["configs"]["default"]
        assert facts["arguments"]["folder"] == "networks"
    assert Zoo.load(tmp_path / "zoo").facts.arguments["folder"] == "/home/ann/networks"
    pushed, saved = (local_hub.repositories["datasets", f"org/{name}"].files for name in ("pushed", "saved"))
    assert {path: content.replace(b"org/pushed", b"org/saved") for path, content in pushed.items()} == saved


def test_a_network_that_its_run_saved_may_not_be_missing(samples):
    """The record of the run says so, whether or not the manifest is still there."""
    saved = ["network_0", "network_1", "network_2"]
    RunRecord(command="hf-sane sample", results={"saved": saved}).save(samples / "run.json")
    assert plan_push("samples", samples, "org/sampled").title == "Sampled networks: 3"
    shutil.rmtree(samples / "network_2")
    with pytest.raises(ValueError, match="lacks network_2 of the 3 networks that its run.json says were saved"):
        plan_push("samples", samples, "org/sampled")


def test_a_network_that_its_run_did_not_save_is_not_published_as_if_it_had(samples, tmp_path):
    with output_folder(tmp_path / "sampled", "sample") as partial:
        shutil.copytree(samples, partial, dirs_exist_ok=True)
    assert plan_push("samples", tmp_path / "sampled", "org/sampled").title == "Sampled networks: 3"
    shutil.copytree(samples / "network_0", tmp_path / "sampled" / "mine")
    with pytest.raises(ValueError, match="also holds mine, which its run did not write"):
        plan_push("samples", tmp_path / "sampled", "org/sampled")


@pytest.mark.parametrize("kind", ["model", "zoo"])
def test_without_a_connection_a_push_says_so(kind, sane, tiny_zoo_folder):
    api = HfApi(endpoint="http://127.0.0.1:9", token=TOKEN)
    with pytest.raises(ConnectionError, match="the Hub cannot be reached"):
        plan_push(kind, sane if kind == "model" else tiny_zoo_folder, "org/target", api=api).push(api)
