"""Probe a zoo: predict properties of its networks from embeddings and the baselines W and s(W)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NotRequired, TypedDict

import numpy as np

from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.models.configuration_linear import Grouping
from hf_sane.models.modeling_linear import LinearCode
from hf_sane.probing._choice import SET_REGRESSORS
from hf_sane.probing._evaluation import ProbeResult as PropertyResult
from hf_sane.probing._evaluation import ProbeTable, table_to_dict
from hf_sane.probing._poolings import POOLINGS
from hf_sane.probing._transfer import TransferResult, TransferTable, transfer_table
from hf_sane.probing._zoo_features import ZooFeatures, read_zoo_features
from hf_sane.records._errors import name_some
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._preparation import fit_code
from hf_sane.workflows.results import Result, Table, optional_output
from hf_sane.workflows.sane import SANE, open_sane
from hf_sane.workflows.shared import CodecSettings, SaneSettings, ZooAlignmentSettings
from hf_sane.workflows.show_zoo import open_zoos
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo._facts import PROPERTIES_KEY
from hf_sane.zoo._settings import ZooSourceSettings

METRICS = {"r2": "R2", "kendall_tau": "Kendall tau", "mae": "mean absolute error"}
TRANSFER_METRICS = ("r2", "kendall_tau")
INTERVALS = "90% prediction intervals (share of test networks that are inside)"
USUAL = ("test_accuracy", "epoch", "generalization_gap")
POOLINGS_HELP = "Poolings of the latents, or 'all'."


@dataclass(kw_only=True)
class ProbeSettings(CodecSettings, SaneSettings, ZooSourceSettings, ZooAlignmentSettings):
    """Settings of [`probe`]."""

    zoo: str | Path | Zoo = setting("Zoo (folder or Hub repo id).")
    sane: str | Path | SANE | None = setting(
        "SANE (folder or Hub repo id); by default a linear code, which is fitted to the zoo.", default=None
    )
    output: Path | None = setting("New folder for the results and the run record.", default=None, short="-o")
    properties: list[str] = setting(
        "Columns of the zoo to predict; by default test_accuracy, epoch and generalization_gap, as far as they are "
        "known. Without test_accuracy, all imported numeric columns as well.",
        factory=list,
    )
    poolings: list[str] = setting(POOLINGS_HELP, factory=lambda: ["all"], choices=lambda: ("all", *POOLINGS))
    spectra: bool = setting("Add spectra of weight matrices as a baseline.", default=False, formerly="--spectral")
    profile: bool = setting(
        "Add layer profiles as baselines: quantiles of each layer's weights, with and without spectra.", default=False
    )
    linear: bool = setting(
        "Add embeddings of a linear code with the same latent_dim, fitted to the training networks.", default=False
    )
    regressor: Literal["ridge", "logit_linear", "gradient_boosting", "set_transformer", "best"] = setting(
        "Regression method that predicts properties from features; 'set_transformer' uses all tokens, and 'best' "
        "chooses between ridge, gradient boosting and the set transformer by leaving out training runs.",
        default="ridge",
    )
    ranks: bool = setting("Fit the ranks of properties instead of their values, to rank networks.", default=False)
    transfer: list[str | Path | Zoo] = setting(
        "More zoos (folders, Hub repo ids or FOLDER:CONFIG): probes are fitted on each zoo and tested on all. "
        "Repeat the option for several.",
        factory=list,
        split=False,
    )


class ProbeJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        probe: Scores by property and kind of features.
        transfer: Scores by property, kind of features, zoo to which the probe is fitted, and zoo on which it is
            tested.
    """

    probe: dict[str, dict[str, PropertyResult]]
    transfer: NotRequired[dict[str, dict[str, dict[str, dict[str, TransferResult]]]]]


