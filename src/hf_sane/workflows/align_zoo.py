"""Align a zoo: permute the channels of its networks to match a reference network, for any architecture."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import numpy as np

from hf_sane.analysis._zoo_plots import plot_alignment
from hf_sane.networks._modules import ModuleSettings
from hf_sane.records._run_files import ALIGNMENT_REPORT
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.records._sources import check_path
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.workflows.results import Table, report_writer
from hf_sane.workflows.show_zoo import ResultWithZoo
from hf_sane.zoo import _alignment as alignment
from hf_sane.zoo._dataset import Zoo, choose_config
from hf_sane.zoo._facts import read_facts
from hf_sane.zoo._settings import ZooNameSettings

SHOWN_PLACES = 3  # examples shown for each reason
WHEN = ("before", "after")
MEASURED_RUNS = 256  # runs of an architecture whose distances are measured


@dataclass(kw_only=True)
class AlignZooSettings(ZooNameSettings, ModuleSettings):
    """Settings of [`run_align_zoo`]."""

    zoo: Path = setting("Folder of the zoo.", positional=True, formerly="--zoo")


class AlignmentJson(TypedDict):
    """How networks of one architecture were aligned.

    Attributes:
        runs: Runs that were aligned.
        free_permutations: Permutations that leave the function unchanged.
        reference: Run that the others are matched to.
        distance: Median distance to the reference before and after alignment, as a share of the reference's norm; null
            without other runs.
        fixed: Dimensions that are not permuted, by the reason.
    """

    runs: int
    free_permutations: int
    reference: str
    distance: dict[str, float] | None
    fixed: dict[str, list[str]]


@dataclass(kw_only=True)
class AlignZooResult(ResultWithZoo):
    """An aligned zoo.

    Attributes:
        specs: Symmetries, by architecture.
        distances: Distances of runs to the reference before and after alignment, `[2, R]`, by architecture.
    """

    JSON: ClassVar[Any] = dict[str, AlignmentJson]
    JOB: ClassVar[str] = "alignment"

    specs: dict[str, PermutationSpec] = field(default_factory=dict)
    distances: dict[str, np.ndarray] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Runs, free permutations, reference and distances by architecture, and what is not permuted, by reason."""
        found = _alignment(self.zoo)
        return {
            key: {
                "runs": len(run_ids),
                "free_permutations": _free(self.specs[key]),
                "reference": found.references[key],
                "distance": _medians(self.distances[key]),
                "fixed": {reason: list(places) for reason, places in self.specs[key].reasons.items()},
            }
            for key, run_ids in found.run_ids.items()
        }

    def tables(self) -> list[Table]:
        """One row per architecture, with a caption that lists what is not permuted."""
        rows = [
            [
                key,
                row["runs"],
                row["free_permutations"],
                row["reference"],
                *(row["distance"] or dict.fromkeys(WHEN)).values(),
            ]
            for key, row in self.to_dict().items()
        ]
        kept = []
        for key, spec in self.specs.items():
            if lines := _fixed(spec):
                kept += [f"\nnot permuted in {key}", *lines]
        header = ("architecture", "runs", "free permutations", "reference", "distance before", "after")
        return [Table(header, rows, caption="\n".join(["(distances: medians, in norms of the reference)", *kept]))]

    def draw(self, partial: Path) -> None:
        """Draw distances.png, if distances were measured and matplotlib is installed."""
        if find_spec("matplotlib") is not None and any(found.size for found in self.distances.values()):
            plot_alignment(self.distances, partial / "distances.png")


def align_zoo(zoo: str | Path | Zoo, **options: Any) -> Zoo:
    """Align a zoo: permute the channels of its networks to match a reference, without changing their outputs.

    Args:
        zoo: Folder of a zoo, where the alignment is stored; or a zoo in memory, whose files are not changed, and for
            which the only options are `reference` and `specs`, its symmetries by architecture.
        **options: Other fields of [`AlignZooSettings`].

    Returns:
        The zoo with its alignment; `Zoo.save` stores both.

    Raises:
        ValueError: If the symmetries are unknown, or `reference` is given for several architectures.
    """
    if isinstance(zoo, Zoo):
        return alignment.align_zoo(zoo, **options)
    return run_align_zoo(AlignZooSettings(zoo=Path(zoo), **options)).zoo


def run_align_zoo(settings: AlignZooSettings) -> AlignZooResult:
    """Permute channels, neurons and heads of all networks to match a reference; their outputs do not change.

    Only the permutations are written, next to the zoo; the views 'aligned' and 'permuted' of `hf-sane pretrain` need
    them. For imported networks (Transformers), the symmetries are traced from the configuration and verified by
    running the networks; dimensions that cannot be verified are not permuted, and are listed with the reason.
    """
    settings.register()
    record = RunRecord.start(arguments=as_arguments(settings))
    check_path(settings.zoo)
    config = choose_config(settings.zoo_config, list(read_facts(settings.zoo)), str(settings.zoo))
    made: list[AlignZooResult] = []

    def result(zoo: Zoo) -> AlignZooResult:
        """Made once: for the report, before the folder is finished, or in the end."""
        if made:
            return made[0]
        found = _alignment(zoo)
        specs, distances = {}, {}
        for key in found.run_ids:
            architecture = zoo.facts.parsed_architectures[key.partition(":")[0]]
            specs[key] = found.specs[key] if architecture is None else permutation_spec(architecture)
            distances[key] = alignment.reference_distances(zoo, key, limit=MEASURED_RUNS)
        made.append(
            AlignZooResult(record=record.finish({}), output=settings.zoo, zoo=zoo, specs=specs, distances=distances)
        )
        return made[0]

    describe = report_writer(result, ALIGNMENT_REPORT)
    return result(alignment.align_folder(settings.zoo, config, describe=describe))


def _alignment(zoo: Zoo) -> alignment.Alignment:
    if zoo.alignment is None:
        raise ValueError("this zoo is not aligned; align it first")
    return zoo.alignment


def _medians(distances: np.ndarray) -> dict[str, float] | None:
    return dict(zip(WHEN, np.median(distances, axis=1).tolist(), strict=True)) if distances.size else None


def _free(spec: PermutationSpec) -> int:
    return sum(generator.size > 1 for generator in spec.generators.values())


def _fixed(spec: PermutationSpec) -> list[str]:
    """One line for each reason why dimensions are not permuted."""
    return [
        f"  {reason}: {', '.join(places[:SHOWN_PLACES])}"
        f"{f' and {len(places) - SHOWN_PLACES} more' if len(places) > SHOWN_PLACES else ''}"
        for reason, places in spec.reasons.items()
    ]


__all__ = ["align_zoo"]
