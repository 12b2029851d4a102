"""Model cards as typed columns."""

import pytest
from huggingface_hub import EvalResult, ModelInfo

from hf_sane.zoo._records import IMPORT_FEATURES
from hf_sane.zoo.importing._cards import CardFacts, read_metrics

README = """---
license: other
license_name: very-open
base_model: [org/first, org/second]
library_name: timm
pipeline_tag: image-classification
model-index:
- name: some-network
  results:
  - task: {type: image-classification}
    dataset: {type: cifar10, name: CIFAR-10}
    metrics:
    - {type: accuracy, value: 0.91}
    - {type: "Top-5 Accuracy", value: 0.99}
---
Text.
"""
MODEL_INDEX = [
    {
        "name": "agent",
        "results": [
            {
                "task": {"type": "reinforcement-learning"},
                "dataset": {"type": "CartPole-v1", "name": "CartPole-v1"},
                "metrics": [{"type": "mean_reward", "value": "500.00 +/- 0.00"}],
            }
        ],
    }
]


def result(value, **settings):
    defaults = {"task_type": "t", "dataset_type": "d", "dataset_name": "D", "metric_type": "m"}
    return EvalResult(metric_value=value, **{**defaults, **settings})


def test_a_card_becomes_columns():
    facts = CardFacts.from_readme(README)
    assert facts.columns == {
        "base_model": "org/first, org/second",
        "license": "very-open",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
    }
    assert facts.base_models == ("org/first", "org/second")
    assert facts.metrics == {"metric_accuracy_cifar10": 0.91, "metric_top_5_accuracy_cifar10": 0.99}
    assert set(facts.columns) <= set(IMPORT_FEATURES)


@pytest.mark.parametrize("text", ["", "no metadata", "---\ntags: [x]\n---\n"])
def test_a_card_that_says_nothing_gives_nothing(text):
    facts = CardFacts.from_readme(text)
    assert set(facts.columns.values()) == {None}
    assert facts.base_models == ()
    assert facts.metrics == {}


def test_what_the_hub_knows_comes_first():
    card = {"license": ["mit", "apache-2.0"], "base_model": "org/base", "library_name": "card"}
    info = ModelInfo(id="org/name", downloads=3, likes=2, tags=["license:bsd"], library_name="hub", cardData=card)
    facts = CardFacts.from_info(info)
    assert facts.columns == {
        "author": "org",
        "base_model": "org/base",
        "license": "mit, apache-2.0",
        "library_name": "hub",
        "pipeline_tag": None,
        "downloads": 3,
        "likes": 2,
    }
    assert facts.base_models == ("org/base",)
    bare = CardFacts.from_info(ModelInfo(id="org/name", tags=["x", "license:bsd"], **{"model-index": MODEL_INDEX}))
    assert bare.columns["license"] == "bsd"
    assert bare.columns["downloads"] is None
    assert bare.metrics == {"metric_mean_reward_cartpole_v1": 500.0}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        ("0.5", 0.5),
        ("-1.5e3", -1500.0),
        ("267.5 +/- 12", 267.5),
        ("3 ± 1", 3.0),
        ("91%", None),
        ("good", None),
        (None, None),
        (True, None),
        (float("nan"), None),
        ("1e999", None),
        ([1.0], None),
    ],
)
def test_only_finite_numbers_are_metrics(value, expected):
    assert read_metrics([result(value)]).get("metric_m_d") == expected


def test_metrics_are_told_apart_by_what_is_given():
    found = read_metrics(
        [result(1), result(2), result(3, dataset_split="test"), result(4, dataset_config="en", dataset_split="test")]
    )
    assert found == {"metric_m_d": 1.0, "metric_m_d_test": 3.0, "metric_m_d_en_test": 4.0}
    found = read_metrics([result(1.0, dataset_type="猫"), result(2.0, dataset_type="Größe")])
    assert found == {"metric_m_猫": 1.0, "metric_m_größe": 2.0}
