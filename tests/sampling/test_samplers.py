"""Samplers by name: what each does, which bandwidth it is given, and how another one is added."""

import pytest
import torch

from hf_sane.sampling._generation import Density
from hf_sane.sampling._samplers import SAMPLERS, SamplingTask, parse_bandwidths, register_sampler, run_sampler
from hf_sane.sampling._selection import Judge, bootstrap, choose_bandwidth, keep_best, subsample


@pytest.fixture(scope="module")
def judge(data) -> Judge:
    return Judge.of_images(*data.split("validation"))


@pytest.fixture(scope="module")
def anchors(codec, raw_tokens) -> torch.Tensor:
    return codec.encode(raw_tokens)


def seeded():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("method", ["subsample", "bootstrap", "kde"])
def test_sampling_by_a_method_is_that_method(method, codec, anchors, judge):
    density, sizes = Density(0.0, "latent", "token"), {"num_candidates": 12, "num_samples": 3}
    task = SamplingTask(codec, anchors, judge, density, num_rounds=2, generator=seeded(), **sizes)
    found, bandwidth = run_sampler(method, task, [0.2])
    assert bandwidth == 0.2
    density, sizes = Density(0.2, "latent", "token"), {"num_samples": 3, "generator": seeded()}
    if method == "bootstrap":
        expected, rounds = bootstrap(
            codec, anchors, judge, density=density, num_rounds=2, num_anchors=6, num_candidates=12, **sizes
        )
        assert found.rounds == rounds
    else:
        count = {"subsample": 12, "kde": 3}[method]
        expected = subsample(codec, anchors, judge, density=density, num_candidates=count, **sizes)
    assert torch.equal(found.sources, expected.sources)
    assert torch.equal(found.candidate_score, expected.candidate_score)


def test_one_of_several_bandwidths_is_chosen_before(codec, anchors, judge):
    task = SamplingTask(codec, anchors, judge, Density(0.0), num_samples=3, num_candidates=12, generator=seeded())
    found, bandwidth = run_sampler("kde", task, (0.1, 4.0))
    options = {"density": Density(0.0), "num_samples": 3, "generator": seeded()}
    choice = choose_bandwidth(codec, anchors, judge, bandwidths=(0.1, 4.0), num_candidates=6, **options)
    assert bandwidth == choice.bandwidth
    options["density"] = Density(bandwidth)
    expected = subsample(codec, anchors, judge, num_candidates=3, **options)
    assert torch.equal(found.sources, expected.sources)
    assert (
        run_sampler("kde", SamplingTask(codec, anchors, judge, Density(0.0), num_samples=3), ["scott"])[1] == "scott"
    )


@pytest.mark.parametrize("bandwidths", [[], ["scott", 0.1]])
def test_methods_and_bandwidths_that_are_none(bandwidths, codec, anchors, judge):
    task = SamplingTask(codec, anchors, judge, Density(0.0))
    with pytest.raises(
        ValueError, match="expected a sampler, one of subsample, bootstrap, kde.*, got 'subsampel'; did you"
    ):
        run_sampler("subsampel", task, [0.1])
    with pytest.raises(ValueError, match=r"expected one bandwidth, or several numbers to choose from, got \["):
        run_sampler("kde", task, bandwidths)


def test_a_new_sampler_is_a_function_with_a_decorator(codec, anchors, judge, monkeypatch):
    monkeypatch.setattr(SAMPLERS, "_entries", dict(SAMPLERS._entries))

    @register_sampler("at the first anchor", provenance="first")
    def at_the_first(task):
        def draw(count):
            latents = task.anchors[:1].expand(count, -1, -1)
            return latents, task.codec.decode(latents)

        return keep_best(draw, task.judge, num_candidates=task.num_samples, num_samples=task.num_samples)

    found, _ = run_sampler(
        "at the first anchor", SamplingTask(codec, anchors, judge, Density(0.0), num_samples=2), [0.3]
    )
    assert torch.equal(found.sources, anchors[[0, 0]])
    assert SAMPLERS.find("at the first anchor").provenance == "first"
    assert SAMPLERS.find("kde").provenance == "kde"
    with pytest.raises(ValueError, match="there is a sampler 'kde' already; choose another name"):
        register_sampler("kde")(at_the_first)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0.2, (0.2,)),
        ([0.1, "0.5"], (0.1, 0.5)),
        (["scott"], ("scott",)),
        ("0.1", (0.1,)),
        ("0,0.5,1e-2", (0.0, 0.5, 0.01)),
        ("scott", ("scott",)),
        ("silverman", ("silverman",)),
    ],
)
def test_bandwidths_are_numbers_or_a_rule(text, expected):
    assert parse_bandwidths(text) == expected


@pytest.mark.parametrize("text", ["", "wide", "0.1,scott", []])
def test_other_bandwidths_are_refused(text):
    with pytest.raises(
        ValueError, match="expected a bandwidth >= 0, several separated by commas, 'scott' or 'silverman'"
    ):
        parse_bandwidths(text)
