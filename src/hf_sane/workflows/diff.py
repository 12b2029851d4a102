"""Compare two checkpoints, tensor by tensor and up to what leaves a network the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from hf_sane.merging._adapters import are_adapters
from hf_sane.networks._modules import ModuleSettings
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.records._sources import find_source
from hf_sane.screening._differences import Difference, TensorDifference, compare_checkpoints
from hf_sane.screening._symmetries import find_symmetries
from hf_sane.tokenization._adapter_changes import merge_adapter, open_factors
from hf_sane.tokenization._checkpoints import CheckpointSource, Source
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint
from hf_sane.workflows.results import Result, Table, optional_output
from hf_sane.workflows.shared import WeightsSettings

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 60  # tensors in a printed table, the most different ones
MAX_ALIGNED_VALUES = 2 * 10**8  # of a checkpoint whose channels are matched: that needs it in memory, in double
VERDICTS = {
    "equal": "the same network, bit by bit",
    "cast": "the same network in another precision: equal in the coarser of the two types",
    "quantised": "the same network, quantised: one is the other, rounded to few values per row or group",
    "permuted": "the same network: equal after its channels are put into one order",
    "rescaled": "the same network up to positive scales of its channels, if its activation is ReLU",
    "partly equal": "half of the matrices or more are equal: one was made from the other, or both from a third",
    "close": "closer than independent networks are: one was probably trained from the other, or both from a third",
    "far": "far from each other, but closer than independent networks of one size",
    "unrelated": "as far from each other as independent networks",
}


@dataclass(kw_only=True)
class DiffSettings(ModuleSettings, WeightsSettings):
    """Settings of [`diff`]."""

    first: Source = setting("Checkpoint: a file, folder or Hub repo id; or a LoRA adapter.", positional=True)
    other: Source = setting("Checkpoint to compare it with.", positional=True)
    output: Path | None = setting(
        "New folder for the comparison, a picture and the run record.", default=None, short="-o"
    )
    base: str | None = setting(
        "Base model of an adapter that is compared with a model, by default the one that it names; or of two adapters "
        "whose changes depend on it (DoRA).",
        default=None,
    )
    align: bool = setting("Undo permutations and scales of channels, where the symmetries are known.", default=True)
    plots: bool = setting("Draw the distance over depth (requires matplotlib).", default=True)


@dataclass(kw_only=True)
class DiffResult(Result):
    """How two checkpoints differ.

    Attributes:
        difference: Relation, distances, tensors.
        plots: Whether a picture is drawn.
    """

    JOB: ClassVar[str] = "comparison"

    difference: Difference
    plots: bool = True

    @property
    def verdict(self) -> str:
        """What the two checkpoints are to each other, in a sentence."""
        found = self.difference
        how = [text for text, holds in (("reordered", found.is_permuted), ("rescaled", found.is_rescaled)) if holds]
        after = f" (channels {' and '.join(how)} before the comparison)" if how else ""
        return VERDICTS[found.relation or "unrelated"] + after

    def to_dict(self) -> dict[str, Any]:
        """Relation, verdict, distances, tensors."""
        found = vars(self.difference) | {"tensors": [x.row() for x in self.difference.tensors]}
        numbers = {name: _known(found[name]) for name in ("distance", "distance_as_stored", "distance_by_chance")}
        return {**found, **numbers, "verdict": self.verdict}

    def to_frame(self) -> "pd.DataFrame":
        """One row per tensor that both checkpoints have, as a pandas table."""
        import pandas as pd

        return pd.DataFrame([x.row() for x in self.difference.tensors])

    def summary(self) -> list[str]:
        """The verdict and the distances."""
        found = self.difference
        lines = [self.verdict]
        if found.relation != "equal":
            stored = (
                f" ({found.distance_as_stored:.4g} as stored)" if found.distance != found.distance_as_stored else ""
            )
            chance = found.distance_by_chance
            measure = "" if chance != chance else f"; {chance:.4g} with the values of each tensor shuffled"
            lines.append(f"distance {found.distance:.4g}{stored}{measure}")
        if found.unaligned is not None and found.relation not in ("equal", "cast", "quantised"):
            lines.append(f"channels were not matched: {found.unaligned}")
        return lines

    def tables(self) -> list[Table]:
        """Tensors that differ, the most different first, and those that only one checkpoint has."""
        found = self.difference
        differing = sorted((x for x in found.tensors if not x.is_equal), key=_order)
        header = ("tensor", "shape", "dtypes", "distance", "cosine", "largest", "")
        rows = [_cells(x) for x in differing[:MAX_ROWS]]
        equal = len(found.tensors) - len(differing)
        lines = [f"{equal} of {len(found.tensors)} tensors are equal"]
        lines += [f"and {len(differing) - MAX_ROWS} more that differ: see --json"] if len(differing) > MAX_ROWS else []
        for where, names in (("first", found.only_first), ("other", found.only_other)):
            lines += [f"only in the {where}: {', '.join(names[:5])}{' ...' if names[5:] else ''}"] if names else []
        return [Table(header if rows else (), rows, caption="\n".join(lines))]

    def write(self, partial: Path) -> None:
        """Write difference.json, the picture and the run record."""
        (partial / "difference.json").write_text(self.to_json() + "\n", encoding="utf-8")
        if self.plots:
            from hf_sane.analysis._plots import plot_distances

            plot_distances([(x.name, x.distance) for x in self.difference.tensors], partial / "depth.png")
        super().write(partial)


def diff(first: Source, other: Source, **options: Any) -> DiffResult:
    """Compare two checkpoints: bit by bit, across types and prefixes, and after matching their channels.

    ```python
    print(hf_sane.diff("my_model", "org/their-model"))
    ```

    Args:
        first: A module, state dict, path or Hub repo id; or a LoRA adapter.
        other: What to compare it with.
        **options: Other fields of [`DiffSettings`].
    """
    return run_diff(DiffSettings(first=first, other=other, **options))


def run_diff(settings: DiffSettings) -> DiffResult:
    """Compare two checkpoints: say whether they are the same network, and otherwise where and how far they part.

    Channels are matched where the symmetries are known: from config.json, or with --module. Of two LoRA adapters the
    products of the factors are compared; one adapter is added to its base.
    """
    if settings.output is not None and settings.plots and find_spec("matplotlib") is None:
        raise ValueError("pictures need matplotlib: pip install 'hf_sane[analysis]', or give --no-plots")
    record = RunRecord.start(arguments=as_arguments(settings))
    settings.register()
    with optional_output(settings.output, DiffResult.JOB) as output:
        first, other = _both(settings)
        spec, why_not = None, "--no-align was given"
        outlines = getattr(first, "outlines", first)
        if settings.align and sum(tensor.numel() for tensor in outlines.values()) > MAX_ALIGNED_VALUES:
            why_not = f"the checkpoint has more than {MAX_ALIGNED_VALUES:,} values"
        elif settings.align:
            spec, why_not = find_symmetries(outlines, (settings.first, settings.other))
        found = compare_checkpoints(first, other, spec, why_not=why_not)
        record.finish({"relation": found.relation, "distance": _known(found.distance)})
        result = DiffResult(record=record, difference=found, plots=settings.plots)
        return output.write(result)


def _both(settings: DiffSettings) -> list[Mapping[str, Tensor]]:
    """Tensors of both checkpoints: of two adapters the products, of one the base with its product."""
    sources = [_checkpoint(source, settings) for source in (settings.first, settings.other)]
    adapters = [source for source in sources if isinstance(source, CheckpointSource) and are_adapters([source])]
    if len(adapters) == len(sources):
        return [_products(source, settings.base) for source in adapters]
    return [
        merge_adapter(source, settings.base)
        if isinstance(source, CheckpointSource) and source in adapters
        else open_checkpoint(source)
        for source in sources
    ]


def _checkpoint(source: Source, settings: DiffSettings) -> Source | CheckpointSource:
    if not isinstance(source, str | Path):
        return source
    find_source(source)  # says at once that there is no such thing
    return CheckpointSource(source, None, settings.subfolder, settings.variant, settings.key)


def _products(source: CheckpointSource, base: Source | None) -> dict[str, Tensor]:
    pairs = open_factors(source, base=base)
    return {name: b.flatten(1) @ a.flatten(1).to(b.dtype) for name, (a, b) in pairs.items()}


def _order(tensor: TensorDifference) -> float:
    return -tensor.distance if tensor.distance == tensor.distance else float("-inf")


def _known(value: float) -> float | None:
    return value if value == value else None


def _cells(tensor: TensorDifference) -> list[Any]:
    types = dict.fromkeys(tensor.dtypes)
    what = "cast" if tensor.is_cast else "quantised" if tensor.is_quantised else ""
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return [tensor.name, shape, " / ".join(types), tensor.distance, tensor.cosine, tensor.largest, what]
