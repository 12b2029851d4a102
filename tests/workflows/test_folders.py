"""Folders of several networks: every function that takes one finds the same networks, in the same order."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_sane.hub._push import network_folders
from hf_sane.workflows.folders import networks_in
from hf_sane.workflows.shared import SourceSettings

NAMES = ("b_1", "network_2", "network_10", "network_11")


def put(folder, name="model.safetensors", config="config.json"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.zeros(2, 3)}, folder / name)
    if config:
        (folder / config).write_text(json.dumps({}))


@pytest.fixture
def place(tmp_path):
    """Networks, and what is no network."""
    for name in NAMES:
        put(tmp_path / "nets" / name)
    (tmp_path / "nets" / "README.md").write_text("# Networks")
    put(tmp_path / "nets" / ".hidden")
    (tmp_path / "nets" / "empty").mkdir()
    (tmp_path / "nets" / "plots").mkdir()
    (tmp_path / "nets" / "plots" / "a.png").write_bytes(b"\x89PNG")
    return tmp_path / "nets"


def test_networks_are_found_in_natural_order_and_nothing_else_is(place):
    found = [place / name for name in NAMES]
    assert networks_in(place, SourceSettings()) == found
    assert network_folders(place) == found
    for one in found:
        assert networks_in(one, SourceSettings()) == [one]
        assert network_folders(one) == [one]


def test_a_network_without_its_weights_is_not_left_out_silently(place):
    (place / "network_10" / "model.safetensors").unlink()
    assert networks_in(place, SourceSettings()) == [place / name for name in NAMES] == network_folders(place)
    put(place / "deep" / "est", config="adapter_config.json", name="adapter_model.safetensors")
    (place / "deep" / "config.json").write_text("{}")  # of what is below
    assert networks_in(place, SourceSettings())[1] == place / "deep" / "est"
    assert len(networks_in(place, SourceSettings())) == 5


@pytest.mark.parametrize(
    ("chosen", "inside", "file"),
    [
        ({"subfolder": "unet"}, "unet", "model.safetensors"),
        ({"variant": "fp16"}, "", "model.fp16.safetensors"),
        ({"subfolder": "deep/unet/", "variant": "fp16"}, "deep/unet", "model.fp16.safetensors"),
    ],
)
def test_a_subfolder_or_variant_is_that_of_the_folder_or_else_of_every_network_in_it(chosen, inside, file, tmp_path):
    settings = SourceSettings(**chosen)
    for name in NAMES:
        put(tmp_path / "nets" / name / inside, file, config="")
    (tmp_path / "nets" / "other").mkdir()
    assert networks_in(tmp_path / "nets", settings) == [tmp_path / "nets" / name for name in NAMES]
    one = tmp_path / "nets" / NAMES[0]
    assert networks_in(str(one), settings) == [str(one)]
    assert networks_in(tmp_path / "nets" / "other", settings) == [tmp_path / "nets" / "other"]
