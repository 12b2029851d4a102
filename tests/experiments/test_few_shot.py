"""Few images of a new task: every search begins with the same networks, and is chosen within the images."""

import numpy as np
import paper_few_shot
import pytest
import torch
from paper_few_shot import Directions, Latents, Task, Weights, search, shifts
from results import few_shot

from hf_sane.networks._stacked import example_losses
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._linear_code import fit_linear_code


@pytest.fixture(scope="module")
def networks(tiny_zoo):
    """A codec with a linear code that loses much, and raw tokens of networks."""
    split = tiny_zoo.splits["train"].final_epochs()
    layout, config = split.layout_and_config()
    tokens = split.stacked_tokens()
    extractor = SANEFeatureExtractor(layout.token_dim).fit([(layout, tokens)])
    code = fit_linear_code(lambda: [(layout, tokens)], [layout], extractor, latent_dim=3, grouping="kind")
    return NetworkCodec(code, extractor, layout, config), tokens


def test_all_spaces_begin_with_the_same_networks(networks, digits, monkeypatch):
    codec, tokens = networks
    few, test = (digits.train_images[:8], digits.train_labels[:8]), digits.split("test")
    monkeypatch.setattr(paper_few_shot, "STEPS", (0,))
    expected = codec.networks(tokens[:2]).evaluate(*test)[1].tolist()
    for space in (Weights(), Latents.of(codec, tokens), Directions.fit(tokens, 2)):
        found = search(space, codec, tokens[:2], few, test)
        assert found.accuracy == pytest.approx(expected, abs=0.005)
        assert found.steps == 0


def test_the_choice_has_the_lowest_loss_on_images_that_were_held_out(networks, digits, monkeypatch):
    codec, tokens = networks
    images, labels = digits.train_images[:8], digits.train_labels[:8]
    monkeypatch.setattr(paper_few_shot, "STEPS", (0, 1, 3))
    rates = (0.3, 0.01)
    found = search(Weights(rates), codec, tokens[:2], (images, labels), digits.split("test"))

    def fitted(start, rate, steps, kept):
        weights = start[None].clone().requires_grad_()
        optimizer = torch.optim.Adam([weights], lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            example_losses(codec.networks(weights).logits(images[kept]), labels[None, kept]).mean().backward()
            optimizer.step()
        return weights.detach()

    losses = {}
    for rate in rates:
        for steps in (0, 1, 3):
            total = 0.0
            for start in tokens[:2]:
                for fold in range(4):
                    held = torch.arange(8) % 4 == fold
                    network = codec.networks(fitted(start, rate, steps, ~held))
                    total += example_losses(network.logits(images[held]), labels[None, held]).sum().item()
            losses[rate, steps] = total
    assert (found.rate, found.steps) == min(losses, key=lambda key: losses[key])
    every = torch.ones(8, dtype=torch.bool)
    final = [fitted(start, found.rate, found.steps, every) for start in tokens[:2]]
    accuracy = [codec.networks(weights).evaluate(*digits.split("test"))[1].item() for weights in final]
    assert found.accuracy == pytest.approx(accuracy, abs=0.01)


def test_few_images_are_balanced_and_drawn_again_for_every_seed(digits):
    task = Task.of(digits)
    images, labels = task.draw(20, 0)
    assert labels.bincount(minlength=10).tolist() == [2] * 10
    assert torch.equal(task.draw(20, 0)[0], images)
    assert not torch.equal(task.draw(20, 1)[0], images)
    assert len(task.draw(13, 0)[1].unique()) == 10


def test_the_tasks_are_other_data_turned_images_and_exchanged_labels(digits, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 12, 12), dtype=np.uint8)
    parts = {"images": pixels, "labels": np.arange(100) % 10}
    np.savez(tmp_path / "mnist.npz", **{f"{s}_{name}": v for s in ("train", "test") for name, v in parts.items()})
    found = shifts(digits, tmp_path)
    assert found["other_data"].images.shape[1:] == digits.train_images.shape[1:]
    assert torch.equal(found["rotation"].labels, digits.train_labels)
    assert not torch.allclose(found["rotation"].images, digits.train_images, atol=0.1)
    assert torch.equal(found["other_labels"].images, digits.train_images)
    assert (found["other_labels"].labels != digits.train_labels).float().mean() > 0.75
    assert len(found["other_labels"].labels.unique()) == 10


@pytest.fixture
def results():
    """SANE is better than fine-tuning on two tasks, by margins that vary little over draws."""

    def cell(offset):
        found = {
            method: [{"accuracy": [value + draw / 100, value + draw / 100 + 0.1]} for draw in range(3)]
            for method, value in {"weights": 0.5, "sane": 0.5 + offset, "linear": 0.4}.items()
        }
        return {**found, "sane_behavior": [{"accuracy": [0.9 - draw / 2]} for draw in range(3)]}

    offsets = {"other_data": 0.1, "rotation": 0.2, "other_labels": -0.1}
    accuracy = {task: {"10": cell(offset), "50": cell(offset), "200": cell(-0.3)} for task, offset in offsets.items()}
    return {"accuracy": accuracy, "unchanged": {task: [0.2, 0.3] for task in offsets}}


def test_the_page_says_whether_the_goal_was_reached(results, write_record):
    found = few_shot.blocks(write_record("few_shot/usps_0", results))
    first, second = found["verdict"].split("\n")[2:]
    assert "of the weights on 2 of 3 tasks (MNIST, USPS, rotated), and above the linear code on 2 (MNIST, " in first
    assert first.endswith("Goal reached.")
    assert "on 0 of 3 tasks (none)" in second  # its draws differ too much
    assert second.endswith("Goal not reached.")
    assert "| latents of SANE | **0.660** | **0.660** | 0.260 |" in found["accuracy"]
    assert "Accuracy of the starting networks: 0.250." in found["accuracy"]
    assert "| +0.100 (+0.100 to +0.100) | +0.200 (+0.200 to +0.200) |" in found["paired"].split("\n")[2]
    assert "commit 0123456789ab" in found["source"]


def test_without_a_record_there_is_nothing_to_say(tmp_path):
    assert few_shot.blocks(tmp_path)["verdict"].startswith("**There are no results yet.**")


def test_differences_are_paired():
    mean, low, high = few_shot.difference([0.5, 0.7, 0.9], [0.4, 0.6, 0.8])
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))
    mean, low, high = few_shot.difference([0.5, 0.7], [0.4, 0.8])
    assert mean == pytest.approx(0)
    assert high == pytest.approx(12.706 * 0.1, rel=1e-3)  # one degree of freedom
