"""What verbs leave on disk: all of it or nothing, never over somebody's files, and refused before any work."""

import json
import stat

import numpy as np
import pytest
from safetensors.torch import save_file

from hf_sane.records import _progress
from hf_sane.records._manifests import MANIFEST, Manifest
from hf_sane.records._outputs import check_finished
from hf_sane.workflows.sane import SANE

NOT_THERE = ("--sane", "no/such/sane", "--zoo", "no/such/zoo")


@pytest.fixture(scope="module")
def inputs(tiny_sane_folder, tiny_zoo_folder, tiny_zoo, tmp_path_factory):
    """Command line of every verb that writes a folder, without `--output`."""
    folder = tmp_path_factory.mktemp("inputs")
    finals = tiny_zoo.splits["train"].final_epochs().networks()
    networks = [finals.model(index) for index in (0, 1)]
    for index, network in enumerate(networks):
        network.save_pretrained(folder / f"network_{index}")
    checkpoint = folder / "checkpoint.safetensors"
    save_file(networks[0].state_dict(), checkpoint)
    images = folder / "few.npz"
    np.savez(images, train_images=np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8), train_labels=np.arange(40) % 2)
    brings = SANE.from_pretrained(tiny_sane_folder).save_pretrained(folder / "sane" / "brings", anchors=networks)
    sane, zoo = ("--sane", tiny_sane_folder), ("--zoo", tiny_zoo_folder)
    return {
        "sample": (
            *("sample", *sane, *zoo, "--num-samples", 2, "--num-candidates", 4),
            *("--bandwidth", 0.1, "--images", "digits"),
        ),
        "compare": ("compare", *sane, *zoo, "--num-candidates", 4, "--num-samples", 2, "--bandwidth", 0.1),
        "reconstruct": ("reconstruct", *sane, *zoo, "--images", "digits"),
        "embed": ("embed", *sane, *zoo, "--poolings", "mean"),
        "embed checkpoints": ("embed", checkpoint, *sane, "--poolings", "mean"),
        "probe": ("probe", *sane, *zoo, "--poolings", "mean", "--properties", "epoch"),
        "analyze": ("analyze", checkpoint, "--num-bootstrap", 0, "--min-values", 4),
        "regions": ("regions", *zoo, "--label", "initialization", "--method", "pca"),
        "finetune": ("finetune", folder, "--epochs", 1, "--train-limit", 64, "--no-scratch"),
        "soup": ("soup", folder),
        "start": (
            *("start", "--images", images, "--num-candidates", 2, "--num-starts", 1, "--bandwidth", 0.1),
            *("--epochs", 1, "--learning-rate", 0.01, "--sane", brings),
        ),
    }


MISSING = {
    "sample": ("sample", *NOT_THERE),
    "compare": ("compare", *NOT_THERE),
    "reconstruct": ("reconstruct", *NOT_THERE, "--images", "digits"),
    "embed": ("embed", *NOT_THERE),
    "embed checkpoints": ("embed", "no/such/file", "--sane", "no/such/sane"),
    "probe": ("probe", *NOT_THERE),
    "analyze": ("analyze", "no/such/file"),
    "regions": ("regions", "--zoo", "no/such/zoo"),
    "finetune": ("finetune", "no/such/folder"),
    "soup": ("soup", "no/such/a", "no/such/b"),
    "start": ("start", "--images", "no/such/images"),
    "demo": ("demo",),
}
VERBS = [verb for verb in MISSING if verb != "demo"]  # it is interrupted in tests/workflows/demo


def bars_of(monkeypatch):
    """The bars of progress that are made from now on."""
    made = []

    class Noted(_progress.Bar):
        """A bar that is noted."""

        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            made.append(self)

    monkeypatch.setattr(_progress, "Bar", Noted)
    return made


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("verb", MISSING)
@pytest.mark.parametrize("name", ["README.md", "config.json", "data/train-00000-of-00003.parquet"])
def test_a_strangers_folder_is_refused_before_the_input_is_looked_at(verb, name, tmp_path, hf_sane_command):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("theirs")
    refused = hf_sane_command(*MISSING[verb], "--output", tmp_path / "out", exit_code=2)
    assert f"out holds {name.partition('/')[0]}, not ours to replace" in refused.stderr
    assert contents(tmp_path) == {f"out/{name}": b"theirs"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_stops_in_the_middle_leaves_nothing_and_its_rerun_is_whole(
    verb, inputs, tmp_path, monkeypatch, hf_sane_command
):
    def stop(*arguments, **settings):
        raise RuntimeError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "save", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            hf_sane_command(*inputs[verb], "--output", tmp_path / "new/out")
    assert list(tmp_path.iterdir()) == []
    bars = bars_of(monkeypatch)
    told = hf_sane_command(*inputs[verb], "--output", tmp_path / "new/out", "--json")
    assert json.loads(told.stdout)["output"] == str(tmp_path / "new/out")
    assert told.stderr == ""
    assert bars, "long work that nobody sees the progress of"
    assert all(bar.disable for bar in bars)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    manifest = check_finished(tmp_path / "new/out", all_digests=True)
    assert manifest is not None
    files = contents(tmp_path / "new/out")
    assert {*manifest.files, MANIFEST} == files.keys()
    assert "run.json" in files
    assert not [name for name, content in files.items() if b"hf_sane-partial" in content]
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 1
    (tmp_path / "new/out/README.md").write_text("edited")
    refused = hf_sane_command(*MISSING[verb], "--output", tmp_path / "new/out", exit_code=2).stderr
    assert f"already holds a finished {manifest.job}; choose another output folder or delete it" in refused
    assert (tmp_path / "new/out/README.md").read_text() == "edited"


def test_sampled_networks_that_are_not_all_there_are_not_pushed(inputs, tmp_path, hf_sane_command):
    hf_sane_command(*inputs["sample"], "--output", tmp_path / "out")
    for path in (tmp_path / "out/network_1").iterdir():
        path.unlink()
    refused = hf_sane_command("push", "samples", tmp_path / "out", "org/x", "--dry-run", exit_code=2).stderr
    assert "network_1/" in refused
    assert "got no such file; run the command that wrote it again" in refused


@pytest.mark.parametrize("verb", ["finetune", "soup"])
def test_networks_that_changed_since_they_were_sampled_are_not_used(verb, inputs, tmp_path, hf_sane_command):
    hf_sane_command(*inputs["sample"], "--output", tmp_path / "sampled")
    weights = tmp_path / "sampled/network_0/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    refused = hf_sane_command(verb, tmp_path / "sampled", "--output", tmp_path / "out", exit_code=2).stderr
    assert "model.safetensors: expected the content that hf_sane_manifest.json lists" in refused
    assert not (tmp_path / "out").exists()
