"""A zoo on disk and in memory: round trips, views, selections, `load_dataset`, cards, uploads, errors."""

import json
import re
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import DatasetCard

from hf_sane.architectures.configuration_zoo import MLPConfig
from hf_sane.architectures.presets import cifar_resnet, cnn_digits, mlp
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._manifests import MANIFEST
from hf_sane.zoo import _records as records
from hf_sane.zoo._cards import zoo_card
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo._facts import architecture_facts, config_from_dict
from hf_sane.zoo._records import FEATURES
from hf_sane.zoo._table import ZooTable
from hf_sane.zoo.importing._settings import ImportSettings


def same_rows(first, second):
    assert len(first) == len(second) > 0
    assert torch.equal(first.stacked_tokens(), second.stacked_tokens())
    for name in FEATURES:
        if name not in ("tokens", "template"):
            assert np.array_equal(first.column(name), second.column(name)), name


def test_load_dataset_reads_the_folder(tiny_zoo, tiny_zoo_folder, tmp_path):
    loaded = datasets.load_dataset(str(tiny_zoo_folder), cache_dir=str(tmp_path))
    assert list(loaded) == ["train", "validation", "test"]
    for name, split in tiny_zoo.splits.items():
        assert loaded[name].features == FEATURES
        tokens = torch.tensor(np.stack(loaded[name].with_format("numpy")["tokens"][:]))
        assert torch.equal(tokens.view(-1, 52, 73), split.stacked_tokens())


def test_load_dataset_streams_the_folder(tiny_zoo, tiny_zoo_folder, tmp_path):
    stream = datasets.load_dataset(str(tiny_zoo_folder), streaming=True, cache_dir=str(tmp_path))
    count = 0
    for i, row in enumerate(stream["test"]):
        split = tiny_zoo.splits["test"]
        assert row["run_id"] == split.run_ids[i]
        assert torch.equal(torch.tensor(row["tokens"]).view(52, 73), split.tokens(i))
        count += 1
    assert count == 8


def test_opening_writes_into_the_folder_of_the_zoo_only(tiny_zoo_folder, tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(home))
    folder = tmp_path / "zoo"
    shutil.copytree(tiny_zoo_folder, folder, ignore=shutil.ignore_patterns(".cache"))
    Zoo.load(folder)
    assert (folder / ".cache").is_dir()
    assert not home.exists()
    Zoo.load(tiny_zoo_folder, cache_dir=tmp_path / "chosen")
    assert list((tmp_path / "chosen").rglob("*.arrow"))


def test_a_folder_that_cannot_be_written_uses_the_general_cache(tiny_zoo_folder, tmp_path, monkeypatch):
    folder = tmp_path / "zoo"
    shutil.copytree(tiny_zoo_folder, folder, ignore=shutil.ignore_patterns(".cache"))
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "general")
    Zoo.load(folder)
    assert not (folder / ".cache").exists()
    assert list((tmp_path / "general").rglob("*.arrow"))


def test_changed_files_are_noticed(tiny_zoo, tmp_path):
    tiny_zoo.save(tmp_path)
    Zoo.load(tmp_path)
    half = Zoo({name: split.select(slice(None, 4)) for name, split in tiny_zoo.splits.items()}, tiny_zoo.facts)
    half.save(tmp_path, replace=True)
    assert len(Zoo.load(tmp_path)) == 12


def test_tokens_are_views_of_the_arrow_buffer(tiny_zoo):
    split = tiny_zoo.splits["train"]
    assert split.tokens(3).data_ptr() == split.tokens(3).data_ptr()
    chunk = split.table.dataset.data.column("tokens").chunks[0]
    buffer = chunk.values.buffers()[1]
    assert buffer.address <= split.tokens(0).data_ptr() < buffer.address + buffer.size
    assert split.stacked_tokens().data_ptr() != split.tokens(0).data_ptr()


def without_digests(facts):
    splits = {name: {key: found[key] for key in found.keys() - {"digest"}} for name, found in facts.splits.items()}
    return replace(facts, splits=splits)


