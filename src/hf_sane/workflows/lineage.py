"""Find out which networks were made from which others, and whether their cards agree."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from huggingface_hub import HfApi
from torch import Tensor

from hf_sane.core._adapters import read_adapter_config
from hf_sane.core._named_tensors import outlines
from hf_sane.networks._modules import ModuleSettings
from hf_sane.records._errors import describe_skipped, name_some, shorten
from hf_sane.records._patience import patiently
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, as_list, setting
from hf_sane.records._sources import HubRepo, find_source
from hf_sane.screening._checkpoints import CARD, WEIGHT_SUFFIXES
from hf_sane.screening._lineage import Lineage, trace_lineage
from hf_sane.screening._symmetries import find_symmetries
from hf_sane.symmetry._experts import Symmetries
from hf_sane.tokenization._adapters import adapter_folder
from hf_sane.tokenization._checkpoints import CheckpointSource, Source
from hf_sane.workflows.folders import networks_in
from hf_sane.workflows.results import Result, Table, optional_output
from hf_sane.workflows.schemas import Fields
from hf_sane.workflows.shared import AlignmentSettings, PlotSettings, WeightsSettings, is_adapter, open_network
from hf_sane.zoo.importing._cards import CardFacts

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
Verdict = Literal["supported", "contradicted", "unknown"]
LIKELY, SURE = 0.5, 0.8  # least confidence that supports a claim, and that turns it around
STRANGERS = 0.97  # share of the pairs in different families that are unrelated: benchmarks/lineage_trees.py


@dataclass(kw_only=True)
class LineageSettings(ModuleSettings, WeightsSettings, AlignmentSettings, PlotSettings):
    """Settings of [`lineage`]."""

    checkpoints: list[Source] = setting(
        "Two or more checkpoints (files, folders or Hub repo ids) or LoRA adapters; a folder may hold several.",
        positional=True,
        formerly="sources",
    )
    output: Path | None = setting(
        "New folder for the family trees, a plot and the run record.", default=None, short="-o"
    )
    base: str | None = setting(
        "Base model of LoRA adapters; by default the one that each adapter names.", default=None
    )
    claims: bool = setting("Check the base models that the cards name.", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.checkpoints) < 2 and not any(map(_is_folder, self.checkpoints)):
            raise ValueError(
                f"expected at least two checkpoints, got {len(self.checkpoints)}; name each one, or their folder"
            )


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The origin of a network according to its card, and according to its weights.

    Attributes:
        network: The network.
        base_model: The base model that its card names.
        verdict: Whether the weights support the card.
        confidence: Confidence in the verdict; 0 if it is unknown.
        reason: The reason, as the end of a sentence.
    """

    network: str
    base_model: str
    verdict: Verdict
    confidence: float
    reason: str


