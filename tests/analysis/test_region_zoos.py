"""Labelled networks out of zoos, and what points between them score."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import hf_sane
from hf_sane.analysis._region_networks import flatten_networks
from hf_sane.analysis._region_zoos import LabelledNetworks, zoo_networks
from hf_sane.analysis._regions import RegionMap
from hf_sane.architectures.presets import cifar_resnet
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._mixing import mix_zoos
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings


@pytest.fixture(scope="module")
def other_zoo(digits, tmp_path_factory):
    """Four runs of the same architecture on inverted images."""
    inverted = {f"{name}_images": -digits.split(name)[0] for name in ("train", "validation", "test")}
    arguments = ZooSettings(
        name="inverted", num_models=4, epochs=2, keep_epochs=[1, 2], learning_rate=[1e-2], progress_bar=False, seed=1
    )
    folder = tmp_path_factory.mktemp("other")
    build_zoo(arguments, replace(digits, name="inverted", **inverted), folder)
    return Zoo.load(folder)


def test_every_run_once_with_its_labels(tiny_zoo, other_zoo):
    found = zoo_networks(
        [tiny_zoo, other_zoo],
        columns=["optimizer", "learning_rate"],
        groups={"task": {"digits": "seen", "inverted": "new"}},
    )
    assert found.labels["data_set"] == ["digits"] * 12 + ["inverted"] * 4
    assert found.labels["task"] == ["seen"] * 12 + ["new"] * 4
    finals = [split.final_epochs() for zoo in (tiny_zoo, other_zoo) for split in zoo.splits.values()]
    assert found.labels["optimizer"] == [str(name) for split in finals for name in split.column("optimizer")]
    assert found.labels["learning_rate"][-1] == "0.01"  # as it was set, in spite of single precision
    assert len(set(found.runs)) == 16
    position = 0
    for split in finals:
        for index in range(len(split)):
            for name, tensor in split.state_dict(index).items():
                assert torch.equal(found.tensors[name][position], tensor)
            position += 1
    assert position == 16


def test_twins_across_data_sets_are_counted(tiny_zoo, other_zoo):
    found = zoo_networks([tiny_zoo, other_zoo])
    assert found.num_shared_starts == 0
    seeds = [split.final_epochs().column("seed") for zoo in (tiny_zoo, other_zoo) for split in zoo.splits.values()]
    assert [start.rpartition("/")[2] for start in found.starts] == [str(seed) for part in seeds for seed in part]
    twins = replace(found, starts=["normal/7", *found.starts[1:-2], "normal/7", "normal/7"])
    assert twins.num_shared_starts == 3
    assert replace(twins, starts=()).num_shared_starts == replace(twins, starts=[""] * 16).num_shared_starts == 0


def test_mixtures_know_their_zoos(tiny_zoo, other_zoo, tmp_path):
    mixture = mix_zoos({"one": tiny_zoo, "two": other_zoo}, tmp_path)
    found = zoo_networks([mixture], groups={"task": {"one": "x", "two": "y"}})
    assert sorted(found.labels["data_set"]) == ["one"] * 12 + ["two"] * 4
    assert found.labels["task"] == ["x" if name == "one" else "y" for name in found.labels["data_set"]]
    apart = zoo_networks([tiny_zoo, other_zoo])
    order = sorted(range(16), key=lambda i: found.labels["data_set"][i])
    for name, tensor in apart.tensors.items():
        assert torch.equal(found.tensors[name][order], tensor)


def test_splits_epochs_and_limits(tiny_zoo, other_zoo):
    held_out = zoo_networks([tiny_zoo, other_zoo], splits=["validation", "test"])
    assert held_out.labels["data_set"].count("digits") == 4
    first = zoo_networks([tiny_zoo], epoch=0)
    assert torch.equal(
        first.tensors["classifier.bias"][0], tiny_zoo.splits["train"].at_epoch(0).state_dict(0)["classifier.bias"]
    )
    few = zoo_networks([tiny_zoo, other_zoo], limit=3)
    assert few.labels["data_set"] == ["digits"] * 3 + ["inverted"] * 3


def test_points_are_networks(tiny_zoo, digits):
    found = zoo_networks([tiny_zoo])
    networks = [split.final_epochs().networks() for split in tiny_zoo.splits.values()]
    images, labels = digits.split("test")
    expected = torch.cat([network.evaluate(images, labels)[1] for network in networks])
    scores = found.accuracy(flatten_networks(found.tensors), images, labels, calibration=digits.train_images)
    assert torch.equal(scores, expected)
    aligned = found.aligned()
    torch.testing.assert_close(aligned.accuracy(flatten_networks(aligned.tensors), images, labels), expected)
    assert not torch.equal(flatten_networks(aligned.tensors), flatten_networks(found.tensors))


def test_batch_norm_of_points_is_re_estimated(digits):
    networks = StackedNetworks.initialize(cifar_resnet(20, width=2, num_channels=1), [0, 1])
    found = LabelledNetworks(networks.config, networks.tensors, {"label": ["a", "b"]}, ["x", "y"])
    points = flatten_networks(networks.tensors)
    mean = points.mean(dim=0, keepdim=True)
    calls = [found.accuracy(mean, *digits.split("test"), calibration=digits.train_images, num_batches=2) for _ in "ab"]
    assert torch.equal(*calls)
    tensors = found.at(mean).tensors
    name = next(name for name in tensors if name.endswith("running_mean"))
    assert torch.equal(tensors[name], networks.tensors[name].mean(dim=0, keepdim=True))


def test_two_data_sets_are_two_regions(tiny_zoo, other_zoo, digits):
    """Networks of one data set do better on it than those of the other, wherever they lie."""
    found = zoo_networks([tiny_zoo, other_zoo])
    space = RegionMap.from_networks(found.tensors, found.labels, spec=found.spec, runs=found.runs)
    scores = space.score_region(
        "data_set",
        "digits",
        lambda points: found.accuracy(points, *digits.split("test")),
        num_points=5,
        generator=torch.Generator().manual_seed(0),
    )
    assert scores.better_than_outside("corners") > 0.7
    assert len(scores.line) == len(scores.hull) == 5


def test_what_does_not_fit_is_refused(tiny_zoo, other_zoo, tmp_path, digits):
    with pytest.raises(ValueError, match="expected at least one network, got none in train of 0 zoos"):
        zoo_networks([], splits=["train"])
    with pytest.raises(
        ValueError, match=r"level 'task' has no label for the data sets \['digits'\]; it has \['inverted'\]"
    ):
        zoo_networks([tiny_zoo, other_zoo], groups={"task": {"inverted": "new"}})
    with pytest.raises(KeyError, match="the zoo has no split 'tset'"):
        zoo_networks([tiny_zoo], splits=["tset"])
    with pytest.raises(ValueError, match="no network at epoch 7"):
        zoo_networks([tiny_zoo], epoch=7)
    arguments = ZooSettings(
        name="wide", num_models=3, epochs=1, architecture="mlp", architecture_settings={"hidden_sizes": [4]},
        progress_bar=False, split_shares=[1.0, 0.0, 0.0],
    )  # fmt: skip
    build_zoo(arguments, digits, tmp_path)
    with pytest.raises(ValueError, match=r"expected networks of one architecture, got .* \(digits\), .* \(wide\)"):
        zoo_networks([tiny_zoo, Zoo.load(tmp_path)])


def test_imported_networks_with_other_tensors_are_refused(tmp_path):
    """All imported networks without a configuration are of one kind."""
    for name, width in (("two", 2), ("three", 3)):
        (tmp_path / name).mkdir()
        for index in range(3):
            torch.save(nn.Linear(4, width).state_dict(), tmp_path / name / f"{index}.pt")
        options = {"allow_pickle": True, "token_dim": 5, "group_by": "network", "progress_bar": False}
        hf_sane.import_zoo(tmp_path / name, **options, output=tmp_path / f"zoo_{name}")
    zoos = [Zoo.load(tmp_path / f"zoo_{name}") for name in ("two", "three")]
    with pytest.raises(ValueError, match="got different tensors in .*two and .*three, such as bias, weight; name"):
        zoo_networks(zoos)
