"""The folder of a pre-training run: checks before writing, content during the run, and completion."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_sane.records._command import again
from hf_sane.records._documents import read_document
from hf_sane.records._files import write_atomically
from hf_sane.records._locks import remove_left_lock
from hf_sane.records._manifests import AGAIN, UNFINISHED, Manifest
from hf_sane.records._outputs import begin_folder, check_finished, check_may_write, resumable_folder
from hf_sane.records._run_record import RECORD
from hf_sane.training._checkpoints import clear_unfinished, list_checkpoints
from hf_sane.training._settings import PretrainSettings

JOB = "pre-training run"
SETTINGS = "arguments.json"
OLD_NAMES = {"output_dir": "output"}  # former names of settings


class RunFolder:
    """Folder of a run with model/, checkpoints/, logs/ and arguments.json; see [`open_run_folder`].

    A finished run has a model/, which appears only when complete, with its manifest. Until then the folder is marked
    as unfinished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model, self.checkpoints, self.settings = path / "model", path / "checkpoints", path / SETTINGS

    @property
    def is_finished(self) -> bool:
        """Whether the model has a manifest or, in runs of earlier versions, a record."""
        return Manifest.load(self.model) is not None or (self.model / RECORD).is_file()

    def check(self, arguments: PretrainSettings) -> None:
        """Refuse to overwrite a run, or to continue one with other settings."""
        begun = self._read_settings()
        if self.is_finished:
            check_finished(self.model)
            # A process that was killed just before its end may have left these.
            (self.path / UNFINISHED).unlink(missing_ok=True)
            remove_left_lock(self.model)
        if begun is None:
            return
        checkpoints = list_checkpoints(self.checkpoints)
        if not arguments.resume and (self.is_finished or checkpoints):
            what = (
                "a finished run"
                if self.is_finished
                else f"an interrupted run with the checkpoint {checkpoints[-1].name}"
            )
            raise FileExistsError(
                f"{self.path} already holds {what}; choose another output folder; {again('continue', '--resume')}"
            )
        if self.is_finished or checkpoints:  # otherwise a new run replaces nothing of value
            arguments.check_continues(begun, model=self.model, is_finished=self.is_finished)

    def begin(self, arguments: PretrainSettings) -> None:
        """Mark the run as unfinished and store its settings; call it after all checks."""
        check_may_write(self.model, JOB, replace=True)
        begin_folder(self.path, JOB)
        clear_unfinished(self.checkpoints)
        if not list_checkpoints(self.checkpoints):
            shutil.rmtree(self.path / "logs", ignore_errors=True)
        with write_atomically(self.settings) as partial:
            partial.write_text(json.dumps(arguments.to_dict(), indent=2) + "\n", encoding="utf-8")

    def finish(self, *, keep_checkpoints: bool) -> None:
        """Mark the run as finished and remove checkpoints that are only needed to resume it."""
        if not keep_checkpoints:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        (self.path / UNFINISHED).unlink(missing_ok=True)

    def describe_rest(self) -> str:
        """Message about the state of the folder after an interruption."""
        if self.is_finished:
            return f"{self.path} is finished"
        if checkpoints := list_checkpoints(self.checkpoints):
            return f"{checkpoints[-1]} is kept; {again('continue', '--resume')}"
        return f"{self.path} holds no checkpoint yet; {again('start again')}"

    def _read_settings(self) -> dict[str, Any] | None:
        if not self.settings.is_file():
            return None
        found = read_document(self.settings, expected="the settings of a pre-training run", remedy=AGAIN).mapping()
        return {OLD_NAMES.get(name, name): value for name, value in found.items()}


@contextmanager
def open_run_folder(arguments: PretrainSettings, accelerator: Accelerator) -> Iterator[RunFolder]:
    """Lock the folder of a run in the main process and check it, without writing yet.

    Raises:
        FileExistsError: If the folder holds anything else, or a run and `resume` is off.
        FolderInUseError: If another process is writing to the folder.
        InvalidFileError: If files of the finished model were changed or removed.
        OSError: If the folder cannot be written or the disk is full.
        ValueError: If its run was started with other settings.
    """
    folder = RunFolder(Path(os.path.abspath(arguments.output)))
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(resumable_folder(folder.path, JOB, is_ours=_is_run, describe=folder.describe_rest))
            folder.check(arguments)
        accelerator.wait_for_everyone()
        yield folder


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not, possibly of a version that did not mark unfinished folders."""
    settings = RunFolder(folder)._read_settings()
    return settings is not None and settings.keys() >= {"output", "resume"}
