"""Screening: find faults in a checkpoint from a sample of its weights, without running its code."""

from hf_sane.screening._finding import Finding
from hf_sane.screening._findings import Evidence, register_rule
from hf_sane.screening._scan import Scan

__all__ = ["Evidence", "Finding", "Scan", "register_rule"]