@pytest.mark.parametrize("rows_per_group", [1, 3, 1000])
def test_save_and_load_keep_every_row(tiny_zoo, tmp_path, monkeypatch, rows_per_group):
    monkeypatch.setattr("hf_sane.zoo._dataset.MAX_ROWS_PER_GROUP", rows_per_group)
    tiny_zoo.save(tmp_path)
    parquet = pq.ParquetFile(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert parquet.num_row_groups == -(-32 // rows_per_group)
    loaded = Zoo.load(tmp_path)
    for name, split in tiny_zoo.splits.items():
        same_rows(loaded.splits[name], split)
        index = torch.arange(5).expand(len(split), 5).contiguous()
        assert torch.equal(
            loaded.splits[name].table.gather(loaded.splits[name].rows, index), split.stacked_tokens().flatten(1)[:, :5]
        )
    # The digest of a split is that of its files, and the same rows make other files in other groups.
    assert without_digests(loaded.facts) == without_digests(tiny_zoo.facts)
    assert loaded.alignment.run_ids == tiny_zoo.alignment.run_ids
    assert loaded.run_record.seed == tiny_zoo.run_record.seed


def test_large_splits_become_several_files(tiny_zoo, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_sane.zoo._dataset.MAX_ROWS_PER_GROUP", 10)
    monkeypatch.setattr(records, "SHARD_BYTES", 20 * 52 * 73 * 4 + 20_000)
    tiny_zoo.save(tmp_path)
    names = [path.name for path in sorted((tmp_path / "data").glob("train-*"))]
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    same_rows(Zoo.load(tmp_path).splits["train"], tiny_zoo.splits["train"])
    monkeypatch.undo()
    tiny_zoo.save(tmp_path, replace=True)
    assert len(list((tmp_path / "data").glob("train-*"))) == 1, "files of another number must not stay"
    same_rows(Zoo.load(tmp_path).splits["train"], tiny_zoo.splits["train"])


def test_rows_are_grouped_by_size(tiny_zoo, monkeypatch):
    split = tiny_zoo.splits["train"]
    rows = [
        records.ModelRecord(
            split.tokens(i),
            {},
            {name: split.column(name)[i] for name in FEATURES if name not in ("tokens", "template")},
        )
        for i in range(7)
    ]
    monkeypatch.setattr(records, "ROW_GROUP_BYTES", 3 * 52 * 73 * 4)
    assert [len(table) for table in records.batched(iter(rows))] == [3, 3, 1]
    monkeypatch.setattr(records, "MAX_ROWS_PER_GROUP", 2)
    assert [len(table) for table in records.batched(iter(rows))] == [2, 2, 2, 1]
    assert list(records.batched(iter([]))) == []


@pytest.mark.parametrize(
    "index", [[3, 0, 3], np.array([1]), slice(2, 9, 2), np.arange(32) % 3 == 0, [], [-1]], ids=str
)
def test_select_keeps_order_and_rows(tiny_zoo, index):
    split = tiny_zoo.splits["train"]
    expected = np.arange(32)[
        index if isinstance(index, slice) else np.asarray(index, dtype=getattr(index, "dtype", int))
    ]
    chosen = split.select(index)
    assert len(chosen) == len(expected)
    assert chosen.run_ids == [split.run_ids[i] for i in expected]
    for i, row in enumerate(expected):
        assert torch.equal(chosen.tokens(i), split.tokens(row))
        assert chosen.config(i) == split.config(row)


def test_selections_of_selections_and_saved_selections(tiny_zoo, tmp_path):
    split = tiny_zoo.splits["train"].select([5, 9, 2, 3]).select([3, 0])
    assert split.rows.tolist() == [3, 5]
    Zoo({"train": split, "validation": split, "test": split}, tiny_zoo.facts).save(tmp_path)
    same_rows(Zoo.load(tmp_path).splits["test"], split)


def test_epochs(tiny_zoo):
    split = tiny_zoo.splits["train"]
    final = split.final_epochs()
    assert len(final) == 8
    assert set(final.column("epoch")) == {12}
    same_rows(split.at_epoch(12), final)
    assert set(split.at_epoch(0).column("epoch")) == {0}
    shuffled = split.select(np.random.default_rng(0).permutation(32)).final_epochs()
    assert sorted(shuffled.run_ids) == sorted(final.run_ids)
    assert set(shuffled.column("epoch")) == {12}
    with pytest.raises(ValueError, match=r"no network at epoch 7; stored epochs: \[0, 3, 6, 12\]"):
        split.at_epoch(7)


def test_networks_models_and_tokens_agree(tiny_zoo, digits):
    split = tiny_zoo.splits["validation"]
    networks = split.networks()
    logits = networks.logits(digits.test_images[:5])
    for i in range(len(split)):
        torch.testing.assert_close(split.model(i)(digits.test_images[:5]).logits, logits[i], rtol=1e-4, atol=1e-5)
        assert torch.equal(split.layout(i).tokens(split.state_dict(i)), split.tokens(i))


def test_a_state_dict_is_fresh_memory(tiny_zoo):
    split = tiny_zoo.splits["test"]
    before = split.tokens(0).clone()
    for tensor in split.state_dict(0).values():
        tensor.zero_()
    assert torch.equal(split.tokens(0), before)


def test_columns_are_typed_and_read_only(tiny_zoo):
    split = tiny_zoo.splits["train"]
    assert split.column("test_accuracy").dtype == np.float32
    assert split.column("epoch").dtype == np.int32
    assert split.column("optimizer").tolist()[0] in ("adam", "sgd")
    with pytest.raises(ValueError, match="read-only"):
        split.table.column("epoch")[0] = 3
    with pytest.raises(KeyError, match="the zoo has no scalar column 'accuracy'; it has .'run_id', 'epoch'"):
        split.column("accuracy")
    with pytest.raises(KeyError, match="no scalar column 'tokens'"):
        split.column("tokens")


def test_datasets_that_were_shuffled_are_read_right(tiny_zoo):
    split = tiny_zoo.splits["train"]
    order = np.random.default_rng(0).permutation(32)
    shuffled = ZooSplit(split.table.dataset.select(order), tiny_zoo.facts)
    assert torch.equal(shuffled.stacked_tokens(), split.stacked_tokens()[order])
    assert shuffled.run_ids == [split.run_ids[i] for i in order]


def test_configurations_survive_the_facts():
    labels = {0: "cat", 1: "dog"}
    configs = [
        cnn_digits(activation="relu", dropout=0.3),
        mlp(num_labels=3),
        cifar_resnet(20, width=3),
        MLPConfig(id2label=labels, label2id={name: i for i, name in labels.items()}),
    ]
    keys = set()
    for config in configs:
        key, settings = architecture_facts(config)
        rebuilt = config_from_dict(json.loads(json.dumps(settings)))
        assert architecture_facts(rebuilt) == (key, settings)
        assert rebuilt.id2label == config.id2label
        keys.add(key)
    assert len(keys) == 4
    assert architecture_facts(cnn_digits(activation="tanh"))[0] == architecture_facts(configs[0])[0]
    with pytest.raises(ValueError, match="expected model_type to be one of .*, got 'bert'"):
        config_from_dict({"model_type": "bert"})


def test_what_networks_of_one_architecture_share(tiny_zoo, monkeypatch):
    split = tiny_zoo.splits["train"]
    layout, config = split.layout_and_config()
    assert (layout, config.to_dict()) == (split.layout(0), split.config(0).to_dict())
    layouts = np.array(["one", *["two"] * (len(split) - 1)])
    monkeypatch.setattr(ZooSplit, "column", lambda self, name: layouts)
    with pytest.raises(ValueError, match=r"expected networks of one layout, got \['one', 'two'\]; select one of them"):
        split.layout_and_config()


def test_the_recipe_of_a_zoo_trains_networks_as_it_did(tiny_zoo):
    facts = tiny_zoo.facts  # of several optimisers, and bounds of everything else
    recipe = facts.training_recipe
    assert recipe == {"optimizer": "adam", "learning_rate": 5e-3, "weight_decay": 1e-4}
    assert HyperParameters.repeat([0, 1], **recipe).learning_rates == (5e-3, 5e-3)
    sgd = replace(facts, arguments={**facts.arguments, "optimizers": ["sgd"], "weight_decay": [0.5]})
    assert sgd.training_recipe == {"optimizer": "sgd", "learning_rate": 5 * 5e-3, "weight_decay": 0.5}


@pytest.mark.parametrize("arguments", [{}, ImportSettings(repos=["org/a"]).to_dict(), {"token_dim": 5}])
def test_imported_and_mixed_zoos_have_no_recipe(tiny_zoo, arguments):
    silent = replace(tiny_zoo.facts, arguments=arguments, name="others")
    with pytest.raises(
        ValueError, match="the zoo 'others' does not record how its networks were trained, .*; use one"
    ):
        assert silent.training_recipe


def test_card_is_valid_and_its_code_runs(tiny_zoo, tiny_zoo_folder):
    card = DatasetCard.load(tiny_zoo_folder / "README.md")
    assert [entry["config_name"] for entry in card.data.configs] == ["default"]
    assert "model-zoo" in card.data.tags
    assert card.data.license is None
    assert "unknown" not in card.text.lower()
    assert "320 train, 100 validation, 100 test; 10 classes" in card.text
    assert "| test | 2 | 8 |" in card.text
    assert re.search(
        r"^- trained with: optimiser adam(, sgd)?; learning rate [\d. to]+; .*; batches of \d+$",
        card.text,
        re.MULTILINE,
    )
    code = card.text.split("```python\n")[1].split("```")[0].replace("PATH_OR_REPO", str(tiny_zoo_folder))
    found = {}
    exec(code, found)
    assert torch.equal(found["tokens"], tiny_zoo.splits["test"].tokens(0))
    assert found["network"].config.num_classes == 10


def test_a_card_says_between_which_bounds_hyper_parameters_were_drawn(tiny_zoo):
    drawn = {"optimizers": ["adam", "sgd"], "learning_rate": [1e-4, 1e-2], "activations": []}
    facts = tiny_zoo.facts.__class__(
        **{**tiny_zoo.facts.to_dict(), "arguments": {**tiny_zoo.facts.arguments, **drawn}}
    )
    text = zoo_card({"default": facts})
    assert "optimiser adam, sgd; learning rate 0.0001 to 0.01; " in text
    assert "activation " not in text


def test_card_of_several_zoos(tiny_zoo):
    other = tiny_zoo.facts.__class__(**{**tiny_zoo.facts.to_dict(), "name": "other", "excluded": ({"run_id": "1"},)})
    text = zoo_card({"default": tiny_zoo.facts, "second": other})
    assert 'Zoo.load("PATH_OR_REPO", "default")' in text
    assert "## other (`second`)" in text
    assert "- 1 run left out: not finite or diverged" in text
    assert "path: second/train-*.parquet" in text


# huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_zoos_stand_side_by_side_in_a_repository(tiny_zoo, local_hub):
    assert "/datasets/me/zoo/commit/" in tiny_zoo.push_to_hub("me/zoo", private=True)
    half = Zoo({name: split.select(slice(None, 4)) for name, split in tiny_zoo.splits.items()}, tiny_zoo.facts)
    half.push_to_hub("me/zoo", config_name="half")
    repository = local_hub.repositories["datasets", "me/zoo"]
    assert repository.private
    loaded = Zoo.load("me/zoo", "half")
    assert len(loaded) == 12
    assert loaded.revision == repository.head.sha
    assert loaded.with_alignment(tiny_zoo.alignment).revision == loaded.revision
    assert not local_hub.sent("resolve/.*/data/.*parquet"), "the other zoo was downloaded"
    assert len(Zoo.load("me/zoo", "default", revision=repository.head.sha)) == 48
    text = repository.files["zoo.json"].decode()
    assert list(json.loads(text)["configs"]) == ["default", "half"]


def test_folders_that_hold_no_zoo_are_refused(tiny_zoo, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a zoo: expected zoo.json in it; build one"):
        Zoo.load(tmp_path)
    folder = tiny_zoo.save(tmp_path / "zoo")
    with pytest.raises(ValueError, match="holds the zoos .'default'., got 'other'; name one of them"):
        Zoo.load(folder, "other")
    tiny_zoo.save(tmp_path / "two", "a")
    tiny_zoo.save(tmp_path / "two", "b")
    with pytest.raises(ValueError, match="holds the zoos .'a', 'b'., got None; name one of them"):
        Zoo.load(tmp_path / "two")
    for path in (folder / "data").glob("test-*"):
        path.unlink()
    with pytest.raises(
        InvalidFileError, match=r"test-00000-of-00001.parquet: expected [\d,]+ bytes, got no such file"
    ):
        Zoo.load(folder)
    (folder / "data" / MANIFEST).unlink()  # as older versions of the library left zoos
    with pytest.raises(FileNotFoundError, match="has no parquet files for .'test'."):
        Zoo.load(folder)
    facts = json.loads((folder / "zoo.json").read_text())
    (folder / "zoo.json").write_text(json.dumps({**facts, "format_version": 99}))
    with pytest.raises(ValueError, match="format_version: expected format version 1, got 99; update hf_sane"):
        Zoo.load(folder)


def test_empty_zoos_and_unknown_splits_are_refused(tiny_zoo):
    empty = tiny_zoo.splits["train"].select([])
    assert len(empty) == len(empty.final_epochs()) == 0
    with pytest.raises(ValueError, match="the zoo 'digits' is empty; expected at least one network"):
        Zoo({"train": empty}, tiny_zoo.facts)
    with pytest.raises(KeyError, match="the zoo has no split 'dev'; it has train, validation, test"):
        tiny_zoo.splits["dev"]
    for stack in (empty.stacked_tokens, empty.networks, empty.stacked_tensors):
        with pytest.raises(ValueError, match=r"expected networks of one layout, got \[\]; select one"):
            stack()


def test_tables_of_other_columns_are_refused(tiny_zoo):
    dataset = tiny_zoo.splits["test"].table.dataset
    with pytest.raises(KeyError, match="this is not a zoo: columns .'epoch'. are missing"):
        ZooTable(dataset.remove_columns("epoch"))
    wide = dataset.cast_column("tokens", datasets.List(datasets.Value("float64")))
    with pytest.raises(TypeError, match="expected column tokens of List.*float32.*, got List.*float64"):
        ZooTable(wide)