@dataclass(kw_only=True)
class ProbeResult(Result):
    """Scores of probes on the test networks.

    Attributes:
        table: `{property: {features: ProbeResult}}`.
        transfer: `{property: {features: {fitted on: {tested on: ProbeResult}}}}`; empty unless more zoos are given.
    """

    JSON: ClassVar[Any] = ProbeJson
    JOB: ClassVar[str] = "probe"

    table: ProbeTable
    transfer: dict[str, TransferTable] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """One table per metric; for a transfer, one per property and metric."""
        names = list(self.table)
        is_ranked = self.record.arguments["ranks"]
        count = self.record.data["networks"]["test"]
        found = []
        for metric, title in METRICS.items():
            of_scores = " of normal scores" if is_ranked and metric != "kendall_tau" else ""
            rows = [
                [kind, *(getattr(self.table[name][kind], metric) for name in names)] for kind in self.table[names[0]]
            ]
            found.append(Table(("features", *names), rows, title=f"{title}{of_scores} on {count} test networks"))
        if any(result.margin is not None for row in self.table.values() for result in row.values()):
            rows = [[kind, *(_interval(self.table[name][kind]) for name in names)] for kind in self.table[names[0]]]
            found.append(Table(("features", *names), rows, title=INTERVALS))
        for name, table in self.transfer.items():
            for metric in TRANSFER_METRICS:
                rows = [
                    [f"{kind}: {source}", *(getattr(result, metric) for result in row.values())]
                    for kind, by_source in table.items()
                    for source, row in by_source.items()
                ]
                zoos = list(next(iter(table.values())))
                title = f"{METRICS[metric]} of {name}: fitted on the zoo of the row, tested on the zoo of the column"
                found.append(Table(("features: fitted on", *zoos), rows, title=title))
        return found


def _interval(result: PropertyResult) -> str:
    """Margin and coverage of prediction intervals."""
    return "" if result.margin is None else f"\N{PLUS-MINUS SIGN}{result.margin:.3g} ({result.coverage:.0%})"


def probe(zoo: str | Path | Zoo, sane: str | Path | SANE | None = None, **options: Any) -> ProbeResult:
    """Fit probes on embeddings and baselines, and score their predictions for the test networks.

    ```python
    print(hf_sane.probe("org/zoo", "org/sane-cnn", properties=["test_accuracy"]))
    ```

    Args:
        zoo: A zoo, its folder or its Hub repo id.
        sane: A SANE, its folder or its Hub repo id; by default a linear code, which is fitted to the zoo.
        **options: Other fields of [`ProbeSettings`].

    Raises:
        KeyError: If a zoo lacks a property.
        ValueError: If a zoo is given twice, or no network of a split has all properties.
    """
    return run_probe(ProbeSettings(zoo=zoo, sane=sane, **options))


def run_probe(settings: ProbeSettings) -> ProbeResult:
    """Fit probes on embeddings and baselines; report how well they predict properties of test networks."""
    if settings.transfer and settings.regressor in SET_REGRESSORS:
        raise ValueError(
            f"expected a regressor that transfers between zoos (ridge, logit_linear or gradient_boosting), got "
            f"{settings.regressor!r}; choose another one, or leave out --transfer"
        )
    record = RunRecord.start(arguments=as_arguments(settings))
    with optional_output(settings.output, ProbeResult.JOB) as output:
        zoos = open_zoos([settings.zoo, *settings.transfer], **settings.zoo_place)
        for split in (split for zoo in zoos.values() for split in zoo.splits.values()):
            for name in settings.properties:
                split.column(name)  # rejects properties that a zoo lacks, before anything is computed
        wanted = settings.properties or _known_properties(list(zoos.values()))
        notes = [] if settings.properties else _left_out(list(zoos.values()), wanted)
        _check_differ(zoos, wanted)
        settings = replace(settings, properties=wanted)
        record.arguments["properties"] = wanted
        codes = _open_codes(settings, next(iter(zoos.values())))
        found = {label: _features(zoo, codes, settings) for label, zoo in zoos.items()}
        first = next(iter(found.values()))
        table = first.probe(regressor=settings.regressor, ranks=settings.ranks)
        transfer = {name: _transfer(found, name, settings) for name in wanted} if len(found) > 1 else {}
        record.arguments["aligned"] = first.is_aligned
        record.finish(_measured(table, transfer), data={"networks": first.counts})
        result = ProbeResult(record=record, notes=[*notes, *first.notes], table=table, transfer=transfer)
        return output.write(result)


@dataclass(frozen=True)
class _Codes:
    """Tokenizer and codes that embed networks.

    Attributes:
        extractor: Weight tokenizer.
        sane: Autoencoder, if one is given.
        linear: Linear code, if wanted; the same for all zoos, since probes are transferred between them.
    """

    extractor: SANEFeatureExtractor
    sane: WeightAutoencoder | None
    linear: LinearCode | None


def _open_codes(settings: ProbeSettings, zoo: Zoo) -> _Codes:
    """Open the SANE; fit the linear code to a zoo, by kind of layer if it has one layout, otherwise to all tokens."""
    sane = None if settings.sane is None else open_sane(settings.sane, **settings.sane_place)
    if sane is not None and not settings.linear:
        return _Codes(sane.extractor, sane.model, None)
    grouping: Grouping = "kind" if len(zoo.facts.parsed_layouts) == 1 else "all"
    extractor, model, latent_dim = None, None, None
    if sane is not None:
        extractor, model = sane.extractor, sane.model
        grouping, latent_dim = model.linear_rival(grouping)
    linear, extractor = fit_code([zoo.splits["train"]], extractor, latent_dim=latent_dim, grouping=grouping)
    return _Codes(extractor, model, linear)


