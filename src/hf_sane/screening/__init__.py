"""Screening: find faults in a checkpoint from a sample of its weights, without running its code."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.screening._differences import Difference
    from hf_sane.screening._finding import Finding
    from hf_sane.screening._findings import Evidence, register_rule
    from hf_sane.screening._index import Neighbour, NetworkIndex
    from hf_sane.screening._lineage import Lineage
    from hf_sane.screening._scan import Scan

__all__ = [
    "Difference",
    "Evidence",
    "Finding",
    "Lineage",
    "Neighbour",
    "NetworkIndex",
    "Scan",
    "register_rule",
]
_HOMES = {
    "Difference": "_differences",
    "Finding": "_finding",
    "Evidence": "_findings",
    "register_rule": "_findings",
    "Neighbour": "_index",
    "NetworkIndex": "_index",
    "Lineage": "_lineage",
    "Scan": "_scan",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
