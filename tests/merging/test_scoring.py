import math

import evaluate
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_sane.merging._scoring import ImageScore
from hf_sane.networks._metrics import load_metric

# A metric whose value depends on more than the number of hits, and one that gives several values.
SCRIPT = """
import datasets
import evaluate
import numpy as np


class {name}(evaluate.Metric):
    def _info(self):
        number = datasets.Value("int64")
        return evaluate.MetricInfo("", citation="", features=datasets.Features(predictions=number, references=number))

    def _compute(self, predictions, references, power=1):
        errors = np.abs(np.array(predictions) - np.array(references)) ** power
        return {result}
"""


@pytest.fixture(scope="module")
def metric_scripts(tmp_path_factory):
    """Paths of metrics for `evaluate.load`, by name."""
    root = tmp_path_factory.mktemp("metrics")
    results = {
        "class_distance": '{"class_distance": float(errors.mean())}',
        "several": '{"several": float(errors.mean()), "largest": float(errors.max())}',
        "unnamed": '{"mean": float(errors.mean()), "largest": float(errors.max())}',
        "listed": '{"listed": errors.tolist()}',
    }
    for name, result in results.items():
        (root / name).mkdir()
        class_name = "".join(part.title() for part in name.split("_"))
        (root / name / f"{name}.py").write_text(SCRIPT.format(name=class_name, result=result))
    return {name: str(root / name) for name in results}


@pytest.fixture
def images(seeded):
    return torch.randn(300, 1, 2, 2, generator=seeded)  # more than one batch


@pytest.fixture
def labels(seeded):
    return torch.randint(3, (300,), generator=seeded)


@pytest.fixture
def model(seeded):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))


def test_built_in_metrics_against_their_definition(model, images, labels):
    logits = model.eval()(images)
    accuracy = ImageScore(images, labels)(model)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-6)
    loss = ImageScore(images, labels, "cross_entropy", higher_is_better=False)(model)
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)


def test_models_are_measured_without_dropout_and_left_in_their_mode(model, images, labels):
    score = ImageScore(images, labels, "cross_entropy", higher_is_better=False)
    assert score(model.train()) == score(model.eval())
    score(model.train())
    assert model.training


def test_logits_that_are_not_finite_are_wrong(images, labels):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight.fill_(torch.nan)
    assert ImageScore(images, labels)(model) == 0
    assert math.isnan(ImageScore(images, labels, "cross_entropy", higher_is_better=False)(model))


def test_any_metric_of_evaluate(model, images, labels, metric_scripts):
    predicted = model.eval()(images).argmax(1)
    expected = (predicted - labels).abs().double()
    score = load_metric(metric_scripts["class_distance"], lower_is_better=True)
    assert not score.higher_is_better
    logits = model(images)
    assert score(logits, labels) == pytest.approx(expected.mean().item())
    squared = load_metric(metric_scripts["several"], options={"power": 2}, lower_is_better=True)
    assert squared(logits, labels) == pytest.approx(expected.square().mean().item())
    loaded = ImageScore(images, labels, evaluate.load(metric_scripts["class_distance"]))
    assert loaded.higher_is_better
    assert loaded(model) == pytest.approx(expected.mean().item())


def test_built_in_names_know_their_direction(images, labels):
    assert load_metric("accuracy").higher_is_better
    assert not load_metric("cross_entropy").higher_is_better
    with pytest.raises(ValueError, match="higher_is_better of 'cross_entropy' is False, got True"):
        ImageScore(images, labels, "cross_entropy")


@pytest.mark.parametrize("name", ["unnamed", "listed"])
def test_one_number_is_needed(name, model, images, labels, metric_scripts):
    with pytest.raises(ValueError, match=f"metric '{name}' returned .* expected one number to select by"):
        load_metric(metric_scripts[name])(model.eval()(images), labels)


@pytest.mark.parametrize(("num_images", "num_labels"), [(0, 0), (5, 4)])
def test_no_held_out_data(num_images, num_labels):
    with pytest.raises(
        ValueError, match=f"got {num_images} images and {num_labels} labels; selection requires held-out data"
    ):
        ImageScore(torch.zeros(num_images, 1, 2, 2), torch.zeros(num_labels, dtype=torch.int64))


def test_unknown_names_are_refused(images, labels):
    with pytest.raises(
        ValueError, match="expected 'accuracy' or 'cross_entropy' or an evaluate module, got 'acuracy'"
    ):
        ImageScore(images, labels, "acuracy")


def test_models_with_fewer_outputs_than_classes_are_refused():
    images, labels = torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 2, 3])
    score = ImageScore(images, labels)
    with pytest.raises(ValueError, match=r"expected logits \[B, 4\] from Sequential .* got \[4, 3\]"):
        score(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    with pytest.raises(ValueError, match=r"Linear cannot run on the images, inputs \[4, 3, 2, 2\]"):
        score(nn.Linear(3, 4))
    assert 0 <= score(nn.Sequential(nn.Flatten(), nn.Linear(12, 5))) <= 1
