"""A streamed zoo has the same rows as on disk, in another order each epoch; batches depend on their number."""

from collections import Counter
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from window_samplers import new_sampler
from zoo_recipes import seed_zoo

from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._data import TrainingData
from hf_sane.training._preparation import fit_extractor
from hf_sane.training._settings import PretrainSettings
from hf_sane.zoo import _stream
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo._records import FEATURES
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo.building._build import build_zoo


@pytest.fixture(scope="module")
def stream(tiny_zoo_folder):
    return ZooStream.open(tiny_zoo_folder)


@pytest.fixture(scope="module")
def extractor(tiny_zoo):
    return fit_extractor([tiny_zoo.splits["train"]], "standardize")


@pytest.fixture(scope="module")
def many_groups(tiny_zoo, tmp_path_factory):
    """The tiny zoo with a row group for every few rows."""
    folder = tmp_path_factory.mktemp("groups")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_sane.zoo._dataset.MAX_ROWS_PER_GROUP", 4)
        tiny_zoo.save(folder)
    return ZooStream.open(folder)


def keys(rows):
    return [(row["run_id"], row["epoch"]) for row in rows]


def test_rows_in_file_order_are_those_on_disk(stream, tiny_zoo, tiny_zoo_folder):
    rows = list(stream.rows("train"))
    expected = datasets.load_dataset(str(tiny_zoo_folder), split="train")
    assert len(rows) == stream.count("train") == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == FEATURES.keys()
        assert row["tokens"].tolist() == other.pop("tokens")
        assert {name: row[name] for name in other} == other


def test_zoos_with_equal_facts_and_other_rows_are_kept_apart_in_the_cache(tiny_zoo, tmp_path):
    """As one that is built again on another processor: same settings, same folder name, other weights."""
    found = []
    for row in (0, 5):
        splits = {name: split.select([row]) for name, split in tiny_zoo.splits.items()}
        folder = tmp_path / str(row) / "zoo"
        Zoo(splits, tiny_zoo.facts).save(folder)
        found.append(datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))["tokens"][0])
        assert found[-1] == splits["train"].tokens(0).flatten().tolist()
    assert found[0] != found[1]


