import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pretraining_runs import train

from hf_sane.training._settings import PretrainSettings
from hf_sane.training._supervision import PENALTY, SupervisedLoss, left_out_error

CPU = torch.device("cpu")
MODEL = {"hidden_size": 16, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "window_size": 52}


def settings(output, **changes):
    defaults = {"zoo": ["unused"], "model": MODEL, "batch_size": 8, "log_with": "none", "progress_bar": False}
    return PretrainSettings(output=str(output), num_permutations=5, **defaults | changes)


def by_refitting(features, targets, penalty=PENALTY):
    """From the definition: one ridge fit per window that is left out, its intercept not penalised."""
    x, y = features.double(), targets.double()
    centred = x - x.mean(0)
    strength = penalty * centred.square().sum(0).mean()
    errors, spread = torch.zeros(y.shape[1]).double(), torch.zeros(y.shape[1]).double()
    for i in range(len(x)):
        rest = [j for j in range(len(x)) if j != i]
        design = torch.cat([torch.ones(len(rest), 1).double(), x[rest]], dim=1)
        ridge = strength * torch.eye(design.shape[1]).double()
        ridge[0, 0] = 0
        fitted = torch.linalg.solve(design.T @ design + ridge, design.T @ y[rest])
        errors += (y[i] - torch.cat([torch.ones(1).double(), x[i]]) @ fitted).square()
        spread += (y[i] - y[rest].mean(0)).square()
    return (errors / spread).mean().item()


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 5, generator=generator) + 3
    return features, features[:, :2] + 0.3 * torch.randn(12, 2, generator=generator)


@pytest.mark.parametrize("columns", [1, 5])
def test_the_closed_form_is_that_of_refitting(drawn, columns):
    features, targets = drawn[0][:, :columns], drawn[1]
    assert left_out_error(features, targets).item() == pytest.approx(by_refitting(features, targets), rel=1e-4)


def test_more_features_than_windows(drawn):
    wide = torch.cat([drawn[0], torch.randn(12, 40, generator=torch.Generator().manual_seed(1))], dim=1)
    assert left_out_error(wide, drawn[1]).item() == pytest.approx(by_refitting(wide, drawn[1]), rel=1e-3)


def test_scale_shift_and_order_do_not_matter_and_features_do(drawn):
    features, targets = drawn
    error = left_out_error(features, targets)
    torch.testing.assert_close(left_out_error(100 * features - 7, 5 * targets + 2), error, rtol=1e-3, atol=1e-5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(left_out_error(features[order], targets[order]), error)
    assert error < 0.3
    assert left_out_error(features[order], targets) > 0.9
    assert left_out_error(torch.zeros_like(features), targets).item() == pytest.approx(1)
    assert left_out_error(features, torch.ones_like(targets)) == 0  # nothing to tell apart


def test_following_its_gradient_makes_latents_tell(drawn):
    _, targets = drawn
    latents = torch.randn(12, 4, 6, generator=torch.Generator().manual_seed(3)).requires_grad_()
    mask = torch.ones(12, 4, dtype=torch.bool)
    mask[:, 3] = False
    loss = SupervisedLoss(targets, weight=0.5)
    optimizer = torch.optim.Adam([latents], lr=0.05)
    first = loss.term(latents, mask, torch.arange(12))
    for _ in range(60):
        optimizer.zero_grad()
        loss.term(latents, mask, torch.arange(12)).backward()
        optimizer.step()
    last = loss.term(latents, mask, torch.arange(12))
    assert last < 0.2 * first
    assert (latents.grad[:, 3] == 0).all()  # padding says nothing
    torch.testing.assert_close(last, 0.5 * left_out_error(latents[:, :3].mean(1), targets))
    turned = torch.arange(12).roll(1)
    assert loss.term(latents, mask, turned) > last  # of other networks


def test_properties_are_those_of_the_training_networks(tiny_zoo, tmp_path):
    split = tiny_zoo.splits["train"]
    arguments = settings(tmp_path, supervised_weight=0.1, supervised_properties=["epoch", "test_accuracy"])
    loss = SupervisedLoss.from_arguments(arguments, [split, split], CPU)
    wanted = np.tile(split.column("epoch").astype(float), 2)
    np.testing.assert_allclose(loss.properties[:, 0], (wanted - wanted.mean()) / wanted.std(), rtol=1e-5)
    assert loss.properties.shape == (2 * len(split), 2)
    assert SupervisedLoss.from_arguments(replace(arguments, supervised_weight=0.0), [split], CPU) is None


def test_pre_training_with_it_resumes_to_the_last_bit(tiny_zoo, tmp_path):
    changes = {"supervised_weight": 0.5, "max_steps": 6, "checkpoint_every_steps": 3}
    whole, result = train(settings(tmp_path / "whole", **changes), tiny_zoo)
    plain, _ = train(settings(tmp_path / "plain", max_steps=6), tiny_zoo)
    assert whole[0] > plain[0]
    saved = json.loads((result.folder / "config.json").read_text())
    assert not [name for name in saved if "supervis" in name]  # nothing of it is part of the model
    train(settings(tmp_path / "cut", **changes), tiny_zoo, stop_after=5)
    again, _ = train(settings(tmp_path / "cut", **changes, resume=True), tiny_zoo)
    assert again == whole[3:]


def test_errors(tiny_zoo, tmp_path, drawn):
    features, targets = drawn
    with pytest.raises(ValueError, match="features and targets of the same windows, at least 3, got 2 and 2"):
        left_out_error(features[:2], targets[:2])
    with pytest.raises(ValueError, match="got 12 and 5"):
        left_out_error(features, targets[:5])

    def asked(*names, split=tiny_zoo.splits["train"]):
        arguments = settings(tmp_path, supervised_weight=0.1, supervised_properties=list(names))
        return SupervisedLoss.from_arguments(arguments, [split], CPU)

    count = len(tiny_zoo.splits["train"])
    with pytest.raises(
        ValueError, match=f"got activation: 0 of {count} are finite numbers, 0 of them different; leave"
    ):
        asked("activation")
    with pytest.raises(KeyError, match="colour"):
        asked("colour")
    last = tiny_zoo.splits["train"].select(tiny_zoo.splits["train"].column("epoch") == 0)
    with pytest.raises(
        ValueError, match=f"got epoch: {len(last)} of {len(last)} are finite numbers, 1 of them different"
    ):
        asked("epoch", split=last)