def _features(zoo: Zoo, codes: _Codes, settings: ProbeSettings) -> ZooFeatures:
    return read_zoo_features(
        zoo,
        settings.properties,
        codes.sane,
        codes.extractor,
        aligned=settings.align,
        poolings=settings.poolings,
        **settings.windows,
        spectral=settings.spectra,
        profile=settings.profile,
        linear=codes.linear,
        tokens=settings.regressor in SET_REGRESSORS,
    )


def _transfer(zoos: dict[str, ZooFeatures], name: str, settings: ProbeSettings) -> TransferTable:
    shared = set.intersection(*(set(found.features) for found in zoos.values()))
    features = {
        zoo: {kind: values for kind, values in found.features.items() if kind in shared} for zoo, found in zoos.items()
    }
    targets = {zoo: found.targets[name] for zoo, found in zoos.items()}
    regressor = settings.regressor
    assert regressor != "set_transformer"
    assert regressor != "best"
    return transfer_table(features, targets, regressor=regressor, ranks=settings.ranks)


def _measured(table: ProbeTable, transfer: dict[str, TransferTable]) -> dict[str, Any]:
    measured: dict[str, Any] = {"probe": table_to_dict(table)}
    if transfer:
        measured["transfer"] = {
            name: {
                kind: {source: {zoo: result.to_dict() for zoo, result in row.items()} for source, row in found.items()}
                for kind, found in of_property.items()
            }
            for name, of_property in transfer.items()
        }
    return measured


def _known_properties(zoos: Sequence[Zoo]) -> list[str]:
    """Properties that can be predicted in all zoos: the defaults, or without accuracies all imported numbers."""
    brought = [name for zoo in zoos for name in zoo.facts.data.get(PROPERTIES_KEY, {}).get("columns", {})]
    known = [
        name
        for name in dict.fromkeys((*USUAL, *brought))
        if all(_is_known(split, name) for zoo in zoos for split in zoo.splits.values())
    ]
    if USUAL[0] in known:
        return [name for name in known if name in USUAL]
    if known:
        return known
    if differing := [name for name in dict.fromkeys(brought) if any(_is_number(zoo, name) for zoo in zoos)]:
        raise ValueError(
            f"expected a property that is known of all networks and differs within every split, got "
            f"{name_some(differing)}, of which none is and does; import more networks, or name one (--properties)"
        )
    return list(USUAL)  # whose error says what is missing


def _is_number(zoo: Zoo, name: str) -> bool:
    return any(np.isfinite(_numbers(split, name)).any() for split in zoo.splits.values())


def _check_differ(zoos: Mapping[str, Zoo], names: Sequence[str]) -> None:
    """Raise an error for a property that all test networks share, since predictions of it cannot be scored."""
    for label, zoo in zoos.items():
        for name in names:
            values = _numbers(zoo.splits["test"], name)
            known = values[np.isfinite(values)]
            if len(known) and len(set(known.tolist())) == 1:
                raise ValueError(
                    f"expected test networks that differ in {name}, got {known[0]:g} for all {len(known)} in {label}; "
                    "import or build more networks, or choose other properties (--properties)"
                )


def _is_known(split: ZooSplit, name: str) -> bool:
    values = _numbers(split, name)
    return bool(np.isfinite(values).all()) and len(set(values.tolist())) > 1


def _left_out(zoos: Sequence[Zoo], chosen: Sequence[str]) -> list[str]:
    """A note on usual properties that are known of some networks only, such as the last of each run."""
    splits = [split for zoo in zoos for split in zoo.splits.values()]
    total = sum(map(len, splits))
    counts = {name: [int(np.isfinite(_numbers(split, name)).sum()) for split in splits] for name in USUAL}
    partly = {name: sum(found) for name, found in counts.items() if name not in chosen and all(found)}
    return [
        f"{name} is known of {known} of {total} networks only, and was left out; name it to predict that of those "
        f"(--properties {name})"
        for name, known in partly.items()
        if known < total
    ]


def _numbers(split: ZooSplit, name: str) -> np.ndarray:
    """A column as numbers, NaN where it has none."""
    if name not in split.table.scalar_columns or split.column(name).dtype.kind not in "iuf":
        return np.full(len(split), np.nan)
    return split.column(name).astype(np.float64)


__all__ = ["ProbeResult", "probe"]
