"""Public names exist, are documented and have one home; Auto classes know them with and without us."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForImageClassification

import hf_sane
from hf_sane.architectures.presets import MODEL_CLASSES, build_model, cifar_resnet, cnn_digits, mlp
from hf_sane.hub._publish import save_network, save_sane
from hf_sane.records._run_record import RunRecord

NETWORKS = {"cnn": cnn_digits(), "mlp": mlp(image_size=8, hidden_sizes=(4,)), "resnet": cifar_resnet(20, width=2)}
STRANGER = """
import sys
sys.modules["hf_sane"] = None  # any import of the library now fails
import torch
from transformers import AutoModelForImageClassification

images = torch.load(sys.argv[1] + "/images.pt", weights_only=True)
for name in sys.argv[2:]:
    model = AutoModelForImageClassification.from_pretrained(f"{sys.argv[1]}/{name}", trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    expected = torch.load(f"{sys.argv[1]}/{name}.pt", weights_only=True)
    torch.testing.assert_close(model(images[:, : model.config.num_channels]).logits, expected)
print("no library needed")
"""


def test_names_are_sorted_and_have_one_home():
    assert sorted(hf_sane.__all__) == sorted(hf_sane._HOMES)
    assert hf_sane._HOMES.keys() | hf_sane._ALSO.keys() <= set(dir(hf_sane))
    assert not hf_sane._HOMES.keys() & hf_sane._ALSO.keys()


def test_type_checkers_see_every_name_where_it_is_loaded_from():
    tree = ast.parse(Path(hf_sane.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module.removeprefix("hf_sane.") for node in imports for alias in node.names}
    assert seen == hf_sane._HOMES | hf_sane._ALSO


def test_the_reference_lists_every_name():
    page = (Path(__file__).parents[1] / "docs" / "reference" / "api.md").read_text()
    listed = re.findall(r"^::: hf_sane\.([\w.]+)$", page, flags=re.MULTILINE)
    assert sorted(listed) == sorted(f"{home}.{name}" for name, home in (hf_sane._HOMES | hf_sane._ALSO).items())


@pytest.mark.parametrize("name", sorted(hf_sane._HOMES | hf_sane._ALSO))
def test_every_name_is_there_and_documented(name):
    value = getattr(hf_sane, name)
    assert value.__module__ == f"hf_sane.{(hf_sane._HOMES | hf_sane._ALSO)[name]}"
    assert value.__name__ == name
    assert len(inspect.getdoc(value)) > 20
    assert getattr(hf_sane, name) is value


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'hf_sane' has no attribute 'SaneModel'; its names are SANE"):
        hf_sane.SaneModel  # noqa: B018


def test_auto_classes_read_a_sane_folder(tmp_path):
    config = hf_sane.SANEConfig(token_dim=20, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2)
    model = hf_sane.SANEModel(config)
    extractor = hf_sane.SANEFeatureExtractor(token_dim=20).fit([build_model(cnn_digits())])
    save_sane(tmp_path, model, extractor, RunRecord(command="x"))
    assert isinstance(AutoConfig.from_pretrained(tmp_path), hf_sane.SANEConfig)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, hf_sane.SANEModel)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), hf_sane.SANEFeatureExtractor)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_auto_classes_read_every_network(name, tmp_path):
    network = build_model(NETWORKS[name]).eval()
    save_network(tmp_path, network, RunRecord(command="x"))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is MODEL_CLASSES[type(NETWORKS[name])]
    images = torch.randn(2, NETWORKS[name].num_channels, 8, 8)
    torch.testing.assert_close(loaded(images).logits, network(images).logits)


def test_networks_with_code_need_no_library(tmp_path, fresh_python):
    images = torch.randn(2, 3, 8, 8)
    torch.save(images, tmp_path / "images.pt")
    for name, config in NETWORKS.items():
        network = build_model(config).eval()
        save_network(tmp_path / name, network, RunRecord(command="x"), include_code=True)
        torch.save(network(images[:, : config.num_channels]).logits.detach(), tmp_path / f"{name}.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    assert "no library needed" in fresh_python(STRANGER, tmp_path, *NETWORKS, env=environment, cwd=tmp_path)


def test_the_command_line_imports_without_torch():
    """`hf-sane --help` answers before PyTorch and Transformers would have loaded."""
    code = "import sys\nimport hf_sane.cli.app\nprint(*sys.modules)\n"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(ran.stdout.split())
    assert "hf_sane.cli.app" in modules
    assert not {"torch", "transformers", "datasets", "numpy"} & modules
