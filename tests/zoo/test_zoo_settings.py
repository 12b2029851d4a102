"""Settings of a zoo, its recipes, the plan of runs and their split."""

import math

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError
from program import parse_settings
from zoo_recipes import hyperparameter_zoo, seed_zoo

from hf_sane.architectures.presets import cnn_digits
from hf_sane.workflows.build_zoo import BuildZooSettings
from hf_sane.zoo.building._settings import (
    ZooSettings,
    plan_runs,
    split_runs,
)


def test_runs_of_a_seed_zoo_differ_in_their_seed_only():
    runs = plan_runs(seed_zoo(num_models=20), cnn_digits())
    assert len({run.seed for run in runs}) == 20
    rest = {(r.initialization, r.activation, r.optimizer, r.learning_rate, r.weight_decay, r.dropout) for r in runs}
    assert rest == {("kaiming_uniform", "gelu", "adam", 3e-3, 1e-4, 0.0)}


def test_runs_of_a_hyperparameter_zoo_cover_the_ranges():
    arguments = hyperparameter_zoo(num_models=400, activations=["tanh", "relu"])
    runs = plan_runs(arguments, cnn_digits())
    for name in ("learning_rate", "weight_decay", "dropout", "data_fraction"):
        scale = np.array([5.0 if name == "learning_rate" and run.optimizer == "sgd" else 1.0 for run in runs])
        values = np.array([getattr(run, name) for run in runs]) / scale
        low, high = getattr(arguments, name)
        assert low * 0.999 <= values.min() < values.max() <= high * 1.001
        if name in ("learning_rate", "weight_decay"):
            assert np.median(values) == pytest.approx(math.sqrt(low * high), rel=0.15)  # log-uniform
        else:
            assert np.median(values) == pytest.approx((low + high) / 2, abs=0.1 * (high - low))
    for name, choices in (("initialization", 4), ("optimizer", 2), ("activation", 2)):
        counts = np.unique([getattr(run, name) for run in runs], return_counts=True)[1]
        assert len(counts) == choices
        assert counts.min() > 400 / choices * 0.7


def test_a_run_does_not_depend_on_how_many_there_are():
    few = plan_runs(hyperparameter_zoo(num_models=3), cnn_digits())
    many = plan_runs(hyperparameter_zoo(num_models=30), cnn_digits())
    assert few == many[:3]
    assert few != plan_runs(hyperparameter_zoo(num_models=3, seed=1), cnn_digits())


@pytest.mark.parametrize("count", [3, 4, 7, 20, 100, 457])
def test_every_run_is_in_one_split(count):
    run_ids = [f"{i}" for i in range(count)]
    splits = split_runs(run_ids, [0.7, 0.15, 0.15], 0)
    assert sorted(run for runs in splits.values() for run in runs) == sorted(run_ids)
    assert min(map(len, splits.values())) >= 1
    if count >= 20:
        assert [len(splits[name]) / count for name in ("train", "validation", "test")] == pytest.approx(
            [0.7, 0.15, 0.15], abs=1 / count
        )
    assert splits == split_runs(run_ids, [0.7, 0.15, 0.15], 0)
    assert count < 7 or splits != split_runs(run_ids, [0.7, 0.15, 0.15], 1)


def test_a_share_of_zero_gives_an_empty_split():
    assert split_runs(["a", "b"], [1.0, 0.0, 0.0], 0) == {"train": ["a", "b"], "validation": [], "test": []}


def test_too_few_runs_are_refused():
    with pytest.raises(ValueError, match="expected at least 3 usable runs for 3 splits, got 2; train more"):
        split_runs(["a", "b"], [0.7, 0.15, 0.15], 0)


def test_kept_epochs_default_to_the_usual_ones():
    assert ZooSettings(epochs=9).kept_epochs == [0, 1, 2, 4, 8, 9]
    assert ZooSettings(epochs=0).kept_epochs == [0]
    assert ZooSettings(epochs=9, keep_epochs=[9, 3, 3]).kept_epochs == [3, 9]


