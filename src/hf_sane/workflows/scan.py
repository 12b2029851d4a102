"""Scan checkpoints for faults, using a sample of their weights."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NotRequired, TypedDict
from urllib.parse import quote

from hf_sane.cards._tables import fact_text
from hf_sane.records._command import again
from hf_sane.records._errors import name_some, shorten
from hf_sane.records._escaping import markdown_text
from hf_sane.records._failures import describe_error
from hf_sane.records._file_kinds import SARIF
from hf_sane.records._outputs import check_may_replace, output_file
from hf_sane.records._processes import divided
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, as_list, setting
from hf_sane.records._sources import parse_source
from hf_sane.screening._checkpoints import DANGLING, RESTORE, WEIGHT_SUFFIXES, is_dangling, is_loop, targets_in
from hf_sane.screening._conditions import FOUND_ELSEWHERE, find_failures, parse_condition, sentence_of
from hf_sane.screening._embedding import Encoder, SampledEmbedding
from hf_sane.screening._finding import SEVERITIES, Finding
from hf_sane.screening._findings import RULES
from hf_sane.screening._fingerprints import fingerprint
from hf_sane.screening._index import INDEX, NetworkIndex
from hf_sane.screening._known_models import KnownModels, embed_known_models, read_known_models
from hf_sane.screening._scan import SamplingSettings, Scan, scan_checkpoint
from hf_sane.screening._statistics import TensorStatistics
from hf_sane.tokenization._checkpoints import CheckpointSource
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._kept_ranges import kept_bytes
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint
from hf_sane.workflows.folders import networks_in
from hf_sane.workflows.results import FINDING, Result, Table, optional_output
from hf_sane.workflows.sane import SANE, open_sane
from hf_sane.workflows.schemas import Fields
from hf_sane.workflows.shared import BUNDLE, CheckpointSettings, SaneSettings, WorkerSettings
from hf_sane.workflows.show_zoo import is_zoo, load_zoo
from hf_sane.zoo._dataset import Zoo

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 40  # tensors to print
MAX_SKIPPED = 10  # skipped tensors and files to print
LEVELS = {"error": "error", "warning": "warning", "note": "note"}  # of SARIF
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


@dataclass(kw_only=True)
class ScanSettings(SamplingSettings, CheckpointSettings, SaneSettings, WorkerSettings):
    """Settings of [`scan`]."""

    checkpoints: list[str] = setting(
        "Checkpoints: files, folders or Hub repo ids. A folder that is not a checkpoint itself stands for all "
        "checkpoints in it.",
        positional=True,
        formerly="sources",
    )
    output: Path | None = setting(
        "New folder for the report (JSON, Markdown, SARIF) and the run record.", default=None, short="-o"
    )
    sarif: Path | None = setting(
        "File for the findings in SARIF 2.1.0, which code hosts display; may replace an earlier one.", default=None
    )
    fail_on: list[str] = setting(
        "Findings that set the exit code to 1: names of rules (nan), severities (error, warning, note), or "
        "conditions on a tensor, such as 'alpha>8' or 'std>1', which are also met if the value was not measured; "
        "'never' for none.",
        factory=lambda: ["error"],
        choices=lambda: (*SEVERITIES, "never", *RULES, *FOUND_ELSEWHERE),
    )
    sane: str | Path | SANE | None = setting(
        "SANE that embeds the checkpoints (folder or Hub repo id); by default the built-in one, if it fits.",
        default=None,
    )
    index: str | Path | Zoo | None = setting(
        "Known networks, the nearest of which are listed: a zoo, the output of hf-sane embed with the same SANE, "
        "or the output of hf-sane index (for checkpoints that are read in full).",
        default=None,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.checkpoints, str | Path):
            self.checkpoints = [str(self.checkpoints)]
        if not self.checkpoints:
            raise ValueError("expected at least one checkpoint to scan, got none; name a file, folder or Hub repo")
        if self.sarif is not None and self.output is not None:
            inside = Path(self.sarif).absolute()
            if Path(self.output).absolute() in (inside, *inside.parents):
                raise ValueError(
                    f"expected --sarif to be outside of the folder of --output, got {self.sarif}; "
                    "the folder holds report.sarif anyway"
                )
        if not self.fail_on:
            raise ValueError("expected --fail-on to name a rule, a severity or a condition, got nothing; try 'never'")
        for wanted in self.fail_on:
            parse_condition(wanted)


SPECTRUM = Fields(
    alpha=NotRequired[float | None],
    rank=NotRequired[int | None],
    stable_rank=NotRequired[float | None],
    phase=NotRequired[str | None],
)


class NearestJson(TypedDict):
    """A known network near a checkpoint.

    Attributes:
        name: Name of the network.
        distance: Distance of the embeddings, or of the fingerprints.
    """

    name: str
    distance: float


class CheckpointJson(TypedDict):
    """Scan of one checkpoint.

    Attributes:
        source: Path or repo id of the checkpoint.
        format: Format of the checkpoint, or the reason why it was not read.
        weights: Number of values of all tensors.
        bytes: Size of all tensors in bytes.
        bytes_read: Number of bytes that were read.
        bytes_downloaded: Number of bytes downloaded from the Hub, including headers; null for local files.
        seconds: Duration of the scan.
        findings: Findings, the most severe first.
        tensors: Statistics by tensor, with the spectra of tensors that were read in full.
        skipped: Tensors, spectra of matrices and files next to the weights that were not scanned, with the reason.
        metadata: Metadata of a GGUF or ONNX file.
        embedding: Embedding by a SANE; null if none was requested.
        nearest: Nearest known networks.
    """

    source: str
    format: str
    weights: int
    bytes: int
    bytes_read: int
    bytes_downloaded: int | None
    seconds: float
    findings: list[Finding]
    tensors: list[Annotated[TensorStatistics, SPECTRUM]]
    skipped: dict[str, str]
    metadata: dict[str, Any]
    embedding: SampledEmbedding | None
    nearest: list[NearestJson]


class ScanJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        scans: Scan of each checkpoint.
        failures: Sentences that explain why the exit code is 1.
    """

    scans: list[CheckpointJson]
    failures: list[str]


