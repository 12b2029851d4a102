"""Networks to points and back, aligned, in both spaces."""

import pytest
import torch

from hf_sane.analysis._region_networks import (
    align_networks,
    flatten_networks,
    latent_points,
    stack_networks,
    unflatten_networks,
)
from hf_sane.architectures.presets import cifar_resnet, cnn_digits
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

CONFIGS = {"cnn": cnn_digits(), "resnet": cifar_resnet(20, width=2)}


@pytest.mark.parametrize("kind", CONFIGS)
def test_points_and_back_is_exact(kind):
    networks = StackedNetworks.initialize(CONFIGS[kind], [0, 1, 2])
    points = flatten_networks(networks.tensors)
    assert points.shape == (3, sum(t[0].numel() for t in networks.tensors.values() if t.is_floating_point()))
    back = unflatten_networks(points, networks.state_dict(1))
    assert list(back) == list(networks.tensors)
    for name, tensor in networks.tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name


def test_half_precision_comes_back_as_it_was():
    tensors = {"a": torch.randn(2, 3, 4).half(), "b": torch.randn(2, 5), "count": torch.tensor([3, 3])}
    back = unflatten_networks(flatten_networks(tensors), {name: tensor[0] for name, tensor in tensors.items()})
    assert all(
        torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_alignment_undoes_permutations(kind):
    networks = StackedNetworks.initialize(CONFIGS[kind], [0, 0, 0])
    spec = permutation_spec(networks.config)
    mixed = spec.apply(networks.tensors, spec.random(3, generator=torch.Generator().manual_seed(0)), batch_dims=1)
    found = align_networks(mixed, spec)
    points, before = flatten_networks(found), flatten_networks(mixed)
    assert torch.equal(points[1], points[0])
    assert torch.equal(points[2], points[0])
    assert torch.equal(points[0], before[0])
    assert not torch.equal(before[1], before[0])
    given = align_networks(mixed, spec, {name: tensor[2] for name, tensor in mixed.items()})
    assert torch.equal(flatten_networks(given)[0], before[2])


def test_latents_are_those_of_single_networks():
    networks = StackedNetworks.initialize(cnn_digits(), range(5))
    states = [networks.state_dict(index) for index in range(5)]
    extractor = SANEFeatureExtractor(token_dim=73).fit(states)
    config = {"hidden_size": 16, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = SANEModel(SANEConfig(token_dim=73, window_size=20, max_positions=[52, 5, 20], **config))
    points = latent_points(model, extractor, networks.tensors, batch_size=2, halo_size=2)
    for state, point in zip(states, points, strict=True):
        sequence = extractor.encode(state)
        alone = model.encode_sequences(sequence.tokens[None], sequence.positions, halo_size=2)
        torch.testing.assert_close(point, alone.flatten(), atol=1e-5, rtol=1e-5)


def test_stacking_names_what_differs():
    networks = {
        "one": {"a": torch.zeros(2), "b": torch.zeros(3, 1)},
        "two": {"a": torch.ones(2), "b": torch.ones(3, 1)},
    }
    stacked = stack_networks(networks)
    assert torch.equal(stacked["b"], torch.tensor([[[0.0]] * 3, [[1.0]] * 3]))
    with pytest.raises(ValueError, match=r"expected at least two networks, got \['one'\]"):
        stack_networks({"one": networks["one"]})
    with pytest.raises(
        ValueError, match=r"one and three are of different architectures: only one of them has \['b'\]"
    ):
        stack_networks({**networks, "three": {"a": torch.zeros(2)}})
    with pytest.raises(ValueError, match=r"shapes of one and three differ: a \(2,\) and \(4,\); pass networks of one"):
        stack_networks({**networks, "three": {"a": torch.zeros(4), "b": torch.zeros(3, 1)}})


def test_tensors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected tensors \[M, \*shape\] of the same number of networks, got"):
        flatten_networks({"a": torch.zeros(2, 3), "b": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match=r"expected floating-point tensors, got \['count'\]; pass tensors of weights"):
        flatten_networks({"count": torch.tensor([1, 2])})
    for wrong in (torch.zeros(2, 4), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"expected points \[K, 3\] for these tensors, got"):
            unflatten_networks(wrong, {"a": torch.zeros(3)})
