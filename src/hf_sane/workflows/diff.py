"""Compare two checkpoints tensor by tensor, and up to changes that do not affect the network's outputs."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_sane.core._named_tensors import outlines
from hf_sane.networks._modules import ModuleSettings
from hf_sane.records._errors import name_some
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.screening._differences import Difference, compare_checkpoints
from hf_sane.screening._float8 import readable
from hf_sane.screening._names import pair_names
from hf_sane.screening._outputs import output_difference
from hf_sane.screening._symmetries import find_symmetries
from hf_sane.screening._tensor_differences import EPS, TensorDifference
from hf_sane.symmetry._experts import Symmetries
from hf_sane.tokenization._adapter_changes import open_factors
from hf_sane.tokenization._checkpoints import CheckpointSource, Source
from hf_sane.tokenization._loading import load_config
from hf_sane.workflows.results import Result, Table, optional_output
from hf_sane.workflows.schemas import Fields
from hf_sane.workflows.search import LIKENESS
from hf_sane.workflows.shared import AlignmentSettings, PlotSettings, WeightsSettings, is_adapter, open_network

if TYPE_CHECKING:
    import pandas as pd

SAME = ("equal", "cast", "rounded", "quantised", "permuted", "rescaled")  # relations of the same network
MAX_ROWS = 60  # most different tensors to print
VERDICTS = {
    "equal": "the same network, bit by bit",
    "cast": "the same network in another precision: equal in the coarser of the two types",
    "rounded": "the same network up to rounding errors, as after merging an adapter twice",
    "quantised": "the same network, quantised: one is the other, with every value rounded to the nearest of a few",
    "permuted": "the same network: equal once the channels are in the same order",
    "rescaled": "the same network up to positive scales of its channels, provided its activation is ReLU or none",
    "other scales": "equal but for positive scales of its channels, which change the outputs: not the same function",
    "low rank": "equal but for changes of low rank, as after merging a LoRA adapter",
    "partly equal": "partly equal: one was made from the other, or both from a third",
    "close": "closer than independent networks: one was probably trained from the other, or both from a third",
    "far": "far apart, but closer than independent networks of the same size",
    "unrelated": "as far apart as independent networks",
    "undecided": "undecided: far apart as stored, but the channels were not matched; by their fingerprints, ",
}
ALIGNED = "undecided: far apart even with the channels matched, but by their fingerprints, "
UNTOLD = "undecided: nothing in common but constants and tables that any network has, such as sinusoids"
# Settings of Transformers that do not change outputs.
HARMLESS = ("architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config", "use_cache")
HARMLESS_PARTS = ("dropout", "label", "token_id", "return_dict", "output_")
# Settings that name the activation, and activations `f` with `f(c x) = c f(x)` for positive `c`.
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation", "dense_act_fn")
HOMOGENEOUS = ("relu", "leaky_relu", "linear", "identity")
SAME_OUTPUTS = 1e-8  # relative difference of outputs of the same function, computed in double precision
PROVEN = "the same network up to positive scales of its channels: their outputs on random inputs are the same"
PRODUCTS = "the same change of the base: the products of the factors are equal up to rounding"


@dataclass(kw_only=True)
class DiffSettings(ModuleSettings, WeightsSettings, AlignmentSettings, PlotSettings):
    """Settings of [`diff`]."""

    checkpoint: Source = setting(
        "Checkpoint (file, folder or Hub repo id) or LoRA adapter.", positional=True, formerly="first"
    )
    other: Source = setting("Checkpoint or adapter to compare it with.", positional=True)
    output: Path | None = setting(
        "New folder for the comparison, a plot and the run record.", default=None, short="-o"
    )
    base: str | None = setting(
        "Base model of an adapter that is compared with a model (by default the one that it names), or of two "
        "adapters "
        "whose changes depend on it (DoRA).",
        default=None,
    )
    align: bool = setting("Undo permutations and scales of channels if the symmetries are known.", default=True)


@dataclass(kw_only=True)
class DiffResult(Result):
    """How two checkpoints differ.

    Attributes:
        difference: Relation, distances and tensors.
        plots: Whether to draw a plot.
        are_products: Whether products of the factors of adapters were compared.
        other_settings: Settings in config.json that differ although the weights are the same.
        has_same_outputs: Whether outputs of rescaled networks were compared, and are the same.
    """

    JSON: ClassVar[Any] = Annotated[
        Difference,
        Fields(
            tensors=list[Annotated[TensorDifference, Fields(distance=float)]],
            verdict=Annotated[str, "The relation, as a sentence."],
        ),
    ]
    JOB: ClassVar[str] = "comparison"

    difference: Difference
    plots: bool = True
    are_products: bool = False
    other_settings: list[str] = field(default_factory=list)
    has_same_outputs: bool = False

    @property
    def verdict(self) -> str:
        """How the two checkpoints are related, as a sentence."""
        found = self.difference
        if found.relation == "undecided" and found.likeness is None:
            return UNTOLD
        if found.relation == "undecided":
            start = ALIGNED if found.unaligned is None else VERDICTS["undecided"]
            return start + LIKENESS[found.likeness or "other"]
        if found.relation == "rounded" and self.are_products:
            return PRODUCTS
        verdict = VERDICTS[found.relation or "unrelated"]
        verdict = PROVEN if found.relation == "rescaled" and self.has_same_outputs else verdict
        if self.other_settings:
            verdict = verdict.replace("the same network", "the same weights")
        how = [text for text, holds in (("reordered", found.is_permuted), ("rescaled", found.is_rescaled)) if holds]
        counters = [x.name for x in found.tensors if not (x.shape or x.holds_weights or x.is_same)]
        if counters and found.relation in SAME:
            return f"{verdict}, apart from {name_some(counters)}"
        after = f" (channels {' and '.join(how)} before the comparison)" if how else ""
        return verdict + after

    def to_dict(self) -> dict[str, Any]:
        """Relation, verdict, distances and tensors."""
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
        if any(found.equal_shares) and found.relation not in SAME:
            mine, theirs = map(_percent, found.equal_shares)
            lines.append(f"{mine} of the weights of the first and {theirs} of the other are equal in both")
        if ranks := sorted(x.rank for x in found.tensors if x.rank is not None):
            of = f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks from {ranks[0]} to {ranks[-1]}"
            lines.append(f"low rank of the difference: {of}, in {len(ranks)} of {len(found.tensors)} tensors")
        if math.isnan(found.distance):
            broken = [x.name for x in found.tensors if math.isnan(x.distance)]
            lines.append(f"the distance is undefined: NaN or infinite weights in {name_some(broken)}")
        elif found.relation != "equal":
            stored = (
                f" ({found.distance_as_stored:.4g} as stored)" if found.distance != found.distance_as_stored else ""
            )
            chance = found.distance_by_chance
            measure = "" if chance != chance else f"; {chance:.4g} with the values of each tensor shuffled"
            lines.append(f"distance {found.distance:.4g}{stored}{measure}")
        if found.tables and found.relation != "undecided":
            lines.append(
                f"not evidence, as their values follow from a rule (sinusoids, equal rows): {name_some(found.tables)}"
            )
        if found.unaligned is not None and found.relation not in SAME:
            lines.append(f"channels were not matched: {found.unaligned}")
        return lines

    def tables(self) -> list[Table]:
        """Tensors that differ, sorted by distance, and tensors that only one checkpoint has."""
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
        """Write difference.json and the run record."""
        (partial / "difference.json").write_text(self.to_json() + "\n", encoding="utf-8")
        super().write(partial)

    def draw(self, partial: Path) -> None:
        """Draw depth.png."""
        if self.plots:
            from hf_sane.analysis._plots import plot_distances

            plot_distances([(x.name, x.distance) for x in self.difference.tensors], partial / "depth.png")


def diff(checkpoint: Source, other: Source, **options: Any) -> DiffResult:
    """Compare two checkpoints: bit by bit, across dtypes and name prefixes, and after matching their channels.

    ```python
    print(hf_sane.diff("my_model", "org/their-model"))
    ```

    Args:
        checkpoint: A module, state dict, path, Hub repo id or LoRA adapter.
        other: Checkpoint to compare it with.
        **options: Other fields of [`DiffSettings`].
    """
    return run_diff(DiffSettings(checkpoint=checkpoint, other=other, **options))


def run_diff(settings: DiffSettings) -> DiffResult:
    """Compare two checkpoints: say whether they are the same network, and if not, where and how much they differ.

    Channels are matched if the symmetries are known, from config.json or with --module. Two LoRA adapters are compared
    by the products of their factors; a single adapter is added to its base model first.
    """
    if settings.output is not None:
        settings.check_matplotlib()
    record = RunRecord.start(arguments=as_arguments(settings))
    settings.register()
    with optional_output(settings.output, DiffResult.JOB) as output:
        first, other, tolerance = _both(settings)
        are_products = tolerance is not None
        symmetries, why_not = None, "" if are_products else "--no-align was given"
        if settings.align and not are_products:
            symmetries, why_not = _symmetries(settings, first, other)
        rescaled: dict[str, Tensor] = {}
        found = compare_checkpoints(
            first,
            other,
            symmetries,
            why_not=why_not,
            tolerance=tolerance or EPS,
            finds_ranks=not are_products,
            keep_rescaled=rescaled.update,
        )
        record.finish({"relation": found.relation, "distance": _known(found.distance)})
        result = DiffResult(record=record, difference=found, plots=settings.plots, are_products=are_products)
        if found.relation in SAME and not are_products and (names := _other_settings(settings)):
            result.other_settings = names
            result.notes.append(f"the weights are the same, but config.json differs in {name_some(names)}")
        if found.relation in SAME and found.is_rescaled:
            result.notes += _check_outputs(settings, result, other, rescaled)
        return output.write(result)


def _check_outputs(
    settings: DiffSettings, result: DiffResult, other: Mapping[str, Tensor], rescaled: Mapping[str, Tensor]
) -> list[str]:
    """Compare the outputs of a network before and after its scales were undone.

    They are the same only if the activation is homogeneous, whatever the precision in which the weights are stored.

    Returns:
        Notes about the outputs, or the activation.
    """
    config = _config(settings)
    if config is None:
        return []
    stored = {x.name: readable(other[x.other_name]) for x in result.difference.tensors}
    gap = output_difference(config, stored, rescaled)
    activation = _activation(config)
    if gap is not None:
        result.has_same_outputs = gap <= SAME_OUTPUTS
        if not result.has_same_outputs:
            result.difference = replace(result.difference, relation="other scales")
            why = f", as the activation {activation} is not homogeneous" if activation else ""
            return [f"on random inputs, outputs differ by {gap:.2g} of the largest one{why}"]
    elif activation:
        return [
            f"config.json names the activation {activation}: scales of channels before it change the outputs, but "
            "not those of linear ones, such as the values of attention or the factor beside a gate"
        ]
    return []


def _config(settings: DiffSettings) -> PreTrainedConfig | None:
    """The configuration of one of the two networks."""
    for source in (settings.checkpoint, settings.other):
        if isinstance(source, str | Path) and not Path(source).is_file():
            with suppress(OSError, TypeError, ValueError):
                return load_config(source)
    return None


def _activation(config: PreTrainedConfig) -> str:
    """The activation that a configuration names, if it is not positively homogeneous; empty if none is named."""
    values = config.to_dict()
    named = [values[name] for name in ACTIVATIONS if isinstance(values.get(name), str)]
    return next((name for name in named if name not in HOMOGENEOUS), "")


def _both(settings: DiffSettings) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], float | None]:
    """Tensors of both checkpoints, of an adapter with its base.

    Of two adapters: the products of their factors, and the rounding error of these.
    """
    sources = [settings.selected(source) for source in (settings.checkpoint, settings.other)]
    adapters = [source for source in sources if isinstance(source, CheckpointSource) and is_adapter(source)]
    if len(adapters) == len(sources):
        (first, mine), (other, theirs) = (_products(source, settings.base) for source in adapters)
        return first, other, max(EPS, mine, theirs)
    return open_network(sources[0], settings.base), open_network(sources[1], settings.base), None


def _products(source: CheckpointSource, base: Source | None) -> tuple[dict[str, Tensor], float]:
    """Products of the factors, and the relative rounding error of these."""
    pairs = open_factors(source, base=base)
    error = max((torch.finfo(a.dtype).eps for a, _ in pairs.values()), default=0.0)
    return {name: b.flatten(1) @ a.flatten(1).to(b.dtype) for name, (a, b) in pairs.items()}, error


def _symmetries(
    settings: DiffSettings, first: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> tuple[Symmetries | None, str]:
    """Symmetries of the first, or else of the other under the names of the first."""
    sources, limit = (settings.checkpoint, settings.other), settings.max_aligned
    symmetries, why_not = find_symmetries(outlines(first), sources, max_weights=limit)
    if symmetries is None:
        theirs, _ = find_symmetries(outlines(other), sources, max_weights=limit)
        pairs = pair_names(outlines(first), outlines(other))
        if theirs is not None and pairs:
            known = set(theirs.names)
            return theirs.select({name: stored for name, stored in pairs.items() if stored in known}), ""
    return symmetries, why_not


def _other_settings(settings: DiffSettings) -> list[str]:
    """Names of settings that differ, with which equal weights are not the same network."""
    found = []
    for source in (settings.checkpoint, settings.other):
        if not isinstance(source, str | Path) or Path(source).is_file():
            return []
        try:
            found.append(load_config(source).to_dict())
        except (OSError, TypeError, ValueError):
            return []
    names = [
        name
        for name in sorted(set().union(*found))
        if not (name.startswith("_") or name in HARMLESS or any(part in name for part in HARMLESS_PARTS))
    ]
    return [name for name in names if found[0].get(name) != found[1].get(name)]


def _order(tensor: TensorDifference) -> float:
    return -tensor.distance if tensor.distance == tensor.distance else float("-inf")


def _percent(share: float) -> str:
    """A share that is rounded to neither all nor nothing."""
    return f"{min(max(share, 0.001), 0.999):.1%}" if 0 < share < 1 else f"{share:.0%}"


def _known(value: float) -> float | None:
    return value if value == value else None


def _cells(tensor: TensorDifference) -> list[Any]:
    types = dict.fromkeys(tensor.dtypes)
    kinds = {"cast": tensor.is_cast, "rounded": tensor.is_rounding, "quantised": tensor.is_quantised}
    kinds[f"rank {tensor.rank}"] = tensor.rank is not None
    what = next((kind for kind, holds in kinds.items() if holds), "")
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return [tensor.name, shape, " / ".join(types), tensor.distance, tensor.cosine, tensor.largest, what]


__all__ = ["DiffResult", "diff"]
