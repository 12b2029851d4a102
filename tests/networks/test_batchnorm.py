import pytest
import torch
from torch import nn

from hf_sane.architectures.presets import cifar_resnet, mlp
from hf_sane.networks._batchnorm import condition_batch_norm, condition_module
from hf_sane.networks._stacked import StackedNetworks

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def is_statistic(name: str) -> bool:
    return name.endswith(STATISTICS)


@pytest.fixture(scope="module")
def networks() -> StackedNetworks:
    config = cifar_resnet(20, width=2, num_labels=3)
    return StackedNetworks.initialize(config, [0, 1, 2])


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize(("num_batches", "batch_size"), [(1, 40), (1, 8), (5, 8), (12, 16)])
def test_stacked_and_single_networks_agree(networks, images, num_batches, batch_size):
    settings = {"num_batches": num_batches, "batch_size": batch_size}
    stacked = condition_batch_norm(networks, images, networks_per_step=2, generator=seeded(), **settings)
    compared = 0
    for i in range(networks.num_models):
        module = condition_module(networks.model(i), images, generator=seeded(), **settings)
        for name, value in module.state_dict().items():
            torch.testing.assert_close(stacked.tensors[name][i], value, rtol=1e-4, atol=1e-5)
            compared += is_statistic(name)
    assert compared == 3 * 3 * 19
    assert (stacked.tensors["bn1.num_batches_tracked"] == num_batches).all()


