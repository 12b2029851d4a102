"""Tables of properties beside checkpoints: every format that people have, matched, typed, and refused."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from hf_sane.records._errors import InvalidFileError
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.importing._importing import ImportResult, import_zoo
from hf_sane.zoo.importing._network_names import read_name, read_pattern
from hf_sane.zoo.importing._property_columns import numbers_of, typed_columns, zoo_name
from hf_sane.zoo.importing._property_files import PropertyTable, read_properties, read_tables
from hf_sane.zoo.importing._property_rows import match_rows
from hf_sane.zoo.importing._settings import ImportSettings


def save(folder: Path, *names: str) -> Path:
    """Networks of other weights each, under these names."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"0.weight": torch.full((3, 2), index + 1.0), "0.bias": torch.zeros(3)}, path)
    return folder


def import_all(folder: Path, output: Path, **settings) -> ImportResult:
    return import_zoo(ImportSettings(folder=folder, token_dim=9, split_shares=[1, 0, 0], **settings), output)


def column(zoo: Zoo, name: str) -> dict[str, object]:
    """A column of a zoo by the file of each network."""
    split = zoo.splits["train"]
    return dict(zip(split.column("repo_id"), split.column(name).tolist(), strict=True))


ROWS = [("a.safetensors", 0.5, 3, "relu"), ("b.safetensors", 0.75, 3, "gelu"), ("c.safetensors", None, 4, "relu")]
HEADER = ("file", "test_acc", "depth", "nlin")


def delimited(mark: str, comma: str = ".", end: str = "\n") -> str:
    lines = [HEADER, *ROWS]
    texts = [
        ["" if v is None else str(v).replace(".", comma) if isinstance(v, float) else str(v) for v in row]
        for row in lines
    ]
    return end.join(mark.join(row) for row in texts) + end


def as_parquet(path: Path) -> None:
    pq.write_table(pa.table({name: [row[i] for row in ROWS] for i, name in enumerate(HEADER)}), path)


