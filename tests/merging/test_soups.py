import math

import pytest
import torch
from torch import nn

from hf_sane.architectures.presets import build_model, cifar_resnet
from hf_sane.merging._averaging import average_checkpoints, uniform_weights
from hf_sane.merging._greedy import greedy_soup, select_greedily
from hf_sane.merging._ingredients import align_ingredients, open_ingredients
from hf_sane.merging._scoring import ImageScore
from hf_sane.merging._soups import CheckpointMixer, Soup
from hf_sane.merging._uniform import uniform_soup
from hf_sane.networks._batchnorm import condition_module
from hf_sane.symmetry._networks import permutation_spec

METRICS = ["accuracy", "cross_entropy"]


def score_on(data, split, metric="accuracy"):
    return ImageScore(*data.split(split), metric, higher_is_better=metric == "accuracy")


@pytest.fixture
def mixer(fine_tuned, folders):
    return CheckpointMixer(build_model(fine_tuned.config), open_ingredients(folders))


def test_a_uniform_soup_is_the_average(mixer, digits):
    soup = uniform_soup(mixer, score_on(digits, "validation"))
    expected = average_checkpoints(mixer.ingredients)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in mixer.model.state_dict().items())
    assert soup.weights == dict.fromkeys(mixer.names, 0.2)
    assert soup.score == score_on(digits, "validation")(mixer.model)
    for index, name in enumerate(mixer.names):
        mixer.mix([float(index == i) for i in range(5)])
        assert soup.ingredient_scores[name] == score_on(digits, "validation")(mixer.model)


def test_a_uniform_soup_needs_no_data(mixer):
    soup = uniform_soup(mixer)
    assert (soup.score, soup.ingredient_scores, soup.steps) == (None, None, ())
    assert soup.to_dict() == {"held_out_score": None, "ingredients": {name: {"weight": 0.2} for name in mixer.names}}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("population", ["fine-tuned", "independent", "mixed"])
def test_greedy_never_ends_below_the_best_ingredient(metric, population, fine_tuned, independent, digits):
    """Whatever the ingredients: good companions, networks whose averages are no better than chance, or both."""
    states = [fine_tuned.state_dict(index) for index in range(5)] if population != "independent" else []
    states += [independent.state_dict(index) for index in range(2)] if population != "fine-tuned" else []
    mixer = CheckpointMixer(build_model(fine_tuned.config), open_ingredients(states))
    score = score_on(digits, "validation", metric)
    soup = greedy_soup(mixer, score, higher_is_better=score.higher_is_better)
    best = (max if score.higher_is_better else min)(soup.ingredient_scores.values())
    assert soup.score >= best if score.higher_is_better else soup.score <= best
    assert soup.score == score(mixer.model)
    expected = average_checkpoints(mixer.ingredients, list(soup.weights.values()))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in mixer.model.state_dict().items())
    assert [step.name for step in soup.steps if step.kept] == [
        step.name for step in soup.steps if soup.weights[step.name]
    ]


def test_greedy_never_ends_below_the_best_with_batch_norm(digits):
    config = cifar_resnet(20, width=2, num_channels=1)
    states = [build_model(config).state_dict() for _ in range(3)]
    mixer = CheckpointMixer(
        build_model(config), open_ingredients(states), digits.train_images, num_batches=3, batch_size=16
    )
    score = score_on(digits, "validation", "cross_entropy")
    soup = greedy_soup(mixer, score, higher_is_better=False)
    assert soup.score <= min(soup.ingredient_scores.values())
    assert soup.score == score(mixer.model)


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_the_recipe_against_its_definition_on_any_scores(seed, higher_is_better):
    """Random scores for every subset: the recipe is a rule about numbers."""
    generator = torch.Generator().manual_seed(seed)
    count = 2 + seed % 5
    table = torch.randint(6, (2**count,), generator=generator).double() / 5
    table[torch.rand(2**count, generator=generator) < 0.1] = math.nan
    singles = [table.nan_to_num(0.4)[2**index].item() for index in range(count)]

    def score_of(chosen):
        return table[sum(2**index for index in chosen)].item()

    chosen, best, steps = select_greedily(singles, score_of, higher_is_better=higher_is_better)
    sign = 1 if higher_is_better else -1
    order = sorted(range(count), key=lambda index: (-sign * singles[index], index))
    soup, reached = [order[0]], singles[order[0]]
    for index in order[1:]:
        value = score_of([*soup, index])
        if not math.isnan(value) and not sign * value < sign * reached:
            soup, reached = [*soup, index], value
    assert (chosen, best) == (soup, reached)
    assert [index for index, _, _ in steps] == order
    assert sign * best >= max(sign * score for score in singles)


