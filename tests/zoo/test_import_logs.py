"""Checkpoints beside logs of Lightning, TensorBoard and the Trainer of Transformers; exports of Weights & Biases."""

import csv
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from hf_sane.records._errors import InvalidFileError
from hf_sane.workflows.probe import _left_out
from hf_sane.zoo.importing._event_files import read_scalars
from hf_sane.zoo.importing._importing import ImportResult, import_zoo
from hf_sane.zoo.importing._property_files import read_properties, read_tables, rows_by_time, times_of_log
from hf_sane.zoo.importing._settings import ImportSettings

RUNS, EPOCHS, STEPS = 3, 4, 10  # steps of an epoch


def weights(seed: int) -> dict[str, torch.Tensor]:
    return {"model.0.weight": torch.full((3, 4), float(seed)), "model.0.bias": torch.ones(3)}


def accuracy(run: int, epoch: int) -> float:
    return 0.2 + epoch / 10 + run / 100


def write_checkpoints(folder: Path, run: int) -> None:
    """Two checkpoints, and the last one, as Lightning names them; epochs count from 0, steps from 1."""
    (folder / "checkpoints").mkdir(parents=True)
    for name, seed in (("epoch=1-step=20", 1), ("epoch=2-step=30-v1", 2), ("last", 3)):
        content = {"state_dict": weights(10 * run + seed), "epoch": seed, "optimizer_states": [], "callbacks": {}}
        torch.save(content, folder / "checkpoints" / f"{name}.ckpt")


def log_as_csv(folder: Path, run: int) -> None:
    """Lightning's CSVLogger has rows for training and validation, of the same epoch and step."""
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", "train_loss_step", "train_loss_epoch", "val_acc"])
        for epoch in range(EPOCHS):
            step = STEPS * epoch + STEPS - 1
            writer.writerow([epoch, step - 5, 9.5, "", ""])
            writer.writerow([epoch, step, "", "", accuracy(run, epoch)])
            writer.writerow([epoch, step, "", 2 - epoch / 10, ""])


def log_events(folder: Path, run: int) -> None:
    """Lightning's TensorBoardLogger has a scalar `epoch` at each step."""
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("note", "no scalar")
        for epoch in range(EPOCHS):
            step = STEPS * epoch + STEPS - 1
            writer.add_scalar("epoch", epoch, step)
            writer.add_scalar("val_acc", accuracy(run, epoch), step)
            writer.add_scalar("train_loss_epoch", 2 - epoch / 10, step, new_style=True)


def write_runs(root: Path, log: Callable[[Path, int], None]) -> Path:
    for run in range(RUNS):
        folder = root / f"version_{run}"
        write_checkpoints(folder, run)
        log(folder, run)
        (folder / "hparams.yaml").write_text(f"lr: 0.0{run + 1}\nmodel:\n  depth: 2\n")
    return root


def import_runs(folder: Path, output: Path, **settings) -> ImportResult:
    return import_zoo(ImportSettings(folder=folder, token_dim=5, allow_pickle=True, **settings), output)


def values(result: ImportResult, *columns: str) -> dict[tuple[str, int], list]:
    """Values by run and epoch."""
    found = {}
    for split in result.zoo.splits.values():
        for index, key in enumerate(zip(split.run_ids, split.column("epoch").tolist(), strict=True)):
            row = [np.asarray(split.column(name)[index]).item() for name in columns]
            found[key] = [round(value, 4) if isinstance(value, float) else value for value in row]
    return found


EXPECTED = {
    (f"version_{run}", epoch): [round(accuracy(run, epoch), 4), 2 - epoch / 10, round(0.01 * (run + 1), 4), 2]
    for run in range(RUNS)
    for epoch in (1, 2, 3)  # the last checkpoint has its epoch in the file only
}
COLUMNS = ("validation_accuracy", "train_loss", "learning_rate", "model_depth")