def test_architecture_settings_from_json_text_and_file(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"hidden_sizes": [5]}')
    for given in ('{"hidden_sizes": [5]}', str(path)):
        assert ZooSettings(architecture_settings=given).architecture_settings == {"hidden_sizes": [5]}


def test_configuration_follows_the_images(digits):
    config = ZooSettings(architecture="mlp", architecture_settings={"hidden_sizes": [3]}).network_config(digits)
    assert (config.image_size, config.num_channels, config.num_classes) == (8, 1, 10)
    assert ZooSettings(architecture="cifar_resnet").network_config(digits).num_channels == 1
    for settings in ({"activations": ["relu"]}, {"dropout": [0.0, 0.1]}):
        with pytest.raises(ValueError, match="cifar_resnet has a fixed activation and no dropout"):
            ZooSettings(architecture="cifar_resnet", **settings).network_config(digits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_models": 0}, "num_models must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"group_size": 0}, "group_size must be at least 1, got 0"),
        ({"epochs": -1, "keep_epochs": [0]}, "epochs and seed must not be negative, got -1 and 0"),
        ({"seed": -1}, "epochs and seed must not be negative, got 50 and -1"),
        ({"keep_epochs": [51]}, r"keep_epochs must lie in \[0, 50\], got \[51\]"),
        ({"keep_epochs": []}, "keep_epochs is empty: name at least one epoch"),
        ({"learning_rate": [0.1, 0.01]}, "learning_rate must be a value or two ascending bounds"),
        ({"learning_rate": []}, "learning_rate must be a value or two ascending bounds"),
        ({"data_fraction": [0.5, 1.5]}, r"data_fraction must be .* in \[0, 1\], got \[0.5, 1.5\]"),
        ({"weight_decay": [0.0, 0.1]}, "weight_decay must be positive"),
        ({"learning_rate": [0.0]}, "learning_rate must be positive"),
        ({"data_fraction": [0.0]}, "data_fraction must be positive"),
        ({"dropout": [0.0, 1.0]}, "dropout must be below 1"),
        ({"max_abs_weight": 0.0}, "max_abs_weight must be positive, got 0.0; inf keeps all finite"),
        ({"split_shares": [0.5, 0.5]}, "split_shares must be three shares that add up to 1"),
        ({"split_shares": [0.5, 0.6, -0.1]}, "split_shares must be three shares that add up to 1"),
        ({"initializations": []}, "initializations is empty: name at least one"),
        ({"optimizers": []}, "optimizers is empty: name at least one"),
        ({"optimizers": ["adamw"]}, r"expected optimizers to be among 'adam', 'sgd', got \['adamw'\]"),
        ({"token_layout": "rowise"}, "a token layout, one of rowwise, dense, got 'rowise'; did you mean 'rowwise'"),
        ({"architecture": "vgg"}, "architecture"),
        ({"epochs": "many", "keep_epochs": [0]}, "epochs"),
        ({"epoch": 3}, "unexpected keyword argument 'epoch'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises((StrictDataclassError, TypeError), match=message):
        ZooSettings(**settings)


def parsed(*argv):
    return parse_settings(BuildZooSettings, argv, name="hf-sane zoo build")


def test_command_line_and_recipe():
    found = parsed(
        *("--recipe", "hyperparameter", "--output_dir", "here", "--num_models", "5", "--dropout", "0", "--epochs", "4")
    )
    assert (found.output, found.zoo_config) == ("here", "default")
    assert found.to_dict() == hyperparameter_zoo(num_models=5, dropout=[0.0], epochs=4).to_dict()
    lists = ["--optimizers", "sgd", "--initializations", "normal", "uniform", "--keep_epochs", "2", "4"]
    listed = parsed("--output", "here", *lists)
    assert (listed.optimizers, listed.initializations) == (["sgd"], ["normal", "uniform"])
    assert listed.kept_epochs == [2, 4]
    plain = parsed("-o", "here", "--config", "mine")
    assert (plain.to_dict(), plain.zoo_config) == (ZooSettings().to_dict(), "mine")
