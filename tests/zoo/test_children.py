"""Zoos of children: ancestors, shifts as properties, combinations held out, interruptions, alignment, structure."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from test_build import Interruption, contents, stop_after

from hf_sane.analysis._structure import shared_structure
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._shifts import KINDS, Shift
from hf_sane.networks._training import train_stacked
from hf_sane.symmetry._matching import match_many
from hf_sane.workflows.zoo_structure import zoo_structure
from hf_sane.zoo._cards import zoo_card
from hf_sane.zoo._mixing import mix_zoos
from hf_sane.zoo._symmetries import network_spec
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings, plan_runs, split_plans


def family(**settings):
    shape = {"conv_channels": [2, 3], "kernel_sizes": [3, 3], "pool_sizes": [2, 1], "hidden_sizes": [4]}
    defaults = {
        "architecture_settings": shape,
        "num_models": 2,
        "epochs": 2,
        "children": 12,
        "child_epochs": 2,
        "keep_epochs": [1],
        "learning_rate": [1e-3, 1e-2],
        "group_size": 8,
        "progress_bar": False,
        "seed": 4,
    }
    return ZooSettings(**{**defaults, **settings})


@pytest.fixture(scope="module")
def built(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("family")
    return build_zoo(family(), digits, folder), folder


def shift_of(split, i):
    """The shift that the columns of a row describe."""
    values = {kind: split.column(f"shift_{kind}")[i] for kind in KINDS}
    classes = values.pop("classes")
    return Shift(**values, classes=None if classes is None else tuple(map(int, classes.split())))


def test_children_continue_their_ancestor_on_the_images_of_their_columns(built, digits):
    zoo, _ = built
    train = zoo.splits["train"]
    ancestors = {train.run_ids[i]: i for i in np.flatnonzero(train.column("epoch") == 2)}
    assert set(ancestors) == {"000000", "000001"}
    assert [train.column("ancestor")[i] for i in ancestors.values()] == [None, None]
    checked = 0
    for split in zoo.splits.values():
        for i in np.flatnonzero(split.column("epoch") == 4)[:2]:
            parent = ancestors[split.column("ancestor")[i]]
            assert split.column("combination")[i] == shift_of(split, i).combination != "none"
            rate = float(split.column("learning_rate")[i])
            one = HyperParameters.repeat([int(split.column("seed")[i])], learning_rate=rate)
            start = {name: tensor[None] for name, tensor in train.state_dict(parent).items()}
            config = train.config(parent)
            (last,) = train_stacked(config, start, digits, one, epochs=2, shifts=[shift_of(split, i)])
            for name, tensor in split.state_dict(i).items():
                torch.testing.assert_close(tensor, last.tensors[name][0], rtol=1e-3, atol=1e-4)
            for name in ("train_accuracy", "test_accuracy"):
                assert split.column(name)[i] == pytest.approx(getattr(last, name)[0].item(), abs=0.02)
            checked += 1
    assert checked >= 4


def test_combinations_of_several_shifts_are_in_one_split(built):
    zoo, _ = built
    found = {name: set(split.column("combination").tolist()) for name, split in zoo.splits.items()}
    assert all("+" in combination for name in ("validation", "test") for combination in found[name])
    assert len(set.union(*found.values())) == sum(map(len, found.values()))
    assert "none" in found["train"]
    assert zoo.facts.splits["train"]["networks"] == len(zoo.splits["train"])
    epochs = {name: sorted(set(split.column("epoch").tolist())) for name, split in zoo.splits.items()}
    assert epochs == {"train": [1, 2, 4], "validation": [4], "test": [4]}


def test_children_are_permuted_as_their_ancestor(built):
    zoo, _ = built
    key, run_ids = next(iter(zoo.alignment.run_ids.items()))
    place = {run_id: i for i, run_id in enumerate(run_ids)}
    pairs = [
        (place[run_id], place[ancestor])
        for split in zoo.splits.values()
        for run_id, ancestor in zip(split.run_ids, split.column("ancestor"), strict=True)
        if ancestor is not None
    ]
    assert len(pairs) == 12
    for index in zoo.alignment.permutations[key].values():
        for child, ancestor in pairs:
            assert index[child].tolist() == index[ancestor].tolist()


def test_an_interrupted_family_continues_to_the_same_bytes(tmp_path, digits, built):
    with pytest.raises(Interruption):
        build_zoo(family(), digits, tmp_path, on_progress=stop_after(10))
    trained = []
    build_zoo(family(), digits, tmp_path, on_progress=lambda progress: trained.append(progress.finished))
    assert set(trained) == {10}, "ancestors and the first eight children are finished"
    assert contents(tmp_path) == contents(built[1])
    with pytest.raises(ValueError, match="with other settings of children"):
        build_zoo(family(children=21), digits, tmp_path)


def test_structure_is_that_of_changes_since_the_ancestor(built):
    zoo, _ = built
    ancestors = zoo.splits["train"].at_epoch(2)
    sides, starts = [], []
    for names in (["train"], ["validation", "test"]):
        parts = [zoo.splits[name].at_epoch(4) for name in names]
        before = [ancestors.run_ids.index(run_id) for part in parts for run_id in part.column("ancestor")]
        starts.append({name: tensor[before] for name, tensor in ancestors.stacked_tensors().items()})
        ends = [part.stacked_tensors() for part in parts]
        sides.append({name: torch.cat([end[name] for end in ends]) - old for name, old in starts[-1].items()})
    first = {name: tensor[0] for name, tensor in starts[0].items()}
    assert zoo_structure(zoo, since=2, align=False).structures == shared_structure(*sides)
    spec = network_spec(zoo.facts, *(str(ancestors.column(name)[0]) for name in ("architecture", "layout")))
    aligned = [
        spec.apply(changes, match_many(spec, first, before), batch_dims=1)
        for changes, before in zip(sides, starts, strict=True)
    ]
    assert zoo_structure(zoo, since=2).structures == shared_structure(*aligned)


def test_the_plan_gives_children_what_belongs_to_the_network(digits):
    varied = family(activations=["gelu", "tanh"], initializations=["uniform", "normal"], num_models=6, children=40)
    plans = {run.run_id: run for run in plan_runs(varied, varied.network_config(digits), range(10))}
    children = [run for run in plans.values() if run.ancestor is not None]
    assert len(children) == 40
    assert len({run.ancestor for run in children}) == 6
    for run in children:
        assert run.activation == plans[run.ancestor].activation
        assert run.initialization == plans[run.ancestor].initialization
    more = plan_runs(family(children=60), varied.network_config(digits), range(10))
    assert more[:14] == plan_runs(family(), varied.network_config(digits), range(10))


def test_what_cannot_be_a_family_is_refused(digits):
    with pytest.raises(StrictDataclassClassValidationError, match="expected at least 3 shifts"):
        family(shifts=["rotation", "blur"])
    with pytest.raises(StrictDataclassClassValidationError, match="got \\['rotatio'\\]; did you mean 'rotation'"):
        family(shifts=["rotatio", "blur", "scale"])
    few = plan_runs(family(children=2), family().network_config(digits), range(10))
    with pytest.raises(ValueError, match="expected at least 3 combinations of several shifts for 3 splits, got"):
        split_plans(few, [0.6, 0.2, 0.2], 0)


def test_zoos_without_children_keep_their_columns_and_settings(built, tiny_zoo):
    zoo, _ = built
    assert "children" not in tiny_zoo.facts.arguments
    assert set(zoo.splits["train"].table.scalar_columns) - set(tiny_zoo.splits["train"].table.scalar_columns) == {
        *("ancestor", "combination"),
        *(f"shift_{kind}" for kind in KINDS),
    }
    assert "12 children: each continues the run in the column `ancestor`" in zoo_card({"default": zoo.facts})


def test_mixtures_name_ancestors_as_they_name_runs(built, tiny_zoo, tmp_path):
    zoo, _ = built
    mixed = mix_zoos({"family": zoo, "others": tiny_zoo}, tmp_path).splits["train"]
    own = zoo.splits["train"]
    expected = [name and f"family/{name}" for name in own.column("ancestor")]
    assert mixed.column("ancestor").tolist() == expected + [None] * len(tiny_zoo.splits["train"])
    assert set(expected) - {None} <= set(mixed.run_ids)
