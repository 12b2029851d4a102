"""Scan a checkpoint: its headers, a sample of its values, spectra, and faults."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_sane.analysis._report import SpectrumReport
from hf_sane.core._types import StateDict
from hf_sane.records._errors import InvalidFileError, shorten
from hf_sane.records._progress import progress
from hf_sane.records._settings import CheckedSettings, setting
from hf_sane.screening._beside import scan_beside
from hf_sane.screening._checkpoints import WEIGHT_SUFFIXES, OpenCheckpoint, open_for_scan
from hf_sane.screening._embedding import Encoder, SampledEmbedding, TokenSample, embed_tensors
from hf_sane.screening._experts import split_tensors
from hf_sane.screening._finding import Finding, Severity, what_is_wrong
from hf_sane.screening._findings import Evidence, by_severity, find_faults
from hf_sane.screening._other_formats import INSTALL, OPENERS, Encoding
from hf_sane.screening._pickles import scan_pickle
from hf_sane.screening._plan import plan_reads
from hf_sane.screening._scan_spectra import (
    Arrivals,
    compute_spectra,
    has_spectrum,
    is_fixed_table,
    missing_alphas,
    missing_spectra,
)
from hf_sane.screening._statistics import Moments, TensorStatistics, tensor_statistics
from hf_sane.screening._vocabulary import is_of_positions
from hf_sane.tokenization._checkpoints import CheckpointSource
from hf_sane.tokenization._formats import LFS_POINTER, NO_FILE, UNKNOWN, file_format
from hf_sane.tokenization._safetensors_header import TensorEntry

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
DEFAULT_SHARE, READ_WHOLE = 0.01, 64 * 10**6


@dataclass(kw_only=True)
class SamplingSettings(CheckedSettings):
    """Settings of sampling: how much of a checkpoint to read."""

    budget: str = setting(
        "How much of each checkpoint to read: a share (1%) or bytes (64MB). By default everything up to 64 MB, and "
        "1% of "
        "larger checkpoints, but at least 64 MB.",
        default="",
    )
    spectra: bool = setting("Compute the spectra of matrices that were read in full.", default=True)
    seed: int = setting("Random seed of the sample.", default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        read_budget(self.budget, 1)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The result of scanning one checkpoint.

    Attributes:
        source: Path or repo id of the checkpoint.
        format: Format of the checkpoint, or the reason why it was not read.
        tensors: Statistics by tensor.
        spectra: Spectra of matrices that were read in full; `None` if there are none.
        findings: Faults, the most severe first.
        num_bytes: Size of all tensors in bytes.
        bytes_read: Number of bytes that were read.
        bytes_downloaded: Bytes downloaded from the Hub, including headers; `None` for local files.
        seconds: Duration of the scan.
        skipped: What was not scanned, with the reason: tensors, spectra of matrices, and files next to the weights.
        embedding: Embedding by a SANE; `None` if not requested.
        metadata: Metadata of a GGUF or ONNX file.
        unread: Tensors whose values could not be read, with the reason.
        without_alpha: Matrices of at least 50 rows and columns whose alpha is not known, with the reason.
    """

    source: str
    format: str
    tensors: tuple[TensorStatistics, ...] = ()
    spectra: SpectrumReport | None = None
    findings: tuple[Finding, ...] = ()
    num_bytes: int = 0
    bytes_read: int = 0
    bytes_downloaded: int | None = None
    seconds: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    embedding: SampledEmbedding | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    without_alpha: dict[str, str] = field(default_factory=dict)

    @property
    def num_weights(self) -> int:
        """Number of values in all tensors."""
        return sum(tensor.num_values for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """The result in a form that JSON supports."""
        alphas = {} if self.spectra is None else {layer.name: layer.row() for layer in self.spectra.layers}
        kept = ("alpha", "rank", "stable_rank", "phase")
        layers = [
            tensor.row() | {name: alphas[tensor.name][name] for name in kept if tensor.name in alphas}
            for tensor in self.tensors
        ]
        return {
            "source": self.source,
            "format": self.format,
            "weights": self.num_weights,
            "bytes": self.num_bytes,
            "bytes_read": self.bytes_read,
            "bytes_downloaded": self.bytes_downloaded,
            "seconds": round(self.seconds, 3),
            "findings": [vars(finding) | {"tensors": list(finding.tensors)} for finding in self.findings],
            "tensors": layers,
            "skipped": self.skipped,
            "metadata": self.metadata,
            "embedding": self.embedding and self.embedding.row(),
        }


def scan_checkpoint(
    checkpoint: CheckpointSource,
    settings: SamplingSettings,
    *,
    encoder: Encoder | None = None,
    is_named: bool = True,
) -> Scan:
    """Scan one checkpoint. Parts that cannot be read are findings, not errors.

    Args:
        checkpoint: A file, a folder with one checkpoint, or a repository on the Hub.
        settings: How much to read.
        encoder: SANE that embeds it.
        is_named: Whether the user named it; otherwise it was found in a folder, which may hold files other than
            weights.

    Raises:
        FileNotFoundError: If there is no such source.
        ConnectionError: If the Hub cannot be reached.
    """
    started = time.perf_counter()
    try:
        opened = open_for_scan(checkpoint, takes_whole=lambda size: read_budget(settings.budget, size) >= size)
        own = opened.own
    except InvalidFileError as error:
        scan, own = _unreadable(checkpoint, error, is_named=is_named), {error.file}
    else:
        scan = _scan_weights(opened, settings, encoder)
    beside = scan_beside(checkpoint, own)
    downloaded = [count for count in (scan.bytes_downloaded, beside.bytes_downloaded) if count is not None]
    return replace(
        scan,
        findings=tuple(by_severity([*scan.findings, *beside.findings])),
        skipped={**scan.skipped, **beside.skipped},
        bytes_downloaded=sum(downloaded) if downloaded else None,
        seconds=time.perf_counter() - started,
    )


def _scan_weights(opened: OpenCheckpoint, settings: SamplingSettings, encoder: Encoder | None) -> Scan:
    """Scan the weights of a checkpoint whose headers have been read."""
    unread = dict(opened.skipped)
    if opened.path is not None:
        tensors = split_tensors(opened.whole)
        statistics = _measured(tensors, unread)
        num_bytes = read = sum(tensors[x.name].nbytes for x in statistics)
        whole = {x.name: tensors[x.name] for x in statistics if has_spectrum(tensors[x.name])}
        tables = {name for name, tensor in whole.items() if is_fixed_table(name, tensor)}
        spectra = compute_spectra(whole, opened.source, seed=settings.seed) if settings.spectra else None
        embedding = None if encoder is None else embed_tensors(encoder, opened.whole, seed=settings.seed)
    else:
        num_bytes = sum(entry.stop - entry.start for entry in opened.entries.values())
        reading = _Reading(opened, settings, num_bytes, encoder)
        arrivals = Arrivals(reading.kept, iter(reading))
        spectra = compute_spectra(arrivals, opened.source, seed=settings.seed) if settings.spectra else None
        statistics, read, tables = arrivals.finish(), reading.bytes_read, arrivals.tables
        embedding = None if reading.sample is None else reading.sample.embed()
    opened.forget()
    without = missing_spectra(statistics, spectra) if spectra is not None else {}
    findings = find_faults(Evidence(statistics, spectra, opened.surroundings, tables))
    if not any(x.num_values for x in statistics):
        findings.append(_nothing(opened, statistics))
    if opened.path is not None:
        findings = [*scan_pickle(opened.path), *findings]
    empty = {x.name: f"{'x'.join(map(str, x.shape))}: it has no values" for x in statistics if not x.num_values}
    return Scan(
        source=opened.source,
        format=opened.format,
        tensors=tuple(statistics),
        spectra=spectra if spectra is not None and spectra.layers else None,
        findings=(*opened.findings, *opened.surroundings.findings, *findings),
        num_bytes=num_bytes,
        bytes_read=read,
        bytes_downloaded=opened.bytes_downloaded,
        skipped={**unread, **{name: f"no spectrum: {reason}" for name, reason in without.items()}, **empty},
        embedding=embedding,
        metadata=dict(opened.metadata),
        unread=unread,
        without_alpha=missing_alphas(statistics, spectra),
    )


def _measured(tensors: StateDict, unread: dict[str, str]) -> list[TensorStatistics]:
    """Statistics of tensors in memory; `unread` takes those whose type PyTorch cannot compute with."""
    found = []
    for name, tensor in tensors.items():
        try:
            found.append(tensor_statistics(name, tensor))
        except (NotImplementedError, RuntimeError, TypeError) as error:
            unread[name] = f"values of type {str(tensor.dtype).removeprefix('torch.')}: {shorten(error)}"
    return found


def _nothing(opened: OpenCheckpoint, statistics: Sequence[TensorStatistics]) -> Finding:
    """The finding about a checkpoint without any value that can be read."""
    what = "only tensors without values" if statistics else "no tensors"
    what = "only tensors that are not supported" if opened.skipped else what
    message = opened.problem or f"expected weights, got {opened.format} with {what}"
    return Finding("unreadable", "error", message, "pass a file with weights, or ask the author for one")


class _Reading:
    """Computes statistics of a checkpoint's tensors, file by file in the order of their bytes."""

    def __init__(
        self, opened: OpenCheckpoint, settings: SamplingSettings, num_bytes: int, encoder: Encoder | None
    ) -> None:
        self._opened = opened
        self._encodings = {name: opened.encoding(name) for name in opened.entries}
        planned = {name: _blocks(entry, self._encodings[name]) for name, entry in opened.entries.items()}
        self._plans = plan_reads(planned, read_budget(settings.budget, num_bytes), seed=settings.seed)
        self._label = opened.source
        self._spectra = settings.spectra
        self._order = {id(file): sorted(part, key=lambda name: part[name].start) for file, part in opened.files}
        self.kept = [name for file, _ in opened.files for name in self._order[id(file)] if self._keeps(name)]
        self.bytes_read = 0
        self.sample: TokenSample | None = None
        if encoder is not None:
            counts: dict[str, int] = {}
            for name, plan in self._plans.items():
                whole, _ = opened.experts.places.get(name, (name, 0))
                encoding = self._encodings[name]
                counts[whole] = counts.get(whole, 0) + plan.num_bytes * encoding.values // encoding.size
            self.sample = TokenSample(encoder, opened.outlines, counts, settings.seed)

    def __iter__(self) -> Iterator[tuple[TensorStatistics, Tensor | None]]:
        """Statistics of all tensors, with the values of those that are kept."""
        kept = set(self.kept)
        total = sum(plan.num_bytes for plan in self._plans.values())
        with progress(total=total, desc=shorten(self._label, 40), unit="B") as bar:
            for file, entries in self._opened.files:
                names = self._order[id(file)]
                parts = file.read_ranges([block for name in names for block in self._plans[name].blocks])
                for name in names:
                    outline, plan, encoding = entries[name].outline, self._plans[name], self._encodings[name]
                    whole, first = self._opened.experts.places.get(name, (name, 0))
                    moments, values = Moments(), []
                    for (start, _), part in zip(plan.blocks, parts, strict=False):
                        block = encoding.decode(part)
                        moments.add(block, part)
                        if self.sample is not None:
                            place = (start - entries[name].start) * encoding.values // encoding.size
                            self.sample.add(whole, first + place, block)
                        if name in kept:
                            values.append(block)
                        self.bytes_read += len(part)
                        bar.update(len(part))
                    matrix = torch.cat(values).view(outline.shape) if name in kept else None
                    values.clear()
                    yield moments.statistics(name, outline, encoding.name), matrix
                    del matrix

    def _keeps(self, name: str) -> bool:
        """Whether to keep a matrix until its spectrum is computed, or it is known whether it is a fixed table."""
        is_needed = self._spectra or is_of_positions(name)
        return is_needed and has_spectrum(self._opened.entries[name].outline) and self._plans[name].is_whole


def _blocks(entry: TensorEntry, encoding: Encoding) -> TensorEntry:
    """The entry in units of blocks, since values that are stored together are read together."""
    if encoding.values == 1:
        return entry
    shape = (entry.outline.numel() // encoding.values, encoding.size)
    return replace(entry, outline=torch.empty(shape, dtype=torch.uint8, device="meta"))


def _unreadable(checkpoint: CheckpointSource, error: InvalidFileError, *, is_named: bool) -> Scan:
    """The result for a file that is damaged, has an unsupported format, or holds no weights.

    Code that a pickle would run is the only finding about it then: that is why it was not read.
    """
    source, faulty = str(checkpoint.source), Path(error.file)
    path = Path(source) if Path(source).is_file() else faulty
    found = file_format(path) if path.exists() and not path.is_dir() else None
    is_named_so = path.name.lower().endswith(WEIGHT_SUFFIXES)
    if found not in (None, NO_FILE) and path == faulty and not (found.holds_weights or is_named or is_named_so):
        kind = "not read" if found == UNKNOWN else "no weights"
        return Scan(source=source, format=f"{kind}: {found.name}")
    is_supported = found is None or found.reader is not None or (found in OPENERS and error.remedy != INSTALL)
    is_lost = found is not None and is_named_so and (found == LFS_POINTER or not found.holds_weights)
    severity: Severity = "error" if is_supported or is_named or is_lost else "warning"
    where = f"{shorten(faulty.name)}: " if str(faulty) != source else ""
    problem = Finding("unreadable", severity, where + what_is_wrong(error), error.remedy)
    pickled = scan_pickle(path) if path.is_file() else []
    if is_supported:  # and thus damaged: that it is a pickle does not matter then, unless it would run code
        pickled = [finding for finding in pickled if finding.severity == "error" or "imports" in finding.message]
    what = error.got if found is None else found.name
    is_code = any(finding.severity == "error" for finding in pickled)
    return Scan(source=source, format=f"not read: {what}", findings=tuple(pickled) if is_code else (*pickled, problem))


def read_budget(text: str, num_bytes: int) -> int:
    """Bytes to read of `num_bytes`.

    Args:
        text: A share such as `"1%"`, bytes such as `"64MB"`, or `None` for the default: all of a small checkpoint, and
            1% of a large one, but never less than of a small one.
        num_bytes: Size of the checkpoint.

    Raises:
        ValueError: If the text is neither.
        TypeError: If it is no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected a budget such as '1%' or '64MB', got {text!r}; pass it as a text")
    if not text:
        return num_bytes if num_bytes <= READ_WHOLE else max(READ_WHOLE, round(DEFAULT_SHARE * num_bytes))
    number, scale = text.strip().upper(), 0.0
    for unit in ("%", *sorted(UNITS, key=len, reverse=True)):
        if number.endswith(unit):
            number, scale = number.removesuffix(unit).strip(), num_bytes / 100 if unit == "%" else UNITS[unit]
            break
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not scale or not 0 < value < float("inf") or (text.strip().endswith("%") and value > 100):
        raise ValueError(f"expected a budget such as 1% or 64MB, got {text!r}")
    return max(1, round(value * scale))