@pytest.mark.parametrize("is_archive", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize("log", [log_as_csv, log_events], ids=["csv", "tensorboard"])
def test_runs_of_lightning_bring_epochs_metrics_and_settings(log, is_archive, tmp_path):
    folder = write_runs(tmp_path / "lightning_logs", log)
    if is_archive:
        with tarfile.open(tmp_path / "runs.tar.gz", "w:gz") as archive:
            archive.add(folder, arcname=".")
        folder = tmp_path / "runs.tar.gz"
    result = import_runs(folder, tmp_path / "zoo")
    assert values(result, *COLUMNS) == EXPECTED
    assert {entry.status for entry in result.entries} == {"taken"}
    assert result.notes == ["logs beside networks: 9 of 9 networks matched by the column 'file'"]
    assert [len(set(split.run_ids)) for split in result.zoo.splits.values()] == [1, 1, 1]


@pytest.mark.parametrize("log", [log_as_csv, log_events], ids=["csv", "tensorboard"])
def test_logs_in_a_folder_of_their_own_are_tables(log, tmp_path):
    """The folder of a log names its run."""
    folder = write_runs(tmp_path / "nets", lambda *_: None)
    for run in range(RUNS):
        (tmp_path / "logs" / f"version_{run}").mkdir(parents=True)
        log(tmp_path / "logs" / f"version_{run}", run)
    result = import_runs(folder, tmp_path / "zoo", properties=[tmp_path / "logs"])
    assert values(result, *COLUMNS) == EXPECTED
    assert any("by run, in the column 'run'" in note for note in result.notes)


def test_logs_of_ones_own_count_by_epoch_or_step(tmp_path):
    for run in range(RUNS):
        folder = tmp_path / f"runs/{run}"
        folder.mkdir(parents=True)
        save_file(weights(run), folder / "epoch_5.safetensors")
        (folder / "history.csv").write_text(f"step;acc\n4;0,1\n5;0,{run + 2}\n5;\n")
    (tmp_path / "runs/metrics.csv").write_text("epoch,acc\n5,0.9\n")  # of all runs, or of none
    result = import_runs(tmp_path / "runs", tmp_path / "zoo")
    assert values(result, "acc") == {(str(run), 5): [(run + 2) / 10] for run in range(RUNS)}


def test_epochs_and_steps_in_files_count_if_names_have_none(tmp_path):
    for run in range(RUNS):
        folder = tmp_path / f"nets/run_{run}"
        folder.mkdir(parents=True)
        times = {"last": {"epoch": 7, "global_step": torch.tensor(400)}, "best": {"epoch": 4}, "epoch_2": {"epoch": 9}}
        for seed, (name, saved) in enumerate(times.items()):
            torch.save({"model": weights(10 * run + seed), "scheduler": {"epoch": 3}} | saved, folder / f"{name}.pt")
        for name, odd in {"a": True, "b": -1, "c": 2.5, "d": "3", "e": torch.arange(2)}.items():
            seed = 1000 + 10 * run + ord(name)
            torch.save({"model": weights(seed), "epoch": odd}, folder / f"{name}.pt")
    (tmp_path / "runs.csv").write_text(
        "run,epoch,acc\n" + "".join(f"run_{i},{e},.{i}{e}\n" for i in range(3) for e in (4, 7))
    )
    result = import_runs(tmp_path / "nets", tmp_path / "zoo", properties=[tmp_path / "runs.csv"])
    known = {key: row for key, row in values(result, "acc").items() if key[1] >= 0}
    found = {
        f"run_{run}": {key[1]: row for key, row in known.items() if key[0] == f"run_{run}"} for run in range(RUNS)
    }
    assert {run: sorted(rows) for run, rows in found.items()} == {run: [2, 4, 7] for run in found}
    for run, rows in found.items():
        assert [rows[4], rows[7]] == [[float(f".{run[-1]}{epoch}")] for epoch in (4, 7)]
    again = import_runs(tmp_path / "nets", tmp_path / "zoo", properties=[tmp_path / "runs.csv"])
    assert len(again.entries) == len(result.entries) == 8 * RUNS


def test_one_log_is_not_that_of_several_networks(tmp_path):
    (tmp_path / "nets").mkdir()
    for run in range(RUNS):
        save_file(weights(run), tmp_path / f"nets/net{run}_epoch_5.safetensors")
    (tmp_path / "nets/metrics.csv").write_text("epoch,acc\n5,0.9\n")
    result = import_runs(tmp_path / "nets", tmp_path / "zoo", group_by="network")
    assert "acc" not in result.zoo.splits["train"].table.dataset.column_names


def test_checkpoints_of_the_trainer_bring_their_evaluation(tmp_path):
    for run in range(RUNS):
        history = []
        for epoch in (1, 2):
            step = 50 * epoch
            history.append({"epoch": float(epoch), "step": step, "loss": 1.5, "learning_rate": 1e-9})
            history.append({"epoch": float(epoch), "step": step, "eval_accuracy": accuracy(run, epoch)})
            folder = tmp_path / f"out/run_{run}/checkpoint-{step}"
            folder.mkdir(parents=True)
            save_file(weights(10 * run + epoch), folder / "model.safetensors")
            state = {"epoch": float(epoch), "global_step": step, "log_history": history, "best_metric": None}
            (folder / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "out/run_0/checkpoint-50/trainer_state.json").write_text('{"epoch": ')
    result = import_runs(tmp_path / "out", tmp_path / "zoo")
    found = values(result, "validation_accuracy", "loss", "learning_rate")
    expected = {(f"run_{run}", e): [round(accuracy(run, e), 4), 1.5] for run in range(RUNS) for e in (1, 2)}
    del expected["run_0", 1]
    assert {key: row[:2] for key, row in found.items() if key in expected} == expected
    assert all(np.isnan(row[2]) for row in found.values())  # what is left of a rate is not the rate
    assert any("checkpoint-50/trainer_state.json: left out, an error: " in note for note in result.notes)


def test_damaged_logs_are_told_and_the_rest_goes_on(tmp_path):
    folder = write_runs(tmp_path / "runs", log_as_csv)
    (folder / "version_0/metrics.csv").write_bytes(b"")
    (folder / "version_1/hparams.yaml").write_text("{lr: ")
    (folder / "version_2/hparams.yaml").write_text("!!python/object/apply:os.getcwd []")
    result = import_runs(folder, tmp_path / "zoo")
    for note in (
        "version_0/metrics.csv: left out, an empty file",
        "version_1/hparams.yaml: left out, an error: while parsing a flow node",
        "version_2/hparams.yaml: left out, an error: the YAML is not an object",
    ):
        assert any(found.startswith(note) for found in result.notes), result.notes
    found = values(result, *COLUMNS)
    assert found["version_0", 1][2:] == EXPECTED["version_0", 1][2:]
    assert [found[f"version_{run}", 2][:2] for run in (1, 2)] == [EXPECTED[f"version_{run}", 2][:2] for run in (1, 2)]


def test_hyper_parameters_and_results_in_checkpoints_become_properties(tmp_path):
    folder = tmp_path / "nets"
    folder.mkdir()
    for number, name in enumerate("abc"):
        settings = {"lr": 0.1 * (number + 1), "Größe": 8, "model": {"depth": 2}, "betas": [0.9], "note": "x" * 999}
        beside = {"best_acc": torch.tensor(0.5 + number), "pytorch-lightning_version": "2.0", "hparams_name": "kwargs"}
        content = {"state_dict": weights(number), "epoch": 3, "hyper_parameters": settings, **beside}
        torch.save(content, folder / f"{name}.ckpt")
    torch.save(weights(7), folder / "d.ckpt")
    (tmp_path / "runs.csv").write_text("file,learning_rate\na.ckpt,0.5\nd.ckpt,0.7\n")
    result = import_runs(folder, tmp_path / "zoo", properties=[tmp_path / "runs.csv"], split_shares=[1, 0, 0])
    split = result.zoo.splits["train"]
    columns = ("learning_rate", "größe", "model_depth", "best_acc")
    found = {
        name: tuple(None if value != value else value for value in row)
        for name, *row in zip(split.column("repo_id"), *(split.column(name).tolist() for name in columns), strict=True)
    }
    assert found == {
        "a.ckpt": (pytest.approx(0.5), 8, 2, 0.5),
        "b.ckpt": (pytest.approx(0.2), 8, 2, 1.5),
        "c.ckpt": (pytest.approx(0.3), 8, 2, 2.5),
        "d.ckpt": (pytest.approx(0.7), None, None, None),
    }
    assert set(result.zoo.facts.data["properties"]["columns"]) == {*columns, "epoch"}
    assert any(note.startswith("properties that checkpoints store: ") for note in result.notes)


def test_event_files_that_are_cut_off_keep_what_they_have(tmp_path):
    log_events(tmp_path / "r1", 0)
    (file,) = (tmp_path / "r1").glob("*tfevents*")
    content = file.read_bytes()
    whole, damage = read_scalars(file)
    assert damage is None
    assert [(tag, step) for tag, step, _ in whole[:3]] == [("epoch", 9), ("val_acc", 9), ("train_loss_epoch", 9)]
    assert [round(value, 4) for *_, value in whole[:3]] == [0, 0.2, 2]
    for end in range(40, len(content), 7):
        file.write_bytes(content[:end])
        found, _ = read_scalars(file)
        assert found == whole[: len(found)]
    file.write_bytes(content[: len(content) // 2])
    (table,) = read_tables(tmp_path)
    assert len(table.rows) == 2
    reason = "an event file that is damaged or cut off after step 19: the rest is left out"
    assert table.notes == (f"r1/{file.name}: {reason}",)
    file.write_bytes(content[:-40] + bytes([255 - content[-40]]) + content[-39:])
    (note,) = read_properties(file).notes
    assert note.startswith(f"{file.name}: an event file that is damaged or cut off after step")
    file.write_bytes(content[:40].ljust(200, b"\xff"))
    with pytest.raises(InvalidFileError, match=f"{file.name}: expected rows about networks, got an event file that"):
        read_properties(file)
    file.write_bytes(b"")
    with pytest.raises(InvalidFileError, match="got an event file of TensorBoard that is damaged or empty"):
        read_properties(file)


def test_event_files_need_tensorboard(tmp_path, monkeypatch):
    log_events(tmp_path, 0)
    (file,) = tmp_path.glob("*tfevents*")
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_file_loader", None)
    with pytest.raises(InvalidFileError, match=r"event files are read by TensorBoard: pip install 'hf_sane\[train\]'"):
        read_properties(file)


def test_a_table_of_runs_of_weights_and_biases(tmp_path):
    """The table of a project's runs, as its page exports it: named `Name`, with hyper-parameters and summaries."""
    folder = write_runs(tmp_path / "nets", lambda *_: None)
    rows = ['"Name","State","Notes","Tags","Created","Runtime","lr","test_acc"']
    rows += [
        f'"version_{run}","finished","-","","2024-05-01T10:00:00.000Z","{60 + run}","0.{run + 1}","0.7{run}"'
        for run in range(RUNS)
    ]
    (tmp_path / "wandb_export.csv").write_text("\n".join(rows))
    result = import_runs(folder, tmp_path / "zoo", properties=[tmp_path / "wandb_export.csv"])
    found = values(result, "learning_rate", "runtime", "test_accuracy")
    assert found["version_1", 2][:2] == [0.2, 61]
    known = {key: row[2] for key, row in found.items() if not np.isnan(row[2])}  # the run's, so of its last network
    assert [run for run, _ in sorted(known)] == [f"version_{run}" for run in range(RUNS)]
    assert sorted(known.values()) == [0.7, 0.71, 0.72]
    (note,) = _left_out([result.zoo], ["epoch"])
    assert note.startswith("test_accuracy is known of 3 of 9 networks only, and was left out; name it")
    assert any("by run, in the column 'Name'" in note for note in result.notes)


def test_settings_with_python_tags_are_read_as_plain_values(tmp_path):
    folder = write_runs(tmp_path / "runs", log_as_csv)
    (folder / "version_1/hparams.yaml").write_text(
        "!!python/object:argparse.Namespace\nlr: 0.02\nmodel: !!python/object:my.Config\n  depth: 2\n"
        "optimizer: !!python/name:torch.optim.Adam ''\nplace: !!python/object/apply:pathlib.PosixPath [/, home]\n"
        f"evil: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n"
    )
    result = import_runs(folder, tmp_path / "zoo")
    assert values(result, *COLUMNS) == EXPECTED
    found = {key[0]: row for key, row in values(result, "optimizer").items()}
    assert found["version_1"] == ["torch.optim.Adam"]
    assert not (tmp_path / "made").exists()


def test_texts_in_a_log_do_not_hide_it(tmp_path):
    folder = write_runs(tmp_path / "runs", log_as_csv)
    for path in folder.glob("*/metrics.csv"):
        header, *lines = path.read_text().splitlines()
        path.write_text("\n".join([f"{header},host", *(f"{line},node-1" for line in lines)]))
    assert values(import_runs(folder, tmp_path / "zoo"), *COLUMNS) == EXPECTED


def test_values_of_a_log_are_named_after_their_phase(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,phase,loss\n0,train,2.0\n0,val,3.0\n1,train,1.0\n1,val,2.5\n")
    table = read_properties(tmp_path / "metrics.csv")
    assert times_of_log(table) == ["epoch"]
    expected = {0: {"train_loss": "2.0", "val_loss": "3.0"}, 1: {"train_loss": "1.0", "val_loss": "2.5"}}
    assert rows_by_time(table, "epoch") == expected
    (tmp_path / "nets.csv").write_text("epoch,file,loss\n0,a.pt,2.0\n1,b.pt,3.0\n")
    assert times_of_log(read_properties(tmp_path / "nets.csv")) == []


def test_rows_of_one_epoch_that_complete_each_other_are_one(tmp_path):
    folder = write_runs(tmp_path / "nets", lambda *_: None)
    lines = ["run,epoch,train_loss,val_acc"]
    for run in range(RUNS):
        for epoch in range(EPOCHS):
            lines += [f"version_{run},{epoch},{2 - epoch / 10},", f"version_{run},{epoch},,{accuracy(run, epoch)}"]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    found = values(import_runs(folder, tmp_path / "zoo", properties=[tmp_path / "log.csv"]), *COLUMNS[:2])
    expected = {key: row[:2] for key, row in EXPECTED.items() if key[1] < 3}
    assert {key: row for key, row in found.items() if key in expected} == expected
