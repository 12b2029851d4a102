import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from hf_sane.zoo.dataset import Zoo

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("paper_zoos", ROOT / "scripts" / "paper_zoos.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 60), ("test", 20)):
        parts[f"{part}_images"] = rng.integers(0, 256, (count, 16, 16), dtype=np.uint8)
        parts[f"{part}_labels"] = np.arange(count) % 10
    (tmp_path / "images").mkdir()
    np.savez(tmp_path / "images" / "usps16.npz", **parts)
    return tmp_path / "images"


def test_zoos_and_their_records(script, images, tmp_path, capsys):
    options = ["--images", str(images), "--output_dir", str(tmp_path / "zoos"), "--records", str(tmp_path / "records")]
    script.main([*options, "--zoos", "usps_seed", "usps_hyper", "--num_models", "8", "--epochs", "1"])
    assert "usps_seed" in capsys.readouterr().out
    zoo = Zoo.load(tmp_path / "zoos", config="usps_seed")
    assert len(zoo.splits["train"]) == 12  # six of eight runs, epochs 0 and 1
    record = json.loads((tmp_path / "records" / "usps_hyper.json").read_text())
    assert record["results"]["arguments"]["optimizers"] == ["adam", "sgd"]
    assert record["results"]["splits"]["test"]["runs"] == 1


def test_the_zoos_of_the_tables(script):
    zoos = script.recipes()
    large = [name for name, (_, settings) in zoos.items() if settings["num_models"] >= 500 and settings["epochs"] >= 8]
    assert large == ["mnist_seed", "mnist_hyper"]
    assert {settings["architecture"] for _, settings in zoos.values()} == {"cnn_s", "cnn_l", "cifar_resnet"}
    assert all(settings["num_models"] >= 40 for _, settings in zoos.values())
