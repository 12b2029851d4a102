"""Fixtures of all tests: a tiny zoo that is built once, Pythons, a Hub."""

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
from accelerate.state import AcceleratorState
from fresh_python import FreshPython, run_fresh_python
from hub_server import TOKEN, Hub, run_hub
from huggingface_hub import constants, hf_api
from program import run_command
from typer.testing import Result
from zoo_recipes import hyperparameter_zoo

from hf_sane.networks._images import ImageData, load_images
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings

datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """320 training, 100 validation and 100 test images of scikit-learn's digits."""
    return load_images("digits", train_limit=320, validation_limit=100, test_limit=100)


@pytest.fixture(scope="session")
def tiny_zoo_arguments() -> ZooSettings:
    return hyperparameter_zoo(
        num_models=12, epochs=12, keep_epochs=[0, 3, 6, 12], learning_rate=[5e-3, 2e-2], progress_bar=False
    )


@pytest.fixture(scope="session")
def tiny_zoo_folder(
    tmp_path_factory: pytest.TempPathFactory, digits: ImageData, tiny_zoo_arguments: ZooSettings
) -> Path:
    """Folder of `tiny_zoo`; do not write to it."""
    folder = tmp_path_factory.mktemp("zoo") / "tiny"
    build_zoo(tiny_zoo_arguments, digits, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_zoo(tiny_zoo_folder: Path) -> Zoo:
    """12 runs of the digits CNN (1,108 parameters, 52 tokens of 73) at 4 epochs each, split 8 / 2 / 2, aligned."""
    return Zoo.load(tiny_zoo_folder)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Nothing of another test's accelerator is left, which the processes of this one would inherit."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def hf_sane_command() -> Callable[..., Result]:
    """Call `hf-sane` with arguments; `exit_code` is what it must end with."""
    return run_command


@pytest.fixture(scope="session")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshPython]:
    """Run a program in a Python of its own, which this library and Transformers are not loaded in."""
    with run_fresh_python(tmp_path_factory.mktemp("python")) as run:
        yield run


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub that the clients of this process talk to, with a token and a cache of its own."""
    with run_hub() as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server takes plain uploads
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.address)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