OBJECTS = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
FORMATS = {
    "plain.csv": lambda path: path.write_text(delimited(",")),
    "windows.csv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + delimited(",", end="\r\n").encode()),
    "excel.csv": lambda path: path.write_text(delimited(";", ","), encoding="utf-8-sig"),
    "unicode.txt": lambda path: path.write_text(delimited("\t", ","), encoding="utf-16"),
    "says_its_separator.csv": lambda path: path.write_text("sep=;\r\n" + delimited(";", end="\r\n")),
    "comments.csv": lambda path: path.write_text(f"# my runs\n# of May\n{delimited(',')}"),
    "of_its_own_name.csv": lambda path: path.write_text(delimited(",").replace("file,", f"{path.name},", 1)),
    "bars.txt": lambda path: path.write_text(delimited("|")),
    "packed.csv.gz": lambda path: path.write_bytes(gzip.compress(delimited(",").encode())),
    "list.json": lambda path: path.write_text(json.dumps(OBJECTS)),
    "lines.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, OBJECTS))),
    "by_name.json": lambda path: path.write_text(
        json.dumps({row["file"]: {k: v for k, v in row.items() if k != "file"} for row in OBJECTS})
    ),
    "columns.json": lambda path: path.write_text(
        json.dumps({name: [row[name] for row in OBJECTS] for name in HEADER})
    ),
    "pandas.json": lambda path: path.write_text(
        json.dumps({name: {row["file"]: row[name] for row in OBJECTS} for name in HEADER[1:]})
    ),
    "split.json": lambda path: path.write_text(
        json.dumps({"columns": HEADER[1:], "index": [row[0] for row in ROWS], "data": [row[1:] for row in ROWS]})
    ),
    "nested.json": lambda path: path.write_text(
        json.dumps(
            [
                {
                    "file": r["file"],
                    "summary": {"test_acc": r["test_acc"]},
                    "config": {"depth": r["depth"], "nlin": r["nlin"]},
                }
                for r in OBJECTS
            ]
        )
    ),
    "table.parquet": as_parquet,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_columns(name, tmp_path):
    FORMATS[name](tmp_path / name)
    matched = match_rows([read_properties(tmp_path / name)], names("a.safetensors", "b.safetensors", "c.safetensors"))
    found = typed_columns(matched.rows)
    depth = "config_depth" if name == "nested.json" else "depth"
    assert found.rows == {
        "a.safetensors": {"test_accuracy": 0.5, depth: 3, "activation": "relu"},
        "b.safetensors": {"test_accuracy": 0.75, depth: 3, "activation": "gelu"},
        "c.safetensors": {depth: 4, "activation": "relu"},
    }
    assert found.features[depth].dtype == "int64"
    assert (matched.unmatched, found.notes) == ([], ())
    assert any(f"{name}: 3 of 3 networks matched by the column" in note for note in matched.notes)


def test_properties_become_columns_of_the_zoo(tmp_path):
    folder = save(tmp_path / "nets", "a.safetensors", "b.safetensors", "c.safetensors")
    FORMATS["excel.csv"](tmp_path / "excel.csv")
    result = import_all(folder, tmp_path / "zoo", properties=[tmp_path / "excel.csv"])
    found = column(result.zoo, "test_accuracy")
    assert (found["a.safetensors"], found["b.safetensors"]) == (0.5, 0.75)
    assert np.isnan(found["c.safetensors"])
    assert column(result.zoo, "depth") == {"a.safetensors": 3, "b.safetensors": 3, "c.safetensors": 4}
    assert list(column(result.zoo, "activation").values()) == ["relu", "gelu", "relu"]
    features = result.zoo.splits["train"].table.dataset.features
    assert (features["depth"].dtype, features["test_accuracy"].dtype) == ("int64", "float32")
    assert result.notes == ["excel.csv: 3 of 3 networks matched by the column 'file'"]
    assert Zoo.load(tmp_path / "zoo").facts.data["properties"]["columns"]["test_accuracy"]["known"] == 2


@pytest.mark.parametrize(
    "written",
    [
        "x/a.safetensors",
        "x/a",
        "a.safetensors",
        "a",
        "./x/a.safetensors",
        "x\\a.safetensors",
        "/home/me/runs/x/a.safetensors",
    ],
)
def test_rows_name_files_by_path_file_name_or_stem(written, tmp_path):
    folder = save(tmp_path / "nets", "x/a.safetensors", "y/b.safetensors")
    (tmp_path / "t.csv").write_text(f"score,where\n5,{written}\n")
    result = import_all(folder, tmp_path / "zoo", properties=[tmp_path / "t.csv"])
    found = column(result.zoo, "score")
    assert found["x/a.safetensors"] == 5
    assert np.isnan(found["y/b.safetensors"])
    assert any("networks without a row: 1 (y/b.safetensors)" in note for note in result.notes)


def names(*paths: str, pattern: str | None = None):
    take = None if pattern is None else read_pattern(pattern)
    return [read_name(path, take) for path in paths]


def table(*rows: dict) -> PropertyTable:
    return PropertyTable("t.csv", rows, [f"line {i}" for i in range(2, len(rows) + 2)])


def test_file_names_that_several_networks_share_are_not_guessed():
    networks = names("x/a.pt", "y/a.pt", "y/b.pt")
    found = match_rows([table({"file": "a.pt", "v": 1}, {"file": "b.pt", "v": 2})], networks)
    assert found.rows == {"x/a.pt": {}, "y/a.pt": {}, "y/b.pt": {"v": 2}}
    assert found.unmatched == ["t.csv, line 2"]


@pytest.mark.parametrize("rows", [[{"file": "a.pt"}] * 2, [{"run": "x", "epoch": 3}] * 2, [{"run": "x"}] * 2], ids=str)
def test_rows_that_repeat_others_are_taken_once_and_those_that_differ_are_not_guessed(rows):
    networks = names("x/a.pt" if "file" in rows[0] else "x/epoch_3.pt")
    found = match_rows([table(*({**row, "v": 1} for row in rows))], networks)
    assert found.rows == {networks[0].name: {"v": 1}}
    assert found.unmatched == []
    assert any("duplicate rows, left out: 1" in note for note in found.notes)
    with pytest.raises(ValueError, match=r"t.csv: 1 networks have several different rows; expected one row per"):
        match_rows([table(*({**row, "v": number} for number, row in enumerate(rows)))], networks)
    other = {"file": "b.pt"} if "file" in rows[0] else {**rows[0], "run": "y"}
    both = [*networks, *names("x/b.pt" if "file" in rows[0] else "y/epoch_3.pt")]
    found = match_rows([table(*({**row, "v": n} for n, row in enumerate(rows)), {**other, "v": 7})], both)
    assert found.rows == {both[0].name: {}, both[1].name: {"v": 7}}
    assert found.unmatched == []
    reason = f"t.csv: networks with several different rows, none of which is used: 1 ({both[0].name}: line 2, line 3)"
    assert reason in found.notes
    assert not any("match no network" in note or "without a row" in note for note in found.notes)


def test_runs_and_epochs_find_their_rows():
    networks = names("r1/epoch_1.pt", "r1/epoch_2.pt", "r2/epoch_1.pt")
    rows = [{"run_id": r, "epoch": str(e), "acc": f"0.{e}"} for r in ("r1", "r2") for e in (1, 2)]
    found = match_rows([table(*rows)], networks)
    assert found.rows == {
        "r1/epoch_1.pt": {"acc": "0.1"},
        "r1/epoch_2.pt": {"acc": "0.2"},
        "r2/epoch_1.pt": {"acc": "0.1"},
    }
    assert found.runs == {"r1/epoch_1.pt": "r1", "r1/epoch_2.pt": "r1", "r2/epoch_1.pt": "r2"}
    assert found.unmatched == ["t.csv, line 5"]


def test_one_row_per_run_gives_measures_to_its_last_network_only():
    networks = names("r1/epoch_1.pt", "r1/epoch_20.pt", "r2/epoch_3.pt")
    found = match_rows(
        [table({"run": "r1", "test_acc": 0.9, "lr": 0.1}, {"run": "r2", "test_acc": 0.8, "lr": 0.2})], networks
    )
    assert found.rows == {
        "r1/epoch_1.pt": {"lr": 0.1},
        "r1/epoch_20.pt": {"test_acc": 0.9, "lr": 0.1},
        "r2/epoch_3.pt": {"test_acc": 0.8, "lr": 0.2},
    }
    assert any("assigned only to the last network of each run" in note for note in found.notes)


def test_a_row_that_fits_several_networks_of_a_run_gives_measures_to_the_last():
    """The pattern names no run: what differs in nothing but its times is one."""
    pattern = "job_{id:d}/e{epoch:d}.pt"
    networks = names("job_1/e1.pt", "job_1/e20.pt", "job_2/e5.pt", pattern=pattern)
    found = match_rows([table({"id": "1", "acc": 0.9, "lr": 0.1}, {"id": "2", "acc": 0.8, "lr": 0.2})], networks)
    assert {name: (found.runs[name], row.get("lr")) for name, row in found.rows.items()} == {
        "job_1/e1.pt": ("job_1/e", 0.1),
        "job_1/e20.pt": ("job_1/e", 0.1),
        "job_2/e5.pt": ("job_2/e", 0.2),
    }
    measured = match_rows([table({"id": "1", "test_acc": 0.9}, {"id": "2", "test_acc": 0.8})], networks).rows
    assert {name: row.get("test_acc") for name, row in measured.items()} == {
        "job_1/e1.pt": None,
        "job_1/e20.pt": 0.9,
        "job_2/e5.pt": 0.8,
    }
    assert names("x-12.pt", pattern="{id}-{epoch:d}.pt")[0].run == "x"
    assert names("r1/epoch_12.pt", pattern="*/epoch_{epoch:d}.pt")[0].run == "r1"


def test_what_a_pattern_takes_from_names_joins_with_the_columns_of_that_name():
    networks = names("lr0.1_s3.pt", "lr0.1_s4.pt", pattern="lr{lr:g}_s{seed:d}.pt")
    rows = [{"seed": "4", "lr": "1e-1", "acc": "0.4"}, {"seed": "3", "lr": "0.10", "acc": "0.3"}]
    found = match_rows([table(*rows)], networks)
    assert {name: row["acc"] for name, row in found.rows.items()} == {"lr0.1_s3.pt": "0.3", "lr0.1_s4.pt": "0.4"}


def test_two_tables_are_joined_and_the_first_value_stays():
    networks = names("a.pt")
    found = match_rows([table({"file": "a", "x": 1}), table({"name": "a.pt", "x": 2, "y": 3})], networks)
    assert found.rows == {"a.pt": {"x": 1, "y": 3}}


def test_numbers_do_not_name_networks():
    found = match_rows(
        [table({"epoch": 1, "file": "2.pt", "v": 7}, {"epoch": 2, "file": "1.pt", "v": 8})], names("1.pt", "2.pt")
    )
    assert found.rows == {"1.pt": {"v": 8}, "2.pt": {"v": 7}}
    assert found.times == {"1.pt": {"epoch": 2}, "2.pt": {"epoch": 1}}


def test_the_key_may_be_named():
    rows = table({"id": "a", "other": "b", "v": 1}, {"id": "b", "other": "a", "v": 2})
    assert match_rows([rows], names("a.pt", "b.pt")).rows["a.pt"]["v"] == 1
    assert match_rows([rows], names("a.pt", "b.pt"), "other").rows["a.pt"]["v"] == 2
    with pytest.raises(
        ValueError, match=r"expected a column 'othr' that names the networks, got .*; did you mean 'other'"
    ):
        match_rows([rows], names("a.pt"), "othr")


@pytest.mark.parametrize(
    ("path", "times"),
    [
        ("run/epoch=3-step=400.ckpt", {"epoch": 3, "step": 400}),
        ("run/checkpoint_000007/checkpoints", {"step": 7}),
        ("net_ep12.pt", {"epoch": 12}),
        ("deep2/step3.pt", {"step": 3}),
        ("resnet18.pt", {}),
    ],
)
def test_epochs_are_recognised_in_names(path, times):
    assert read_name(path, None).times == times


@pytest.mark.parametrize(
    ("path", "run"),
    [
        ("a/run_3/epoch_5.pt", "a/run_3"),
        ("run/model-epoch=3-step=400.pth.tar", "run"),
        ("run/epoch_3/model.safetensors", "run"),
        ("run/checkpoint-500", "run"),
        ("run/net3_epoch_5.pt", None),  # perhaps one of several runs
        ("epoch_5/net3.pt", None),
        ("run/epoch=3-val_loss=0.31.ckpt", None),
        ("run/model.pt", None),
        ("epoch_5.pt", None),
    ],
)
def test_a_folder_of_names_that_are_nothing_but_times_is_a_run(path, run):
    assert read_name(path, None).run == run


def test_patterns():
    take = read_pattern("*/{run}/epoch_{epoch:d}.pt")
    assert take("x/r1/epoch_012.pt") == {"run": "r1", "epoch": 12}
    assert take("r1/epoch_012.pt") is None
    assert read_pattern("**/{name}_{loss:g}.pt")("a/b/n_1e-3.pt") == {"name": "n", "loss": 1e-3}
    assert read_pattern("{运行}/Größe_{größe:d}.pt")("r/Größe_3.pt") == {"运行": "r", "größe": 3}
    for bad, reason in (("x.pt", "expected fields such as"), ("{a}/{a}.pt", "got {a} twice"), ("{a:x}.pt", "types d")):
        with pytest.raises(ValueError, match=reason):
            read_pattern(bad)


def test_a_pattern_keeps_runs_together_and_gives_columns(tmp_path):
    files = [f"r{run}-lr0.{run + 1}-ep{epoch}.safetensors" for run in range(4) for epoch in (1, 2, 3)]
    save(tmp_path / "nets", *files, "other.safetensors")
    settings = ImportSettings(folder=tmp_path / "nets", token_dim=9, pattern="{run}-lr{lr:g}-ep{epoch:d}.safetensors")
    result = import_zoo(settings, tmp_path / "zoo")
    for split in result.zoo.splits.values():
        runs = [name for name in split.run_ids if name != "other.safetensors"]
        assert all(runs.count(name) == 3 for name in runs)
    rows = {
        (r, e): lr
        for s in result.zoo.splits.values()
        for r, e, lr in zip(s.run_ids, s.column("epoch"), s.column("learning_rate"), strict=True)
    }
    assert rows["r2", 3] == pytest.approx(0.3)
    assert result.notes == ["paths that do not match the pattern: 1 (other.safetensors)"]
    with pytest.raises(ValueError, match="no path matches the pattern"):
        import_zoo(ImportSettings(folder=tmp_path / "nets", token_dim=9, pattern="{run}.pt"), tmp_path / "none")


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["1", "-2"], [1, -2]),
        (["0.5", "1e-3", ".5", "inf"], [0.5, 1e-3, 0.5, float("inf")]),
        (["0,5", "12,25"], [0.5, 12.25]),
        (["0,123", "0,456"], [0.123, 0.456]),
        (["26.5%", "3 %", "0,5%"], [0.265, 0.03, 0.005]),
        (["1,234", "5,678"], []),  # thousands or decimals: nobody knows
        (["1.234,5"], []),
        (["a", "0.5x"], []),
        (["1" + "0" * 30, "2"], [1e30, 2]),
        (["9" * 5000, 10**400, 2**64], [math.inf, 2.0**64]),
    ],
)
def test_numbers_as_people_write_them(texts, numbers):
    assert list(numbers_of({str(i): text for i, text in enumerate(texts)}).values()) == numbers


