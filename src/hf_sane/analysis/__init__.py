"""Analyse networks by the spectra of their weight matrices and by regions in weight space."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.analysis._region_networks import stack_networks
    from hf_sane.analysis._region_results import RegionScores
    from hf_sane.analysis._regions import RegionMap
    from hf_sane.analysis._report import SpectrumReport
    from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum
    from hf_sane.analysis._structure import SharedStructure

__all__ = [
    "RegionMap",
    "RegionScores",
    "SharedStructure",
    "SpectrumReport",
    "SpectrumSettings",
    "analyze_spectrum",
    "stack_networks",
]
_HOMES = {
    "stack_networks": "_region_networks",
    "RegionScores": "_region_results",
    "RegionMap": "_regions",
    "SpectrumReport": "_report",
    "SpectrumSettings": "_spectral",
    "analyze_spectrum": "_spectral",
    "SharedStructure": "_structure",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