@dataclass(kw_only=True)
class LineageResult(Result):
    """Which networks were made from which others.

    Attributes:
        lineage: Family trees, and the confidence in their edges.
        claims: Claims of the cards.
        plots: Whether the trees are plotted.
    """

    JSON: ClassVar[Any] = Annotated[
        Lineage,
        Fields(
            roots=Annotated[list[str], "Networks without a parent among the others."],
            claims=Annotated[list[Claim], "Claims of cards (--claims)."],
        ),
    ]
    JOB: ClassVar[str] = "lineage"

    lineage: Lineage
    claims: list[Claim] = field(default_factory=list)
    plots: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Descents, roots, families, alignments and claims."""
        found = self.lineage
        descents = [asdict(descent) | {"parents": list(descent.parents)} for descent in found.descents]
        return {
            "descents": descents,
            "roots": list(found.roots),
            "families": [list(family) for family in found.families],
            "aligned": dict(found.aligned),
            "unaligned": dict(found.unaligned),
            "doubtful": {name: list(others) for name, others in found.doubtful.items()},
            "skipped": dict(found.skipped),
            "claims": list(map(asdict, self.claims)),
        }

    def to_frame(self) -> "pd.DataFrame":
        """One row per child and parent, as a pandas table."""
        import pandas as pd

        rows = [
            {
                "child": x.child,
                "parent": parent,
                "change": x.change,
                "distance": x.distance,
                "confidence": x.confidence,
            }
            for x in self.lineage.descents
            for parent in x.parents
        ]
        return pd.DataFrame(rows, columns=["child", "parent", "change", "distance", "confidence"])

    def summary(self) -> list[str]:
        """The trees, as indented lines, and whose channels were not matched."""
        lines = [line for root in self.lineage.roots for line in _branch(self.lineage, root, 0)]
        none = (
            "no network was found to be derived from another one" if self.lineage.families else "no network was read"
        )
        lines += [] if self.lineage.descents else [none]
        for reason in dict.fromkeys(self.lineage.unaligned.values()):
            names = [name for name, why in self.lineage.unaligned.items() if why == reason]
            lines.append(f"channels were not matched for {name_some(names)}: {reason}")
        for name, others in self.lineage.doubtful.items():
            lines.append(f"{name} is undecided: far from {name_some(others)}, but their fingerprints are alike")
        return [*lines, *(describe_skipped(*item) for item in self.lineage.skipped.items())]

    def tables(self) -> list[Table]:
        """Claims, if there are any."""
        rows = [[x.network, x.base_model, x.verdict, x.confidence or None, x.reason] for x in self.claims]
        return [Table(("network", "base model of its card", "verdict", "confidence", ""), rows)] if rows else []

    def write(self, partial: Path) -> None:
        """Write lineage.json and the run record."""
        (partial / "lineage.json").write_text(self.to_json() + "\n", encoding="utf-8")
        super().write(partial)

    def draw(self, partial: Path) -> None:
        """Draw trees.svg."""
        if self.plots:
            from hf_sane.analysis._plots import plot_trees

            edges = {
                (x.child, parent): (x.change, x.confidence) for x in self.lineage.descents for parent in x.parents
            }
            plot_trees(self.lineage.families, edges, partial / "trees.svg")


def lineage(*checkpoints: Source | Sequence[Source], **options: Any) -> LineageResult:
    """Find out from weights alone which networks were fine-tuned, pruned, quantised or averaged from which others.

    ```python
    print(hf_sane.lineage("org/base", "me/tuned", "you/pruned", claims=True))
    ```

    Args:
        *checkpoints: Modules, state dicts, paths (also of a folder of several networks) or Hub repo ids, or lists of
            them.
        **options: Other fields of [`LineageSettings`].
    """
    named = [source for several in checkpoints for source in as_list(several)]
    return run_lineage(LineageSettings(checkpoints=named, **options))


def run_lineage(settings: LineageSettings) -> LineageResult:
    """Find family trees of networks from their weights alone.

    Channels are matched if the symmetries are known, from config.json or with --module. LoRA adapters are added to
    their base. Sources that cannot be read are listed, also with the claims of their cards.
    """
    if settings.output is not None:
        settings.check_matplotlib()
    record = RunRecord.start(arguments=as_arguments(settings))
    settings.register()
    with optional_output(settings.output, LineageResult.JOB) as output:
        sources = dict(_named(settings))
        if len(sources) == len(settings.checkpoints) == 1:
            raise ValueError(f"expected at least two checkpoints, got {', '.join(sources)} alone; name another one")
        networks, skipped = _opened(settings, sources)
        if len(networks) == 1 and not (settings.claims and skipped):
            reasons = "; ".join(_reasons(skipped)[:3]) or "all sources are the same"
            raise ValueError(f"expected at least two networks, found one that can be read: {reasons}")
        found = trace_lineage(networks, partial(_symmetries, networks, sources, settings.max_aligned))
        found = replace(found, skipped={**skipped, **found.skipped})
        claims = list(_claims(found, sources)) if settings.claims else []
        if not found.families and not claims:
            raise ValueError(f"expected networks, found none that can be read: {name_some(_reasons(found.skipped))}")
        record.finish({"networks": len(networks), "trees": len(found.roots)})
        return output.write(LineageResult(record=record, lineage=found, claims=claims, plots=settings.plots))


def _is_folder(source: Source) -> bool:
    return isinstance(source, str | Path) and Path(source).is_dir()


def _named(settings: LineageSettings) -> Iterator[tuple[str, Source]]:
    seen: set[Path] = set()
    sources = [found for given in settings.checkpoints for found in networks_in(given, settings, with_empty=True)]
    for number, source in enumerate(sources, start=1):
        if isinstance(source, str | Path) and Path(source).exists():
            if (place := Path(source).resolve()) in seen:
                continue
            seen.add(place)
        yield str(source) if isinstance(source, str | Path) else f"network {number}", source


def _opened(
    settings: LineageSettings, sources: Mapping[str, Source]
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, str]]:
    """Networks, and what could not be read, with the reason."""
    networks: dict[str, Mapping[str, Tensor]] = {}
    skipped: dict[str, str] = {}
    for name in sources:
        try:
            networks[name] = _open(settings, name, sources)
        except (OSError, TypeError, ValueError) as error:
            skipped[name] = shorten(error, 400)
    return networks, skipped


def _open(settings: LineageSettings, name: str, sources: Mapping[str, Source]) -> Mapping[str, Tensor]:
    """Tensors of a network; an adapter whose base cannot be found is added to the network that has the base's name."""
    source = settings.selected(sources[name])
    try:
        return open_network(source, settings.base)
    except OSError:
        if settings.base is not None or not isinstance(source, CheckpointSource) or not is_adapter(source):
            raise
        base = read_adapter_config(adapter_folder(source)).get("base_model_name_or_path")
        named = _named_as(str(base), [other for other in sources if other != name]) if base else []
        if len(named) != 1 or not Path(named[0]).exists():
            raise
        logger.warning(
            "%s: its base %s was not found; it is added to %s, which has the same name", name, base, named[0]
        )
        return open_network(source, named[0])


