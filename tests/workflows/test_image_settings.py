"""Images of another shape than networks expect: every verb that reads images has the same options to convert them."""

from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch

import hf_sane
from hf_sane.cli.verbs import VERBS, ZOO_VERBS
from hf_sane.networks._image_settings import ImageSettings
from hf_sane.networks._images import load_images
from hf_sane.records._settings import option_name
from hf_sane.workflows.networks import open_images
from hf_sane.workflows.reconstruct import ReconstructSettings

# Verbs without the options, and why.
WITHOUT = {"start": "converts images to what its networks expect", "demo": "builds its own networks"}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Colour images of 16 pixels."""
    path = tmp_path_factory.mktemp("images") / "wide.npz"
    generator = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "validation", "test"):
        arrays[f"{split}_images"] = generator.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(20) % 10
    np.savez(path, **arrays)
    return path


def test_all_verbs_that_read_images_convert_them():
    reading = {}
    for verb in (*VERBS, *ZOO_VERBS):
        settings, _ = verb.load()
        if is_dataclass(settings) and "--images" in map(option_name, fields(settings)):
            reading[verb.name] = settings
    assert {"sample", "finetune", "soup", "compare", "reconstruct", "explore", *WITHOUT} <= reading.keys()
    assert {name for name, settings in reading.items() if not issubclass(settings, ImageSettings)} == WITHOUT.keys()


@pytest.mark.parametrize("given", ["path", "loaded"])
def test_images_are_converted_whatever_they_come_as(given, wide):
    expected = load_images(wide).resized(8).with_channels(1)
    source = str(wide) if given == "path" else load_images(wide)
    found = open_images(source, image_size=8, image_channels=1)
    assert found.train_images.shape == (20, 1, 8, 8)
    assert torch.equal(found.test_images, expected.test_images)


def test_the_error_for_other_images_names_the_options_that_convert_them(wide, tiny_zoo, tmp_path):
    network = tiny_zoo.splits["train"].model(0)
    options = {"output": tmp_path / "out", "epochs": 1}
    remedy = r"have 3, 16 and 10; convert the images \(--image-size 8 --image-channels 1\)$"
    with pytest.raises(ValueError, match=remedy):
        hf_sane.finetune([network], str(wide), **options)
    with pytest.raises(ValueError, match=r"\(--image-size 8\)$"):
        hf_sane.finetune([network], str(wide), image_channels=1, **options)
    with pytest.raises(ValueError, match=r"got \[1, 3, 16, 16\]; convert .* \(--image-channels, --image-size\)$"):
        hf_sane.finetune_lora(network, str(wide))
    assert len(hf_sane.finetune([network], str(wide), image_size=8, image_channels=1, **options)) == 1


def test_networks_are_evaluated_on_converted_images(wide, tiny_zoo):
    layout = tiny_zoo.splits["train"].layout(0)
    extractor = hf_sane.SANEFeatureExtractor(layout.token_dim).fit(
        [(layout, tiny_zoo.splits["train"].stacked_tokens())]
    )
    sizes = {"hidden_size": 8, "latent_dim": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = hf_sane.SANEModel(hf_sane.SANEConfig(token_dim=layout.token_dim, window_size=16, **sizes)).eval()
    sane, shape = hf_sane.SANE(model, extractor), {"image_size": 8, "image_channels": 1}
    converted = load_images(wide, **shape)
    few = {"methods": ["anchors"], "num_candidates": 2, "num_samples": 1, "bandwidth": [0.1]}
    for call in (
        lambda images, **options: hf_sane.reconstruct(tiny_zoo, sane, images, linear=False, **options),
        lambda images, **options: hf_sane.compare_samplers(tiny_zoo, sane, images, **few, **options),
    ):
        found = call(wide, **shape)
        assert found.to_dict() == call(converted).to_dict()
        assert found.record.data["images"]["image_size"] == 8
        assert len(found.record.data["images"]["mean"]) == 1


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"expected image_channels 1 \(greyscale\) or 3 \(colour\), got 2"):
        ReconstructSettings(sane="sane", zoo=["zoo"], images="digits", image_channels=2)
