"""SANEConfig: what it accepts, what it refuses, and that it survives a file."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import ViTConfig

from hf_sane.models.configuration_sane import SANEConfig


def test_defaults_are_complete():
    config = SANEConfig()
    assert config.model_type == "sane"
    assert config.intermediate_size == 4 * config.hidden_size
    assert SANEConfig(intermediate_size=96).intermediate_size == 96


@pytest.mark.parametrize("position_embedding", ["learned", "sinusoidal"])
def test_round_trip_through_a_file(tmp_path, position_embedding):
    config = SANEConfig(token_dim=17, max_positions=(5, 6, 7), position_embedding=position_embedding, latent_noise=1)
    config.save_pretrained(tmp_path)
    loaded = SANEConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.max_positions == (5, 6, 7)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sane"


@pytest.mark.parametrize(
    ("key", "hint"),
    [("hiden_size", "'hidden_size'"), ("tokensize", "'token_dim'|its fields are"), ("zzz", "its fields are")],
)
def test_a_misspelt_key_raises_and_names_the_nearest_field(key, hint):
    with pytest.raises(TypeError, match=f"has no field '{key}'.*({hint})"):
        SANEConfig(**{key: 3})


def test_a_misspelt_key_in_a_file_raises(tmp_path):
    SANEConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"latent_size": 3}))
    with pytest.raises(TypeError, match="has no field 'latent_size'"):
        SANEConfig.from_pretrained(tmp_path)


def test_keys_of_transformers_itself_pass():
    assert (
        SANEConfig(attn_implementation="eager", name_or_path="x", torch_dtype="float32")._attn_implementation
        == "eager"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": "128"},
        {"hidden_size": 128.0},
        {"position_embedding": "rotary"},
        {"initialization": "xavier"},
        {"reconstruction_target": "both"},
        {"loss_normalization": "batch"},
        {"max_positions": 3},
    ],
)
def test_wrong_types_and_choices_raise(wrong):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(wrong))):
        SANEConfig(**wrong)


def test_later_assignment_is_checked_too():
    config = SANEConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match="latent_dim"):
        config.latent_dim = "64"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"token_dim": 0}, "token_dim must be at least 1, got 0"),
        ({"window_size": -1}, "window_size must be at least 1, got -1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"hidden_size": 30, "num_attention_heads": 8}, "multiple of num_attention_heads=8, got 30"),
        ({"hidden_size": 9, "num_attention_heads": 3}, "hidden_size must be even"),
        ({"hidden_size": 4, "num_attention_heads": 2}, "at least 6"),
        ({"max_positions": (5, 6)}, "three table sizes"),
        ({"max_positions": (5, 6, 0)}, "three table sizes"),
        ({"contrast_weight": 1.5}, r"contrast_weight must lie in \[0, 1\], got 1.5"),
        ({"hidden_dropout": -0.1}, "hidden_dropout must lie in"),
        ({"temperature": 0}, "temperature must be positive, got 0"),
        ({"initializer_range": -0.1}, "initializer_range must be positive"),
        ({"latent_noise": -1.0}, "latent_noise must not be negative"),
    ],
)
def test_values_out_of_range_raise(wrong, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        SANEConfig(**wrong)


def test_the_configuration_of_another_model_is_refused(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected model_type 'sane', got 'vit'"):
        SANEConfig.from_pretrained(tmp_path)
