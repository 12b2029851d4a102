import math
import os

import pytest
import torch
import torch.nn.functional as F
from forks import run_in_fork
from torch import nn
from torch.func import functional_call, vmap

from hf_sane.architectures.initialization_zoo import initialize_layer
from hf_sane.architectures.modeling_resnet import IdentityShortcut
from hf_sane.architectures.modeling_zoo import drop
from hf_sane.architectures.presets import (
    MODEL_CLASSES,
    build_model,
    cifar_resnet,
    cnn_digits,
    cnn_l,
    cnn_s,
    mlp,
    resnet,
)

CONFIGS = {
    "cnn_s": cnn_s(dropout=0.3),
    "cnn_l": cnn_l(),
    "cnn_digits": cnn_digits(hidden_sizes=()),
    "mlp": mlp(image_size=8, hidden_sizes=(9, 7), activation="relu", initialization="kaiming_normal"),
    "resnet_identity": cifar_resnet(20, width=4),
    "resnet_projection": resnet(18, width=4, num_channels=1),
    "resnet_bottleneck": resnet(50, width=2, shortcut="identity"),
}


def images(config, batch=4, seed=0):
    size = getattr(config, "image_size", 12)
    return torch.randn(batch, config.num_channels, size, size, generator=torch.Generator().manual_seed(seed))


def stacked_states(config, num_models):
    states = []
    for seed in range(num_models):
        torch.manual_seed(seed)
        states.append(build_model(config).state_dict())
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


@pytest.mark.parametrize("name", CONFIGS)
def test_folders_give_the_network_back(tmp_path, name):
    model = build_model(CONFIGS[name])
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    state = model.state_dict()
    assert list(loaded.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())
    inputs = images(CONFIGS[name])
    torch.testing.assert_close(loaded(inputs).logits, model.eval()(inputs).logits)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "sigmoid"])
def test_cnn_follows_its_definition(activation):
    config = cnn_s(activation=activation, hidden_sizes=(20, 11))
    model, inputs = build_model(config).eval(), images(cnn_s())
    weights = model.state_dict()
    act = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu, "sigmoid": torch.sigmoid}[activation]
    values = inputs
    for i, pool in enumerate((2, 2, 1)):
        values = F.conv2d(values, weights[f"convolutions.{i}.weight"], weights[f"convolutions.{i}.bias"])
        values = act(F.max_pool2d(values, pool))
    values = values.reshape(len(values), -1)
    for i in range(2):
        values = act(values @ weights[f"hidden.{i}.weight"].T + weights[f"hidden.{i}.bias"])
    expected = values @ weights["classifier.weight"].T + weights["classifier.bias"]
    torch.testing.assert_close(model(inputs).logits, expected)


def test_mlp_follows_its_definition():
    config = CONFIGS["mlp"]
    model, inputs = build_model(config).eval(), images(config)
    weights, values = model.state_dict(), images(config).reshape(4, -1)
    for layer in ("hidden.0", "hidden.1"):
        values = (values @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]).clamp_min(0)
    torch.testing.assert_close(model(inputs).logits, values @ weights["classifier.weight"].T)


