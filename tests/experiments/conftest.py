"""Experiments import what they share from their own folder, as when they are run."""

import json
import sys
from pathlib import Path

import pytest

from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings

sys.path.append(str(Path(__file__).parents[2] / "experiments"))


@pytest.fixture
def write_record(tmp_path):
    """Write the run record of an experiment below `runs/paper`, and return the folder with `runs`."""

    def write(name, results, **facts):
        record = {
            "command": f"python experiments/paper_{name.partition('/')[0]}.py",
            "seed": 0,
            "seconds": 120,
            "commit": "0123456789abcdef",
            "hardware": {"cpu": "a processor"},
            "results": results,
        }
        path = tmp_path / "runs" / "paper" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record | facts))
        return tmp_path

    return write


@pytest.fixture(scope="session")
def family(tmp_path_factory, digits):
    """Two ancestors and their sixteen children, and the images that they were trained on."""
    shape = {"conv_channels": [2, 3], "kernel_sizes": [3, 3], "pool_sizes": [2, 1], "hidden_sizes": [4]}
    settings = ZooSettings(
        architecture_settings=shape,
        num_models=2,
        epochs=4,
        keep_epochs=[4],
        children=16,
        child_epochs=1,
        learning_rate=[1e-2],
        progress_bar=False,
    )
    return build_zoo(settings, digits, tmp_path_factory.mktemp("family")), digits
