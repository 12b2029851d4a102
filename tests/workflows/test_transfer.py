"""`push` and `pull` from Python, against a server: the same files and numbers as the verbs."""

import json
from dataclasses import fields

import pytest

from hf_sane.workflows.finetune_lora import FinetuneLoraSettings
from hf_sane.workflows.transfer import PushSettings, pull, push


# huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_a_zoo_goes_to_the_hub_and_back(local_hub, tiny_zoo_folder, tmp_path, hf_sane_command):
    planned = push("zoo", tiny_zoo_folder, "org/zoo@main", dry_run=True)
    assert not local_hub.repositories
    assert planned.commit is None
    assert str(planned) == hf_sane_command("push", "zoo", tiny_zoo_folder, "org/zoo@main", "--dry-run").output.rstrip()
    assert str(planned).endswith("nothing was sent; without --dry-run, these files go to org/zoo@main (dataset)")
    sent = push("zoo", tiny_zoo_folder, "org/zoo", private=True)
    assert sent.commit in str(sent)
    assert local_hub.repositories["datasets", "org/zoo"].private
    sizes = {path: len(content) for path, content in local_hub.repositories["datasets", "org/zoo"].files.items()}
    assert sent.to_dict()["files"] == {path: size for path, size in sizes.items() if path != ".gitattributes"}
    fetched = pull("org/zoo", tmp_path / "zoo")
    assert fetched.output == tmp_path / "zoo"
    assert fetched.to_dict()["files"] == sizes
    assert (fetched.repo_type, str(fetched).splitlines()[-1]) == ("dataset", f"wrote {tmp_path / 'zoo'}")
    as_json = json.loads(hf_sane_command("pull", "org/zoo", "-o", tmp_path / "zoo", "--json").output)
    assert as_json == fetched.to_dict() | {"output": str(tmp_path / "zoo")}


@pytest.mark.parametrize("settings", [PushSettings, FinetuneLoraSettings])
def test_private_means_the_same_everywhere(settings):
    (entry,) = (entry for entry in fields(settings) if entry.name == "private")
    assert (entry.type, entry.default, entry.metadata["opposite"]) == (bool | None, None, "--public")


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_public_is_the_opposite_of_private(local_hub, tiny_zoo_folder, hf_sane_command):
    hf_sane_command("push", "zoo", tiny_zoo_folder, "org/open", "--public")
    assert not local_hub.repositories["datasets", "org/open"].private
    assert "--private / --public" in hf_sane_command("push", "--help").output


def test_pickles_are_left_out_and_named(local_hub, tmp_path, hf_sane_command):
    local_hub.storage.add_files("models", "org/old", {"weights.pt": b"x" * 10, "config.json": b"{}"})
    found = pull("org/old", tmp_path / "old", dry_run=True)
    assert found.notes == ["left out: weights.pt is a pickle (--allow-pickle downloads it)"]
    assert "config.json" in found.to_dict()["files"]
    assert "weights.pt" not in found.to_dict()["files"]
    result = hf_sane_command("pull", "org/old", "-o", tmp_path / "old", "--type", "model")
    assert "--type is now --repo-type" in result.stderr
    assert "left out: weights.pt" in result.stderr
    assert [path.name for path in (tmp_path / "old").glob("weights*")] == []