def test_columns_are_named_and_typed():
    raw = {
        "a": {
            "optim::lr": "0.1",
            "test_acc": "91.5",
            "Test Acc 2": "91.5",
            "tokens": 3,
            "flag": True,
            "note": "x",
            "n": "1",
        },
        "b": {
            "optim::lr": "0.2",
            "test_acc": "80",
            "Test Acc 2": "80",
            "tokens": 4,
            "flag": False,
            "note": "y",
            "n": "?!",
        },
    }
    found = typed_columns(raw)
    assert found.rows["a"] == {
        **{"learning_rate": 0.1, "test_accuracy": pytest.approx(0.915), "test_acc_2": 91.5, "property_tokens": 3},
        **{"flag": "true", "note": "x", "n": "1"},
    }
    assert found.rows["b"]["learning_rate"] == 0.2
    assert found.features["property_tokens"].dtype == "int64"
    assert found.features["flag"].dtype == "string"
    assert any("interpreted as percentages" in note for note in found.notes)


def test_names_of_columns_in_any_script_survive():
    written = {"学习率": 0.5, "Точность": 1, "Größe": 2, "Gro\u0308ße": 3, "Größe (px)": 4, "lr": 0.1, "LR": 0.2}
    written |= {
        "🔥": 5,
        "💧": 6,
        "🔥🔥": 7,
        "शुद्धता": 8,
        "tokens": 9,
        "Property tokens": 10,
        "x" * 101: 11,
        "x" * 102: 12,
    }
    found = typed_columns({"a": written})
    assert found.rows["a"] == {
        **{
            "学习率": 0.5,
            "точность": 1,
            "größe": 2,
            "property_größe": 3,
            "größe_px": 4,
            "learning_rate": 0.1,
            "lr": 0.2,
        },
        **{"column": 5, "property_column": 6, "property_column_2": 7, "शुद्धता": 8},
        **{"property_tokens": 9, "property_tokens_2": 10, "x" * 100: 11, f"property_{'x' * 100}": 12},
    }
    (note,) = found.notes
    for told in ("Größe (px) is größe_px", "🔥🔥 is property_column_2", "Property tokens is property_tokens_2"):
        assert told in note
    assert "学习率" not in note
    assert [facts["from"] for facts in found.described.values()] == [*written]


