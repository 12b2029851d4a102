"""Zoos of networks that others have trained: from folders and from a Hub, whatever their architectures."""

import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from hub_server import Hub, run_hub
from huggingface_hub import HfApi, constants
from safetensors.torch import save, save_file
from torch import nn

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits
from hf_sane.networks import _modules
from hf_sane.records._errors import InvalidFileError
from hf_sane.zoo._alignment import align_zoo
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._facts import read_facts
from hf_sane.zoo._records import FEATURES, IMPORT_FEATURES
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo._writing import NETWORKS_NAME, REPORT_NAME
from hf_sane.zoo.importing._importing import group_networks, import_zoo
from hf_sane.zoo.importing._reading import ImportedNetwork
from hf_sane.zoo.importing._settings import ImportSettings

CARD = """---
license: mit
base_model: org/base
model-index:
- name: x
  results:
  - task: {{type: image-classification}}
    dataset: {{type: digits, name: Digits}}
    metrics:
    - {{type: accuracy, value: {accuracy}}}
---
"""
BERT = {
    **{"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 4, "intermediate_size": 4},
    **{"num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9, "max_position_embeddings": 8},
}


def mlp(*widths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """State dict of a plain network."""
    torch.manual_seed(seed)
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers).state_dict()


def write(folder: Path, name: str, state_dict: dict[str, torch.Tensor], config: object = None, card: str = "") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in state_dict.items()}, path)
    else:
        torch.save(state_dict, path)
    if config is not None:
        (path.parent / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if card:
        (path.parent / "README.md").write_text(card)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of networks of five architectures, and some that cannot be taken."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for index in range(3):
        model = build_model(cnn_digits(activation="gelu"))
        card = CARD.format(accuracy=0.9 + index / 100)
        write(folder, f"ours/cnn-{index}/model.safetensors", model.state_dict(), model.config.to_dict(), card)
        write(folder, f"mlps/{index}.safetensors", mlp(4, 8, 3, seed=index))
    write(folder, "deep/model.safetensors", mlp(*[3] * 13), BERT)
    resnet = build_model(cifar_resnet(20, width=2)).state_dict()
    write(folder, "resnet.pt", {"state_dict": {f"module.{name}": tensor for name, tensor in resnet.items()}})
    write(folder, "half.safetensors", {name: tensor.bfloat16() for name, tensor in mlp(4, 8, 3).items()})
    write(folder, "same.safetensors", mlp(4, 8, 3, seed=1))
    write(folder, "bad/nan.safetensors", {"w": torch.full((3, 3), torch.nan)})
    write(folder, "bad/double.safetensors", {"w": torch.full((3, 3), 0.1, dtype=torch.float64)})
    write(folder, "bad/integers.safetensors", {"w": torch.zeros(9, 9, dtype=torch.int8), "scale": torch.ones(1)})
    write(folder, "bad/nothing.safetensors", {"w": torch.zeros(9, 9, dtype=torch.int64)})
    write(folder, "bad/complex.safetensors", {"w": torch.zeros(2, 2, dtype=torch.complex64)})
    write(folder, "bad/long.safetensors", {"w": torch.zeros(400, 1)})
    write(folder, "bad/large.safetensors", {"w": torch.zeros(200, 200)})
    write(folder, "bad/config/model.safetensors", mlp(4, 8), "no json")
    write(folder, "bad/list/model.safetensors", mlp(4, 9), [1])
    (folder / "bad/cut.safetensors").write_bytes(save(mlp(4, 8, 3))[:-9])
    (folder / "bad/index").mkdir()
    (folder / "bad/index/model.safetensors.index.json").write_text('{"weight_map": {"w": "../../resnet.pt"}}')
    (folder / "bad/shard").mkdir()
    (folder / "bad/shard/model.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors"}}')
    write(folder, "bad/lacking/a.safetensors", mlp(4, 8, 8))
    (folder / "bad/lacking/model.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors"}}')
    torch.save({"w": nn.Linear(2, 2)}, folder / "bad/code.pt")
    return folder


