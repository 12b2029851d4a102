"""Reconstruct the test networks of zoos, and measure how well a SANE preserves their weights and accuracy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NotRequired, TypedDict, cast

import torch

from hf_sane.networks._image_settings import ImageSettings
from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.networks._images import ImageData
from hf_sane.networks._modules import ModuleSettings
from hf_sane.networks._tasks import Classification
from hf_sane.records._progress import tracked
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.training._evaluation import r2_from_sums, reconstruction_sums
from hf_sane.workflows.networks import open_images
from hf_sane.workflows.results import Result, Table, optional_output, rows_of
from hf_sane.workflows.sane import SANE, GivenSaneSettings, open_sane
from hf_sane.workflows.shared import CodecSettings
from hf_sane.workflows.show_zoo import open_zoos
from hf_sane.zoo._alignment import comparable_tokens
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._settings import ZooSourceSettings


@dataclass(kw_only=True)
class ReconstructSettings(CodecSettings, ImageSettings, GivenSaneSettings, ZooSourceSettings, ModuleSettings):
    """Settings of [`reconstruct`]."""

    zoo: list[str | Path | Zoo] | Mapping[str, str | Path | Zoo] = setting(
        "Zoos of one architecture each (folders, Hub repo ids or FOLDER:CONFIG). Repeat the option for several.",
        split=False,
    )
    images: str | ImageData = setting(f"Images to evaluate the networks on: {IMAGE_KINDS}.")
    linear: bool = setting(
        "Add a linear code with the same latent_dim, fitted to the training networks of each zoo.", default=True
    )
    output: Path | None = setting("New folder for the run record.", default=None, short="-o")


class ZooReconstructionJson(TypedDict):
    """Reconstruction of one zoo.

    Attributes:
        r2: R2 of the weights of test networks.
        accuracy_original: Mean test accuracy of test networks.
        accuracy_reconstructed: Mean test accuracy after encoding and decoding.
        accuracy_kept: `accuracy_reconstructed / accuracy_original`.
        networks: Number of test networks.
        linear_r2: R2 of the linear code; this field and the following ones are missing with --no-linear.
        linear_accuracy_reconstructed: Mean test accuracy after encoding and decoding by the linear code.
        linear_accuracy_kept: `linear_accuracy_reconstructed / accuracy_original`.
    """

    r2: float
    accuracy_original: float
    accuracy_reconstructed: float
    accuracy_kept: float
    networks: int
    linear_r2: NotRequired[float]
    linear_accuracy_reconstructed: NotRequired[float]
    linear_accuracy_kept: NotRequired[float]


class ReconstructionJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        reconstruction_r2: R2 of the weights over all zoos.
        reconstruction: Measurements by zoo.
    """

    reconstruction_r2: float
    reconstruction: dict[str, ZooReconstructionJson]


@dataclass(kw_only=True)
class ReconstructionResult(Result):
    """R2 over all test networks, and R2 and the accuracies before and after for each zoo."""

    JSON: ClassVar[Any] = ReconstructionJson
    JOB: ClassVar[str] = "reconstruction"

    def tables(self) -> list[Table]:
        """One row per zoo."""
        rows = rows_of(self.record.results["reconstruction"])
        caption = f"R2 of all test networks: {self.record.results['reconstruction_r2']:.4g}"
        header: tuple[str, ...] = ("zoo", "R2", "accuracy before", "accuracy after", "accuracy kept", "networks")
        if self.record.arguments.get("linear"):
            header += ("linear code: R2", "accuracy after", "accuracy kept")
        return [Table(header, rows, caption=caption)]


def reconstruct(
    zoos: str | Path | Zoo | Sequence[str | Path | Zoo] | Mapping[str, str | Path | Zoo],
    sane: str | Path | SANE,
    images: str | ImageData,
    **options: Any,
) -> ReconstructionResult:
    """Encode and decode the test networks of zoos; measure R2 of all checkpoints, and accuracy of the final ones.

    Args:
        zoos: A zoo of one architecture, its folder or its Hub repo id; or several, as a list or by name.
        sane: A SANE, its folder or its Hub repo id.
        images: Images to evaluate the networks on, or a source for `load_images`.
        **options: Other fields of [`ReconstructSettings`].

    Raises:
        ValueError: If a zoo is given twice, or has networks of several architectures.
    """
    return run_reconstruct(ReconstructSettings(zoo=cast(Any, zoos), sane=sane, images=images, **options))


def run_reconstruct(settings: ReconstructSettings) -> ReconstructionResult:
    """Encode and decode the test networks of zoos; report R2 of their weights, and accuracy before and after."""
    settings.register()
    record = RunRecord.start(arguments=as_arguments(settings))
    with optional_output(settings.output, ReconstructionResult.JOB) as output:
        zoos = open_zoos(settings.zoo, **settings.zoo_place)
        sane = open_sane(settings.sane, **settings.sane_place)
        data = open_images(settings.images, **settings.image_shape)
        total = torch.zeros(4, dtype=torch.float64)
        parts = {}
        for name, zoo in tracked(zoos.items(), desc="reconstructing", unit="zoo"):
            parts[name], sums = _reconstruct(zoo, sane, data, settings)
            total += sums
        measured = {"reconstruction_r2": r2_from_sums(total), "reconstruction": parts}
        result = ReconstructionResult(record=record.finish(measured, data={"images": data.describe()}))
        return output.write(result)


def _reconstruct(
    zoo: Zoo, sane: SANE, data: ImageData, settings: ReconstructSettings
) -> tuple[dict[str, Any], torch.Tensor]:
    """Measurements of one zoo, and the sums from which its R2 is computed."""
    test = zoo.splits["test"]
    final = test.final_epochs()
    layout, config = final.layout_and_config()
    codec = NetworkCodec(sane.model, sane.extractor, layout, config, **settings.windows)
    raw, last = comparable_tokens(test), comparable_tokens(final)
    task = Classification(data)
    before = task.measure(codec.networks(last), "test")[0].mean().item()

    def measure(code: NetworkCodec) -> tuple[float, float, torch.Tensor]:
        """Accuracy of the decoded final networks, its share of the original, and sums over all networks."""
        decoded = code.model.decode_sequences(code.encode(raw), layout.positions, **settings.windows)
        sums = reconstruction_sums(code.extractor.normalize(raw, layout), decoded, layout.weight_mask)
        after = task.measure(code.decode(code.encode(last)), "test")[0].mean().item()
        return after, after / before if before else math.nan, sums

    after, kept, sums = measure(codec)
    found = {
        "r2": r2_from_sums(sums),
        "accuracy_original": before,
        "accuracy_reconstructed": after,
        "accuracy_kept": kept,
        "networks": len(last),
    }
    if settings.linear:
        after, kept, own = measure(codec.linear(comparable_tokens(zoo.splits["train"])))
        found |= {
            "linear_r2": r2_from_sums(own),
            "linear_accuracy_reconstructed": after,
            "linear_accuracy_kept": kept,
        }
    return found, sums


__all__ = ["ReconstructionResult", "reconstruct"]
