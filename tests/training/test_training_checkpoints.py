"""Folders are swapped whole, and old checkpoints go."""

import pytest
from accelerate import Accelerator

from hf_sane.training.checkpoints import PARTIAL, list_checkpoints, replace_folder, save_checkpoint


def folder_with(path, content):
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


@pytest.mark.parametrize("exists", [False, True])
def test_a_finished_folder_takes_the_place_of_the_old_one(tmp_path, exists):
    final = tmp_path / "model"
    if exists:
        folder_with(final, "old")
        folder_with(tmp_path / "model.retired", "left by a crash")
    replace_folder(folder_with(tmp_path / "model.partial", "new"), final)
    assert (final / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_checkpoints_are_listed_by_step_and_unfinished_ones_are_not(tmp_path):
    for name in ("step-00000100", "step-00000020", f"step-00000200{PARTIAL}", "other"):
        folder_with(tmp_path / name, name)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000020", "step-00000100"]
    assert list_checkpoints(tmp_path / "missing") == []


def test_only_the_newest_checkpoints_stay(tmp_path):
    accelerator = Accelerator(cpu=True)
    folder_with(tmp_path / f"step-00000003{PARTIAL}", "left by a crash")
    for step in (1, 2, 3, 30):
        saved = save_checkpoint(accelerator, tmp_path, step, keep=2)
        assert saved.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000030"]
    assert not (tmp_path / "step-00000003" / "file").exists()
