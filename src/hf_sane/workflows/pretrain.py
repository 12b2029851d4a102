"""Pre-train a SANE autoencoder on zoos."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NotRequired, Self, TypedDict

from hf_sane.analysis._zoo_plots import plot_losses
from hf_sane.core._adapters import load_adapter
from hf_sane.hub._adapters import write_pretraining_card
from hf_sane.records._progress import quietly
from hf_sane.records._run_record import RECORD, RunRecord
from hf_sane.records._settings import as_list
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training import _pretraining as pretraining
from hf_sane.training._run_folder import JOB
from hf_sane.training._settings import PretrainSettings
from hf_sane.workflows.results import Result, Table, report_writer
from hf_sane.workflows.sane import SANE
from hf_sane.workflows.shared import temporary_folder
from hf_sane.zoo._dataset import Zoo


class PretrainingJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        reconstruction_r2: R2 of reconstructed tokens of validation networks.
        loss: Training loss of the last step.
        steps: Number of optimizer steps.
        num_processes: Number of processes.
        adapter: Size of the adapter, for runs with LoRA.
    """

    reconstruction_r2: float
    loss: float
    steps: int
    num_processes: int
    adapter: NotRequired[dict[str, float]]


@dataclass(kw_only=True)
class PretrainingResult(Result):
    """A pre-trained SANE, or a LoRA adapter of one.

    Attributes:
        run: Measurements of the run, and its folder.
        base: The SANE that was adapted in a LoRA run; otherwise `None`.
    """

    JSON: ClassVar[Any] = PretrainingJson
    JOB: ClassVar[str] = JOB

    run: pretraining.PretrainResult
    base: str | None = None

    @property
    def sane(self) -> SANE:
        """The autoencoder; after a LoRA run, the base with the adapter merged in."""
        folder = self.run.folder
        if self.base is None:
            return SANE.from_pretrained(folder)
        adapted = load_adapter(SANE.from_pretrained(self.base).model, folder).merge_and_unload()
        extractor = SANEFeatureExtractor.from_pretrained(folder)
        return SANE(adapted.eval(), extractor, source=str(folder), record=self.record)

    def save(self, folder: str | Path) -> Self:
        """Save the autoencoder, after a LoRA run with the adapter merged in; see `save_sane` for errors."""
        self.output = self.sane.save_pretrained(folder)
        return self

    def tables(self) -> list[Table]:
        """Reconstruction of the validation networks, losses and steps."""
        facts = {
            "reconstruction R2 (validation)": self.run.reconstruction_text,
            "loss": self.run.loss,
            "steps": self.run.steps,
            "seconds": self.run.seconds,
            "processes": self.run.num_processes,
        }
        return [Table(("", ""), [list(pair) for pair in facts.items()])]

    def draw(self, partial: Path) -> None:
        """Draw losses.png, if several losses were logged and matplotlib is installed."""
        if len(self.run.history) > 1 and find_spec("matplotlib") is not None:
            plot_losses(self.run.history, partial / "losses.png")


def pretrain(
    zoo: str | Path | Zoo | Sequence[str | Path | Zoo], *, output: str | Path | None = None, **options: Any
) -> SANE:
    """Pre-train a SANE autoencoder.

    ```python
    sane = hf_sane.pretrain(zoo, epochs=50, model={"hidden_size": 128, "latent_dim": 64}, output="runs/sane")
    ```

    Args:
        zoo: A zoo, its folder or its Hub repo id; or a list of these with the same token size.
        output: Run folder; if `None`, a temporary folder, whose path is logged.
        **options: Other fields of [`PretrainSettings`].

    Returns:
        The autoencoder with its weight tokenizer. After a LoRA run (`lora=True`), this is the base with the adapter
        merged in, while the folder holds only the adapter.

    Raises:
        ValueError: If settings are out of range or do not fit the zoo.
        FileExistsError: If the folder holds something else, or a run and `resume` is not set.
    """
    zoos: list[str | Path | Zoo] = as_list(zoo)
    names = [str(x.source or x.facts.name) if isinstance(x, Zoo) else str(x) for x in zoos]
    if output is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("expected an output folder that all training processes share, got none; pass output=...")
    settings = PretrainSettings(zoo=names, output=output or temporary_folder("run"), **options)
    opened = [
        x if isinstance(x, Zoo) else Zoo.load(x, settings.zoo_config, revision=settings.zoo_revision) for x in zoos
    ]
    return run_pretrain(settings, zoos=None if settings.streaming else opened).sane


def run_pretrain(settings: PretrainSettings, *, zoos: Sequence[Zoo] | None = None) -> PretrainingResult:
    """Pre-train a SANE autoencoder on zoos; an interrupted run continues with --resume.

    This command trains in one process; scripts/pretrain.py takes the same settings and can be launched in several.

    Args:
        settings: Settings of the run.
        zoos: The zoos, if they are already open.
    """

    def result(found: pretraining.PretrainResult, folder: Path) -> PretrainingResult:
        record = RunRecord.load(folder / RECORD)
        is_silent, base = not found.is_main_process, settings.from_ if settings.lora else None
        return PretrainingResult(record=record, output=found.folder, is_silent=is_silent, run=found, base=base)

    def describe(folder: Path, _: PretrainSettings, found: pretraining.PretrainResult) -> None:
        write_pretraining_card(folder, settings, found.network_config)
        if (write := report_writer(result)) is not None:
            write(found.folder.parent, found, folder)

    settings.register()
    with quietly(not settings.progress_bar):
        found = pretraining.pretrain(settings, zoos=zoos, describe=describe)
    return result(found, found.folder)


__all__ = ["pretrain"]
