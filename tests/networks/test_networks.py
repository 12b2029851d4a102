"""Stacks of networks against the single networks they hold."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits, cnn_l, cnn_s, mlp
from hf_sane.networks._stacked import (
    StackedNetworks,
    cross_entropy,
    logits_of,
    stack_size,
    stacked_forward,
    with_settings,
)

CONFIGS = {
    "cnn_digits": cnn_digits(),
    "cnn_relu": cnn_digits(activation="relu", conv_channels=(3, 4), kernel_sizes=(2, 3), pool_sizes=(2, 1)),
    "cnn_s": cnn_s(),
    "cnn_l": cnn_l(),
    "mlp": mlp(image_size=8, hidden_sizes=(7, 5), activation="sigmoid"),
    "mlp_flat": mlp(image_size=5, hidden_sizes=()),
    "resnet": cifar_resnet(20, width=3),
}


def images_for(config, *batch, seed=0):
    size = getattr(config, "image_size", 12)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, config.num_channels, size, size, generator=generator)


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_stack_gives_the_logits_of_each_network(config, generic, shared):
    networks = StackedNetworks.initialize(config, [3, 4, 5])
    images = images_for(config, *([6] if shared else [3, 6]))
    logits = networks.logits(images, generic=generic)
    alone = [networks.model(m)(images if shared else images[m]).logits for m in range(3)]
    torch.testing.assert_close(logits, torch.stack(alone), rtol=1e-4, atol=1e-4)


def test_gradients_flow_to_every_tensor_as_in_each_network(config):
    networks = StackedNetworks.initialize(config, [0, 1])
    names = [name for name, _ in networks.model(0).named_parameters()]
    leaves = {name: tensor.clone().requires_grad_(name in names) for name, tensor in networks.tensors.items()}
    images, labels = images_for(config, 2, 5), torch.arange(10).view(2, 5)
    loss = cross_entropy(StackedNetworks(config, leaves).logits(images), labels)
    gradients = torch.autograd.grad(loss.sum(), [leaves[name] for name in names])
    for m in range(2):
        model = networks.model(m)
        model(images[m], labels=labels[m]).loss.backward()
        for name, gradient in zip(names, gradients, strict=True):
            torch.testing.assert_close(
                gradient[m],
                model.get_parameter(name).grad,
                rtol=1e-3,
                atol=1e-5,
                msg=lambda text, n=name: f"{n}: {text}",
            )


@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_networks_do_not_depend_on_their_company(count):
    config = cnn_digits()
    images = images_for(config, 9)
    logits = StackedNetworks.initialize(config, range(count)).logits(images)
    alone = torch.cat([StackedNetworks.initialize(config, [seed]).logits(images) for seed in range(count)])
    torch.testing.assert_close(logits, alone)


def test_initialize_follows_seed_and_scheme():
    config = cnn_digits()
    networks = StackedNetworks.initialize(config, [7, 7, 8], ["normal", "kaiming_uniform", "normal"])
    for m, (seed, scheme) in enumerate([(7, "normal"), (7, "kaiming_uniform"), (8, "normal")]):
        torch.manual_seed(seed)
        expected = build_model(with_settings(config, initialization=scheme)).state_dict()
        assert expected.keys() == networks.tensors.keys()
        for name, tensor in networks.state_dict(m).items():
            assert torch.equal(tensor, expected[name])
    assert not torch.equal(networks.tensors["hidden.0.weight"][0], networks.tensors["hidden.0.weight"][1])


def test_initialize_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    StackedNetworks.initialize(mlp(image_size=4), [5])
    assert torch.equal(torch.rand(3), expected)


def test_evaluate_is_the_mean_over_all_images(config):
    networks = StackedNetworks.initialize(config, [0, 1])
    images, labels = images_for(config, 300 if config.model_type != "sane_resnet" else 30), None
    labels = torch.arange(len(images)) % 10
    loss, accuracy = networks.evaluate(images, labels)
    assert loss.shape == accuracy.shape == (2,)
    for m in range(2):
        with torch.no_grad():
            logits = networks.model(m)(images).logits
        torch.testing.assert_close(loss[m], F.cross_entropy(logits, labels), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(accuracy[m], (logits.argmax(1) == labels).float().mean())


def test_networks_that_are_not_finite_are_wrong_everywhere():
    networks = StackedNetworks.initialize(cnn_digits(), [0, 1])
    networks.tensors["classifier.bias"][1, 0] = float("nan")
    images = images_for(networks.config, 20)
    _, accuracy = networks.evaluate(images, torch.zeros(20, dtype=torch.int64))
    assert accuracy[1] == 0
    _, alone = networks.select([0]).evaluate(images, torch.zeros(20, dtype=torch.int64))
    assert accuracy[0] == alone[0]


def test_any_module_runs_under_vmap():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(12, 4), nn.BatchNorm1d(4)

        def forward(self, images):
            return self.norm(self.layer(images.flatten(1)))

    modules = [Plain() for _ in range(3)]
    networks = StackedNetworks.from_state_dicts(modules[0], [module.state_dict() for module in modules])
    images = torch.randn(5, 3, 2, 2)
    torch.testing.assert_close(networks.logits(images), torch.stack([module.eval()(images) for module in modules]))
    copy = networks.model(1)
    assert type(copy) is Plain
    assert copy is not modules[0]
    torch.testing.assert_close(copy(images), modules[1](images))


def test_logits_are_found_in_what_a_module_returns():
    logits = torch.ones(2, 3)
    for output in (logits, (logits, None), {"logits": logits}, SimpleNamespace(logits=logits), [logits]):
        assert logits_of(output) is logits
    for output in ({"scores": logits}, (), "no tensor"):
        with pytest.raises(TypeError, match="expected a module that returns logits"):
            logits_of(output)


def test_training_mode_updates_the_running_statistics_of_each_network():
    config = cifar_resnet(20, width=2)
    networks = StackedNetworks.initialize(config, [0, 1])
    tensors = {name: tensor.clone() for name, tensor in networks.tensors.items()}
    images = images_for(config, 2, 8)
    stacked_forward(config)(tensors, images, torch.zeros(2), None)
    for m in range(2):
        model = networks.model(m).train()
        model(images[m])
        state = model.state_dict()
        names = [name for name in state if "running_" in name or "num_batches" in name]
        assert names
        for name in names:
            torch.testing.assert_close(tensors[name][m], state[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("generic", [False, True])
def test_dropout_drops_in_training_only(generic):
    config = cnn_digits(dropout=0.0)
    networks = StackedNetworks.initialize(config, [0, 0])
    networks = replace(networks, tensors={name: tensor.double() for name, tensor in networks.tensors.items()})
    images = images_for(config, 1, 16).double()  # in fp32 the two ways of computing agree to rounding only
    torch.manual_seed(0)
    forward = stacked_forward(config, generic=generic)
    dropped = forward(networks.tensors, images, torch.tensor([0.0, 0.5]), torch.Generator().manual_seed(0))
    plain = networks.logits(images[0])
    torch.testing.assert_close(dropped[0], plain[0])
    assert not torch.allclose(dropped[1], plain[1], atol=1e-3)


def test_no_dropout_in_the_configuration_means_none():
    config = cnn_digits(dropout=None)
    networks = StackedNetworks.initialize(config, [0])
    images = images_for(config, 1, 4)
    trained = stacked_forward(config)(networks.tensors, images, torch.tensor([0.5]), None)
    torch.testing.assert_close(trained, networks.logits(images))


def test_select_state_dict_and_model_agree():
    networks = StackedNetworks.initialize(cnn_digits(), [0, 1, 2])
    chosen = networks.select([2, 0])
    assert chosen.num_models == 2
    for name, tensor in chosen.state_dict(0).items():
        assert torch.equal(tensor, networks.tensors[name][2])
        assert torch.equal(chosen.model(0).state_dict()[name], tensor)
    chosen.state_dict(0)["classifier.bias"].fill_(9)
    assert (chosen.tensors["classifier.bias"] != 9).all()


def test_stack_size_follows_the_activations():
    assert stack_size(cnn_digits(), 32) > stack_size(cnn_s(), 32) > stack_size(cnn_l(), 256) >= 2
    assert stack_size(cifar_resnet(20), 32) > 0
    assert stack_size(cnn_s(), 32, torch.device("meta")) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifier.bias"), "missing or unexpected .'classifier.bias'."),
        (lambda t: t.update(extra=torch.zeros(2)), "missing or unexpected .'extra'."),
        (
            lambda t: t.update({"classifier.bias": torch.zeros(2, 3)}),
            r"expected classifier.bias \[2, 10\], got \[2, 3\]",
        ),
        (
            lambda t: t.update({"classifier.bias": torch.zeros(3, 10)}),
            r"expected classifier.bias \[2, 10\], got \[3, 10\]",
        ),
    ],
)
def test_foreign_tensors_are_refused(change, message):
    tensors = dict(StackedNetworks.initialize(cnn_digits(), [0, 1]).tensors)
    change(tensors)
    with pytest.raises(ValueError, match=message):
        StackedNetworks(cnn_digits(), tensors)


def test_bad_arguments_are_refused():
    networks = StackedNetworks.initialize(cnn_digits(), [0, 1])
    with pytest.raises(
        ValueError, match=r"expected images \[B, C, H, W\] or \[2, B, C, H, W\], or texts .*, got \[3, 4, 1, 8, 8\]"
    ):
        networks.logits(torch.zeros(3, 4, 1, 8, 8))
    with pytest.raises(ValueError, match="expected at least one seed and one scheme per seed, got 0 and none"):
        StackedNetworks.initialize(cnn_digits(), [])
    with pytest.raises(ValueError, match="one scheme per seed, got 2 and 1"):
        StackedNetworks.initialize(cnn_digits(), [0, 1], ["normal"])
    with pytest.raises(ValueError, match="expected at least one state dict to stack, got none"):
        StackedNetworks.from_state_dicts(cnn_digits(), [])
