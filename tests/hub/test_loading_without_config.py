"""A folder of weights without config.json is refused by name, not as weights of other shapes."""

import shutil
from pathlib import Path

import pytest

import hf_sane
from hf_sane.records._errors import InvalidFileError

PRETRAINED = Path(__file__).parents[2] / "pretrained" / "sane-usps"


def test_a_sane_without_its_configuration_says_so(tmp_path):
    for name in ("model.safetensors", "preprocessor_config.json"):
        shutil.copy(PRETRAINED / name, tmp_path / name)
    with pytest.raises(InvalidFileError, match=r"expected a SANE autoencoder, got no config\.json; copy it"):
        hf_sane.SANE.from_pretrained(tmp_path)
