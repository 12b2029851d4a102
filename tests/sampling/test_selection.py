from dataclasses import replace

import pytest
import torch

from hf_sane.architectures.presets import cifar_resnet
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.sampling._generation import Density, sample_from_prior
from hf_sane.sampling._selection import Judge, bootstrap, choose_bandwidth, keep_best, subsample


@pytest.fixture(scope="module")
def judge(data) -> Judge:
    return Judge.of_images(*data.split("validation"))


@pytest.fixture(scope="module")
def anchors(codec, raw_tokens) -> torch.Tensor:
    return codec.encode(raw_tokens)


def drawing_from(networks: StackedNetworks):
    """Draw the given networks one after the other; sources are their numbers."""
    position = 0

    def draw(count: int):
        nonlocal position
        index = torch.arange(position, position + count)
        position += count
        return index, networks.select(index)

    return draw


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 64])
@pytest.mark.parametrize("num_samples", [1, 4, 12])
def test_keeps_the_best_whatever_the_chunks(trained, judge, num_samples, chunk_size):
    loss, accuracy = trained.evaluate(**judge.measure.keywords)
    ranked = sorted(range(12), key=lambda i: (-accuracy[i].item(), loss[i].item()))
    kept = keep_best(drawing_from(trained), judge, num_candidates=12, num_samples=num_samples, chunk_size=chunk_size)
    assert kept.sources.tolist() == ranked[:num_samples]
    assert torch.equal(kept.candidate_score, accuracy)
    assert torch.equal(kept.validation_score, accuracy[ranked[:num_samples]])
    assert torch.allclose(kept.validation_loss, loss[ranked[:num_samples]], atol=1e-6)
    for name, tensor in kept.networks.tensors.items():
        assert torch.equal(tensor, trained.tensors[name][ranked[:num_samples]])
    assert kept.mean_score == pytest.approx(accuracy[ranked[:num_samples]].mean().item())


def test_loss_decides_among_equals(trained, data):
    images, labels = data.split("validation")
    easy = Judge.of_images(images[:1], labels[:1])
    loss, accuracy = trained.evaluate(images[:1], labels[:1])
    assert len(accuracy.unique()) < 12
    kept = keep_best(drawing_from(trained), easy, num_candidates=12, num_samples=12)
    assert kept.sources.tolist() == sorted(range(12), key=lambda i: (-accuracy[i].item(), loss[i].item()))


def test_broken_networks_come_last(trained, judge):
    tensors = {name: tensor.clone() for name, tensor in trained.tensors.items()}
    tensors["classifier.bias"][3] = float("nan")
    kept = keep_best(drawing_from(StackedNetworks(trained.config, tensors)), judge, num_candidates=12, num_samples=12)
    assert kept.sources[-1] == 3
    assert kept.validation_score[-1] == 0
    assert kept.validation_loss[-1] == float("inf")


def test_rivals_compete_for_a_place(trained, judge):
    first = keep_best(drawing_from(trained.select(slice(0, 6))), judge, num_candidates=6, num_samples=3)
    both = keep_best(drawing_from(trained.select(slice(6, 12))), judge, num_candidates=6, num_samples=5, rivals=first)
    pool = torch.cat([first.validation_score, both.candidate_score])
    assert both.validation_score.tolist() == pool.sort(descending=True).values[:5].tolist()
    assert len(both.candidate_score) == 6


def test_subsampling_raises_validation_accuracy_and_is_reproducible(codec, anchors, judge, data):
    runs = [
        subsample(
            codec,
            anchors,
            judge,
            density=Density(0.5),
            num_candidates=60,
            num_samples=5,
            chunk_size=25,
            generator=torch.Generator().manual_seed(1),
        )
        for _ in range(2)
    ]
    kept = runs[0]
    assert torch.equal(kept.sources, runs[1].sources)
    assert kept.mean_score > kept.candidate_score.mean() + 0.01
    assert kept.validation_score.tolist() == sorted(kept.candidate_score.tolist(), reverse=True)[:5]
    for name, tensor in codec.decode(kept.sources).tensors.items():
        torch.testing.assert_close(kept.networks.tensors[name], tensor)
    drawn = codec.decode(Density(0.5).sample(anchors, 60, generator=torch.Generator().manual_seed(1)))
    test_accuracy = [networks.evaluate(*data.split("test"))[1].mean() for networks in (kept.networks, drawn)]
    assert test_accuracy[0] > test_accuracy[1]


def test_anchor_weights_reach_the_candidates(codec, anchors, judge):
    weights = torch.zeros(len(anchors))
    weights[2] = 1.0
    kept = subsample(
        codec, anchors, judge, density=Density(0.0), num_candidates=4, num_samples=4, anchor_weights=weights
    )
    assert torch.equal(kept.sources, anchors[[2] * 4])