@dataclass(kw_only=True)
class ScanResult(Result):
    """Results of a scan.

    Attributes:
        scans: One per checkpoint.
        failures: Findings that set the exit code to 1, as sentences.
        nearest: Names and distances of the nearest known networks, by checkpoint.
    """

    JSON: ClassVar[Any] = ScanJson
    JOB: ClassVar[str] = "scan"

    scans: list[Scan]
    failures: list[str] = field(default_factory=list)
    nearest: dict[str, tuple[tuple[str, float], ...]] = field(default_factory=dict)

    @property
    def findings(self) -> list[tuple[str, Finding]]:
        """Findings of all checkpoints, each with its location."""
        return [(scan.source, finding) for scan in self.scans for finding in scan.findings]

    @property
    def exit_code(self) -> int:
        """1 if `fail_on` names something that was found."""
        return FINDING if self.failures else 0

    def to_dict(self) -> dict[str, Any]:
        """All scans and failures."""
        scans = [
            scan.to_dict()
            | {"nearest": [{"name": name, "distance": value} for name, value in self.nearest.get(scan.source, ())]}
            for scan in self.scans
        ]
        return {"scans": scans, "failures": self.failures}

    def to_frame(self) -> "pd.DataFrame":
        """One row per tensor, as a pandas table."""
        import pandas as pd

        return pd.DataFrame(
            [{"source": scan.source, **row} for scan in self.scans for row in scan.to_dict()["tensors"]]
        )

    def summary(self) -> list[str]:
        """Size and source of the checkpoint, if there is only one."""
        if len(self.scans) != 1:
            return []
        scan = self.scans[0]
        if not scan.num_bytes:
            return [f"{scan.source}: {scan.format}"]
        return [
            f"{scan.source}: {scan.format}, {scan.num_weights:,} weights in {len(scan.tensors)} tensors",
            f"read {scan.bytes_read:,} of {scan.num_bytes:,} bytes ({scan.bytes_read / scan.num_bytes:.1%}) "
            f"in {scan.seconds:.1f} s",
            *_embedding_lines(scan, self.nearest.get(scan.source, ()), is_asked=self.record.arguments["sane"]),
        ]

    def tables(self) -> list[Table]:
        """The checkpoints (if several), findings, and tensors (if there is only one checkpoint)."""
        if len(self.scans) != 1:
            columns = ("checkpoint", "format", "tensors", "weights", "read", "findings")
            rows = [[*_facts(scan), _counts(scan.findings)] for scan in self.scans]
            broken = [scan for scan in self.scans if scan.findings]
            skipped = [table for scan in self.scans for table in _skipped(scan, title=f"{scan.source}: skipped")]
            lists = (_list_of(scan, title=scan.source) for scan in broken)
            return [Table(columns, rows), *lists, *skipped, *self._unmet()]
        tables = [_list_of(self.scans[0], title="findings" if self.scans[0].findings else "no findings")]
        tables += [*_skipped(self.scans[0], title="skipped"), *self._unmet()]
        tensors = self.scans[0].to_dict()["tensors"]
        header = ("tensor", "shape", "dtype", "read", "mean", "std", "largest", "kurtosis", "alpha", "st. rank")
        caption = f"and {len(tensors) - MAX_ROWS} more: see --json" if len(tensors) > MAX_ROWS else ""
        rows = [_cells(row) for row in tensors[:MAX_ROWS]]
        return [*tables, Table(header, rows, caption=caption)] if rows else tables

    def report_tables(self) -> list[Table]:
        """The same, with the findings of several checkpoints in one table that can be filtered."""
        tables = self.tables()
        listed = {scan.source for scan in self.scans if scan.findings}
        if len(self.scans) == 1 or not listed:
            return tables
        rows = [[place, f"{x.message}; {x.remedy}", x.severity, x.rule] for place, x in self.findings]
        findings = Table(("checkpoint", "finding", "severity", "rule"), rows, title="Findings")
        return [tables[0], findings, *(table for table in tables[1:] if table.title not in listed)]

    def _unmet(self) -> list[Table]:
        """Conditions of `fail_on` that failed, which are not findings."""
        told = {sentence_of(scan, finding) for scan in self.scans for finding in scan.findings}
        lines = [f"  {failure}" for failure in self.failures if failure not in told]
        return [Table(title="--fail-on", caption="\n".join(lines))] if lines else []

    def to_markdown(self) -> str:
        """A block for a model card."""
        lines = ["### Scan of the weights", ""]
        for scan in self.scans:
            lines.append(f"- {markdown_text(scan.source)}: {markdown_text(scan.format)}, {_read(scan)}")
            lines += [f"  - **{x.severity}** ({x.rule}): {markdown_text(x.message)}" for x in scan.findings]
            lines += [] if scan.findings else ["  - no findings"]
            lines += [f"  - skipped: {markdown_text(line)}" for line in _shown(scan)]
        return "\n".join([*lines, "", f"Made by `hf-sane scan` (hf_sane {self.record.versions['hf_sane']})."]) + "\n"

    def to_sarif(self) -> dict[str, Any]:
        """The findings in the Static Analysis Results Interchange Format (SARIF) 2.1.0, which code hosts display."""
        results = [
            {
                "ruleId": finding.rule,
                "level": LEVELS[finding.severity],
                "message": {"text": f"{finding.message}; {finding.remedy}"},
                "locations": [{"physicalLocation": {"artifactLocation": {"uri": quote(os.fsencode(source))}}}],
            }
            for source, finding in self.findings
        ]
        rules = [{"id": name} for name in dict.fromkeys(finding.rule for _, finding in self.findings)]
        driver = {"name": "hf-sane scan", "version": self.record.versions["hf_sane"], "rules": rules}
        return {
            "$schema": SARIF_SCHEMA,
            "version": "2.1.0",
            "runs": [{"tool": {"driver": driver}, "results": results}],
        }

    def write(self, partial: Path) -> None:
        """Write report.json, report.md, report.sarif and the run record."""
        (partial / "report.json").write_text(self.to_json() + "\n", encoding="utf-8")
        (partial / "report.md").write_text(self.to_markdown(), encoding="utf-8")
        (partial / "report.sarif").write_text(_json_of(self.to_sarif()), encoding="utf-8")
        super().write(partial)