def _reasons(skipped: Mapping[str, str]) -> list[str]:
    return [f"{name} ({reason})" for name, reason in skipped.items()]


def _symmetries(
    networks: Mapping[str, Mapping[str, Tensor]], sources: Mapping[str, Source], max_weights: int, name: str
) -> tuple[Symmetries | None, str]:
    return find_symmetries(outlines(networks[name]), (sources[name],), max_weights=max_weights)


def _claims(found: Lineage, sources: Mapping[str, Source]) -> Iterator[Claim]:
    """The claims of the cards, with verdicts."""
    for name, source in sources.items():
        try:
            bases = _base_models(source)
        except (OSError, ValueError) as error:
            yield Claim(
                network=name,
                base_model="",
                verdict="unknown",
                confidence=0.0,
                reason=f"its card cannot be read: {shorten(error)}",
            )
            continue
        for base in dict.fromkeys(bases):
            verdict, confidence, reason = _judge(found, name, base, sources)
            yield Claim(network=name, base_model=base, verdict=verdict, confidence=confidence, reason=reason)


def _base_models(source: Source) -> tuple[str, ...]:
    if not isinstance(source, str | Path):
        return ()
    place = find_source(source)
    if isinstance(place, HubRepo):
        info = patiently(HfApi().model_info, place.repo_id, revision=place.revision)
        return CardFacts.from_info(info).base_models
    card = (place.parent if place.is_file() and _is_alone(place) else place) / CARD
    return CardFacts.from_file(card).base_models if card.is_file() else ()


def _is_alone(file: Path) -> bool:
    """Whether a file is the only one in its folder that is named like weights, so that a card there is its own."""
    return not any(x != file and x.name.lower().endswith(WEIGHT_SUFFIXES) for x in file.parent.iterdir())


def _judge(found: Lineage, name: str, base: str, sources: Mapping[str, Source]) -> tuple[Verdict, float, str]:
    named = _named_as(base, [other for other in sources if other != name])
    if len(named) != 1:
        missing = "only the network itself has its name" if _named_as(base, [name]) else "it is not among the networks"
        return "unknown", 0.0, "several networks have its name" if named else missing
    if name in found.skipped or named[0] in found.skipped:
        return "unknown", 0.0, f"{'the network' if name in found.skipped else 'it'} could not be compared"
    other = named[0]
    above = found.ancestors(name).get(other, 0.0)
    below = found.ancestors(other).get(name, 0.0)
    if above > LIKELY:
        return "supported", above, "it is an ancestor"
    if below >= SURE:
        return "contradicted", below, "it was made from this network"
    if other not in found.family_of(name):
        if name in found.unaligned or other in found.unaligned:
            return "unknown", 0.0, "their weights are far apart, but their channels were not matched"
        if other in found.doubtful.get(name, ()) or name in found.doubtful.get(other, ()):
            return "unknown", 0.0, "their weights are far apart, but their fingerprints are alike"
        return "contradicted", STRANGERS, "their weights are not related"
    return "unknown", 0.0, "they are related, but it is uncertain which came first"


def _named_as(base: str, others: Sequence[str]) -> list[str]:
    """Networks with the name of a base model: exactly; or else by owner and name, or by name alone."""
    wanted = Path(base.partition("@")[0]).parts
    for count in (len(wanted), 2, 1):
        if found := [x for x in others if any(path.parts[-count:] == wanted[-count:] for path in _names(x))]:
            exact = [other for other in found if other == base]
            return exact or found
    return []


def _names(network: str) -> list[Path]:
    """The path of a network, and its folder if it is alone there; the id of a repository."""
    path = Path(network)
    if not path.exists():
        return [Path(network.partition("@")[0])]
    return [path, path.parent] if path.is_file() and _is_alone(path) else [path]


def _branch(found: Lineage, name: str, depth: int) -> Iterator[str]:
    descent = next((x for x in found.descents if x.child == name), None)
    how = ""
    if descent is not None:
        others = f" of {' and '.join(descent.parents)}" if len(descent.parents) > 1 else ""
        how = f" ({descent.change}{others}, distance {descent.distance:.3g}, confidence {descent.confidence:.2f})"
    elif len(family := found.family_of(name)) > 1 and (first := next(x for x in family if x in found.roots)) != name:
        how = f" (related to {first}, but its parent is not among them)"
    how += f" [channels {found.aligned[name]}]" if name in found.aligned else ""
    yield "  " * depth + name + how
    for child in found.descents:
        if child.parents[0] == name:
            yield from _branch(found, child.child, depth + 1)


__all__ = ["Claim", "LineageResult", "lineage"]