def test_columns_above_the_limit_are_named():
    found = typed_columns({"a": {f"c{number}": number for number in range(203)}})
    assert len(found.features) == 200
    assert found.notes == ("columns that are left out, since there are more than 200: 3 (c200, c201, c202)",)


def test_the_gap_follows_from_accuracies_and_impossible_ones_are_left_out():
    found = typed_columns({"a": {"train_acc": 0.9, "test_acc": 0.7}, "b": {"train_acc": 0.5}})
    assert found.rows["a"]["generalization_gap"] == pytest.approx(0.2)
    assert "generalization_gap" not in found.rows["b"]
    wrong = typed_columns({"a": {"test_acc": 1234.0}})
    assert wrong.rows == {"a": {}}
    assert wrong.notes == ("test_acc: 1234 is not an accuracy; the column is left out",)


def test_a_text_among_numbers_is_left_empty_and_said():
    raw = {str(i): {"loss_x": str(i), "epoch": str(i)} for i in range(20)}
    raw["3"] = {"loss_x": "crashed", "epoch": "half"}
    found = typed_columns(raw)
    assert "loss_x" not in found.rows["3"]
    large = typed_columns(
        {"a": {"epoch": 2**40, "seed": 2**40, "n": 10**400}, "b": {"epoch": 1, "seed": 2**70, "n": 1}}
    )
    assert large.rows == {"a": {"seed": 2**40, "n": "1" + "0" * 400}, "b": {"epoch": 1, "n": "1"}}
    assert found.rows["4"] == {"loss_x": 4, "epoch": 4}
    assert "loss_x: values that are not numbers, left empty: 1 of 20 ('crashed')" in found.notes