def test_largest_bandwidth_that_keeps_its_share_of_accuracy(codec, anchors, judge, generator):
    bandwidths = [2.0, 0.0, 0.1, 0.5, 8.0]
    settings = {"bandwidths": bandwidths, "density": Density(99.0), "num_candidates": 20, "num_samples": 4}
    state = generator.get_state()
    choice = choose_bandwidth(codec, anchors, judge, share=0.95, generator=generator, **settings)
    assert choice.bandwidths == (0.0, 0.1, 0.5, 2.0, 8.0)
    enough = [
        b for b, a in zip(choice.bandwidths, choice.kept_score, strict=True) if a >= 0.95 * max(choice.kept_score)
    ]
    assert choice.bandwidth == max(enough)
    assert 0 < choice.bandwidth < 8.0
    assert choice.kept_score[0] > choice.kept_score[-1]
    assert choice.candidate_score[0] > choice.candidate_score[-1]
    generator.set_state(state)
    greedy = choose_bandwidth(codec, anchors, judge, share=1.0, generator=generator, **settings)
    assert greedy.kept_score == choice.kept_score
    assert greedy.bandwidth <= choice.bandwidth
    generator.set_state(state)
    assert choose_bandwidth(codec, anchors, judge, share=1e-9, generator=generator, **settings).bandwidth == 8.0


@pytest.mark.parametrize("weigh_anchors", [False, True])
def test_bootstrapping_never_loses_and_returns_sorted(codec, anchors, judge, generator, weigh_anchors):
    best, history = bootstrap(
        codec,
        anchors,
        judge,
        density=Density(1.0),
        num_rounds=4,
        num_anchors=8,
        num_candidates=30,
        num_samples=3,
        weigh_anchors=weigh_anchors,
        generator=generator,
    )
    assert len(history) == 4
    assert list(history) == sorted(history)
    assert best.mean_score == pytest.approx(history[-1])
    assert best.networks.num_models == len(best.sources) == 3
    assert best.validation_score.tolist() == sorted(best.validation_score.tolist(), reverse=True)
    _, accuracy = best.networks.evaluate(**judge.measure.keywords)
    assert torch.equal(accuracy, best.validation_score)


def test_bootstrapping_starts_from_a_prior_too(codec, anchors, judge, generator):
    prior = sample_from_prior(codec, 40, std=anchors.std().item(), generator=generator)
    best, history = bootstrap(
        codec,
        prior.latents,
        judge,
        density=Density(0.3),
        num_rounds=5,
        num_anchors=6,
        num_candidates=40,
        num_samples=3,
        generator=generator,
    )
    assert best.mean_score > 0.4  # three classes
    assert best.mean_score > history[0]


def test_rounds_after_the_first_are_anchored_on_the_best(codec, anchors, judge, generator):
    best, _ = bootstrap(
        codec,
        anchors,
        judge,
        density=Density(0.0),
        num_rounds=3,
        num_anchors=2,
        num_candidates=12,
        num_samples=2,
        generator=generator,
    )
    assert len(best.candidate_score) == 12
    assert set(best.candidate_score.tolist()) <= set(best.validation_score.tolist())


def test_judge_conditions_batch_norm():
    networks = StackedNetworks.initialize(cifar_resnet(20, width=2, num_labels=2), [0, 1])
    images, labels = torch.randn(20, 3, 8, 8), torch.arange(20) % 2
    plain = Judge.of_images(images, labels)
    assert plain.condition(networks) is networks
    conditioning = replace(plain, conditioning_images=images, num_batches=2, batch_size=5)
    first, loss, _ = conditioning(networks)
    second, again, _ = conditioning(networks)
    assert (first.tensors["bn1.num_batches_tracked"] == 2).all()
    assert torch.equal(first.tensors["bn1.running_mean"], second.tensors["bn1.running_mean"])
    assert torch.equal(loss, again)
    assert not torch.allclose(loss, plain(networks)[1])
    kept = replace(conditioning, reset=False).condition(networks)
    assert not torch.allclose(kept.tensors["bn1.running_mean"], first.tensors["bn1.running_mean"])


def test_errors(codec, anchors, judge, trained):
    for settings in ({"num_samples": 0}, {"num_samples": 13}, {"num_candidates": 0}, {"chunk_size": 0}):
        with pytest.raises(ValueError, match="expected 1 <= num_samples <= candidates and chunk_size >= 1, got"):
            keep_best(drawing_from(trained), judge, **{"num_candidates": 12, "num_samples": 2, **settings})
    for settings in ({"bandwidths": []}, {"share": 0.0}, {"share": 1.1}):
        with pytest.raises(ValueError, match=r"expected at least one bandwidth and a share in \(0, 1\], got"):
            choose_bandwidth(codec, anchors, judge, **{"bandwidths": [0.1], "density": Density(0), **settings})
    for settings in (
        {"num_rounds": 0},
        {"num_anchors": 1},
        {"num_anchors": 50},
        {"num_samples": 9},
        {"num_samples": 0},
    ):
        with pytest.raises(
            ValueError, match="expected num_rounds >= 1 and 1 <= num_samples <= num_anchors <= num_candidates"
        ):
            bootstrap(
                codec,
                anchors,
                judge,
                density=Density(0),
                **{"num_rounds": 1, "num_anchors": 8, "num_candidates": 20, "num_samples": 3, **settings},
            )