def test_shuffled_rows_are_the_same_ones_in_another_order_each_epoch(many_groups):
    plain = keys(many_groups.rows("train"))
    orders = [
        keys(many_groups.rows("train", seed=seed, epoch=epoch, buffer_size=5))
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    for order in orders:
        assert Counter(order) == Counter(plain)
        assert order != plain
    assert orders[0] == keys(many_groups.rows("train", seed=0, epoch=0, buffer_size=5))
    assert orders[0] != orders[1] != orders[2]
    firsts = {keys(many_groups.rows("train", seed=seed, buffer_size=1))[0] for seed in range(20)}
    assert len(firsts) > 1  # row groups change places, not rows of one buffer alone


@pytest.mark.parametrize("buffer_size", [1, 5, 1000])
def test_skipped_rows_are_the_first_ones(many_groups, buffer_size):
    options = {"seed": 2, "epoch": 1, "buffer_size": buffer_size}
    rows = list(many_groups.rows("train", **options))
    for skip in (1, 2, 7, len(rows) - 1, len(rows), len(rows) + 3):
        found = list(many_groups.rows("train", **options, skip=skip))
        assert keys(found) == keys(rows)[skip:]
        assert all(np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(found, rows[skip:], strict=True))
    assert keys(many_groups.rows("train", skip=3)) == keys(many_groups.rows("train"))[3:]


def test_skipped_rows_are_not_read(many_groups, monkeypatch):
    read = []
    table_rows = _stream._rows

    def counting(stream):
        for row in table_rows(stream):
            read.append(row["run_id"])
            yield row

    monkeypatch.setattr(_stream, "_rows", counting)
    total = len(list(many_groups.rows("train", seed=0, buffer_size=2)))
    assert len(read) == total
    read.clear()
    left = list(many_groups.rows("train", seed=0, buffer_size=2, skip=total - 3))
    assert len(left) == 3
    assert len(read) <= 4 * 4  # the row groups of two rows in the buffer, and what is left of the last two groups
    assert len(read) < total / 2


def test_a_sample_behaves_like_a_split(stream, tiny_zoo):
    sample = stream.sample("train", 10, seed=3)
    assert len(sample) == 10
    train = tiny_zoo.splits["train"]
    places = dict(zip(zip(train.run_ids, train.column("epoch").tolist(), strict=True), range(len(train)), strict=True))
    for index, key in enumerate(zip(sample.run_ids, sample.column("epoch").tolist(), strict=True)):
        assert torch.equal(sample.tokens(index), train.tokens(places[key]))
        assert sample.config(index).to_dict() == train.config(places[key]).to_dict()
    assert len(stream.sample("validation", 10_000)) == stream.count("validation")


def test_templates_keep_their_last_bytes(tmp_path, digits):
    """Counters end in zero bytes, which NumPy's text of bytes would drop."""
    arguments = seed_zoo(
        architecture="cifar_resnet",
        architecture_settings={"width": 2},
        num_models=4,
        epochs=1,
        keep_epochs=[1],
        progress_bar=False,
        batch_norm="template",
    )
    zoo = build_zoo(arguments, digits, tmp_path)
    sample = ZooStream.open(tmp_path).sample("train", 2)
    assert sample.layout(0).template
    state = sample.state_dict(0)
    other = next(
        zoo.splits["train"].state_dict(i)
        for i, run in enumerate(zoo.splits["train"].run_ids)
        if run == sample.run_ids[0]
    )
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_batch_depends_on_its_number_alone(many_groups, extractor):
    settings = {"window_size": 10, "batch_size": 4, "buffer_size": 6, "seed": 5}
    batches = new_sampler([many_groups], extractor, **settings)
    in_order = [batches.batch(number) for number in range(20)]  # several epochs
    ahead = new_sampler([many_groups], extractor, **settings)
    for number in (3, 11, 19, 2):
        again = ahead.batch(number)
        assert all(torch.equal(again[name], in_order[number][name]) for name in again)
    assert not torch.equal(in_order[0]["tokens"], in_order[7]["tokens"])
    other = new_sampler([many_groups], extractor, **{**settings, "seed": 6}).batch(0)
    assert not torch.equal(in_order[0]["tokens"], other["tokens"])


def test_every_row_is_read_once_in_an_epoch(many_groups, extractor):
    size = many_groups.count("train")
    settings = {"window_size": 10_000, "views": ["original"], "noise": 0.0, "num_permutations": 1}
    batch = new_sampler([many_groups], extractor, batch_size=size, **settings).batch(1)
    rows = torch.stack(
        [torch.from_numpy(np.array(row["tokens"])).view_as(batch["tokens"][0]) for row in many_groups.rows("train")]
    )
    layout = next(iter(many_groups.facts.parsed_layouts.values()))
    expected = extractor.normalize(rows, layout)
    distances = torch.cdist(batch["tokens"].flatten(1), expected.flatten(1))
    assert sorted(distances.argmin(dim=1).tolist()) == list(range(size))
    assert distances.min(dim=1).values.max() < 0.1  # cdist takes differences of large squares


def test_zoos_take_turns_in_proportion_to_their_size(many_groups, extractor):
    double = replace(
        many_groups, facts=replace(many_groups.facts, splits={"train": {"networks": 3 * many_groups.count("train")}})
    )
    batches = new_sampler([many_groups, double], extractor, window_size=5, batch_size=2)
    turns = [batches.networks._take_turn() for _ in range(40)]
    assert Counter(turns) == {0: 10, 1: 30}
    assert all(Counter(turns[start : start + 4]) == {0: 1, 1: 3} for start in range(0, 40, 4))


def test_a_zoo_that_is_not_aligned_is_aligned_for_the_run(tiny_zoo, caplog):
    splits = {name: ZooSplit(split.table, split.facts, None, split.rows) for name, split in tiny_zoo.splits.items()}
    bare = replace(tiny_zoo, splits=splits)
    (split,) = TrainingData.load(PretrainSettings(zoo=["bare"], output="x"), [bare]).train
    for key, known in tiny_zoo.alignment.permutations.items():
        found = split.alignment.permutations[key]
        assert all(torch.equal(found[axis], known[axis]) for axis in known)
    assert "the zoo digits is not aligned; aligning its networks for this run" in caplog.text
    plain = PretrainSettings(zoo=["bare"], output="x", views=["original", "original"])
    assert TrainingData.load(plain, [bare]).train[0].alignment is None


def test_training_data_of_a_stream_is_a_sample_and_the_stream(tiny_zoo_folder, tiny_zoo):
    arguments = PretrainSettings(
        zoo=[str(tiny_zoo_folder)], output="x", streaming=True, stream_sample=7, eval_models=3, batch_size=2
    )
    data = TrainingData.load(arguments)
    assert [len(split) for split in (*data.train, *data.validation)] == [7, 3]
    assert data.num_models == [len(tiny_zoo.splits["train"])]
    batches = data.batches(arguments, SANEFeatureExtractor(token_dim=73, normalization="none"), 5)
    assert batches.networks.streams == data.streams
    facts = data.describe(arguments)
    assert facts["train_models_in_memory"] == [7]
    assert facts["revisions"] == [None]


def test_errors(many_groups, extractor, tmp_path, tiny_zoo_folder):
    with pytest.raises(KeyError, match="has no split 'dev'; it has train, validation, test"):
        many_groups.count("dev")
    with pytest.raises(ValueError, match="steps count from 0, got -1"):
        new_sampler([many_groups], extractor, window_size=5, batch_size=2).batch(-1)
    with pytest.raises(FileNotFoundError, match="is not a zoo"):
        ZooStream.open(tmp_path)
    with pytest.raises(ValueError, match="holds the zoos .*, got 'other'; name one of them"):
        ZooStream.open(tiny_zoo_folder, "other")

    class Empty(ZooStream):
        def rows(self, split, **options):
            return iter(())

    empty = Empty(many_groups.source, many_groups.config, many_groups.facts, many_groups.alignment)
    with pytest.raises(ValueError, match="has no training row to read; expected"):
        new_sampler([empty], extractor, window_size=5, batch_size=2).batch(0)
    nothing = replace(many_groups, facts=replace(many_groups.facts, splits={"train": {"networks": 0}}))
    with pytest.raises(ValueError, match=r"expected training networks in every zoo, got \[0\]; build larger zoos"):
        TrainingData._open_streams([nothing], PretrainSettings(zoo=["x"], output="x"))
