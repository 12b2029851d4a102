"""Several zoos as one: the same networks, cut into tokens of one size, splits as they were."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from window_samplers import new_sampler

from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._preparation import fit_extractor
from hf_sane.zoo._alignment import align_zoo
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo._mixing import mix_zoos
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings


@pytest.fixture(scope="module")
def mlp_zoo(tmp_path_factory, digits):
    arguments = ZooSettings(
        name="mlps", architecture="mlp", num_models=8, epochs=1, keep_epochs=[0, 1], token_dim=40, token_layout="dense"
    )
    return build_zoo(arguments, digits, tmp_path_factory.mktemp("mlps"))


@pytest.fixture(scope="module")
def mixture(tiny_zoo, mlp_zoo, tmp_path_factory):
    return mix_zoos(
        {"cnn": tiny_zoo, "mlp": mlp_zoo}, tmp_path_factory.mktemp("mixture"), token_dim=64, token_layout="dense"
    )


def test_every_network_is_there_bit_for_bit(mixture, tiny_zoo, mlp_zoo):
    for name, split in mixture.splits.items():
        parts = [(part.splits[name], i) for part in (tiny_zoo, mlp_zoo) for i in range(len(part.splits[name]))]
        assert len(split) == len(parts)
        for place, (part, i) in enumerate(parts):
            mixed, own = split.state_dict(place), part.state_dict(i)
            assert list(mixed) == list(own)
            assert all(torch.equal(mixed[key], own[key]) for key in own)
            assert split.tokens(place).shape[1] == 64
            assert split.column("test_accuracy")[place] == part.column("test_accuracy")[i]


def test_runs_keep_their_split_and_say_where_they_are_from(mixture, tiny_zoo, mlp_zoo):
    for name, split in mixture.splits.items():
        expected = [f"cnn/{run}" for run in tiny_zoo.splits[name].run_ids]
        expected += [f"mlp/{run}" for run in mlp_zoo.splits[name].run_ids]
        assert split.run_ids == expected
        assert split.column("zoo").tolist() == [run.partition("/")[0] for run in expected]
    runs = [set(split.run_ids) for split in mixture.splits.values()]
    assert not runs[0] & runs[1] | runs[0] & runs[2] | runs[1] & runs[2]


def test_networks_of_the_mixture_run(mixture, tiny_zoo, digits):
    images, _ = digits.split("test")
    for place, own in ((0, tiny_zoo.splits["test"].model(0)),):
        with torch.no_grad():
            torch.testing.assert_close(mixture.splits["test"].model(place)(images).logits, own(images).logits)


def test_one_extractor_and_one_sampler_serve_all_of_it(mixture):
    aligned = align_zoo(mixture)
    assert len(aligned.alignment.references) == 2
    extractor = fit_extractor([aligned.splits["train"]], "standardize")
    batch = new_sampler([aligned.splits["train"]], extractor, window_size=16, batch_size=len(aligned.splits["train"]))
    found = batch.batch(0)
    assert found["tokens"].shape[1:] == (16, 64)
    assert len(torch.unique(found["positions"][:, :, 1].amax(dim=1))) > 1


def test_tokens_of_one_size_are_taken_as_they_are(tiny_zoo, tmp_path):
    other = dataclasses.replace(tiny_zoo.facts, name="twin")
    twin = Zoo({name: ZooSplit(split.table, other) for name, split in tiny_zoo.splits.items()}, other)
    mixed = mix_zoos({"a": tiny_zoo, "b": twin}, tmp_path, config="twins", name="twins")
    assert mixed.facts.name == "twins"
    assert list(mixed.facts.layouts) == list(tiny_zoo.facts.layouts)
    half = len(tiny_zoo.splits["test"])
    tokens = mixed.splits["test"].stacked_tokens()
    assert torch.equal(tokens[:half], tiny_zoo.splits["test"].stacked_tokens())
    assert torch.equal(tokens[half:], tokens[:half])
    assert mixed.facts.splits["test"]["runs"] == 2 * tiny_zoo.facts.splits["test"]["runs"]
    accuracy = [zoo.facts.splits["test"]["test_accuracy"] for zoo in (mixed, tiny_zoo)]
    assert accuracy[0] == pytest.approx(accuracy[1])


def test_mixtures_can_be_mixed(mixture, tiny_zoo, tmp_path):
    twice = mix_zoos({"both": mixture, "more": tiny_zoo}, tmp_path, token_layout="rowwise", token_dim=80)
    zoos = set(twice.splits["train"].column("zoo"))
    assert zoos == {"both/cnn", "both/mlp", "more"}
    extractor = SANEFeatureExtractor(80, normalization="none")
    split = twice.splits["train"]
    encoded = extractor.encode(split.state_dict(0))
    layout, tokens = extractor.arrange(split.layout(0), split.tokens(0))
    assert encoded.layout.layers == layout.layers
    assert torch.equal(encoded.tokens, tokens)


def test_load_dataset_and_the_card(mixture, tiny_zoo, mlp_zoo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    mix_zoos({"cnn": tiny_zoo, "mlp": mlp_zoo}, folder, config="both", token_layout="rowwise")
    loaded = datasets.load_dataset(str(folder), "both", split="validation", cache_dir=str(folder / "cache"))
    assert set(loaded["zoo"]) == {"cnn", "mlp"}
    card = (folder / "README.md").read_text()
    assert "- `cnn`, images: digits" in card
    assert "- `mlp`, epochs kept: 0, 1; seed 0" in card
    assert "the column `zoo` names the original zoo of each network" in card
    assert "token_dim 73" in card  # the larger of 73 and 40


def test_columns_of_some_zoos_only_are_null_in_the_others(tiny_zoo, tmp_path):
    splits = {}
    for name, split in tiny_zoo.splits.items():
        rows = split.table.dataset.add_column("stars", [1.5] * len(split))
        splits[name] = ZooSplit(rows, tiny_zoo.facts)
    mixed = mix_zoos({"plain": tiny_zoo, "starred": Zoo(splits, tiny_zoo.facts)}, tmp_path)
    stars = mixed.splits["test"].column("stars")
    assert np.isnan(stars[:8]).all()
    assert (stars[8:] == 1.5).all()


def with_column(zoo, name, values):
    splits = {}
    for key, split in zoo.splits.items():
        splits[key] = ZooSplit(split.table.dataset.add_column(name, [values] * len(split)), zoo.facts)
    return Zoo(splits, zoo.facts)


def test_what_cannot_be_mixed(tiny_zoo, mlp_zoo, tmp_path):
    with pytest.raises(ValueError, match="at least one zoo to mix, got none"):
        mix_zoos({}, tmp_path)
    with pytest.raises(ValueError, match=r"names without '/', .* got \['a/b', ''\]"):
        mix_zoos({"a/b": tiny_zoo, "": mlp_zoo}, tmp_path)
    with pytest.raises(ValueError, match=r"layouts \['dense', 'rowwise'\]; choose one"):
        mix_zoos({"a": tiny_zoo, "b": mlp_zoo}, tmp_path)
    numbers, words = with_column(tiny_zoo, "mark", 1.0), with_column(tiny_zoo, "mark", "good")
    with pytest.raises(ValueError, match=r"column 'mark' is .*string.* in b, but .*float64"):
        mix_zoos({"a": numbers, "b": words}, tmp_path)
    assert not list(tmp_path.iterdir())
    mix_zoos({"a": tiny_zoo}, tmp_path, config="one")
    with pytest.raises(FileExistsError, match="already holds a finished zoo named 'one'"):
        mix_zoos({"a": tiny_zoo}, tmp_path, config="one")


def test_zoos_that_store_batch_norm_in_different_places(tiny_zoo, digits, tmp_path):
    settings = {"architecture": "cifar_resnet", "architecture_settings": {"width": 2}, "num_models": 4, "epochs": 0}
    zoos = {
        place: build_zoo(
            ZooSettings(**settings, batch_norm=place, token_dim=73, train_limit=32, split_shares=[0.5, 0.25, 0.25]),
            digits,
            tmp_path / place,
        )
        for place in ("tokens", "template")
    }
    with pytest.raises(
        ValueError, match=r"how BatchNorm is stored: \['template', 'tokens'\]; build them with the same"
    ):
        mix_zoos(zoos, tmp_path / "mixed")
