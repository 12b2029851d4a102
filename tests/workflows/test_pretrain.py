"""Pre-training from Python: a SANE out of a zoo, as the verb makes it; LoRA, resuming, publishing."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from hub_server import TOKEN, run_hub
from huggingface_hub import HfApi, constants
from typer.testing import CliRunner

from hf_sane.cli.app import app
from hf_sane.training._settings import PretrainSettings
from hf_sane.workflows.pretrain import pretrain, run_pretrain
from hf_sane.workflows.sane import SANE

MODEL = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "latent_dim": 8, "window_size": 20}
OPTIONS = {"max_steps": 2, "batch_size": 4, "num_permutations": 3, "progress_bar": False, "log_with": "none"}
FLAGS = (
    *("--max-steps", "2", "--batch-size", "4", "--num-permutations", "3", "--no-progress-bar", "--log-with", "none"),
    *("--model", json.dumps(MODEL)),
)


def same_weights(one: SANE, other: SANE) -> bool:
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture(scope="module")
def sane(tiny_zoo, run_folder):
    return pretrain(tiny_zoo, output=run_folder, model=MODEL, **OPTIONS)


def test_the_verb_makes_the_same_sane(sane, tiny_zoo_folder, tmp_path):
    output = tmp_path / "verb"
    told = CliRunner().invoke(app, ["pretrain", "--zoo", str(tiny_zoo_folder), "-o", str(output), *FLAGS, "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["steps"] == 2
    assert same_weights(sane, SANE.from_pretrained(output / "model"))


def test_it_is_ready_to_use_and_knows_its_run(sane, tiny_zoo, run_folder):
    assert not sane.model.training
    assert sane.source == str(run_folder / "model")
    assert sane.record.results["steps"] == 2
    assert sane.record.arguments.keys() == {entry.name for entry in fields(PretrainSettings)}
    assert sane.embed(tiny_zoo.splits["test"].model(0)).isfinite().all()


def test_a_finished_run_tells_again_what_it_found_and_saves_it(sane, tiny_zoo, tiny_zoo_folder, run_folder, tmp_path):
    settings = PretrainSettings(zoo=[str(tiny_zoo_folder)], output=run_folder, model=MODEL, **OPTIONS, resume=True)
    result = run_pretrain(settings, zoos=[tiny_zoo])
    assert same_weights(sane, result.sane)
    rows = {line.rpartition(" ")[0].strip(): line.rpartition(" ")[2] for line in str(result).splitlines()}
    assert (rows["steps"], rows["processes"]) == ("2", "1")
    assert str(result).splitlines()[-1] == f"wrote {run_folder / 'model'}"
    assert same_weights(sane, SANE.from_pretrained(result.save(tmp_path / "copy").output))


def test_runs_of_earlier_versions_resume(sane, tiny_zoo, tiny_zoo_folder, run_folder):
    """Their settings call the folder `output_dir`."""
    path = run_folder / "arguments.json"
    known = json.loads(path.read_text())
    assert "output_dir" not in known
    path.write_text(json.dumps({"output_dir": known.pop("output"), **known}))
    assert same_weights(sane, pretrain(tiny_zoo, output=run_folder, model=MODEL, **OPTIONS, resume=True))
    with pytest.raises(ValueError, match="with other settings of noise: expected"):
        pretrain(tiny_zoo, output=run_folder, model=MODEL, **OPTIONS, resume=True, noise=0.3)


def test_an_adapter_is_merged_into_its_base(sane, tiny_zoo, run_folder, tmp_path):
    base = str(run_folder / "model")
    adapted = pretrain(tiny_zoo, output=tmp_path / "lora", from_=base, lora=True, learning_rate=0.1, **OPTIONS)
    assert (tmp_path / "lora" / "model" / "adapter_model.safetensors").is_file()
    assert not same_weights(sane, adapted)
    assert adapted.model.state_dict().keys() == sane.model.state_dict().keys()
    heads = [found.model.projection_head.fc_in.weight for found in (adapted, sane)]
    assert torch.equal(*heads)  # no target of the adapter


def test_the_place_may_be_left_out_in_one_process(tiny_zoo, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = pretrain(tiny_zoo, model=MODEL, **OPTIONS)
    assert f"no output folder was given; the run is written to {found.source.removesuffix('/model')}" in caplog.text
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="expected an output folder that all training processes share"):
        pretrain(tiny_zoo, model=MODEL, **OPTIONS)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_it_is_published_and_comes_back(sane, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server takes plain uploads
    with run_hub() as hub:
        api = HfApi(endpoint=hub.address, token=TOKEN)
        address = sane.push_to_hub("me/sane", api=api)
        folder = api.snapshot_download("me/sane", cache_dir=tmp_path)
    assert "/me/sane/" in address
    again = SANE.from_pretrained(folder)
    assert same_weights(sane, again)
    assert again.extractor.statistics == sane.extractor.statistics
    assert 'from_pretrained("me/sane")' in Path(folder, "README.md").read_text()


@pytest.fixture(autouse=True)
def accelerator_of_its_own():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