def test_statistics_are_means_over_batches(networks, images):
    conditioned = condition_batch_norm(networks, images, num_batches=5, batch_size=8, generator=seeded())
    order = torch.randperm(40, generator=seeded())
    weight = networks.tensors["conv1.weight"][1]
    outputs = [nn.functional.conv2d(images[index], weight, padding=1) for index in order.split(8)]
    assert len(outputs) == 5
    means = torch.stack([o.mean(dim=(0, 2, 3)) for o in outputs])
    variances = torch.stack([o.transpose(0, 1).flatten(1).var(dim=1) for o in outputs])
    torch.testing.assert_close(conditioned.tensors["bn1.running_mean"][1], means.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(conditioned.tensors["bn1.running_var"][1], variances.mean(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("old", [0.0, 1e6, float("nan")])
def test_old_statistics_leave_no_trace(networks, images, old):
    tensors = {
        name: torch.full_like(tensor, old) if name.endswith(STATISTICS[:2]) else tensor
        for name, tensor in networks.tensors.items()
    }
    broken = StackedNetworks(networks.config, tensors)
    found = condition_batch_norm(broken, images, num_batches=3, batch_size=8, generator=seeded())
    expected = condition_batch_norm(networks, images, num_batches=3, batch_size=8, generator=seeded())
    for name in expected.tensors:
        assert torch.equal(found.tensors[name], expected.tensors[name])
    module = condition_module(broken.model(0), images, num_batches=3, batch_size=8, generator=seeded())
    torch.testing.assert_close(module.bn1.running_mean, expected.tensors["bn1.running_mean"][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_batches", [1, 5])
def test_without_reset_old_statistics_fade_out(networks, images, num_batches):
    started = {
        name: torch.full_like(tensor, 7.0) if name.endswith(STATISTICS[:2]) else tensor
        for name, tensor in networks.tensors.items()
    }
    before = StackedNetworks(networks.config, started)
    settings = {"num_batches": num_batches, "batch_size": 8}
    found = condition_batch_norm(before, images, reset=False, networks_per_step=2, generator=seeded(), **settings)
    weight = networks.tensors["conv1.weight"][1]
    expected = torch.full((2,), 7.0)
    for index in torch.randperm(40, generator=seeded()).split(8)[:num_batches]:
        mean = nn.functional.conv2d(images[index], weight, padding=1).mean(dim=(0, 2, 3))
        expected = 0.9 * expected + 0.1 * mean
    torch.testing.assert_close(found.tensors["bn1.running_mean"][1], expected, rtol=1e-4, atol=1e-5)
    assert (before.tensors["bn1.running_mean"] == 7).all()
    forgotten = condition_batch_norm(before, images, generator=seeded(), **settings)
    assert not torch.allclose(forgotten.tensors["bn1.running_mean"], found.tensors["bn1.running_mean"], atol=1.0)


def test_weights_stay_and_nothing_given_is_changed(networks, images):
    before = {name: tensor.clone() for name, tensor in networks.tensors.items()}
    conditioned = condition_batch_norm(networks, images, num_batches=2, batch_size=8)
    changed = 0
    for name, tensor in before.items():
        assert torch.equal(networks.tensors[name], tensor)
        assert torch.equal(conditioned.tensors[name], tensor) != is_statistic(name)
        changed += is_statistic(name)
    assert changed == 3 * 19


def test_conditioned_networks_normalise_again(networks, images):
    tensors = {n: t * 50 if n == "conv1.weight" else t for n, t in networks.tensors.items()}
    scaled = StackedNetworks(networks.config, tensors)
    conditioned = condition_batch_norm(scaled, images, num_batches=10, batch_size=20, generator=seeded())
    reference = condition_batch_norm(networks, images, num_batches=10, batch_size=20, generator=seeded())
    # a batch norm with the right statistics undoes the scale before it, with the wrong ones it cannot
    torch.testing.assert_close(conditioned.logits(images), reference.logits(images), rtol=0, atol=0.01)
    assert not torch.allclose(scaled.logits(images), networks.logits(images), rtol=0, atol=0.01)


def test_networks_without_batch_norm_come_back_as_they_are(images):
    networks = StackedNetworks.initialize(mlp(num_channels=3, image_size=8, num_labels=2), [0])
    assert condition_batch_norm(networks, images) is networks
    module = networks.model(0)
    assert condition_module(module, images) is module


@pytest.mark.parametrize("training", [True, False])
def test_modules_keep_mode_and_momentum_and_dropout_stays_off(images, training):
    module = nn.Sequential(nn.Dropout(0.9), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.BatchNorm2d(4))
    module.train(training)
    module[3].eval()
    plain = nn.Sequential(*list(module)[1:])
    condition_module(module, images, num_batches=1, batch_size=40)
    outputs = plain[0](images)
    torch.testing.assert_close(module[2].running_mean, outputs.mean(dim=(0, 2, 3)))
    assert [child.training for child in module] == [training, training, training, False]
    assert (module[2].momentum, module[3].momentum) == (0.3, 0.1)
    assert not any(parameter.grad is not None for parameter in module.parameters())


def test_stacks_of_any_module_and_dropout_stays_off_there_too(images):
    module = nn.Sequential(nn.Dropout(0.9), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3)).eval()
    networks = StackedNetworks.from_state_dicts(module, [module.state_dict()] * 2)
    conditioned = condition_batch_norm(networks, images, num_batches=1, batch_size=40)
    expected = module[1](images).mean(dim=(0, 2, 3))
    torch.testing.assert_close(conditioned.tensors["2.running_mean"], expected.expand(2, -1))
    assert not module.training
    assert module[2].momentum == 0.3
    assert module[2].num_batches_tracked == 0


@pytest.mark.parametrize(("num_batches", "batch_size", "count"), [(0, 8, 40), (3, 1, 40), (3, 8, 1)])
def test_errors(networks, images, num_batches, batch_size, count):
    message = f"at least one batch of at least two images, got {num_batches} of {batch_size} from {count} images"
    with pytest.raises(ValueError, match=message):
        condition_batch_norm(networks, images[:count], num_batches=num_batches, batch_size=batch_size)
    with pytest.raises(ValueError, match=message):
        condition_module(networks.model(0), images[:count], num_batches=num_batches, batch_size=batch_size)
