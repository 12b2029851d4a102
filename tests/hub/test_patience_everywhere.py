"""The Hub may be busy at any question: whoever asks it waits, and asks again."""

import ast
import time
from pathlib import Path

import pytest
import torch
from hub_server import Fault
from peft import LoraConfig
from safetensors.torch import save
from torch import nn

import hf_sane
from hf_sane.core._adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, attach_lora, load_adapter, save_adapter
from hf_sane.hub._pull import pull
from hf_sane.hub._push import plan_push
from hf_sane.merging._ingredients import open_ingredients
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.tokenization._adapter_changes import open_factors
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._loading import load_config, load_model
from hf_sane.workflows.sane import SANE
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo.importing._importing import import_zoo
from hf_sane.zoo.importing._settings import ImportSettings

PACKAGE = Path(hf_sane.__file__).parent
# What asks the Hub. `repo_info` is asked once, on purpose: whoever reads the files afterwards is patient.
QUESTIONS = {
    *("hf_hub_download", "snapshot_download", "model_info", "dataset_info", "list_models", "list_datasets"),
    *("list_repo_files", "list_repo_tree", "repo_exists", "file_exists", "revision_exists", "get_paths_info"),
    *("create_repo", "create_branch", "create_commit", "upload_folder", "upload_file", "delete_file", "whoami"),
    *("fetch_header", "load_dataset", "get_config_dict"),
}
ASKED_ONCE = {
    ("zoo/_dataset.py", "load_dataset"),  # reads files that are here
    *(("workflows/doctor.py", name) for name in ("whoami", "repo_exists")),  # whose answer is told, whatever it is
}


def direct_questions(path):
    """Calls that ask the Hub outside of what `patiently` calls."""
    tree = ast.parse(path.read_text())
    patient = {
        argument.id if isinstance(argument, ast.Name) else argument
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "patiently"
        for argument in call.args[:1]
        if isinstance(argument, ast.Name | ast.Lambda)
    }

    def visit(node):
        if node in patient or (isinstance(node, ast.FunctionDef) and node.name in patient):
            return
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if name in QUESTIONS:
                yield name, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return list(visit(tree))


def test_every_question_to_the_hub_is_asked_patiently():
    found = {
        (path.relative_to(PACKAGE).as_posix(), name, line)
        for path in PACKAGE.rglob("*.py")
        for name, line in direct_questions(path)
    }
    assert {entry[:2] for entry in found} == ASKED_ONCE


NETWORK = {"fc.weight": torch.arange(12.0).reshape(3, 4), "fc.bias": torch.ones(3)}


@pytest.fixture
def hub(local_hub, tmp_path, tiny_zoo_folder):
    """One repository of each kind."""
    add = local_hub.storage.add_files
    config = b'{"model_type": "bert", "hidden_size": 4}'
    add("models", "org/network", {"model.safetensors": save(NETWORK), "config.json": config})
    torch.manual_seed(0)
    settings = {"token_dim": 4, "hidden_size": 8, "latent_dim": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    SANEModel(SANEConfig(**settings, window_size=8)).save_pretrained(tmp_path / "sane")
    SANEFeatureExtractor(4, normalization="none").save_pretrained(tmp_path / "sane")
    add("models", "org/sane", {path.name: path.read_bytes() for path in (tmp_path / "sane").iterdir()})
    base = nn.Sequential(nn.Linear(4, 3))
    adapter = attach_lora(base, LoraConfig(r=2, target_modules=["0"]))
    save_adapter(adapter, tmp_path / "adapter", base_model="org/base")
    files = {name: (tmp_path / "adapter" / name).read_bytes() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    add("models", "org/adapter", files)
    zoo = {
        path.relative_to(tiny_zoo_folder).as_posix(): path.read_bytes()
        for path in tiny_zoo_folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }
    add("datasets", "org/zoo", zoo)
    return local_hub


READERS = {
    "pull": lambda folder: pull("org/network", folder / "pulled"),
    "weights": lambda folder: load_state_dict("org/network"),
    "headers": lambda folder: read_meta_state_dict("org/network"),
    "ingredients": lambda folder: open_ingredients(["org/network", "org/network@main"]),
    "configuration": lambda folder: load_config("org/network"),
    "model": lambda folder: load_model(SANEModel, "org/sane"),
    "autoencoder": lambda folder: SANE.from_pretrained("org/sane"),
    "tokenizer": lambda folder: SANEFeatureExtractor.load("org/sane"),
    "factors": lambda folder: open_factors("org/adapter"),
    "adapter": lambda folder: load_adapter(nn.Sequential(nn.Linear(4, 3)), "org/adapter"),
    "zoo": lambda folder: Zoo.load("org/zoo"),
    "stream": lambda folder: next(iter(ZooStream.open("org/zoo").rows("train"))),
    "import": lambda folder: import_zoo(
        ImportSettings(repos=["org/network"], split_shares=[1, 0, 0]), folder / "imported"
    ),
    "push zoo": lambda folder: plan_push("zoo", folder / "zoo", "org/zoo").push(),
}
"""Every road to the Hub that the library has, and what it asks for there."""


def busy(status):
    """Every address answers so once, then as always."""
    methods = ("HEAD", "GET", "POST", "PUT")
    return [Fault(".", status, 1000, {"Retry-After": "0"}, method, is_per_address=True) for method in methods]


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of the Hub's client
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("name", READERS)
def test_a_hub_that_is_busy_at_first_is_asked_again(name, status, hub, tmp_path, tiny_zoo_folder, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    (tmp_path / "zoo").symlink_to(tiny_zoo_folder)
    hub.faults = busy(status)
    assert READERS[name](tmp_path) is not None
    assert any(fault.struck for fault in hub.faults), "nothing was asked for"