def test_names_of_other_projects():
    for name, known in (
        *(
            ("config.learning_rate", "learning_rate"),
            ("config.optim::wd", "weight_decay"),
            ("model::nlin", "activation"),
        ),
        *(
            ("hparams/dropout", "dropout"),
            ("training_iteration", "epoch"),
            ("modeldir", "run"),
            ("config.w_init", "initialization"),
        ),
        *(("config.l2reg", "weight_decay"), ("ggap", "generalization_gap"), ("something", None)),
    ):
        assert zoo_name(name) == known, name


def test_exports_of_trackers(tmp_path):
    board = tmp_path / "board"
    board.mkdir()
    (board / "run-r1-tag-val_acc.csv").write_text("Wall time,Step,Value\n1.5,1,0.5\n2.5,2,0.75\n")
    (board / "run-r2-tag-val_acc.json").write_text("[[1.5, 1, 0.25]]")
    (board / "run-r2-tag-loss.csv").write_text("Wall time,Step,Value\n1.5,1,2.5\n")
    (board / "run-r2-tag-cut.csv").write_text("")
    (scalars,) = read_tables(board)  # one table, whatever the number of files
    networks = names("r1/step_2.pt", "r2/step_1.pt")
    found = match_rows([scalars], networks)
    assert found.rows == {"r1/step_2.pt": {"val_acc": "0.75"}, "r2/step_1.pt": {"val_acc": 0.25, "loss": "2.5"}}
    assert found.unmatched == ["board, step 1.0 of r1"]
    assert any(note.startswith("run-r2-tag-cut.csv: expected a table") for note in found.notes)
    (board / "other.csv").write_text("name,x\nelsewhere,1\n")
    assert "tables that match no network: 1 (other.csv)" in match_rows(read_tables(board), networks).notes
    wandb = tmp_path / "wandb.csv"
    wandb.write_text('"Step","r1 - val_acc","r1 - val_acc__MIN","r2 - val_acc"\n1,0.1,0.1,0.25\n2,0.75,0.7,\n')
    assert match_rows([read_properties(wandb)], networks).rows == {
        "r1/step_2.pt": {"val_acc": "0.75"},
        "r2/step_1.pt": {"val_acc": "0.25"},
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "got an empty file"),
        (b"\n\n", "got an empty file"),
        (b"file\na\n", "expected a header with several columns, got file"),
        (b"file,a,a\nx,1,2\n", "expected different column names, got ['a']"),
        (b"file,a\nx,0,5\ny,0,6\n", "expected 2 fields in every line, as in its header, got line 2 has 3 fields"),
        (b"file,a\n", "expected rows about networks, got none"),
        (b"\xff\xfa\x00", "expected text in UTF-8"),
        (b"{broken", "expected a table of properties"),
        (b"[1, 2]", "expected objects with a name for every value, got 1"),
        (b'{"a": [1], "b": [1, 2]}', "expected a table of properties"),
        (b"PAR1 no parquet", "expected a table of properties"),
        (b"\x1f\x8b no gzip", "expected a table of properties"),
        (
            b"PK\x03\x04xl/workbook.xml",
            "got an Excel or OpenDocument table, or another zip archive; open it and save",
        ),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
            "got an Excel table from before 2007; open it and save it as CSV (UTF-8)",
        ),
        (b"SQLite format 3\x00", "got an SQLite database; export its table as CSV"),
        (b"\x80\x04\x95.", "got a Python pickle"),
        (b"<!doctype html><table>", "got a web page"),
        (b"{}", "expected rows about networks, got none"),
    ],
)
def test_files_that_are_no_table_say_so(content, reason, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidFileError) as error:
        read_properties(path)
    assert reason in str(error.value)


