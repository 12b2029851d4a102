"""Rules, severities and conditions on tensors that make a scan fail."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hf_sane.records._errors import did_you_mean, name_some
from hf_sane.screening._finding import SEVERITIES, Finding
from hf_sane.screening._findings import RULES
from hf_sane.screening._quantisation import find_codes
from hf_sane.screening._scan import MAX_SIDE, Scan

FOUND_ELSEWHERE = ("unreadable", "damaged", "shards", "tied")  # rules that are not about values
CONDITION = re.compile(r"\s*(?P<measure>[a-z_]+)\s*(?P<sign>[<>])\s*(?P<limit>[-+.\deE]+)\s*")
MEASURES: dict[str, str] = {
    "alpha": "exponent of the tail of the spectrum",
    "std": "standard deviation",
    "largest": "largest absolute value",
    "kurtosis": "kurtosis",
}


def parse_condition(wanted: str) -> Callable[[Scan], Iterable[str]]:
    """The function that returns what a word of `--fail-on` finds in a scan, as sentences.

    Raises:
        ValueError: If there is no such rule, severity or condition.
    """
    if wanted == "never":
        return lambda scan: ()
    if wanted in SEVERITIES:
        graver = SEVERITIES[: SEVERITIES.index(wanted) + 1]
        return lambda scan: [sentence_of(scan, x) for x in scan.findings if x.severity in graver]
    if wanted in RULES or wanted in FOUND_ELSEWHERE:
        return lambda scan: [sentence_of(scan, x) for x in scan.findings if x.rule == wanted]
    found = CONDITION.fullmatch(wanted)
    if found is None or found["measure"] not in MEASURES:
        names = [*RULES, *FOUND_ELSEWHERE, *SEVERITIES, "never"]
        meant = did_you_mean(wanted, names)
        raise ValueError(
            f"expected --fail-on to be {', '.join(names)}, or a condition such as alpha>8 on {', '.join(MEASURES)}, "
            f"got {wanted!r}{meant}"
        )
    measure, limit, is_more = found["measure"], _limit(wanted, found["limit"]), found["sign"] == ">"

    def beyond(scan: Scan) -> list[str]:
        rows = [(row["name"], row.get(measure)) for row in _rows(scan)]
        failures = [
            f"{scan.source}: {name} has {MEASURES[measure]} {value:.4g} {found['sign']} {limit:g}"
            for name, value in rows
            if value is not None and (value > limit if is_more else value < limit)
        ]
        is_known = any(value is not None for _, value in rows)
        return failures + (_not_measured(scan, wanted, is_known=is_known) if measure == "alpha" else [])

    return beyond


def _not_measured(scan: Scan, wanted: str, *, is_known: bool) -> list[str]:
    """Why a condition on spectra is unknown for some matrices, as a sentence; nothing if it is known for all."""
    known = {layer.name for layer in scan.spectra.layers} if scan.spectra is not None else set()
    missing = [x for x in scan.tensors if len(x.shape) >= 2 and x.is_floating and x.name not in known]
    start = f"{scan.source}: {wanted} is unknown, since alpha was not measured"
    if partial := [x.name for x in missing if not x.is_whole]:
        return [f"{start} for matrices that were not read in full: {name_some(partial)}; use --budget 100%"]
    if large := [x.name for x in missing if min(x.shape[0], math.prod(x.shape[1:])) > MAX_SIDE]:
        return [
            f"{start} for matrices of more than {MAX_SIDE:,} rows and columns: {name_some(large)}; see hf-sane analyze"
        ]
    codes, _ = find_codes(scan.tensors)
    coarse = [*codes, *(x.name for x in missing if x.dtype.startswith("float8") and x.name not in codes)]
    if coarse:
        return [f"{start} for matrices of 8 bits or less: {name_some(coarse)}; scan what was quantised"]
    return [f"{start}: no matrix is large enough for it"] if scan.tensors and not is_known else []


def _limit(wanted: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number in the condition of --fail-on, such as alpha>8, got {wanted!r}") from None


def find_failures(wanted: str, scans: Sequence[Scan]) -> list[str]:
    """Sentences about scans to which a rule, severity or condition applies, or for which it is unknown."""
    return [text for scan in scans for text in parse_condition(wanted)(scan) or _unknown(wanted, scan)]


def _unknown(wanted: str, scan: Scan) -> list[str]:
    """That a rule or condition is unknown for a checkpoint that should have been read, as a sentence."""
    is_lost = not scan.num_weights and any(finding.severity == "error" for finding in scan.findings)
    is_unknown = is_lost and wanted not in (*SEVERITIES, "never")
    return [f"{scan.source}: nothing of it was read, so {wanted} is unknown"] if is_unknown else []


def _rows(scan: Scan) -> list[dict[str, Any]]:
    largest = {tensor.name: tensor.largest for tensor in scan.tensors}
    return [row | {"largest": largest[row["name"]]} for row in scan.to_dict()["tensors"]]


def sentence_of(scan: Scan, finding: Finding) -> str:
    """A finding, with the name of its checkpoint."""
    return f"{scan.source}: {finding.message}"
