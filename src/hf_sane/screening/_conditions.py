"""Rules, severities and conditions on tensors that make a scan fail."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hf_sane.analysis._report import grouped_names
from hf_sane.records._errors import did_you_mean
from hf_sane.screening._finding import SEVERITIES, Finding
from hf_sane.screening._findings import RULES
from hf_sane.screening._scan import Scan
from hf_sane.screening._scan_spectra import MIN_SIDE
from hf_sane.screening._statistics import TensorStatistics

FOUND_ELSEWHERE = ("unreadable", "damaged", "shards")  # rules that are not about values
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
    if not isinstance(wanted, str):
        raise TypeError(
            f"expected fail_on to be names of rules, severities or conditions such as 'std>1', got {wanted!r}"
        )
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
        return failures + _not_measured(scan, wanted, measure)

    return beyond


def _not_measured(scan: Scan, wanted: str, measure: str) -> list[str]:
    """For which tensors a condition is unknown and why, as one sentence per reason."""
    unknown = dict(scan.unread)
    if measure == "alpha":
        unknown |= scan.without_alpha
        if scan.tensors and not unknown and not any(row.get("alpha") is not None for row in _rows(scan)):
            start = f"{scan.source}: {wanted} is unknown, since {measure} was not measured"
            return [f"{start}: no matrix has {MIN_SIDE} rows and columns"]
    else:
        unknown |= {x.name: reason for x in scan.tensors if (reason := _why_not(x, measure))}
    return [
        f"{scan.source}: {wanted} is unknown, since {measure} was not measured for {names}: {reason}"
        for reason, names in grouped_names(unknown.items()).items()
    ]


def _why_not(tensor: TensorStatistics, measure: str) -> str:
    """Why a measure of a tensor with values is unknown; empty if it is known, or if a constant has none."""
    value = getattr(tensor, measure)
    if not tensor.num_values or math.isfinite(value) or (measure == "kurtosis" and tensor.low == tensor.high):
        return ""
    if math.isnan(tensor.low):
        return "no value that was read is finite"
    return "the values are too large or too close to each other for a float"


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
