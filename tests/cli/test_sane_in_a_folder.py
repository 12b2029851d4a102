"""A SANE in a folder of a repository, next to other things, is found by the verbs that take one."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

import hf_sane
from hf_sane.sampling._export import Provenance


@pytest.fixture
def repo(tiny_sane_folder, local_hub, monkeypatch, tmp_path):
    """`org/run@v1` with an autoencoder in `deep/model` only; also the folder, as `local`."""
    monkeypatch.chdir(tmp_path)
    files = {f"deep/model/{path.name}": path.read_bytes() for path in tiny_sane_folder.iterdir() if path.is_file()}
    repository = local_hub.storage.add_files("models", "org/run", files)
    repository.tags["v1"] = repository.head.sha
    local_hub.storage.add_files("models", "org/run", {"deep/model/config.json": b"{}"})  # what is there now is no use
    for name, content in files.items():
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(content)
    return repository


def test_it_is_the_one_of_that_folder_and_revision(repo, tiny_sane_folder, tiny_zoo):
    expected = hf_sane.SANE.from_pretrained(tiny_sane_folder)
    for source in ("org/run@v1", "local"):
        found = hf_sane.SANE.from_pretrained(source, subfolder="deep/model")
        weights = zip(found.model.parameters(), expected.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in weights)
        assert found.extractor.to_dict() == expected.extractor.to_dict()
        assert found.revision == (repo.tags["v1"] if source == "org/run@v1" else None)
        assert found.record.to_dict() == expected.record.to_dict()


@pytest.mark.parametrize("source", ["org/run@v1", "local"])
def test_every_verb_takes_it(source, repo, tiny_zoo_folder, hf_sane_command, tmp_path):
    where = ("--sane", source, "--sane-subfolder", "deep/model")
    from_zoo = ("--zoo", tiny_zoo_folder)
    hf_sane_command(
        "sample", *where, *from_zoo, "-o", "nets", "--num-samples", 1, "--num-candidates", 1, "--bandwidth", 0.1
    )
    network = "nets/network_0"
    assert Provenance.load(network).sane_subfolder == "deep/model"
    hf_sane_command("embed", network, *where, "-o", "embedded")
    hf_sane_command("probe", *where, *from_zoo, "--poolings", "mean")
    hf_sane_command("analyze", network, *where, "--min-values", 3, "--num-bootstrap", 0, "--no-plots")
    shown = hf_sane_command("info", network, "--sane", source, "--sane-subfolder", "deep/model", "--json")
    assert json.loads(shown.output)["total"]["tokens"] == 52
    hf_sane_command(
        *("pretrain", *from_zoo, "--from", source, "--from-subfolder", "deep/model", "-o", "run"),
        *("--max-steps", 1, "--eval-every-epochs", 0, "--log-with", "none", "--no-progress-bar"),
    )


def test_a_revision_may_be_an_option(repo, tiny_zoo_folder, hf_sane_command, local_hub):
    """Of the SANE and of the zoo, whose main branches hold neither."""
    files = {path.relative_to(tiny_zoo_folder).as_posix(): path for path in tiny_zoo_folder.rglob("*")}
    files = {name: path.read_bytes() for name, path in files.items() if path.is_file() and ".cache" not in name}
    repository = local_hub.storage.add_files("datasets", "org/zoo", files)
    repository.tags["v2"] = repository.head.sha
    local_hub.storage.add_files("datasets", "org/zoo", {"zoo.json": b"{}"})
    where = ("--sane", "org/run", "--sane-subfolder", "deep/model", "--sane-revision", "v1")
    zoo = ("--zoo", "org/zoo", "--zoo-revision", "v2")
    probed = json.loads(hf_sane_command("probe", *where, *zoo, "--poolings", "mean", "--json").output)
    local = hf_sane_command("probe", *where, "--zoo", tiny_zoo_folder, "--poolings", "mean", "--json").output
    assert probed["probe"] == json.loads(local)["probe"]
    old = hf_sane_command("zoo", "show", "org/zoo", "--revision", "v2")
    assert old.stdout == hf_sane_command("zoo", "show", "org/zoo", "--zoo-revision", "v2").stdout
    assert "zoo show: --revision is now --zoo-revision; the old spelling works until version" in old.stderr
    old = hf_sane_command("embed", "--zoo", "org/zoo@v2", *where[:-2], "--revision", "v1", "-o", "e")
    assert "embed: --revision is now --sane-revision; the old spelling works until version" in old.stderr


TAKE_BOTH = ["embed", "probe", "reconstruct", "sample", "compare", "linear", "regions", "pretrain"]


@pytest.mark.parametrize("verb", TAKE_BOTH)
def test_every_verb_asks_for_the_revision_of_the_zoo(verb, local_hub, hf_sane_command, tmp_path, tiny_sane_folder):
    local_hub.storage.add_files("datasets", "org/zoo", {"zoo.json": b"{}"})
    options = ("--zoo", "org/zoo", "--zoo-revision", "missing", "-o", tmp_path / "out")
    options += () if verb in ("sample", "linear", "regions", "pretrain") else ("--sane", tiny_sane_folder)
    options += ("--images", "digits") if verb == "reconstruct" else ()
    assert "org/zoo@missing" in hf_sane_command(verb, *options, exit_code=2).stderr


def test_what_is_not_there_is_said_with_what_to_do(repo, hf_sane_command):
    said = hf_sane_command("embed", "x", "--sane", "org/run@v1", "-o", "e", exit_code=2).stderr
    assert said == (
        "hf-sane: org/run@v1: expected a SANE autoencoder, got a repository without its files there; if they are in a "
        "subfolder, pass that, too (subfolder=; --sane-subfolder for a SANE)\n"
    )
    said = hf_sane_command("embed", "x", "--sane", "local", "--sane-subfolder", "a", "-o", "e", exit_code=2).stderr
    assert said.startswith("hf-sane: no such file or folder: local/a (tried ")
    with pytest.raises(StrictDataclassError, match="a subfolder .* needs a SANE to continue from"):
        hf_sane.pretrain("zoo", output="run", from_subfolder="deep/model")
