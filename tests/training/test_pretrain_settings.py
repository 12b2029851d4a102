"""PretrainSettings: every field documented, every mistake named."""

import json
import re
from dataclasses import fields

import pytest
import typer
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from program import parse_settings

from hf_sane.training._settings import RESUMABLE, PretrainSettings

NEEDED = {"zoo": ["zoo"], "output": "run"}


def test_every_field_has_a_help_text():
    assert len(fields(PretrainSettings)) > 30
    for entry in fields(PretrainSettings):
        assert len(entry.metadata["help"]) >= 10, entry.name


def test_flags_and_keywords_give_the_same_arguments():
    flags = "--zoo a b --output_dir run --noise 0.5 --epochs 3 --no_progress_bar --views aligned --max_steps 7"
    parsed = parse_settings(PretrainSettings, [*flags.split(), "--model", '{"hidden_size": 32}'], name="pretrain.py")
    assert parsed == PretrainSettings(
        zoo=["a", "b"],
        output="run",
        noise=0.5,
        epochs=3,
        progress_bar=False,
        views=["aligned"],
        max_steps=7,
        model={"hidden_size": 32},
    )


@pytest.mark.parametrize("flag", ["--nois", "--hidden_size", "--view"])
def test_unknown_and_abbreviated_flags_raise(flag):
    with pytest.raises(typer.BadParameter.__base__) as refused:
        parse_settings(PretrainSettings, ["--zoo", "a", "--output", "run", flag, "1"], name="pretrain.py")
    assert re.search(f"No such option:? '?{flag}\\b", refused.value.format_message())


def test_unknown_keywords_raise():
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rat'"):
        PretrainSettings(**NEEDED, learning_rat=0.1)


def test_model_settings_come_as_dictionary_json_or_file(tmp_path):
    file = tmp_path / "model.json"
    file.write_text(json.dumps({"latent_dim": 5}))
    for given in ({"latent_dim": 5}, '{"latent_dim": 5}', str(file)):
        assert PretrainSettings(**NEEDED, model=given).model == {"latent_dim": 5}
    assert PretrainSettings(**NEEDED).model == {}


@pytest.mark.parametrize(
    "wrong",
    [{"noise": "0.1"}, {"epochs": 2.0}, {"mixed_precision": "fp16"}, {"behavior_loss": "l1"}, {"zoo": 5}],
)
def test_wrong_types_raise(wrong):
    with pytest.raises((TypeError, ValueError, StrictDataclassFieldValidationError), match=next(iter(wrong))):
        PretrainSettings(**NEEDED | wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1"),
        ({"halo_size": -1}, "halo_size must not be negative, got -1"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0; leave it out"),
        ({"noise": -0.1}, "expected noise to be a finite number of at least 0, got -0.1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"warmup_share": 1.0}, "warmup_share must lie strictly between 0 and 1"),
        ({"erase": 1.0}, r"erase must lie in \[0, 1\)"),
        ({"behavior_weight": 1.1, "behavior_data": "digits"}, r"behavior_weight must lie in \[0, 1\]"),
        ({"behavior_latent_noise": -0.1}, "behavior_latent_noise must be a number >= 0, got -0.1"),
        ({"zoo": []}, "expected at least one zoo, got none; give"),
        (
            {"views": ["mirrored"]},
            r"expected views to be one or two of 'original', 'aligned', 'permuted', got \['mirrored'\]",
        ),
        ({"views": ["aligned"] * 3}, "expected views to be one or two"),
        ({"supervised_weight": -0.1}, "supervised_weight must not be negative, got -0.1"),
        ({"supervised_weight": 0.1, "batch_size": 2}, "needs batches of at least 3 windows, .* got batch_size=2,"),
        ({"supervised_weight": 0.1, "supervised_properties": []}, r"supervised_properties=\[\], streaming=False"),
        ({"supervised_weight": 0.1, "streaming": True}, "zoos that are not streamed; got .* streaming=True"),
        ({"second_network": "same_run", "views": ["aligned"]}, r"'same_run' needs two views, got views=\['aligned'\]"),
        ({"second_network": "same_run", "streaming": True}, "'same_run' needs all checkpoints of a run,"),
        ({"behavior_weight": 0.5}, "behavior_weight > 0 needs behavior_data"),
    ],
)
def test_values_out_of_range_raise(wrong, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        PretrainSettings(**NEEDED | wrong)


def test_a_run_continues_only_with_its_own_settings():
    first = json.loads(json.dumps(PretrainSettings(**NEEDED).to_dict()))
    PretrainSettings(**NEEDED | {"output": "moved"}, resume=True, checkpoint_every_steps=9).check_continues(first)
    with pytest.raises(ValueError, match=r"other settings of noise, seed: expected \[0.1, 0\], got \[0.3, 4\]"):
        PretrainSettings(**NEEDED, noise=0.3, seed=4).check_continues(first)
    assert set(RESUMABLE) <= {entry.name for entry in fields(PretrainSettings)}
