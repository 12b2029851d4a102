"""Folders that are either complete or absent: checkpoints of a run and its final model."""

import shutil
from pathlib import Path

from accelerate import Accelerator

PARTIAL = ".partial"


def replace_folder(partial: Path, final: Path) -> None:
    """Put a finished folder in place of `final`; a crash leaves the old one or the new one, never half of each."""
    retired = final.with_name(final.name + ".retired")
    shutil.rmtree(retired, ignore_errors=True)
    if final.exists():
        final.rename(retired)
    partial.rename(final)
    shutil.rmtree(retired, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.name.endswith(PARTIAL))


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, *, keep: int) -> Path:
    """Save model, optimizer, schedule, progress and random states of all processes; every process must call it.

    Args:
        accelerator: Holds what was prepared and registered.
        folder: Where checkpoints live.
        step: Optimizer steps done.
        keep: Newest checkpoints that stay.

    Returns:
        `folder / step-XXXXXXXX`.
    """
    final = folder / f"step-{step:08d}"
    partial = final.with_name(final.name + PARTIAL)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        replace_folder(partial, final)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final