SETTINGS = {"token_dim": 73, "allow_pickle": True, "max_size": 100_000, "max_tokens": 390}
REASONS = {
    "same.safetensors": "it has the same weights as mlps/1.safetensors",
    "bad/nan.safetensors": "NaN or infinite weights in w",
    "bad/double.safetensors": "it has float64 weights that float32 tokens cannot hold exactly",
    "bad/integers.safetensors": "81 of its 85 bytes are integers: its weights are quantised",
    "bad/nothing.safetensors": "no floating-point weights among 1 tensors",
    "bad/complex.safetensors": "expected a dense real tensor for 'w', got torch.complex64",
    "bad/long.safetensors": "it has 400 tokens, the limit is 390 (--max-tokens)",
    "bad/large.safetensors": "bytes, the limit is 100,000 (--max-size)",
    "bad/config": "config.json: expected a JSON object",
    "bad/list": "config.json: expected a JSON object, got an error: the JSON is a list",
    "bad/cut.safetensors": "the file is truncated",
    "bad/index": "expected the name of a file next to the index, got '../../resnet.pt'",
    "bad/shard": "names shards that are missing: a.safetensors",
    "bad/lacking": "a.safetensors lacks ['w'], which its index lists there",
    "bad/code.pt": "cannot be opened with weights_only=True",
}


