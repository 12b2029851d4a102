"""Rate against function: quantisers against their definition, codes of full rate, areas against hand-made curves."""

import math

import pytest
import torch
from rates import RANGES, Quantizer, accuracy_kept, area_under, measure_rates, rounded_weights

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor


def test_a_quantiser_has_that_many_levels_and_the_best_range():
    latents = torch.randn(500, 2, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.0]) + 2
    groups = torch.tensor([0, 1])
    quantizer = Quantizer.fit(latents, groups, 3)
    found = quantizer(latents)
    assert quantizer.num_latents == 4  # the third dimension does not vary, and needs no bits
    assert torch.equal(found[..., 2], latents[..., 2])
    errors = []
    for reach in RANGES:
        error = 0.0
        for token in range(2):
            for dimension in range(2):
                values = latents[:, token, dimension].double()
                mean, std = values.mean(), values.std(correction=0)
                levels = mean + std * reach * (torch.arange(8, dtype=torch.float64) + 0.5 - 4) / 4
                nearest = (values[:, None] - levels).abs().amin(dim=1)
                error += nearest.square().sum().item()
        errors.append(error)
    assert (found - latents).square().sum().item() == pytest.approx(min(errors), rel=1e-3)
    assert all(len(found[:, token, dimension].unique()) == 8 for token in range(2) for dimension in range(2))
    with pytest.raises(ValueError, match="at least 1 bit per latent, got 0"):
        Quantizer.fit(latents, groups, 0)


def test_tokens_of_a_group_share_their_levels():
    latents = torch.randn(50, 3, 1, generator=torch.Generator().manual_seed(0))
    quantizer = Quantizer.fit(latents, torch.tensor([7, 7, 2]), 2)
    assert torch.equal(quantizer.step[0], quantizer.step[1])
    assert quantizer.mean[0] == pytest.approx(latents[:, :2].mean().item(), abs=1e-6)
    assert not torch.equal(quantizer.mean[0], quantizer.mean[2])


def test_rounded_weights_and_a_linear_code_keep_networks_at_many_bits(tiny_zoo, digits):
    split = tiny_zoo.splits["train"].final_epochs()
    layout, config = split.layout_and_config()
    raw_tokens = split.stacked_tokens()
    extractor = SANEFeatureExtractor(token_dim=layout.token_dim).fit([(layout, raw_tokens)])
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "latent_dim": 80}
    codec = NetworkCodec(SANEModel(SANEConfig(token_dim=layout.token_dim, **sizes)), extractor, layout, config)
    images, labels = digits.split("test")
    original = codec.networks(raw_tokens[:3]).evaluate(images, labels)[1].tolist()
    points = measure_rates(rounded_weights(codec), raw_tokens, raw_tokens[:3], images, labels, bits=[1, 12])
    assert [point.bits_per_weight for point in points] == [1, 12]  # padding costs nothing
    assert points[1].agreement == pytest.approx([1] * 3, abs=0.01)
    assert points[1].accuracy == pytest.approx(original, abs=0.01)
    assert accuracy_kept(points[1], original) == pytest.approx(1, abs=0.01)
    assert accuracy_kept(points[0].to_dict(), original) == sum(points[0].accuracy) / sum(original) < 1
    narrow = NetworkCodec(codec.model, codec.extractor, codec.layout, codec.config).linear(raw_tokens)
    (point,) = measure_rates(narrow, raw_tokens, raw_tokens[:3], images, labels, bits=[12])
    assert point.agreement == pytest.approx([1] * 3, abs=0.01)  # 80 latents, tokens of 73
    assert point.latents_per_weight <= 73 * codec.layout.num_tokens / codec.layout.num_weights


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], 0.1),
        ([(0.1, 0.5)], 0.5),  # cheaper than the lowest rate: holds everywhere
        ([(8.0, 1.0), (16.0, 1.0)], 0.1),  # what costs all bits, or more, buys nothing within
        ([(1.0, 0.6), (4.0, 0.3), (2.0, 1.0)], (2 * 0.1 + 1 * 0.6 + 2 * 1.0) / 5),  # the best so far counts
    ],
)
def test_the_area_is_that_of_the_steps(points, expected):
    assert math.isclose(area_under(points, floor=0.1), expected)
