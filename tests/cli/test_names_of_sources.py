"""Every verb answers a wrong name at once, says what was tried, and accepts a revision."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

NETWORK = {"fc.weight": torch.arange(12.0).reshape(3, 4), "fc.bias": torch.ones(3)}
OUTPUT = ("--output", "out")
VERBS = {
    "info": ("info", "{}"),
    "info --extractor": ("info", "here.safetensors", "--extractor", "{}"),
    "analyze": ("analyze", "{}"),
    "analyze --sane": ("analyze", "here.safetensors", "--min-values", 3, "--sane", "{}"),
    "scan": ("scan", "{}"),
    "diff": ("diff", "here.safetensors", "{}"),
    "lineage": ("lineage", "here.safetensors", "{}"),
    "search": ("search", "{}", "--index", "here"),
    "embed --sane": ("embed", "here.safetensors", "--sane", "{}", *OUTPUT),
    "embed --zoo": ("embed", "--zoo", "{}", "--sane", "sane", *OUTPUT),
    "soup": ("soup", "{}", "{}", *OUTPUT),
    "regions --zoo": ("regions", "--zoo", "{}", *OUTPUT, "--no-plots"),
    "regions --adapter": ("regions", "--adapter", "a={}", "--adapter", "b={}", *OUTPUT, "--no-plots"),
    "zoo show": ("zoo", "show", "{}"),
    "zoo structure": ("zoo", "structure", "{}"),
    "zoo mix": ("zoo", "mix", "a={}", *OUTPUT),
    "probe": ("probe", "--zoo", "{}", "--sane", "{}"),
    "compare": ("compare", "--zoo", "{}", "--sane", "sane"),
    "reconstruct": ("reconstruct", "--zoo", "{}", "--sane", "sane", "--images", "digits"),
    "sample": ("sample", "--zoo", "{}", "--sane", "sane", *OUTPUT),
    "pretrain": ("pretrain", "--zoo", "{}", *OUTPUT),
    "pretrain --streaming": ("pretrain", "--zoo", "{}", "--streaming", *OUTPUT),
}
LOCAL_VERBS = {
    "finetune": ("finetune", "{}", *OUTPUT),
    "push": ("push", "model", "{}", "org/model"),
    "zoo align": ("zoo", "align", "{}"),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "here.safetensors").write_bytes(save(NETWORK))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refusal(hf_sane_command, local_hub):
    """What a verb says to a wrong name, and how often it asked the Hub about it."""

    def call(arguments, name):
        filled = [str(argument).format(name) for argument in arguments]
        said = hf_sane_command(*filled, exit_code=2).stderr
        return said, [request.path for request in local_hub.log if name in request.path]

    return call


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_name_is_asked_for_once(verb, here, refusal, local_hub):
    said, asked = refusal(VERBS[verb], "mixed/nothere")
    assert "no such file or folder, and no such " in said
    assert f"repository on the Hub: tried {here}/mixed/nothere and {local_hub.address}/" in said
    assert len(asked) == 1, asked
    assert not (here / "out").exists() or verb.startswith("pretrain")


@pytest.mark.parametrize("verb", {**VERBS, **LOCAL_VERBS})
def test_a_wrong_path_is_not_asked_for(verb, here, refusal):
    said, asked = refusal({**VERBS, **LOCAL_VERBS}[verb], "wrong/dir/x")
    assert f"no such file or folder: wrong/dir/x (tried {here}/wrong/dir/x); give an existing path" in said
    assert asked == []


def test_an_import_names_its_repositories(here, hf_sane_command, local_hub):
    for name, what in (("here.safetensors", "is on this machine: pass it as folder"), ("./x", "does not exist")):
        said = hf_sane_command("zoo", "import", name, "--output", "out", exit_code=2).stderr
        assert f"{name}: expected a repository on the Hub, owner/name, got a path, which {what}" in said
    assert not (here / "out").exists()


def test_without_a_network_the_path_is_named_too(here, hf_sane_command, local_hub):
    local_hub.stop()
    said = hf_sane_command("info", "mixed/nothere", exit_code=2).stderr
    assert "no such file or folder, and the Hub cannot be reached to ask for a repository of that name: tried " in said
    assert f"{here}/mixed/nothere" in said


@pytest.mark.parametrize("verb", ["info", "analyze"])
def test_a_revision_is_part_of_the_name(verb, hf_sane_command, local_hub):
    options = ("--json", *(("--min-values", 3, "--num-bootstrap", 0) if verb == "analyze" else ()))
    repository = local_hub.storage.add_files("models", "org/network", {"model.safetensors": save(NETWORK)})
    repository.tags["v1"] = repository.head.sha
    local_hub.storage.add_files("models", "org/network", {"model.safetensors": save({"other": torch.ones(5, 7)})})
    old = hf_sane_command(verb, "org/network@v1", *options).output
    assert "fc" in old
    assert "other" not in old
    assert hf_sane_command(verb, "org/network", "--revision", "v1", *options).output.replace(
        "org/network", ""
    ) == old.replace("org/network@v1", "")
    assert "other" in hf_sane_command(verb, "org/network", *options).output
    twice = hf_sane_command(verb, "org/network@v1", "--revision", "v2", exit_code=2).stderr
    assert "two revisions of one repository: org/network@v1 and 'v2'" in twice


def test_mixed_zoos_may_have_an_at_sign_in_their_folders(tiny_zoo_folder, here, hf_sane_command):
    (here / "zoo@2024").symlink_to(tiny_zoo_folder)
    shown = hf_sane_command("zoo", "mix", "a=zoo@2024", "b=zoo@2024@default", "--output", "out").output
    assert "wrote out" in shown
    assert Path("out/zoo.json").exists()
