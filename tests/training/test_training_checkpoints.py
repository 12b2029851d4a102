"""Checkpoints are whole or absent, old ones go, and none that is not finite takes the place of a good one."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from hf_sane.records._errors import InvalidFileError
from hf_sane.records._files import PARTIAL
from hf_sane.records._outputs import check_finished
from hf_sane.training._checkpoints import clear_unfinished, is_finite, list_checkpoints, save_checkpoint


def folder_with(path, content):
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


def test_checkpoints_are_listed_by_step_and_unfinished_ones_are_not(tmp_path):
    for name in ("step-00000100", "step-00000020", f".step-00000200{PARTIAL}", "other", "step-100000000"):
        folder_with(tmp_path / name, name)
    names = ["step-00000020", "step-00000100", "step-100000000"]
    assert [path.name for path in list_checkpoints(tmp_path)] == names
    assert list_checkpoints(tmp_path / "missing") == []
    clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "other"])


def test_only_the_newest_checkpoints_stay(tmp_path):
    accelerator = Accelerator(cpu=True)
    folder_with(tmp_path / f".step-00000003{PARTIAL}", "left by a crash")
    for step in (1, 2, 3, 30):
        saved = save_checkpoint(accelerator, tmp_path, step, keep=2)
        assert saved.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000030"]
    assert not (tmp_path / "step-00000003" / "file").exists()


def test_a_checkpoint_knows_its_files(tmp_path):
    saved = save_checkpoint(Accelerator(cpu=True), tmp_path, 1, keep=2)
    check_finished(saved)
    (saved / "random_states_0.pkl").unlink()
    with pytest.raises(InvalidFileError, match="random_states_0.pkl: expected .* bytes, got no such file"):
        check_finished(saved)


@pytest.mark.parametrize("where", ["nothing", "parameter", "buffer", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_found_wherever_they_are(where, value):
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(torch.nn.BatchNorm1d(3), None)[0], None
    optimizer = accelerator.prepare(torch.optim.AdamW(model.parameters()))
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert is_finite(accelerator)
    with torch.no_grad():
        places = {
            "parameter": model.weight,
            "buffer": model.running_mean,
            "optimizer": optimizer.state[model.bias]["exp_avg_sq"],
        }
        if where in places:
            places[where][1] = value
    assert is_finite(accelerator) == (where == "nothing")


def test_the_rotation_of_accelerate_is_no_replacement(tmp_path):
    """It takes an interrupted checkpoint for the newest; once it does not, `save_checkpoint` can go."""

    def interrupt(*_):
        raise KeyboardInterrupt

    named = ProjectConfiguration(str(tmp_path), automatic_checkpoint_naming=True, total_limit=3)
    accelerator = Accelerator(cpu=True, project_config=named)
    model = accelerator.prepare(torch.nn.Linear(2, 2))
    accelerator.save_state()
    accelerator.register_save_state_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        accelerator.save_state()
    with pytest.raises(FileNotFoundError, match="checkpoint_1"):
        accelerator.load_state()
    assert model is accelerator._models[0]