@pytest.fixture(scope="module")
def imported(models: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("imported") / "zoo"
    return folder, import_zoo(ImportSettings(folder=str(models), **SETTINGS), folder)


def rows(zoo: Zoo) -> Iterator[tuple]:
    for split in zoo.splits.values():
        for index, name in enumerate(split.run_ids):
            yield name, split, index


def test_what_can_be_taken_is_taken_and_the_rest_has_a_reason(imported):
    folder, result = imported
    found = {entry.run_id: entry for entry in result.entries}
    taken = {name for name, entry in found.items() if entry.status == "taken"}
    ours = {f"ours/cnn-{index}" for index in range(3)}
    assert taken == {
        *ours,
        *(f"mlps/{index}.safetensors" for index in range(3)),
        "deep",
        "resnet.pt",
        "half.safetensors",
    }
    assert found.keys() - taken == REASONS.keys()
    for name, reason in REASONS.items():
        assert found[name].status == "skipped"
        assert reason in found[name].reason
    assert {name for name, *_ in rows(result.zoo)} == taken
    assert json.loads((folder / "data" / REPORT_NAME).read_text())[0] == {
        **{"run_id": result.entries[0].run_id, "status": result.entries[0].status, "reason": result.entries[0].reason}
    }
    assert {entry["run_id"]: entry["reason"] for entry in result.zoo.facts.excluded} == {
        name: found[name].reason for name in REASONS
    }
    assert not (folder / NETWORKS_NAME).exists()


def test_every_weight_comes_back_exactly(imported, models):
    for name, split, index in rows(imported[1].zoo):
        path = models / name
        state_dict = split.state_dict(index)
        if name == "resnet.pt":
            original = {k.removeprefix("module."): t for k, t in torch.load(path)["state_dict"].items()}
        else:
            from safetensors.torch import load_file

            original = load_file(path / "model.safetensors" if path.is_dir() else path)
        assert state_dict.keys() == original.keys()
        for key, tensor in original.items():
            assert state_dict[key].dtype == tensor.dtype
            assert torch.equal(state_dict[key], tensor)


def test_properties_are_typed_columns(imported):
    zoo = imported[1].zoo
    expected = {**FEATURES, **IMPORT_FEATURES}
    for split in zoo.splits.values():
        assert {name: split.table.dataset.features[name] for name in expected} == expected
        assert split.table.dataset.features["metric_accuracy_digits"].dtype == "float64"
    found = {name: (split, index) for name, split, index in rows(zoo)}
    split, index = found["ours/cnn-1"]
    row = split.table.dataset[int(split.rows[index])]
    assert row["metric_accuracy_digits"] == 0.91
    assert (row["license"], row["author"], row["base_model"]) == ("mit", "ours", "org/base")
    assert (row["repo_id"], row["file"], row["revision"]) == ("ours/cnn-1", "model.safetensors", None)
    assert row["num_weights"] == sum(tensor.numel() for tensor in split.state_dict(index).values())
    assert row["file_bytes"] > 4 * row["num_weights"]
    assert row["test_accuracy"] is None
    assert row["epoch"] is None
    assert row["activation"] == "gelu"
    split, index = found["resnet.pt"]
    row = split.table.dataset[int(split.rows[index])]
    assert {row[name] for name in ("license", "base_model", "metric_accuracy_digits", "activation", "downloads")} == {
        None
    }


def test_networks_of_this_library_can_run_others_give_their_weights(imported, models, monkeypatch):
    monkeypatch.setattr(_modules, "_REGISTERED", {})
    images = torch.rand(2, 1, 8, 8)
    for name, split, index in rows(imported[1].zoo):
        if name.startswith("ours/"):
            from transformers import AutoModelForImageClassification

            original = AutoModelForImageClassification.from_pretrained(models / name)
            torch.testing.assert_close(split.model(index)(images).logits, original(images).logits)
            assert split.config(index).activation == "gelu"
        else:
            assert split.known_config(index) is None
            with pytest.raises(ValueError, match=f"the architecture of '{name}' is unknown to this library"):
                split.model(index)
            with pytest.raises(ValueError, match=r"the symmetries of the imported networks .* are unknown"):
                align_zoo(Zoo({"train": split.select([index])}, imported[1].zoo.facts))


def test_layers_are_in_natural_order(imported):
    found = {name: split.layout(index) for name, split, index in rows(imported[1].zoo)}
    assert [layer.name for layer in found["deep"].layers] == [str(2 * index) for index in range(12)]
    assert found["ours/cnn-0"].tensor_names == tuple(build_model(cnn_digits()).state_dict())
    assert found["mlps/0.safetensors"].signature == found["mlps/2.safetensors"].signature


def test_architectures_keep_what_their_configuration_says(imported):
    facts = imported[1].zoo.facts
    configs = [settings["config"] for settings in facts.architectures.values() if settings["model_type"] == "imported"]
    assert BERT in configs
    assert {} in configs
    assert sum(settings["model_type"] == "imported" for settings in facts.architectures.values()) == 2
    card = (imported[0] / "README.md").read_text()
    assert "imported: BertModel" in card
    assert "imported: 9 networks from a folder; each row names its path there" in card
    assert "licences: not stated (6), mit (3)" in card
    assert "`metric_accuracy_digits`" in card
    assert "15 networks left out" in card
    assert "mean final test accuracy" not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    found: dict = {}
    exec(code.replace("PATH_OR_REPO", str(imported[0])), found)
    train = imported[1].zoo.splits["train"]
    assert found["weights"].keys() == train.state_dict(0).keys()
    assert torch.equal(found["tokens"], train.tokens(0))


def test_a_zoo_of_mixed_architectures_loads_streams_and_is_saved(imported, tmp_path):
    folder, result = imported
    again = Zoo.load(folder)
    assert len(again) == 9
    for name, split in result.zoo.splits.items():
        assert again.splits[name].run_ids == split.run_ids
        stream = load_dataset(str(folder), split=name, streaming=True)
        assert [row["run_id"] for row in stream] == split.run_ids
    with pytest.raises(ValueError, match="expected networks of one layout, got"):
        again.splits["train"].stacked_tokens()
    copy = Zoo.load(again.save(tmp_path / "copy"))
    for split, other in zip(again.splits.values(), copy.splits.values(), strict=True):
        assert other.table.dataset.column_names == split.table.dataset.column_names
        assert all(torch.equal(split.tokens(i), other.tokens(i)) for i in range(len(split)))


def test_zoos_in_folders_of_one_name_are_not_mixed_up(models, tmp_path):
    """Datasets looks in its cache for the name of the folder and the YAML of its card."""
    for seed, settings in enumerate([{"files": ["[01]*"]}, {"files": ["[12]*"]}]):
        folder = tmp_path / str(seed) / "same-name"
        arguments = ImportSettings(folder=str(models / "mlps"), token_dim=9, split_shares=[1, 0, 0], **settings)
        zoo = import_zoo(arguments, folder).zoo
        rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert rows["run_id"] == zoo.splits["train"].run_ids


def test_an_import_that_is_finished_is_loaded_and_another_one_refused(imported, models):
    folder, result = imported
    arguments = ImportSettings(folder=str(models), **SETTINGS)
    before = (folder / "zoo.json").stat().st_mtime_ns
    again = import_zoo(arguments, folder)
    assert again.entries == result.entries
    assert (folder / "zoo.json").stat().st_mtime_ns == before
    with pytest.raises(
        ValueError, match=r"holds a finished zoo with other settings of seed: expected \[0\], got \[1\]"
    ):
        import_zoo(ImportSettings(folder=str(models), **SETTINGS, seed=1), folder)
    other = import_zoo(
        ImportSettings(folder=str(models / "mlps"), token_dim=9, group_by="network"), folder, config="mlps"
    )
    assert len(other.zoo) == 3
    assert read_facts(folder).keys() == {"default", "mlps"}
    assert len(Zoo.load(folder, "default")) == 9


DAMAGES = {
    "none": (None, ""),
    "cut": (lambda content: content[:-3], "whole safetensors"),
    "changed": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "expected the digest"),  # of a weight
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_interrupted_import_goes_on_and_makes_damaged_files_again(damage, models, tmp_path):
    arguments = ImportSettings(folder=str(models / "mlps"), token_dim=9, group_by="network")
    whole = import_zoo(arguments, tmp_path / "whole")

    def stop(entry):
        if entry.run_id == "1.safetensors":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_zoo(arguments, tmp_path / "zoo", on_entry=stop)
    done = sorted((tmp_path / "zoo" / NETWORKS_NAME / "default").iterdir())
    assert len(done) == 2
    spoil, message = DAMAGES[damage]
    for path in done if spoil else ():
        path.write_bytes(spoil(path.read_bytes()))
        with pytest.raises(InvalidFileError, match=message):
            ImportedNetwork.load(path)
    before, after = [path.stat().st_mtime_ns for path in done], []
    result = import_zoo(
        *(arguments, tmp_path / "zoo"),
        on_entry=lambda entry: after.append([path.stat().st_mtime_ns for path in done]),
    )
    assert after
    assert (after[-1] == before) == (spoil is None)
    for name, split in whole.zoo.splits.items():
        assert result.zoo.splits[name].run_ids == split.run_ids
        parquet = f"data/{name}-00000-of-00001.parquet"
        assert (tmp_path / "zoo" / parquet).read_bytes() == (tmp_path / "whole" / parquet).read_bytes()


def test_what_cannot_make_a_zoo_is_refused(models, tmp_path):
    few = {"folder": str(models / "mlps"), "files": ["0*"], "token_dim": 9}
    with pytest.raises(ValueError, match="at least 3 groups by repository for 3 splits, got 1 of 1 network; import"):
        import_zoo(ImportSettings(**few), tmp_path)
    result = import_zoo(ImportSettings(**few, split_shares=[1, 0, 0]), tmp_path)
    assert [len(split) for split in result.zoo.splits.values()] == [1, 0, 0]
    assert [entry.reason for entry in result.entries[1:]] == [
        "none of its weights match 0*; it holds .safetensors"
    ] * 2
    assert next(iter(load_dataset(str(tmp_path), split="train", streaming=True)))["run_id"] == "0.safetensors"
    assert list(load_dataset(str(tmp_path))) == ["train"]
    assert ZooStream.open(tmp_path).sample("test", 5).run_ids == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no network was found in .*; expected files of safetensors"):
        import_zoo(ImportSettings(folder=str(tmp_path / "empty")), tmp_path / "other")
    shutil.copy(models / "bad/nan.safetensors", tmp_path / "empty")
    with pytest.raises(ValueError, match=r"none of 1 networks could be imported \(nan.safetensors: NaN or infinite"):
        import_zoo(ImportSettings(folder=str(tmp_path / "empty")), tmp_path / "other")
    shutil.copy(models / "bad/long.safetensors", tmp_path / "empty")
    message = "its 400 weights would take 115,600 scalars as tokens, padding included, the limit is 10,000"
    with pytest.raises(ValueError, match=message):
        import_zoo(ImportSettings(folder=str(tmp_path / "empty"), max_size=5000), tmp_path / "other")
    shutil.copy(models / "resnet.pt", tmp_path / "empty")
    with pytest.raises(ValueError, match="resnet.pt: it is a pickle, which can run code when it is opened"):
        import_zoo(ImportSettings(folder=str(tmp_path / "empty"), files=["resnet.pt"]), tmp_path / "other")


def test_groups_stay_in_one_split(models, tmp_path):
    folder = tmp_path / "models"
    for author in "abcd":
        for index in range(3):
            base = f"---\nbase_model: {'x/root' if author in 'ab' else f'{author}/0'}\n---\n"
            weights = mlp(2, 3, seed=100 * ord(author) + index)
            write(folder, f"{author}/{index}/model.safetensors", weights, card=base if index else "")
    for seed in range(4):
        by_author = import_zoo(
            ImportSettings(folder=str(folder), token_dim=3, group_by="author", seed=seed), tmp_path / f"author-{seed}"
        )
        authors = [set(split.column("author")) for split in by_author.zoo.splits.values()]
        assert all(authors)
        assert sum(map(len, authors)) == 4
    by_family = import_zoo(ImportSettings(folder=str(folder), token_dim=3, group_by="base_model"), tmp_path / "family")
    homes = {name: id(split) for name, split, _ in rows(by_family.zoo)}
    for family in (["a/1", "a/2", "b/1", "b/2"], ["c/0", "c/1", "c/2"], ["d/0", "d/1", "d/2"]):
        assert len({homes[name] for name in family}) == 1
    by_repository = import_zoo(ImportSettings(folder=str(folder), token_dim=3), tmp_path / "repository")
    assert [len(split) for split in by_repository.zoo.splits.values()] == [8, 2, 2]


def test_families_are_what_base_models_connect():
    bases = {"a": ["x"], "b": ["a"], "c": ["y", "b"], "d": [], "e": ["y"]}
    assert group_networks(["a", "b", "c", "d", "e", "f"], bases) == ["a", "a", "a", "d", "a", "f"]


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with run_hub() as running:
        yield running


def weights(*widths: int, seed: int = 0) -> bytes:
    return save(mlp(*widths, seed=seed))


def test_only_what_is_needed_is_downloaded(hub, tmp_path):
    storage = hub.storage
    taken = {
        "model.safetensors": weights(200, 200),
        "README.md": CARD.format(accuracy=0.5).encode(),
        "big.bin": b"0" * 9,
    }
    storage.add_files("models", "org/taken", taken, downloads=500, likes=7)
    storage.add_files("models", "org/copy", {"sub/other.safetensors": taken["model.safetensors"]})
    storage.add_files("models", "org/long", {"model.safetensors": weights(9, 40_000)})
    storage.add_files("models", "org/huge", {"model.safetensors": bytes(2_000_000)})
    storage.add_files("models", "org/pickle", {"pytorch_model.bin": b"not even opened"})
    storage.add_files("models", "org/gguf", {"model.gguf": b"0"})
    storage.add_files("models", "org/secret", {"model.safetensors": weights(2, 2)}, private=True)
    index = {"weight_map": {"0.weight": "../../etc/passwd"}}
    storage.add_files("models", "org/evil", {"model.safetensors.index.json": json.dumps(index).encode()})
    shards = {
        "a.safetensors": save({"0.weight": torch.ones(9, 9)}),
        "b.safetensors": save({"2.weight": torch.ones(9, 9)}),
    }
    index = {"weight_map": {"0.weight": "a.safetensors", "2.weight": "b.safetensors"}}
    shards["model.safetensors.index.json"] = json.dumps(index).encode()
    storage.add_files("models", "org/sharded", {**shards, "c.safetensors": bytes(99)})
    storage.add_files("models", "org/small", {"model.safetensors": weights(3, 3)})
    storage.repositories["models", "org/small"].tags["v1"] = storage.repositories["models", "org/small"].head.sha
    storage.add_files("models", "org/small", {"model.safetensors": weights(3, 3, seed=1)})
    names = [
        "taken",
        "copy",
        "long",
        "huge",
        "pickle",
        "gguf",
        "secret",
        "evil",
        "sharded",
        "small",
        "small@v1",
        "none",
    ]
    arguments = ImportSettings(
        repos=[*(f"org/{name}" for name in names), "org/small@nowhere"],
        max_size=1_900_000,
        max_tokens=5000,
        token_layout="rowwise",
        token_dim=50,
    )
    result = import_zoo(arguments, tmp_path / "zoo", api=HfApi(endpoint=hub.address, token=False))
    found = {entry.run_id.removeprefix("org/"): entry for entry in result.entries}
    assert [name for name, entry in found.items() if entry.status == "taken"] == [
        "taken",
        "sharded",
        "small",
        "small@v1",
    ]
    assert not [entry for entry in result.entries if entry.status == "failed"]
    for name, reason in {
        "copy": "it is the same file as org/taken",
        "long": "it has 40,000 tokens, the limit is 5,000",
        "huge": "model.safetensors takes 2,000,000 bytes, the limit is 1,900,000",
        "pickle": "it holds only pickles, which can run code",
        "gguf": "it holds no safetensors and no pickled weights, but .gguf",
        "secret": "Repository Not Found",
        "evil": "expected the name of a file next to the index, got '../../etc/passwd'",
        "none": "Repository Not Found",
        "small@nowhere": "Revision Not Found",
    }.items():
        assert reason in found[name].reason

    size = len(taken["model.safetensors"])
    assert size < hub.sent("/org/taken/resolve/.*/model.safetensors") <= size + 100_001  # its header comes first
    assert (
        0
        < hub.sent("/org/long/resolve")
        <= 100_001
        < len(storage.repositories["models", "org/long"].files["model.safetensors"])
    )
    for nothing in (
        "org/copy/resolve",
        "org/huge/resolve",
        "org/pickle/resolve",
        "big.bin",
        "c.safetensors",
        "passwd",
    ):
        assert hub.sent(nothing) == 0

    rows_by_name = {name: (split, index) for name, split, index in rows(result.zoo)}
    split, place = rows_by_name["org/taken"]
    row = split.table.dataset[int(split.rows[place])]
    assert (row["downloads"], row["likes"], row["license"], row["author"]) == (500, 7, "mit", "org")
    assert row["revision"] == storage.repositories["models", "org/taken"].head.sha
    assert row["metric_accuracy_digits"] == 0.5
    split, place = rows_by_name["org/sharded"]
    assert set(split.state_dict(place)) == {"0.weight", "2.weight"}
    first, second = (rows_by_name[name] for name in ("org/small", "org/small@v1"))
    assert first[0] is second[0]  # versions of one repository are in one split
    assert first[0].column("revision")[first[1]] != second[0].column("revision")[second[1]]


def test_pickles_that_are_allowed_hold_weights_only(hub, tmp_path):
    for name, content in (("weights", mlp(3, 4)), ("code", {"a": nn.Linear(2, 2)}), ("more", mlp(4, 4))):
        torch.save(content, tmp_path / "pickle")
        hub.storage.add_files("models", f"org/{name}", {"pytorch_model.bin": (tmp_path / "pickle").read_bytes()})
    arguments = ImportSettings(
        repos=["org/weights", "org/code", "org/more"], allow_pickle=True, split_shares=[1, 0, 0]
    )
    result = import_zoo(arguments, tmp_path / "zoo", api=HfApi(endpoint=hub.address, token=False))
    assert [entry.status for entry in result.entries] == ["taken", "skipped", "taken"]
    assert "cannot be opened with weights_only=True" in result.entries[1].reason
    assert torch.equal(result.zoo.splits["train"].state_dict(0)["0.weight"], mlp(3, 4)["0.weight"])


def test_models_are_found_by_author_tag_and_name(hub, tmp_path):
    for number, name in enumerate(["org/a-net", "org/b-net", "org/c", "else/d-net"]):
        files = {
            "model.safetensors": weights(3, 3, seed=number),
            "README.md": b"---\ntags: [tiny]\n---\n" if number else b"x",
        }
        hub.storage.add_files("models", name, files, downloads=number)

    def names(**settings):
        arguments = ImportSettings(split_shares=[1, 0, 0], **settings)
        api = HfApi(endpoint=hub.address, token=False)
        return [e.run_id for e in import_zoo(arguments, tmp_path / "-".join(settings), api=api).entries]

    assert names(author="org") == ["org/c", "org/b-net", "org/a-net"]
    assert names(author="org", search="NET") == ["org/b-net", "org/a-net"]
    assert names(filter=["tiny"], limit=2) == ["else/d-net", "org/c"]
    assert names(repos=["org/c", "org/c"], author="org", filter=["tiny"]) == ["org/c", "org/b-net"]


def test_a_hub_that_dies_during_a_download_is_no_reason_to_give_up(hub, tmp_path):
    class Files(dict):
        """Files of a Hub that dies when it is asked for the configuration."""

        def __getitem__(self, path):
            if path == "config.json":
                hub.kill()
            return super().__getitem__(path)

    files = {"model.safetensors": weights(3, 3), "config.json": b"{}"}
    for name in ("org/first", "org/second"):
        hub.storage.add_files("models", name, files)
    head = hub.repositories["models", "org/first"].head
    head.files = Files(head.files)
    arguments = ImportSettings(repos=["org/first", "org/second"])
    api, seen = HfApi(endpoint=hub.address, token=False), []
    with pytest.raises(ValueError, match=r"none of 2 networks could be imported \(org/first: "):
        import_zoo(arguments, tmp_path / "zoo", api=api, on_found=seen.append, on_entry=seen.append)
    found, *entries = seen
    assert found == 2
    assert [entry.status for entry in entries] == ["failed", "failed"]


def test_what_could_not_be_reached_is_tried_again_and_nothing_else(hub, tmp_path, monkeypatch):
    for number in range(3):
        hub.storage.add_files("models", f"org/{number}", {"model.safetensors": weights(3, 3, seed=number)})
    arguments = ImportSettings(repos=[f"org/{number}" for number in range(3)], split_shares=[1, 0, 0])

    def cut_after_the_first(entry):
        if entry.run_id == "org/0":
            hub.stop()

    api = HfApi(endpoint=hub.address, token=False)
    result = import_zoo(arguments, tmp_path / "zoo", api=api, on_entry=cut_after_the_first)
    assert [entry.status for entry in result.entries] == ["taken", "failed", "failed"]
    assert len(result.zoo) == 1
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another-cache"))
    hub.start()
    before = hub.sent("/org/0/resolve")
    again = import_zoo(arguments, tmp_path / "zoo", api=api)
    assert [entry.status for entry in again.entries] == ["taken"] * 3
    assert hub.sent("/org/0/resolve") == before > 0
    assert len(again.zoo) == 3
    assert not (tmp_path / "zoo" / NETWORKS_NAME).exists()