def scan(*checkpoints: str | Path | Sequence[str | Path], **options: Any) -> ScanResult:
    """Scan checkpoints for faults in their headers and in a sample of their weights.

    No code that comes with a checkpoint is run. From safetensors, GGUF and ONNX files on the Hub, only the required
    bytes are downloaded.

    ```python
    result = hf_sane.scan("org/some-model", budget="1%")
    print(result)
    ```

    Args:
        *checkpoints: Files, folders, Hub repo ids, or lists of them.
        **options: Other fields of [`ScanSettings`].
    """
    named = [source for several in checkpoints for source in as_list(several)]
    for source in named:
        if not isinstance(source, str | Path):
            raise TypeError(
                f"expected files, folders or Hub repo ids, got {type(source).__name__}; save its tensors first "
                "(safetensors.torch.save_file)"
            )
    named = [str(source) for source in named]
    return run_scan(ScanSettings(checkpoints=named, **options))


def run_scan(settings: ScanSettings) -> ScanResult:
    """Scan checkpoints for faults: headers first, then a stratified sample of their values.

    No code that comes with a checkpoint is run, and from safetensors, GGUF and ONNX files on the Hub only the required
    bytes are downloaded. The exit code is 1 if --fail-on names something that was found.
    """
    record = RunRecord.start(seed=settings.seed, arguments=as_arguments(settings))
    sampling = SamplingSettings(**{entry.name: getattr(settings, entry.name) for entry in fields(SamplingSettings)})
    if settings.sarif is not None:
        check_may_replace(settings.sarif, SARIF)
    with optional_output(settings.output, ScanResult.JOB) as output:
        encoder = _encoder(settings)
        known = _known_models(settings.index, encoder)
        try:
            scans = divided(
                lambda target: _scan(target, sampling, encoder, settings.checkpoints),
                list(_targets(settings)),
                workers=settings.workers,
                desc="scanning",
                unit="checkpoint",
            )
        except KeyboardInterrupt as interruption:
            if note := _describe_kept():
                interruption.add_note(note)
            raise
        nearest = {scan.source: found for scan in scans if (found := _nearest(scan, known))}
        failures = [text for wanted in settings.fail_on for text in find_failures(wanted, scans)]
        result = ScanResult(record=record, scans=scans, failures=failures, nearest=nearest)
        record.finish({"checkpoints": len(scans), "findings": len(result.findings), "failures": len(failures)})
        if settings.sarif is not None:
            with output_file(settings.sarif, SARIF) as partial:
                partial.write_text(_json_of(result.to_sarif()), encoding="utf-8")
        return output.write(result)