def test_bad_lines_are_named_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file,acc\n" + "".join(f"n{i},0.{i}\n" for i in range(9)) + "n9")
    found = read_properties(path)
    assert len(found.rows) == 9
    assert found.notes == ("t.csv: line 11 has 1 fields, its header has 2: left out",)
    path.write_text("\n".join(json.dumps({"file": str(i)}) for i in range(5)) + '\n{"file": "cu')
    assert read_properties(path).notes == ("t.csv: line 6 is not JSON: left out",)
    path.write_text('{"file": "a", "v": 1, "tags": ["x"], "config": {"betas": [0.9, 0.99]}}\n{"file": "b", "v": 2}')
    assert read_properties(path).notes == ("t.csv: columns with lists, left out: tags, config.betas",)


@pytest.mark.parametrize(("first", "is_said"), [("x/a,0.5", True), ("x/a.safetensors,test_acc\nx/a,0.5", False)])
def test_a_table_without_names_of_columns_is_noticed(first, is_said, tmp_path):
    folder = save(tmp_path / "nets", "x/a.safetensors", "y/b.safetensors")
    (tmp_path / "runs.csv").write_text(f"{first.replace('x/a,', 'x/a.safetensors,')}\ny/b.safetensors,0.75")
    notes = import_all(folder, tmp_path / "zoo", properties=[str(tmp_path / "runs.csv")]).zoo.facts.data["properties"]
    said = "the first line has no names of columns but those of a network (x/a.safetensors), which is left out"
    assert (said in str(notes)) == is_said


