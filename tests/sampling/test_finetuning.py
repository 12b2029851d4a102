"""Fine-tuning of single networks: the updates of the stacked trainer, and adapters that hold all that changed."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits
from hf_sane.core._adapters import load_adapter, save_adapter
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked
from hf_sane.sampling._finetuning import (
    StepSettings,
    accuracy,
    add_network_lora,
    finetune_network,
    lora_targets,
)


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.pointwise = nn.Conv2d(4, 2, 1)
        self.norm = nn.LayerNorm(2)

    def forward(self, images):
        return SimpleNamespace(logits=self.norm(self.pointwise(self.depthwise(images)).mean((2, 3))))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model(cnn_digits())


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    return build_model(cifar_resnet(20, width=4, num_channels=1))


def test_full_fine_tuning_takes_the_steps_of_the_stacked_trainer(network, digits):
    options = {"learning_rate": 3e-3, "weight_decay": 1e-3}
    stack = StackedNetworks.from_state_dicts(network.config, [network.state_dict()])
    *_, expected = train_stacked(
        stack.config, stack.tensors, digits, HyperParameters.repeat([7], **options), epochs=2, batch_size=50
    )
    assert len(digits.train_images) % 50  # the last images of an epoch are left out
    found = finetune_network(network, digits, StepSettings(steps=12, batch_size=50, seed=7, **options))
    for name, tensor in network.state_dict().items():
        assert torch.allclose(tensor, expected.tensors[name][0], atol=1e-4), name
    assert found[12]["test_accuracy"] == pytest.approx(expected.test_accuracy.item(), abs=0.011)


def test_another_seed_takes_other_steps(network, digits):
    first, second = deepcopy(network), deepcopy(network)
    for seed, copy in enumerate((first, second)):
        finetune_network(copy, digits, StepSettings(steps=2, seed=seed))
    assert not torch.allclose(first.classifier.weight, second.classifier.weight)


def test_an_adapter_learns_and_leaves_the_base_alone(network, digits):
    finetune_network(network, digits, StepSettings(steps=30, learning_rate=1e-2))
    base = deepcopy(network)
    model = add_network_lora(network, rank=2)
    found = finetune_network(model, digits, StepSettings(steps=60, learning_rate=1e-2), report_at=[0, 20])
    assert sorted(found) == [0, 20, 60]
    assert found[0]["test_accuracy"] == accuracy(base, *digits.split("test"))
    assert found[60]["validation_accuracy"] > found[0]["validation_accuracy"]
    held = {name.replace(".base_layer", ""): tensor for name, tensor in network.state_dict().items()}
    assert all(torch.equal(held[name], tensor) for name, tensor in base.state_dict().items())


def test_a_merged_network_is_the_adapted_one(network, digits, tmp_path):
    base = deepcopy(network)
    model = add_network_lora(network, rank=3, alpha=5.0)
    finetune_network(model, digits, StepSettings(steps=5, learning_rate=1e-2))
    expected = model(digits.test_images).logits
    save_adapter(model, tmp_path, base_model="org/network", base=base)
    merged = load_adapter(base, tmp_path).merge_and_unload()
    assert type(merged) is type(base)
    assert torch.allclose(merged(digits.test_images).logits, expected, atol=1e-4)


def test_batch_norm_statistics_travel_with_the_adapter(resnet, digits, tmp_path):
    base = deepcopy(resnet)
    model = add_network_lora(resnet, rank=2, targets=["conv1", "fc"])
    finetune_network(model, digits, StepSettings(steps=3, batch_size=16))
    expected = model(digits.test_images).logits
    save_adapter(model, tmp_path, base_model=None, base=base)
    loaded = load_adapter(deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(loaded(digits.test_images).logits, expected)
    merged = loaded.merge_and_unload().eval()
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert not torch.equal(merged.bn1.running_mean, base.bn1.running_mean)
    assert torch.allclose(merged(digits.test_images).logits, expected, atol=1e-4)


def test_targets_are_all_linear_and_convolutional_layers(network, resnet):
    assert lora_targets(network) == [
        "convolutions.0",
        "convolutions.1",
        "convolutions.2",
        "hidden.0",
        "classifier",
    ]
    assert lora_targets(network, ["classifier"]) == ["classifier"]
    assert "layer1.0.conv1" in lora_targets(resnet, ["conv1"])


def test_layers_that_cannot_be_adapted():
    with pytest.raises(ValueError, match=r"depthwise is a grouped convolution \(4 groups\), .* cannot be merged"):
        add_network_lora(Grouped())
    with pytest.raises(ValueError, match="depthwise is a grouped convolution"):
        lora_targets(Grouped(), ["depthwise"])
    assert lora_targets(Grouped(), ["pointwise"]) == ["pointwise"]
    with pytest.raises(ValueError, match="LoRA needs linear or 2-d convolutional layers, norm is a LayerNorm"):
        lora_targets(Grouped(), ["norm"])
    with pytest.raises(ValueError, match="Grouped has no module called .'missing'."):
        lora_targets(Grouped(), ["missing"])
    with pytest.raises(ValueError, match="expected linear or 2-d convolutional layers in ReLU, found none"):
        lora_targets(nn.ReLU())


def test_naming_the_other_layers_makes_a_network_with_grouped_convolutions_adaptable():
    model = add_network_lora(Grouped(), rank=1, targets=["pointwise"]).eval()
    images = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    expected = model(images).logits
    assert torch.allclose(model.merge_and_unload()(images).logits, expected, atol=1e-5)


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1.0), (2, 0.0)])
def test_adapters_of_no_size(network, rank, alpha):
    with pytest.raises(ValueError, match=f"expected rank >= 1 and alpha > 0, got {rank} and {alpha}"):
        add_network_lora(network, rank=rank, alpha=alpha)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "expected steps to be a finite number of at least 1, got 0"),
        ({"batch_size": 0}, "expected batch_size to be a finite number of at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"weight_decay": -1.0}, "expected weight_decay to be a finite number of at least 0, got -1.0"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        StepSettings(**changes)


def test_reports_lie_within_the_run(network, digits):
    with pytest.raises(ValueError, match=r"report_at must lie in \[0, 5\], got \[5, 6\]"):
        finetune_network(network, digits, StepSettings(steps=5), report_at=[6])


def test_accuracy_counts_right_answers():
    images = torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2)
    network = nn.Module()
    network.forward = lambda part: SimpleNamespace(logits=part.mean((2, 3)))
    assert accuracy(network, images, torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)