def naive_resnet(weights, config, values):
    """Option-A or projection ResNet in evaluation mode, from the equations."""

    def conv_norm(values, conv, norm, stride):
        kernel = weights[f"{conv}.weight"]
        values = F.conv2d(values, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, variance, gain, shift = (
            weights[f"{norm}.{t}"][:, None, None] for t in ("running_mean", "running_var", "weight", "bias")
        )
        return (values - mean) / (variance + 1e-5).sqrt() * gain + shift

    values = conv_norm(values, "conv1", "bn1", 1).clamp_min(0)
    for stage, depth in enumerate(config.depths, start=1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            convolutions = 2 if config.block == "basic" else 3
            out = values
            for i in range(1, convolutions + 1):
                here = stride if i == convolutions - 1 else 1
                out = conv_norm(out, f"{name}.conv{i}", f"{name}.bn{i}", here)
                out = out.clamp_min(0) if i < convolutions else out
            if f"{name}.downsample.0.weight" in weights:
                values = conv_norm(values, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            elif values.shape != out.shape:
                new = torch.zeros_like(out)
                before = (out.shape[1] - values.shape[1]) // 2
                new[:, before : before + values.shape[1]] = values[:, :, ::stride, ::stride]
                values = new
            values = (out + values).clamp_min(0)
    return values.mean(dim=(2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize("name", ["resnet_identity", "resnet_projection", "resnet_bottleneck"])
def test_resnets_follow_their_definition(name):
    config = CONFIGS[name]
    model = build_model(config).double().eval()
    for tensor in model.state_dict().values():
        if tensor.ndim == 1:
            tensor.add_(0.2 + torch.rand_like(tensor))
    inputs = images(config).double()
    torch.testing.assert_close(model(inputs).logits, naive_resnet(model.state_dict(), config, inputs))


def test_identity_shortcut_puts_the_larger_half_after():
    shortcut = IdentityShortcut(2, 5, 2)
    values = torch.arange(2 * 9.0).view(1, 2, 3, 3) + 1
    out = shortcut(values)
    assert out.shape == (1, 5, 2, 2)
    assert torch.equal(out[:, 1:3], values[:, :, ::2, ::2])
    assert not out[:, [0, 3, 4]].any()


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_is_the_mean_cross_entropy(name):
    config = CONFIGS[name]
    model, inputs, labels = build_model(config).eval(), images(config), torch.tensor([0, 3, 9, 3])
    output = model(inputs, labels=labels)
    expected = -output.logits.log_softmax(1)[torch.arange(4), labels].mean()
    torch.testing.assert_close(output.loss, expected)
    assert model(inputs).loss is None


@pytest.mark.parametrize("name", CONFIGS)
def test_one_vmap_equals_a_loop(name):
    config, num_models = CONFIGS[name], 3
    skeleton, inputs = build_model(config).double().eval(), images(config).double()
    tensors = {key: tensor.double() for key, tensor in stacked_states(config, num_models).items()}
    logits = vmap(lambda t: functional_call(skeleton, t, (inputs,)).logits)(tensors)
    assert logits.shape == (num_models, 4, 10)
    for i in range(num_models):
        skeleton.load_state_dict({key: tensor[i] for key, tensor in tensors.items()})
        torch.testing.assert_close(skeleton(inputs).logits, logits[i])
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("name", ["resnet_identity", "resnet_projection"])
def test_running_statistics_and_gradients_under_vmap_equal_a_loop(name):
    # fp64: in fp32 a pre-activation within rounding of a ReLU's kink falls on one side or the other by processor.
    config, num_models = CONFIGS[name], 2
    skeleton, inputs = build_model(config).double().train(), images(config, 8).double()
    tensors = stacked_states(config, num_models)
    tensors = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    start = {key: tensor.clone() for key, tensor in tensors.items()}
    parameters = [key for key, _ in skeleton.named_parameters()]
    for key in parameters:
        tensors[key].requires_grad_()
    labels = torch.arange(8)
    vmap(lambda t: functional_call(skeleton, t, (inputs, labels)).loss)(tensors).sum().backward()
    for i in range(num_models):
        alone = build_model(config).double().train()
        alone.load_state_dict({key: tensor[i] for key, tensor in start.items()})
        alone(inputs, labels).loss.backward()
        for key, buffer in alone.named_buffers():
            torch.testing.assert_close(tensors[key][i], buffer)
            assert not torch.equal(buffer, start[key][i]), "statistics must have moved"
        for key, parameter in alone.named_parameters():
            torch.testing.assert_close(tensors[key].grad[i], parameter.grad, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("scheme", "std", "largest", "bias_largest"),
    [
        ("uniform", 1 / math.sqrt(3 * 90), 1 / math.sqrt(90), 1 / math.sqrt(90)),
        ("normal", 1 / math.sqrt(90), None, 0.0),
        ("kaiming_uniform", math.sqrt(2 / 90), math.sqrt(6 / 90), 0.0),
        ("kaiming_normal", math.sqrt(2 / 90), None, 0.0),
    ],
)
@pytest.mark.parametrize("layer", [nn.Conv2d(10, 3000, 3), nn.Linear(90, 3000)], ids=["conv", "linear"])
def test_initialisation_formulas(layer, scheme, std, largest, bias_largest):
    torch.manual_seed(0)
    initialize_layer(layer, scheme)
    assert abs(layer.weight.mean()) < 0.01 * std
    assert layer.weight.std().item() == pytest.approx(std, rel=0.01)
    if largest is not None:
        assert 0.999 * largest < layer.weight.abs().max() <= largest
    else:
        assert layer.weight.abs().max() > 3.5 * std
    assert layer.bias.abs().max().item() == pytest.approx(bias_largest, rel=0.01)


def test_unknown_initialisation_raises():
    with pytest.raises(ValueError, match=r"initialization must be uniform, normal, .* got 'zeros'"):
        initialize_layer(nn.Linear(2, 2), "zeros")


def test_networks_start_from_the_configured_scheme_and_the_global_seed():
    states = {}
    for scheme in ("uniform", "normal", "kaiming_uniform", "kaiming_normal"):
        for repeat in range(2):
            torch.manual_seed(3)
            states[scheme, repeat] = build_model(cnn_s(initialization=scheme)).state_dict()["hidden.0.weight"]
        assert torch.equal(states[scheme, 0], states[scheme, 1])
        layer = nn.Linear(36, 20)
        bound = {"uniform": 1 / 6, "kaiming_uniform": math.sqrt(1 / 6)}.get(scheme, math.inf)
        assert states[scheme, 0].shape == layer.weight.shape
        assert states[scheme, 0].abs().max() <= bound
    assert not torch.equal(states["normal", 0], states["kaiming_normal", 0])


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.9])
def test_dropout_keeps_the_mean_and_drops_the_given_share(rate):
    torch.manual_seed(0)
    out = drop(torch.ones(200_000), torch.tensor(rate))
    assert (out == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert out[out != 0].unique().tolist() == pytest.approx([1 / (1 - rate)])


@pytest.mark.parametrize("build", [cnn_s, mlp])
def test_dropout_rate_can_be_set_per_call_and_per_network(build):
    config = build(dropout=0.5)
    model, inputs = build_model(config).train(), images(config)
    assert "dropout_rate" not in model.state_dict()
    assert not torch.equal(model(inputs).logits, model(inputs).logits)
    clean = model.eval()(inputs).logits
    model.train()
    assert torch.equal(functional_call(model, {"dropout_rate": torch.tensor(0.0)}, (inputs,)).logits, clean)
    tensors = {name: tensor.expand(3, *tensor.shape) for name, tensor in model.state_dict().items()}
    tensors["dropout_rate"] = torch.tensor([0.0, 0.5, 0.0])
    logits = vmap(lambda t: functional_call(model, t, (inputs,)).logits, randomness="different")(tensors)
    torch.testing.assert_close(logits[0], clean)
    torch.testing.assert_close(logits[2], clean)
    assert (logits[1] - clean).abs().max() > 1e-3


def test_dropout_rate_is_restored_after_loading_and_stays_out_without_dropout(tmp_path):
    build_model(cnn_s(dropout=0.375)).save_pretrained(tmp_path)
    model = type(build_model(cnn_s())).from_pretrained(tmp_path)
    assert model.dropout_rate.item() == 0.375
    none = build_model(cnn_s(dropout=None)).train()
    state, inputs = torch.get_rng_state(), images(cnn_s())
    assert torch.equal(none(inputs).logits, none(inputs).logits)
    assert torch.equal(torch.get_rng_state(), state), "dropout=None must draw no random numbers"


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (cnn_s(), (2, 3, 28, 28), r"expected pixel_values \[batch, 1, 28, 28\], got \[2, 3, 28, 28\]"),
        (mlp(), (2, 784), r"expected pixel_values \[batch, 1, 28, 28\], got \[2, 784\]"),
        (cifar_resnet(20), (2, 1, 32, 32), r"expected pixel_values \[batch, 3, height, width\], got \[2, 1, 32, 32\]"),
    ],
)
def test_images_that_do_not_fit_raise(config, shape, message):
    with pytest.raises(ValueError, match=message):
        build_model(config)(torch.zeros(shape))


LOAD = """
import sys, torch
sys.modules["hf_sane"] = None
from transformers import AutoModelForImageClassification
for name in ("cnn", "resnet"):
    model = AutoModelForImageClassification.from_pretrained(f"{sys.argv[1]}/{name}", trust_remote_code=True)
    saved = torch.load(f"{sys.argv[1]}/{name}.pt")
    torch.testing.assert_close(model(saved["inputs"]).logits, saved["logits"])
    assert name != "cnn" or model.dropout_rate == 0.25
"""


def export(folder):
    """Save a network of each kind with its code, and what it answers."""
    for config_class, model_class in MODEL_CLASSES.items():
        config_class.register_for_auto_class()
        model_class.register_for_auto_class("AutoModelForImageClassification")
    for name, config in {"cnn": cnn_s(num_labels=2, dropout=0.25), "resnet": cifar_resnet(20, width=4)}.items():
        torch.manual_seed(0)
        model = build_model(config).eval()
        model.save_pretrained(folder / name)
        size = getattr(config, "image_size", 12)
        inputs = torch.ones(2, config.num_channels, size, size)
        torch.save({"inputs": inputs, "logits": model(inputs).logits.detach()}, folder / f"{name}.pt")


def test_networks_load_without_the_package(tmp_path, fresh_python):
    run_in_fork(lambda: export(tmp_path))  # elsewhere, networks are saved without code
    fresh_python(LOAD, tmp_path, env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"})
    assert (tmp_path / "cnn" / "modeling_zoo.py").is_file()