def test_a_missing_table_and_one_about_other_networks_are_refused(tmp_path):
    folder = save(tmp_path / "nets", "a.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no.csv: no such file; expected a table of properties"):
        import_all(folder, tmp_path / "zoo", properties=[tmp_path / "no.csv"])
    (tmp_path / "t.csv").write_text("file,v\nother,1\n")
    with pytest.raises(ValueError, match=r"no row matches any of 1 networks; expected a column with names such as 'a"):
        import_all(folder, tmp_path / "zoo", properties=[tmp_path / "t.csv"])
    assert not (tmp_path / "zoo" / "zoo.json").exists()


def test_one_damaged_table_among_several_is_named_and_the_rest_goes_on(tmp_path):
    folder = save(tmp_path / "nets", "a.safetensors", "b.safetensors")
    good, bad, other = (tmp_path / name for name in ("good.csv", "bad.parquet", "other.csv"))
    good.write_text("file,Größe\na,1\nb,2\n")
    bad.write_bytes(b"PAR1 cut off")
    other.write_text("file,v\nelsewhere,1\nnowhere,2\n")
    found = import_all(folder, tmp_path / "zoo", properties=[bad, good, other])
    assert column(found.zoo, "größe") == {"a.safetensors": 1, "b.safetensors": 2}
    assert any(note.startswith("bad.parquet: expected a table of properties, got ") for note in found.notes)
    assert "tables that match no network: 1 (other.csv)" in found.notes
    assert not any(str(tmp_path) in note for note in found.notes)
    with pytest.raises(InvalidFileError, match=r"bad.parquet: expected a table of properties"):
        import_all(folder, tmp_path / "other", properties=[bad])


def test_another_table_makes_another_zoo(tmp_path):
    folder = save(tmp_path / "nets", "a.safetensors")
    (tmp_path / "t.csv").write_text("file,v\na,1\n")
    import_all(folder, tmp_path / "zoo", properties=[tmp_path / "t.csv"])
    assert import_all(folder, tmp_path / "zoo", properties=[tmp_path / "t.csv"]).notes
    (tmp_path / "t.csv").write_text("file,v\na,2\n")
    with pytest.raises(ValueError, match="holds a finished zoo with other settings of properties"):
        import_all(folder, tmp_path / "zoo", properties=[tmp_path / "t.csv"])