def _json_of(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _scan(target: CheckpointSource, sampling: SamplingSettings, encoder: Encoder, named: Sequence[str]) -> Scan:
    """Scan one of several checkpoints; if it cannot be reached, the others are still scanned."""
    place = Path(target.source)
    if target.source not in named and is_loop(place):
        return Scan(source=str(target), format="no weights: a link to a folder that contains it")
    try:
        if place.is_dir() and not any(not path.name.startswith(".") for path in place.iterdir()):
            return _empty(target, is_named=target.source in named)
        return scan_checkpoint(target, sampling, encoder=encoder, is_named=target.source in named)
    except OSError as error:  # including errors from the Hub
        if target.source not in named and is_dangling(place):
            return _dangling(target)
        if named == [target.source]:
            if isinstance(error, ConnectionError) and (note := _describe_kept()):
                raise type(error)(f"{describe_error(error)}; {note}") from error
            raise
        problem = Finding("unreadable", "error", describe_error(error), "scan it again on its own")
        return Scan(source=str(target), format="not read: could not be reached", findings=(problem,))


def _empty(target: CheckpointSource, *, is_named: bool) -> Scan:
    """The result for an empty folder: an error if the user named it."""
    remedy = "name a folder that contains checkpoints, or leave it out"
    problem = Finding("unreadable", "error", "expected checkpoints, got an empty folder", remedy)
    findings = (problem,) if is_named else ()
    return Scan(source=str(target), format="no weights: the folder is empty", findings=findings)


def _dangling(target: CheckpointSource) -> Scan:
    """The result for a link in a folder that leads nowhere: an error if it is named like weights."""
    problem = Finding("unreadable", "error", f"expected weights, got {DANGLING}", RESTORE)
    is_lost = str(target.source).lower().endswith(WEIGHT_SUFFIXES)
    kind = "not read" if is_lost else "no weights"
    return Scan(source=str(target), format=f"{kind}: {DANGLING}", findings=(problem,) if is_lost else ())


def _describe_kept() -> str:
    """Describe what an interrupted scan of the Hub has kept; empty for local files."""
    kept = kept_bytes()
    return f"{kept:,} bytes read from the Hub are kept; {again('continue')}" if kept else ""


def _encoder(settings: ScanSettings) -> Encoder:
    """The SANE, whose model is not loaded until a checkpoint fits its weight tokenizer."""
    source, where = settings.sane, settings.sane_place
    if isinstance(source, SANE):
        return Encoder(source.source or "a SANE", source.extractor, lambda: source.model)
    place = str(source or BUNDLE)
    load = cache(lambda: open_sane(place, **where).model)
    return Encoder(place if source else BUNDLE.name, SANEFeatureExtractor.load(place, **where), load)


def _known_models(index: str | Path | Zoo | None, encoder: Encoder) -> KnownModels | NetworkIndex | None:
    if index is None:
        return None
    if isinstance(index, str | Path) and (Path(index) / INDEX).is_file():
        return NetworkIndex.load(index)
    if is_zoo(index) or not Path(str(index)).is_dir():
        return embed_known_models(load_zoo(index), encoder)
    return read_known_models(Path(str(index)))


def _nearest(scan: Scan, known: KnownModels | NetworkIndex | None) -> tuple[tuple[str, float], ...]:
    """Names and distances of the nearest known networks; fingerprints require that a checkpoint is read in full."""
    if isinstance(known, NetworkIndex):
        is_whole = scan.num_bytes and scan.bytes_read == scan.num_bytes and not scan.bytes_downloaded
        if not is_whole or any(tensor.nan or tensor.infinite for tensor in scan.tensors):
            return ()
        try:
            found = fingerprint(open_checkpoint(CheckpointSource(scan.source)))
        except (TypeError, ValueError):  # in a format that only scans can read
            return ()
        return tuple((near.source, near.distance) for near in known.nearest(found))
    if known is None or scan.embedding is None or not scan.embedding.vector:
        return ()
    return known.nearest(scan.embedding.vector)


def _embedding_lines(scan: Scan, nearest: Sequence[tuple[str, float]], *, is_asked: object) -> list[str]:
    """Lines about the embedding and the nearest known networks; silent if the built-in SANE does not fit."""
    found, lines = scan.embedding, []
    if found is not None and found.reason and is_asked:
        lines.append(f"not embedded by {found.sane}: {found.reason}")
    if found is not None and not found.reason:
        lines.append(
            f"embedded by {found.sane} from {found.tokens_read:,} of {found.num_tokens:,} tokens, "
            f"standard error {found.error:.2g}"
        )
    if nearest:
        lines.append("nearest: " + ", ".join(f"{name} ({distance:.3g})" for name, distance in nearest))
    return lines


def _targets(settings: ScanSettings) -> Iterable[CheckpointSource]:
    """One source per checkpoint."""
    for source in settings.checkpoints:
        checkpoint = settings.place(source)
        place = parse_source(source, revision=settings.revision)
        if not isinstance(place, Path) or not place.is_dir():
            yield checkpoint
            continue
        if settings.subfolder is not None or settings.variant is not None:
            yield from map(settings.place, networks_in(source, settings))
            continue
        is_alone = len(settings.checkpoints) == 1
        try:
            inside = list(targets_in(place, with_loops=True))
        except PermissionError:
            if is_alone:
                raise
            inside = [place]
        if not inside and is_alone:
            raise FileNotFoundError(
                f"expected checkpoints, got the empty folder {place}; name a checkpoint or a folder that contains some"
            )
        is_one = inside in ([], [place])
        yield from [checkpoint] if is_one else (CheckpointSource(path, key=settings.key) for path in inside)


def _read(scan: Scan) -> str:
    return (
        f"{scan.num_weights:,} weights, {scan.bytes_read / scan.num_bytes:.1%} read" if scan.num_bytes else "not read"
    )


def _facts(scan: Scan) -> list[Any]:
    share = f"{scan.bytes_read / scan.num_bytes:.1%}" if scan.num_bytes else None
    return [scan.source, scan.format, len(scan.tensors) or None, scan.num_weights or None, share]


def _counts(findings: Sequence[Finding]) -> str:
    counts = {severity: sum(x.severity == severity for x in findings) for severity in SEVERITIES}
    return ", ".join(f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in counts.items() if count)


def _list_of(scan: Scan, *, title: str) -> Table:
    """Findings line by line, since sentences are hard to read in columns."""
    lines = [f"  {x.severity} ({x.rule}): {x.message}\n    {x.remedy}" for x in scan.findings]
    return Table(title=title, caption="\n".join(lines))


def _skipped(scan: Scan, *, title: str) -> list[Table]:
    """Skipped tensors and files, line by line."""
    lines = _shown(scan)
    return [Table(title=title, caption="\n".join(f"  {line}" for line in lines))] if lines else []


def _shown(scan: Scan) -> list[str]:
    """The first things that were not scanned, with those of the same reason in one line, and the number of others."""
    names: dict[str, list[str]] = {}
    for name, reason in scan.skipped.items():
        names.setdefault(reason, []).append(name)
    lines = [shorten(f"{name_some(listed)}: {reason}") for reason, listed in names.items()]
    more = [f"and {len(lines) - MAX_SKIPPED} more: see --json"] if len(lines) > MAX_SKIPPED else []
    return [*lines[:MAX_SKIPPED], *more]


def _cells(row: dict[str, Any]) -> list[Any]:
    whole = row["num_read"] == row["num_values"]
    spread = None if row["std"] is None else fact_text(row["std"])
    if spread and not whole and row["std_error"]:
        spread += f" ± {row['std_error']:.1g}"
    largest = None if row["low"] is None else max(abs(row["low"]), abs(row["high"]))
    return [
        row["name"],
        "x".join(map(str, row["shape"])) or "scalar",
        row["dtype"],
        "all" if whole else f"{row['num_read'] / row['num_values']:.1%}",
        row["mean"],
        spread,
        largest,
        row["kurtosis"],
        row.get("alpha"),
        row.get("stable_rank"),
    ]


__all__ = ["ScanResult", "scan"]
