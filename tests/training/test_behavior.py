"""The behavioural loss is zero for equal networks, ignores symmetries, and has a useful gradient."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from hf_sane.architectures.configuration_zoo import CIFARResNetConfig
from hf_sane.architectures.presets import build_model, cnn_digits, cnn_s, mlp
from hf_sane.core._layout import Layout
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._behavior import BehaviorLoss, behavior_distance
from hf_sane.training._settings import PretrainSettings


class Split:
    """The part of a zoo split that the loss reads."""

    def __init__(self, layout, configs):
        self._layout, self.configs = layout, configs

    def column(self, name):
        values = {"layout": self._layout.signature, "architecture": "a"}
        return [values.get(name, getattr(config, "activation", "")) for config in self.configs]

    def layout(self, index):
        return self._layout

    whole_layout = layout

    def config(self, index):
        return self.configs[index]


def population(config, count=6, token_dim=16, batch_norm="tokens"):
    """Networks of one configuration as normalised tokens, with the extractor that made them."""
    states = []
    for seed in range(count):
        torch.manual_seed(seed)
        states.append({name: 2 * value for name, value in build_model(config).state_dict().items()})
    extractor = SANEFeatureExtractor(token_dim=token_dim, batch_norm=batch_norm)
    layout = extractor.layout(states[0])
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    raw = layout.tokens(stacked, batch_dims=1)
    extractor.fit([(layout, raw)])
    return extractor, layout, extractor.normalize(raw, layout), states


def arguments(**changes):
    needed = {
        "zoo": ["z"],
        "output": "o",
        "behavior_weight": 0.4,
        "behavior_data": "digits",
        "behavior_images": 16,
    }
    return PretrainSettings(**needed | changes)


def loss_of(config, extractor, layout, count=6, sane=None, **changes):
    sane = sane or SANEConfig(token_dim=extractor.token_dim, window_size=layout.num_tokens)
    split = Split(layout, [config] * count)
    return BehaviorLoss.from_arguments(arguments(**changes), sane, extractor, [split], torch.device("cpu"))


CONFIGS = {"cnn": cnn_digits(), "mlp": mlp(image_size=8, hidden_sizes=(5,))}


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_distance_against_its_definition(kind):
    torch.manual_seed(0)
    original, reconstructed = torch.randn(2, 3, 4, 5)
    p, q = ([[[math.exp(v) for v in row] for row in model] for model in x.tolist()] for x in (original, reconstructed))
    p, q = ([[[v / sum(row) for v in row] for row in model] for model in x] for x in (p, q))
    rows = [(m, b) for m in range(3) for b in range(4)]
    average = [sum(p[m][b][k] for m, b in rows) / len(rows) for k in range(5)]
    error = spread = 0.0
    for m, b in rows:
        for k in range(5):
            if kind == "mse":
                error += (p[m][b][k] - q[m][b][k]) ** 2
                spread += (p[m][b][k] - average[k]) ** 2
            else:
                error += p[m][b][k] * math.log(p[m][b][k] / q[m][b][k])
                spread += p[m][b][k] * math.log(p[m][b][k] / average[k])
    assert behavior_distance(original, reconstructed, kind).item() == pytest.approx(error / spread, rel=1e-4)


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_distance_has_a_scale_of_its_own(kind):
    torch.manual_seed(0)
    original = 3 * torch.randn(4, 20, 10)
    average = original.softmax(-1).mean((0, 1)).log().expand_as(original)
    assert behavior_distance(original, original, kind) == 0
    assert behavior_distance(original, original + 5, kind) < 1e-6  # shifted logits are the same answer
    assert behavior_distance(original, average, kind).item() == pytest.approx(1.0, rel=1e-4)
    constant = torch.zeros(4, 20, 10)
    assert behavior_distance(constant, constant, kind) == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_networks_from_tokens_answer_like_the_originals(name):
    extractor, layout, tokens, states = population(CONFIGS[name])
    loss = loss_of(CONFIGS[name], extractor, layout)
    logits = loss.networks(tokens).logits(loss.images[:9])
    assert logits.shape == (6, 9, 10)
    for index, state in enumerate(states):
        network = build_model(CONFIGS[name]).eval()
        network.load_state_dict(state)
        assert torch.allclose(network(loss.images[:9]).logits, logits[index], atol=1e-4)


def test_distance_is_zero_for_equal_networks_and_for_permuted_ones():
    config = CONFIGS["mlp"]
    extractor, layout, tokens, states = population(config)
    loss = loss_of(config, extractor, layout)
    assert loss.distance(tokens, tokens.clone(), step=0) < 1e-8
    order = torch.randperm(5)
    permuted = []
    for state in states:
        moved = dict(state)
        for name in ("hidden.0.weight", "hidden.0.bias"):
            moved[name] = state[name][order]
        moved["classifier.weight"] = state["classifier.weight"][:, order]
        permuted.append(layout.tokens(moved))
    permuted_tokens = extractor.normalize(torch.stack(permuted), layout)
    assert (permuted_tokens - tokens).abs().max() > 0.1
    assert loss.distance(tokens, permuted_tokens, step=0) < 1e-6
    assert loss.distance(tokens, tokens + 0.3 * torch.randn_like(tokens), step=0) > 0.01


def test_images_depend_on_the_step_and_the_seed_alone():
    config = CONFIGS["mlp"]
    extractor, layout, tokens, _ = population(config)
    noisy = tokens + 0.3 * torch.randn_like(tokens)
    first, same, reseeded = (loss_of(config, extractor, layout, seed=seed) for seed in (0, 0, 1))
    assert first.distance(tokens, noisy, step=3) == same.distance(tokens, noisy, step=3)
    assert first.distance(tokens, noisy, step=3) != first.distance(tokens, noisy, step=4)
    assert first.distance(tokens, noisy, step=3) != reseeded.distance(tokens, noisy, step=3)


def test_following_its_gradient_repairs_behaviour():
    config = CONFIGS["cnn"]
    extractor, layout, tokens, _ = population(config)
    loss = loss_of(config, extractor, layout)
    torch.manual_seed(0)
    broken = nn.Parameter(tokens + 0.3 * torch.randn_like(tokens))
    optimizer = torch.optim.Adam(
        [broken], lr=0.02
    )  # small steps: a third of the distance is left, whatever the order of sums
    distances = []
    for _ in range(40):
        optimizer.zero_grad()
        distance = loss.distance(tokens, broken, step=0)
        distance.backward()
        optimizer.step()
        distances.append(distance.item())
    assert broken.grad[:, ~layout.weight_mask].abs().sum() == 0
    assert distances[-1] < 0.6 * distances[0]


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("num_models", [2, 50])
def test_combine_weighs_structure_behaviour_and_contrast(views, num_models):
    config = CONFIGS["mlp"]
    extractor, layout, tokens, _ = population(config)
    sane = SANEConfig(
        token_dim=16, hidden_size=16, latent_dim=4, num_hidden_layers=1, num_attention_heads=2,
        window_size=layout.num_tokens, contrast_weight=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = SANEModel(sane)
    loss = loss_of(config, extractor, layout, sane=sane, behavior_models=num_models)
    batch = {
        "tokens": tokens * 1.1,
        "target_tokens": tokens,
        "positions": layout.positions.expand(6, -1, -1),
        "weight_mask": layout.weight_mask.expand(6, -1, -1),
    }
    if views == 2:
        batch |= {"second_tokens": tokens * 0.9, "second_target_tokens": tokens}
    output = model(**batch)
    decoded = [output.reconstruction, output.second_reconstruction][:views]
    joined = torch.cat([view[:num_models] for view in decoded])
    distance = loss.distance(torch.cat([tokens[:num_models]] * views), joined, step=5)
    structure = 0.6 * output.reconstruction_loss + 0.4 * distance
    expected = structure if views == 1 else 0.8 * structure + 0.2 * output.contrastive_loss
    total = loss.combine(output, batch, step=5)
    assert torch.allclose(total, expected, rtol=1e-5)
    total.backward()
    assert model.token_out.weight.grad.isfinite().all()


def test_networks_of_noised_latents_are_half_of_the_loss():
    """Noise has the spread of the networks at each place; without noise, or without a decoder, nothing changes."""
    config = CONFIGS["mlp"]
    extractor, layout, tokens, _ = population(config)
    sizes = {"hidden_size": 16, "latent_dim": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    sane = SANEConfig(token_dim=16, window_size=layout.num_tokens, contrast_weight=0.0, **sizes)
    torch.manual_seed(0)
    model = SANEModel(sane)
    loss = loss_of(config, extractor, layout, sane=sane, behavior_latent_noise=0.5, behavior_models=4)
    batch = {
        "tokens": tokens,
        "positions": layout.positions.expand(6, -1, -1),
        "attention_mask": torch.ones(6, layout.num_tokens),
    }
    output = model(**batch)
    noised = loss.noised_latents(output.latents, step=2)
    many = torch.cat([loss.noised_latents(output.latents, step) - output.latents for step in range(400)]).detach()
    torch.testing.assert_close(
        many.std(dim=0), 0.5 * output.latents.detach().std(dim=0, correction=0), rtol=0.15, atol=1e-4
    )
    assert torch.equal(noised, loss.noised_latents(output.latents, step=2))  # a pure function of step and seed
    decoded = model.decode(noised[:4], batch["positions"][:4], batch["attention_mask"][:4])
    halves = [loss.distance(tokens[:4], part[:4], step=2) for part in (output.reconstruction, decoded)]
    total = loss.combine(output, batch, step=2, decode=model.decode)
    torch.testing.assert_close(total, 0.6 * output.reconstruction_loss + 0.4 * sum(halves) / 2)
    total.backward()
    assert model.token_out.weight.grad.isfinite().all()
    plain = replace(loss, latent_noise=0.0).combine(output, batch, step=2, decode=model.decode)
    torch.testing.assert_close(plain, 0.6 * output.reconstruction_loss + 0.4 * halves[0])
    assert arguments().behavior_latent_noise == 0


def test_negative_variances_are_survived():
    config = CIFARResNetConfig(depths=(1, 1, 1), widths=(4, 4, 4), num_channels=1)
    extractor, layout, tokens, _ = population(config, count=2)
    loss = loss_of(config, extractor, layout, count=2)
    broken = (tokens + 3 * torch.randn_like(tokens)).requires_grad_()
    distance = loss.distance(tokens, broken, step=0)
    distance.backward()
    assert distance.isfinite()
    assert broken.grad.isfinite().all()


def test_it_is_off_by_default():
    assert loss_of(CONFIGS["mlp"], *population(CONFIGS["mlp"])[:2], behavior_weight=0.0) is None


def test_zoos_it_cannot_run_are_refused():
    extractor, layout, _, _ = population(CONFIGS["mlp"])
    other = population(CONFIGS["cnn"])[1]
    sane = SANEConfig(token_dim=16, window_size=200)
    config = CONFIGS["mlp"]

    def attempt(splits, sane=sane):
        return BehaviorLoss.from_arguments(arguments(), sane, extractor, splits, torch.device("cpu"))

    with pytest.raises(
        ValueError,
        match=r"one layout, architecture and activation .*, got \[.*'(gelu|tanh)'.*'(gelu|tanh)'.*\]; train on",
    ):
        attempt([Split(layout, [config]), Split(other, [CONFIGS["cnn"]])])
    relu = mlp(image_size=8, hidden_sizes=(5,), activation="relu")
    with pytest.raises(ValueError, match="one layout, architecture and activation .*, got .*relu.*tanh"):
        attempt([Split(layout, [config, relu])])
    drops = mlp(image_size=8, hidden_sizes=(5,), dropout=0.3, initialization="normal")
    assert attempt([Split(layout, [config, drops])]) is not None  # trained differently, but the same function
    with pytest.raises(
        ValueError, match=r"windows that cover whole networks .* got window_size=4 for \d+ tokens; raise"
    ):
        attempt([Split(layout, [config])], SANEConfig(token_dim=16, window_size=4))
    template = replace(layout, template={"bn.running_mean": torch.zeros(3)})
    with pytest.raises(ValueError, match="tokens that contain all weights .*, got a zoo with batch_norm='template'"):
        attempt([Split(template, [config])])
    assert isinstance(layout, Layout)


def test_images_are_shown_in_the_size_that_the_networks_take():
    config = cnn_s(image_size=28)
    extractor, layout, _, _ = population(config)
    behavior = loss_of(config, extractor, layout)
    assert behavior.images.shape[1:] == (1, 28, 28)
    assert loss_of(cnn_digits(), *population(cnn_digits())[:2]).images.shape[1:] == (1, 8, 8)
