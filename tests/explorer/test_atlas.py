"""The explorer's functions, without its page: places, colours, cards, layers, spectra and neighbours of networks."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from torch import nn

from hf_sane.analysis._pictures import GREY, PALETTE
from hf_sane.explorer._atlas import Atlas, parse_numbers
from hf_sane.zoo._dataset import ZooSplit
from hf_sane.zoo._records import FEATURES


def embed(networks):
    """The weights of networks, as if they were embeddings."""
    if isinstance(networks, ZooSplit):
        networks = [networks.model(index) for index in range(len(networks))]
    return torch.stack([nn.utils.parameters_to_vector(network.parameters()).detach() for network in networks])


@pytest.fixture(scope="module")
def atlas(tiny_zoo):
    """The tiny zoo, without a SANE."""
    return Atlas.of(tiny_zoo)


def test_networks_are_numbered_over_all_splits(atlas, tiny_zoo):
    assert len(atlas) == len(tiny_zoo) == 48
    runs = [run for split in tiny_zoo.splits.values() for run in split.run_ids]
    assert atlas.properties["run_id"] == runs
    assert atlas.properties["split"] == [name for name, split in tiny_zoo.splits.items() for _ in range(len(split))]
    assert atlas.names[5] == f"{runs[5]}, epoch {tiny_zoo.splits['train'].column('epoch')[5]}"
    last = tiny_zoo.splits["test"]
    for name, tensor in last.state_dict(len(last) - 1).items():
        assert torch.equal(atlas.networks.state_dict(47)[name], tensor)
    assert {"layout"} & atlas.properties.keys() == set()


def test_the_map_shows_two_principal_components(tiny_zoo):
    atlas = Atlas.of(tiny_zoo)
    centred = atlas.features - atlas.features.mean(dim=0)
    axes = torch.linalg.eigh(centred.T @ centred)[1]
    expected = centred @ axes[:, -2:].flip(1)
    assert torch.allclose(atlas.points.abs(), expected.abs(), atol=1e-4)
    found = atlas.map("epoch")
    for axis, name in enumerate("xy"):
        along = atlas.points[:, axis]
        assert found[name] == pytest.approx(((along - along.min()) / (along.max() - along.min())).tolist(), abs=1e-4)
    assert found["sampled"] == {"x": [], "y": []}


def test_a_network_of_the_zoo_has_the_same_place_if_it_is_sampled(tiny_zoo):
    part = replace(tiny_zoo, splits={"train": tiny_zoo.splits["train"].select(slice(0, 12))})
    atlas = Atlas.of(part, embed)
    again = atlas.place([atlas.networks.model(index) for index in (3, 7)])
    assert torch.allclose(again, atlas.points[[3, 7]], atol=1e-3)
    found = atlas.map("split", [atlas.networks.model(7)])
    for axis in "xy":
        assert found["sampled"][axis] == pytest.approx([found[axis][7]], abs=1e-3)


def test_networks_that_are_not_finite_are_left_out(tiny_zoo):
    split = tiny_zoo.splits["train"]
    rows = split.table.dataset.select(range(5)).to_list()
    rows[2]["tokens"][0] = float("nan")
    broken = ZooSplit(datasets.Dataset.from_list(rows, features=FEATURES), tiny_zoo.facts)
    atlas = Atlas.of(replace(tiny_zoo, splits={"train": broken}))
    assert atlas.properties["epoch"] == [rows[index]["epoch"] for index in (0, 1, 3, 4)]
    assert atlas.notes == (f"left out, because of NaN or infinite weights: {rows[2]['run_id']}",)
    alone = replace(tiny_zoo, splits={"train": broken.select([2])})
    with pytest.raises(ValueError, match="all networks of .* have NaN or infinite weights"):
        Atlas.of(alone)


def test_two_networks_are_side_by_side(tiny_zoo):
    few = replace(tiny_zoo, splits={"test": tiny_zoo.splits["test"].select([0, 1])})
    found = Atlas.of(few).map("epoch")
    assert (found["x"], found["y"]) == ([0.0, 1.0], [0.0, 0.0])


def test_numbers_have_a_scale(atlas):
    found = atlas.colouring("test_accuracy")
    values = np.array(atlas.properties["test_accuracy"])
    assert found["title"] == "test accuracy"
    assert found["of"][values.argmax()] == 63
    assert found["of"][values.argmin()] == 0
    assert np.array(found["of"])[values.argsort()].tolist() == sorted(found["of"])
    assert found["scale"] == [f"{values.min():.4g}", f"{values.max():.4g}"]
    assert found["colours"][0] == "#00224e"  # the ends of cividis
    assert found["colours"][-1] == "#fee838"
    assert atlas.colourable[:3] == ["test_accuracy", "validation_accuracy", "epoch"]


def test_other_properties_have_the_palette_of_all_plots(atlas):
    found = atlas.colouring("split")
    assert (found["labels"], found["colours"]) == (["train", "validation", "test"], list(PALETTE[:3]))
    assert found["of"] == [0] * 32 + [1] * 8 + [2] * 8
    runs = atlas.colouring("run_id")  # twelve runs are too many
    assert runs["colours"] == list(PALETTE)
    assert (runs["labels"][-1], runs["colours"][-1]) == ("6 others", GREY)
    assert max(runs["of"]) == 6
    with pytest.raises(ValueError, match="expected a property among .*run_id.*, got 'colour'"):
        atlas.colouring("colour")


def test_unknown_values_have_no_colour(atlas):
    values = [None if index == 4 else float(index) for index in range(48)]
    vars(atlas)["properties"] = atlas.properties | {"mine": values}
    found = atlas.colouring("mine")
    assert (found["of"][4], found["texts"][4]) == (-1, "-")
    assert (found["of"][0], found["of"][47]) == (0, 63)
    assert "mine" not in {name for name, _ in atlas.card(4)[1]}


def test_a_card_has_all_properties(atlas, tiny_zoo):
    header, rows = atlas.card(0)
    known = dict(rows)
    assert header == ["property", "value"]
    assert (known["run id"], known["split"]) == (tiny_zoo.splits["train"].run_ids[0], "train")
    assert (known["weights"], known["tokens"]) == ("1108", "52")
    accuracy = tiny_zoo.splits["train"].column("test_accuracy")[0]
    assert float(known["test accuracy"]) == pytest.approx(accuracy, rel=1e-3)


def test_layers_tell_the_distribution_of_their_weights(atlas):
    header, rows = atlas.layers(9)
    state = atlas.networks.state_dict(9)
    assert header[:4] == ["layer", "kind", "shape", "tokens"]
    assert sum(int(row[3]) for row in rows) == 52
    for row in rows:
        every = torch.cat([tensor.flatten() for name, tensor in state.items() if name.rpartition(".")[0] == row[0]])
        told = [float(cell) for cell in row[4:]]
        expected = [every.mean().item(), every.std(unbiased=False).item(), every.abs().max().item()]
        assert told == pytest.approx(expected, rel=1e-3)


def test_a_spectrum_is_a_picture_of_every_matrix_for_wide_and_for_narrow_screens(atlas):
    for picture in atlas.spectrum(9).split('<div class="narrow">'):
        assert picture.count("<svg") == 1
        assert picture.count("classifier.weight") == 1
        assert atlas.names[9] in picture


def test_neighbours_are_the_nearest_ones(atlas):
    found = atlas.neighbours(20)
    distances = [(atlas.features[20] - atlas.features[other]).norm().item() for other in range(48)]
    assert [other for other, _ in found] == [i for i in np.argsort(distances, kind="stable") if i != 20][:10]
    assert [value for _, value in found] == pytest.approx(sorted(distances)[1:11])


def test_chosen_networks_are_training_networks(atlas, tiny_zoo):
    zoo = atlas.chosen([45, 2])
    assert zoo.splits.keys() == {"train"}
    assert zoo.splits["train"].run_ids == [atlas.properties["run_id"][45], atlas.properties["run_id"][2]]
    assert (zoo.source, zoo.alignment) == (tiny_zoo.source, tiny_zoo.alignment)


@pytest.mark.parametrize(("text", "numbers"), [("", []), ("3, 14-16 3", [3, 14, 15, 16]), ("7", [7]), ("0-1", [0, 1])])
def test_numbers_can_be_typed(text, numbers):
    assert parse_numbers(text, 17) == numbers


@pytest.mark.parametrize("text", ["17", "-1", "five", "3-", "4-3", "0-17", "1.0"])
def test_other_numbers_are_refused(text):
    with pytest.raises(ValueError, match=f"numbers of networks from 0 to 16, such as 3, 14-16, got '{text}'"):
        parse_numbers(text, 17)