def test_a_useless_ingredient_is_left_out_and_a_harmful_average_not_hidden(fine_tuned, digits):
    states = [fine_tuned.state_dict(0), fine_tuned.state_dict(1), build_model(fine_tuned.config).state_dict()]
    mixer = CheckpointMixer(build_model(fine_tuned.config), open_ingredients(states, names=["a", "b", "noise"]))
    score = score_on(digits, "validation")
    assert greedy_soup(mixer, score).weights["noise"] == 0
    assert uniform_soup(mixer, score).score < max(uniform_soup(mixer, score).ingredient_scores.values())


def test_a_score_that_is_no_number_is_refused(mixer):
    with pytest.raises(ValueError, match="the held-out score of run_0 is NaN"):
        greedy_soup(mixer, lambda model: math.nan)


def test_alignment_makes_the_difference_for_independent_networks(independent, digits):
    """Two networks in other orders of channels: their plain average forgets, the aligned one remembers."""
    state_dict = independent.state_dict(0)
    spec = permutation_spec(independent.config)
    shuffled = spec.apply(state_dict, spec.random(generator=torch.Generator().manual_seed(3)))
    score = score_on(digits, "validation")
    ingredients = open_ingredients([state_dict, shuffled])
    plain = uniform_soup(CheckpointMixer(build_model(independent.config), ingredients), score)
    aligned = CheckpointMixer(build_model(independent.config), align_ingredients(ingredients, spec))
    assert uniform_soup(aligned, score).score == max(plain.ingredient_scores.values())
    assert plain.score < 0.5 * max(plain.ingredient_scores.values())


def test_batch_norm_is_re_estimated_for_mixtures_only(digits):
    config = cifar_resnet(20, width=2, num_channels=1)
    states = [build_model(config).state_dict() for _ in range(2)]
    images = digits.train_images[:64]
    mixer = CheckpointMixer(build_model(config), open_ingredients(states), images, num_batches=4, batch_size=16)
    mixer.mix([0.0, 1.0])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in mixer.model.state_dict().items())
    mixer.mix(uniform_weights(states))
    expected = build_model(config).eval()
    expected.load_state_dict(average_checkpoints(mixer.ingredients))
    before = {name: tensor.clone() for name, tensor in expected.state_dict().items()}
    condition_module(expected, images, num_batches=4, batch_size=16, generator=torch.Generator().manual_seed(0))
    changed = 0
    for name, tensor in mixer.model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])
        changed += not torch.equal(tensor, before[name])
    norms = [module for module in expected.modules() if isinstance(module, nn.BatchNorm2d)]
    assert changed == 3 * len(norms)


def test_rows_of_a_soup():
    soup = Soup({"a": 0.5, "b": 0.5, "c": 0.0}, 0.9, {"a": 0.8, "b": 0.7, "c": 0.1})
    assert soup.to_dict() == {
        "held_out_score": 0.9,
        "ingredients": {
            "a": {"weight": 0.5, "held_out_score": 0.8},
            "b": {"weight": 0.5, "held_out_score": 0.7},
            "c": {"weight": 0.0, "held_out_score": 0.1},
        },
    }
