"""LoRA adapters: PEFT's arithmetic, names, files without local paths, and a round trip that notices what is lost."""

import json
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn

from hf_sane.core._adapters import (
    adapter_size,
    adapter_tensors,
    attach_lora,
    load_adapter,
    match_modules,
    read_adapter_config,
    require_hub_id,
    save_adapter,
)
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._sources import hub_id


class Network(nn.Module):
    """Convolution, batch norm, linear map."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 2)
        self.head = nn.ModuleDict({"last": nn.Linear(2, 2)})

    def forward(self, images):
        return self.head["last"](self.last(self.norm(self.first(images)).mean((2, 3))))


def adapted(network, *, saved=None):
    model = attach_lora(
        network, LoraConfig(r=2, lora_alpha=6, target_modules=["first", "last"], modules_to_save=saved)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network().eval()


def test_an_adapted_map_is_the_base_plus_the_scaled_product(network):
    base = deepcopy(network)
    model = adapted(network).eval()
    tensors = {name.removeprefix("base_model.model."): value for name, value in adapter_tensors(model).items()}
    expected = base.state_dict()
    for name in ("last", "head.last"):
        expected[f"{name}.weight"] += 6 / 2 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    down, up = tensors["first.lora_A.weight"], tensors["first.lora_B.weight"]
    expected["first.weight"] += 3 * torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    base.load_state_dict(expected)
    images = torch.randn(3, 1, 5, 5)
    assert torch.allclose(model(images), base(images), atol=1e-5)
    assert torch.allclose(model.merge_and_unload()(images), base(images), atol=1e-5)


def test_an_adapter_starts_as_nothing(network):
    images = torch.randn(3, 1, 5, 5)
    before = network(images)
    model = attach_lora(network, LoraConfig(r=2, target_modules=["last"])).eval()
    assert torch.equal(model(images), before)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_sizes_count_everything_in_the_file(network, tmp_path):
    scalars = sum(tensor.numel() for tensor in network.state_dict().values())
    model = adapted(network, saved=["norm"])
    size = adapter_size(model)
    maps = 2 * (9 + 4) + 2 * (4 + 2) + 2 * (2 + 2)
    assert size["adapter_parameters"] == maps + 4 * 4 + 1  # weight, bias, mean, variance, count of batches
    assert size["base_parameters"] == scalars
    assert size["share"] == size["adapter_parameters"] / scalars
    save_adapter(model, tmp_path, base_model=None)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in held.values()) == size["adapter_parameters"]


def test_batch_norm_statistics_survive_only_when_they_are_saved(network, tmp_path):
    base = deepcopy(network)
    model = adapted(network, saved=["norm"]).train()
    model(torch.randn(8, 1, 5, 5) + 3)  # moves the running statistics
    folder = save_adapter(model.eval(), tmp_path / "whole", base_model=None, base=base)
    names = {"adapter_config.json", "adapter_model.safetensors", "hf_sane_manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    careless = adapted(deepcopy(base)).train()
    careless(torch.randn(8, 1, 5, 5) + 3)
    with pytest.raises(
        RuntimeError, match=r"do not reproduce the saved model: tensors .*norm.*add the modules that own"
    ):
        save_adapter(careless, tmp_path / "lossy", base_model=None, base=base)


def test_an_adapter_that_lacks_tensors_is_refused(network, tmp_path):
    folder = save_adapter(adapted(deepcopy(network)), tmp_path, base_model=None)
    path = folder / "adapter_model.safetensors"
    held = load_file(path)
    loaded = load_adapter(deepcopy(network), folder)
    assert all(torch.equal(value, held[name]) for name, value in adapter_tensors(loaded).items())
    save_file({name: value for name, value in held.items() if "head" not in name}, path)
    with pytest.raises(InvalidFileError, match=r"adapter_model\.safetensors: expected .* bytes, got"):
        load_adapter(network, folder)
    (folder / "hf_sane_manifest.json").unlink()
    with pytest.raises(ValueError, match=r"does not hold the whole adapter: Found missing adapter keys.*head.last"):
        load_adapter(network, folder)


def test_tensors_that_the_base_has_no_place_for_are_refused(network, tmp_path):
    """PEFT loads such a file without a word."""
    folder = save_adapter(adapted(deepcopy(network)), tmp_path, base_model=None)
    (folder / "hf_sane_manifest.json").unlink()
    held = load_file(folder / "adapter_model.safetensors")
    extra = {name.replace("head.last", "tail.last"): value.clone() for name, value in held.items() if "head" in name}
    save_file(held | extra, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"holds 2 tensors that do not fit .*, such as \['base_model.model.tail.last"):
        load_adapter(network, folder)


def test_targets_given_as_a_pattern_are_saved_as_one(network, tmp_path):
    config = LoraConfig(r=2, target_modules=r".*last", exclude_modules=["head.last"])
    folder = save_adapter(attach_lora(deepcopy(network), config), tmp_path, base_model=None, base=network)
    assert read_adapter_config(folder)["target_modules"] == r".*last"
    assert all("head" not in name for name in adapter_tensors(load_adapter(network, folder)))


def test_a_round_trip_needs_the_base_as_it_was(network, tmp_path):
    other = deepcopy(network)
    with torch.no_grad():
        other.last.bias += 1
    with pytest.raises(RuntimeError, match="last.base_layer.bias.* pass the base as it was before training"):
        save_adapter(adapted(network, saved=["norm"]), tmp_path, base_model=None, base=other)


@pytest.mark.parametrize("local", [True, False])
def test_the_base_is_named_by_its_repo_id_or_not_at_all(network, tmp_path, local):
    network.name_or_path = str(tmp_path)  # where Transformers says that it was loaded from
    model = adapted(network)
    given = tmp_path if local else "org/base"
    config = read_adapter_config(save_adapter(model, tmp_path / "adapter", base_model=str(given)))
    assert config["base_model_name_or_path"] == (None if local else "org/base")
    assert config["target_modules"] == sorted(config["target_modules"])
    for path in (tmp_path / "adapter").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def test_saving_the_state_of_gathered_processes(network, tmp_path):
    model = adapted(network, saved=["norm"])
    doubled = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    folder = save_adapter(model, tmp_path, base_model=None, state_dict=doubled)
    held = load_file(folder / "adapter_model.safetensors")
    assert all(torch.equal(held[name], 2 * tensor) for name, tensor in adapter_tensors(model).items())


def test_hub_ids_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sane").mkdir(parents=True)
    assert hub_id("org/sane") == "org/sane"
    for path in ("runs/sane", str(tmp_path), "./sane", "../sane", "a/b/c", "", None):
        assert hub_id(path) is None, path
    assert require_hub_id("org/sane") == "org/sane"
    for path in ("runs/sane", None):
        with pytest.raises(
            ValueError, match=r"expected the Hub repo id of the base model, got .*publish the base first"
        ):
            require_hub_id(path)


def test_modules_are_found_by_name_or_its_end(network):
    assert match_modules(network, ["last"]) == ["last", "head.last"]
    assert match_modules(network, ["head.last", "first"]) == ["first", "head.last"]
    assert match_modules(network, ["last"], excluded=["head"]) == ["last"]
    assert match_modules(network, []) == []
    with pytest.raises(ValueError, match=r"Network has no module called \['ast'\]; its linear layers are \['last'\]"):
        match_modules(network, ["last", "ast"])
    with pytest.raises(ValueError, match=r"no module called \['head'\]"):
        match_modules(network, ["head"], excluded=["head"])


def test_a_folder_without_adapter(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no adapter_config.json in .*; pass a folder from save_adapter"):
        read_adapter_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 3}))
    assert read_adapter_config(tmp_path) == {"r": 3}
