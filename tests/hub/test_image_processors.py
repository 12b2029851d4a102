"""Saved networks classify image files with `pipeline`, exactly as they were trained to see them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline

import hf_sane
from hf_sane.architectures.image_processing_zoo import ZooImageProcessor, read_pixels
from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.hub._publish import code_files, save_network
from hf_sane.networks._images import load_images
from hf_sane.records._run_record import RunRecord

NAMES = ("bee", "ant")


def write_images(root, *, sizes, mode, count=8):
    """Noise, darker for ants."""
    generator = np.random.default_rng(0)
    for number in range(count):
        for name, top in zip(NAMES, (250, 120), strict=True):
            width, height = sizes[number % len(sizes)]
            pixels = generator.integers(0, top, (height, width, 3)[: 2 if mode == "L" else 3]).astype(np.uint8)
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels, mode=None).save(root / name / f"{number}.png")
    return root


def scores(folder, file, **options):
    """Score by class, from the pipeline."""
    found = pipeline("image-classification", model=str(folder), device="cpu", **options)(str(file), top_k=10)
    return {row["label"]: row["score"] for row in found}


@pytest.mark.parametrize(
    ("mode", "sizes", "image_size"),
    [("L", [(8, 8)], None), ("RGB", [(8, 8)], None), ("L", [(21, 16)], 8), ("RGB", [(19, 9), (8, 30)], 8)],
    ids=["grey", "colour", "grey, resized", "colour of several sizes"],
)
def test_a_pipeline_sees_files_as_training_did(mode, sizes, image_size, tmp_path):
    data = load_images(write_images(tmp_path / "insects", sizes=sizes, mode=mode), image_size=image_size)
    network = build_model(cnn_digits(num_channels=data.num_channels, num_labels=2))
    tuned = hf_sane.finetune(network, data, epochs=1, scratch=False)
    tuned.save_pretrained(tmp_path / "tuned")
    folder = tmp_path / "tuned" / "network_0"
    settings = json.loads((folder / "config.json").read_text())
    assert settings["id2label"] == {"0": "ant", "1": "bee"}
    assert settings["label2id"] == {"ant": 0, "bee": 1}
    assert tuned[0].config.id2label == {0: "LABEL_0", 1: "LABEL_1"}  # in memory, nothing was changed
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor) is ZooImageProcessor
    files = [file for name in ("ant", "bee") for file in sorted((tmp_path / "insects" / name).glob("*.png"))]
    seen = torch.cat([data.split(split)[0] for split in ("train", "validation", "test")])
    for file in (files[0], files[-1]):
        with Image.open(file) as image:
            pixels = processor(image, return_tensors="pt")["pixel_values"]
        assert (
            (seen == pixels).flatten(1).all(dim=1).any()
        )  # bit by bit, one of those that it was trained or tested on
        expected = tuned[0](pixels).logits.softmax(dim=1)[0].tolist()
        assert scores(folder, file) == pytest.approx(dict(zip(("ant", "bee"), expected, strict=True)), rel=1e-6)


def test_digits_keep_their_scale(tmp_path):
    """A white pixel of a file is 255, one of scikit-learn's digits 16."""
    data = load_images("digits", image_size=10)
    save_network(tmp_path / "n", build_model(cnn_digits()), RunRecord.start(data={"images": data.describe()}))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "n")
    white = processor(Image.new("L", (8, 8), 255), return_tensors="pt")["pixel_values"]
    assert white.shape == (1, 1, 10, 10)
    torch.testing.assert_close(white, torch.full_like(white, (16 - data.mean[0]) / data.std[0]))
    assert json.loads((tmp_path / "n" / "config.json").read_text())["id2label"]["7"] == "7"


def test_it_travels_with_its_code(tmp_path):
    data = {"images": {"name": "x", "image_size": 8, "mean": [3.0], "std": [2.0], "classes": ["a", "b"]}}
    network = build_model(cnn_digits(num_labels=2))
    for name, include_code in (("plain", False), ("coded", True)):
        save_network(tmp_path / name, network, RunRecord.start(data=data), include_code=include_code)
    pushed = code_files(tmp_path / "plain")
    for name in ("preprocessor_config.json", "image_processing_zoo.py"):
        assert pushed[name] == (tmp_path / "coded" / name).read_text(encoding="utf-8")
    assert json.loads(pushed["preprocessor_config.json"])["auto_map"] == {
        "AutoImageProcessor": "image_processing_zoo.ZooImageProcessor"
    }
    assert not hasattr(ZooImageProcessor, "auto_map")
    assert ZooImageProcessor._auto_class is None
    Image.new("L", (9, 7), 40).save(tmp_path / "x.png")
    coded = scores(tmp_path / "coded", tmp_path / "x.png", trust_remote_code=True)
    assert coded == scores(tmp_path / "plain", tmp_path / "x.png")
    assert coded.keys() == {"a", "b"}


def test_arrays_are_taken_as_images_of_bytes():
    pixels = np.arange(96, dtype=np.uint8).reshape(4, 8, 3)
    shown = read_pixels(Image.fromarray(pixels), num_channels=3, size=None)
    for given in (pixels, pixels.transpose(2, 0, 1)):
        assert torch.equal(read_pixels(given, num_channels=3, size=None), shown)
    assert torch.equal(read_pixels(pixels[..., :1], num_channels=1, size=None)[0], shown[0])
    with pytest.raises(ValueError, match="expected pixels as uint8, 0 to 255, got float64"):
        read_pixels(pixels / 255, num_channels=3, size=None)


def test_a_soup_and_networks_of_a_zoo_know_their_classes(tmp_path):
    data = load_images(write_images(tmp_path / "insects", sizes=[(8, 8)], mode="L"))
    zoo = hf_sane.build_zoo(data, num_models=3, epochs=1, output=tmp_path / "zoo", progress_bar=False)
    networks = [zoo.splits["train"].model(0), zoo.splits["train"].model(0)]
    assert networks[0].config.id2label == {0: "ant", 1: "bee"}
    for index, network in enumerate(networks):
        network.save_pretrained(tmp_path / f"{index}")
    hf_sane.soup([tmp_path / "0", tmp_path / "1"], images=data, output=tmp_path / "soup")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "soup")
    assert (processor.size, processor.num_channels) == (8, 1)
    assert tuple(processor.image_mean) == data.mean
    assert scores(tmp_path / "soup", tmp_path / "insects" / "ant" / "0.png").keys() == {"ant", "bee"}


def test_networks_of_images_that_are_not_square_are_trained_and_saved(tmp_path):
    pixels = np.arange(20 * 6 * 4, dtype=np.uint8).reshape(20, 6, 4)
    np.savez(tmp_path / "wide.npz", train_images=pixels, train_labels=np.arange(20) % 2)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 2))
    tuned = hf_sane.finetune(network, str(tmp_path / "wide.npz"), epochs=1, output=tmp_path / "out")
    assert tuned.record.data["images"]["image_size"] == [6, 4]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out" / "network_0")
    assert processor(Image.fromarray(pixels[0]), return_tensors="pt")["pixel_values"].shape == (1, 1, 6, 4)
