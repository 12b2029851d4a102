"""Checkpoints of a run: folders that are either complete, with a manifest, or absent.

Accelerate's own rotation (`automatic_checkpoint_naming`, `total_limit`) cannot replace this module, with any limit. It
writes under the final name, so that `load_state` takes the checkpoint that a killed process was writing for the
newest, and a new process counts from 0 and removes the complete checkpoints of the killed one first.
"""

import re
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

from hf_sane.records._files import PARTIAL, move_folder
from hf_sane.records._outputs import finish_folder

JOB = "checkpoint"
NAME = re.compile(r"step-\d{8,}")


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if NAME.fullmatch(path.name)), key=lambda path: int(path.name[5:]))


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, *, keep: int) -> Path:
    """Save model, optimizer, schedule, progress and random states of all processes; every process must call it.

    Args:
        accelerator: Accelerator with all prepared and registered objects.
        folder: Folder of the checkpoints.
        step: Number of completed optimizer steps.
        keep: Number of newest checkpoints to keep.

    Returns:
        `folder / step-XXXXXXXX`.
    """
    final = folder / f"step-{step:08d}"
    partial = final.with_name(f".{final.name}{PARTIAL}")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish_folder(partial, JOB)
        move_folder(partial, final)
        for old in list_checkpoints(folder)[:-keep]:
            _remove(old)
    accelerator.wait_for_everyone()
    return final


def clear_unfinished(folder: Path) -> None:
    """Remove incomplete checkpoints of a process that was killed while saving or removing them."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith(".step-") and path.name.endswith(PARTIAL):
            shutil.rmtree(path)


def is_finite(accelerator: Accelerator) -> bool:
    """Whether all parameters and the state of the optimizers are finite numbers, in every process."""
    models = [tensor for model in accelerator._models for tensor in model.state_dict().values()]
    states = [
        value
        for optimizer in accelerator._optimizers
        for state in optimizer.state.values()
        for value in state.values()
    ]
    tensors = (value for value in (*models, *states) if torch.is_tensor(value) and value.is_floating_point())
    bad = torch.zeros((), device=accelerator.device)
    for tensor in tensors:
        bad += (~tensor.isfinite().all()).float().to(bad.device)
    return accelerator.reduce(bad, "sum").item() == 0


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, after renaming it, so that no incomplete checkpoint has a valid name."""
    partial = checkpoint.with_name(f".{checkpoint.name}{PARTIAL}")
    checkpoint.rename(partial)
    shutil.rmtree(partial)
