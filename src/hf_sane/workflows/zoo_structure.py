"""Measure the linear structure that a zoo's runs share, before anything is trained on them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from hf_sane.analysis._region_zoos import LabelledNetworks, zoo_networks
from hf_sane.analysis._structure import SharedStructure, shared_structure
from hf_sane.analysis._structure_plot import plot_structure
from hf_sane.networks._modules import ModuleSettings
from hf_sane.records._errors import name_some
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.symmetry._matching import match_many
from hf_sane.workflows.results import Result, Table, optional_output
from hf_sane.workflows.schemas import Fields
from hf_sane.workflows.shared import PlotSettings, RunSettings
from hf_sane.workflows.show_zoo import NamedZooSettings, load_zoo
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._records import ANCESTOR

SIDES = {"training": ("train",), "held_out": ("validation", "test")}
WHOLE = "all"  # tensors to list in records
PICTURE_NAME = "structure.png"


@dataclass(kw_only=True)
class ZooStructureSettings(NamedZooSettings, RunSettings, ModuleSettings, PlotSettings):
    """Settings of [`zoo_structure`]."""

    output: Path | None = setting("New folder for the run record and a plot.", default=None, short="-o")
    since: int | None = setting(
        "Use the change of the weights since this epoch instead of the weights; for children, the change from "
        "their ancestor at this epoch.",
        default=None,
    )
    limit: int | None = setting(
        "Use at most this many training networks, and at most as many held-out networks.", default=None, least=3
    )
    seed: int = setting("Random seed for shuffles and confidence intervals.", default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_matplotlib()


@dataclass(kw_only=True)
class ZooStructureResult(Result):
    """The structure that a zoo's runs share.

    Attributes:
        structures: Structures by tensor name; `""` for whole networks.
        pictures: Whether to draw a plot.
    """

    JSON: ClassVar[Any] = dict[str, Annotated[SharedStructure, Fields(gains=list[float])]]
    JOB: ClassVar[str] = "structure of a zoo"

    structures: dict[str, SharedStructure] = field(default_factory=dict)
    pictures: bool = False

    def tables(self) -> list[Table]:
        """Whole networks by number of directions, then all tensors at the largest number."""
        whole, *_ = self.structures.values()
        rows = zip(whole.directions, whole.explained, whole.intervals, whole.chance, whole.gains, strict=True)
        tensors = [
            [name, found.explained[-1], _interval(found.intervals[-1]), found.chance[-1], found.gains[-1]]
            for name, found in self.structures.items()
            if name
        ]
        header = ("held-out variance explained", "95% interval", "by chance", "gain")
        count = whole.directions[-1]
        return [
            Table(
                ("directions", *header),
                [[number, found, _interval(interval), *others] for number, found, interval, *others in rows],
                title=f"principal directions of {count + 1} runs, {self.record.data['held_out']} other runs",
                caption=self._verdict(whole),
            ),
            Table((f"tensor, with {count} directions of its own", *header), tensors),
        ]

    def _verdict(self, whole: SharedStructure) -> str:
        number, found, by_chance, gain = (
            values[whole.best] for values in (whole.directions, whole.explained, whole.chance, whole.gains)
        )
        shares = f"{number} directions explain {found:.1%} of the variance of other runs, {by_chance:.1%} by chance"
        if not whole.is_shared:
            return (
                f"{shares}: no shared linear structure was found; an autoencoder cannot be expected to compress them"
            )
        return f"{shares}: the runs share {gain:.1%} of the rest"

    def draw(self, partial: Path) -> None:
        """Draw structure.png."""
        if self.pictures:
            plot_structure(self.structures[""], partial / PICTURE_NAME)


def zoo_structure(zoo: str | Path | Zoo, **options: Any) -> ZooStructureResult:
    """Measure the linear structure that a zoo's runs share.

    ```python
    print(hf_sane.zoo_structure("org/zoo-mnist"))
    ```

    Args:
        zoo: A zoo of one architecture, its folder or Hub repo id.
        **options: Other fields of [`ZooStructureSettings`].

    Raises:
        ValueError: If the zoo has several architectures, fewer than three training networks, fewer than two others or,
            unless `align=False`, networks of unknown symmetries.
    """
    return run_zoo_structure(ZooStructureSettings(zoo=zoo, **options))


def run_zoo_structure(settings: ZooStructureSettings) -> ZooStructureResult:
    """Measure how much of a zoo's held-out networks the principal directions of its training networks explain.

    An autoencoder that is trained on some runs can compress others only as far as they share structure. Networks
    trained from independent seeds share almost none, even when they are aligned; networks that started from the same
    weights do. This command shows it before pre-training, by comparing the explained share with that of directions of
    shuffled weights.
    """
    settings.register()
    given = as_arguments(settings)
    record = RunRecord.start(seed=settings.seed, arguments=given)
    with optional_output(settings.output, ZooStructureResult.JOB) as output:
        zoo = load_zoo(settings.zoo, **settings.zoo_place)
        training, held_out = _weights(zoo, settings)
        structures = shared_structure(training, held_out, seed=settings.seed)
        counts = (len(next(iter(side.values()))) for side in (training, held_out))
        record.data |= dict(zip(SIDES, counts, strict=True))
        results = {name or WHOLE: found.to_dict() for name, found in structures.items()}
        return output.write(
            ZooStructureResult(record=record.finish(results), structures=structures, pictures=settings.plots)
        )


def _weights(zoo: Zoo, settings: ZooStructureSettings) -> list[dict[str, Tensor]]:
    """Weights of the training and held-out networks, or their changes in training, aligned to one network."""
    sides = [[name for name in part if len(zoo.splits.get(name, ()))] for part in SIDES.values()]
    if not all(sides):
        raise ValueError(
            f"expected networks in 'train' and in 'validation' or 'test', the zoo has {', '.join(zoo.splits)}; import "
            "it again with three splits (--split-shares)"
        )
    columns = [ANCESTOR] if ANCESTOR in zoo.splits["train"].table.scalar_columns else []
    networks = [
        zoo_networks([zoo], columns=columns, splits=part, epoch=settings.epoch, limit=settings.limit) for part in sides
    ]
    chosen = matched = [part.tensors for part in networks]
    if settings.since is not None:
        # Ancestors are training networks.
        parts = [sides[0] if columns else part for part in sides]
        starts = [zoo_networks([zoo], splits=part, epoch=settings.since) for part in parts]
        pairs = [_since(*pair) for pair in zip(starts, networks, strict=True)]
        chosen = [{name: end - start[name] for name, end in ends.items()} for start, ends in pairs]
        # Children keep the order of their ancestor's channels, whatever they have changed.
        matched = [start if columns else ends for start, ends in pairs]
    if settings.align:
        spec, reference = networks[0].spec, {name: tensor[0] for name, tensor in matched[0].items()}
        chosen = [
            spec.apply(tensors, match_many(spec, reference, found), batch_dims=1)
            for tensors, found in zip(chosen, matched, strict=True)
        ]
    layers = [layer for layout in zoo.facts.parsed_layouts.values() for layer in layout.layers]
    # Running statistics are not weights, and would dominate the variance.
    names = {tensor.name for layer in layers if layer.kind != "running_statistics" for tensor in layer.tensors}
    return [{name: tensor for name, tensor in tensors.items() if name in names} for tensors in chosen]


def _since(start: LabelledNetworks, end: LabelledNetworks) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the changed networks of `end`: those of `start`, or of their ancestors, and those of `end`."""
    place = {run: row for row, run in enumerate(start.runs)}
    ancestors = [f"0/{ancestor}" for ancestor in end.labels.get(ANCESTOR, end.runs)]  # of the only zoo
    found = [place.get(run, place.get(older)) for run, older in zip(end.runs, ancestors, strict=True)]
    if missing := sorted(run for run, row in zip(end.runs, found, strict=True) if row is None):
        raise ValueError(f"runs without a network at that epoch: {name_some(missing)}; choose another one (--since)")
    pairs = {name: (start.tensors[name][found], tensor) for name, tensor in end.tensors.items()}
    changed = torch.stack([(old != new).flatten(1).any(dim=1) for old, new in pairs.values()]).any(dim=0)
    before, after = ({name: pair[side][changed] for name, pair in pairs.items()} for side in (0, 1))
    return before, after


def _interval(ends: tuple[float, float]) -> str:
    low, high = ends
    return f"{low:.3f} to {high:.3f}"


__all__ = ["ZooStructureResult", "zoo_structure"]
