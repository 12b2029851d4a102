"""Spectra of the matrices of a scan, one after the other, and the reasons why others have none."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hf_sane.analysis._matrices import layer_matrices
from hf_sane.analysis._report import NOT_FINITE, LayerSpectrum, SpectrumReport
from hf_sane.analysis._spectral import SpectrumSettings, analyze_layer
from hf_sane.screening._quantisation import find_codes
from hf_sane.screening._statistics import TensorStatistics
from hf_sane.screening._tables import is_table
from hf_sane.screening._vocabulary import is_of_positions

MAX_SIDE = 2048  # largest matrix whose spectrum is computed, since larger ones take seconds
MIN_SIDE = SpectrumSettings().min_values  # matrices with a shorter side never have an alpha
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NOT_ASKED = "spectra were not computed (--no-spectra)"
TOO_LARGE = f"more than {MAX_SIDE:,} rows and columns; see hf-sane analyze"
NOT_WHOLE = "not read in full; use --budget 100%"
COARSE = "8 bits or less"


class Arrivals(Mapping[str, Tensor]):
    """Matrices that are read one after the other, of which only the last is in memory.

    Args:
        names: Their names, in the order of reading.
        tensors: Statistics of all tensors in the order of reading, with the values of those matrices.

    Attributes:
        statistics: Statistics of the tensors that were read so far.
        tables: Names of those that are fixed tables of positions.
    """

    def __init__(self, names: Sequence[str], tensors: Iterator[tuple[TensorStatistics, Tensor | None]]) -> None:
        self._names = list(names)
        self._tensors = tensors
        self.statistics: list[TensorStatistics] = []
        self.tables: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        for found, values in self._tensors:
            self._note(found, values)
            if values is not None and found.name == name:
                return values
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def finish(self) -> list[TensorStatistics]:
        """Read the other tensors; return the statistics of all."""
        for found, values in self._tensors:
            self._note(found, values)
        return self.statistics

    def _note(self, found: TensorStatistics, values: Tensor | None) -> None:
        self.statistics.append(found)
        if values is not None and is_fixed_table(found.name, values):
            self.tables.add(found.name)


def is_fixed_table(name: str, values: Tensor) -> bool:
    """Whether a matrix is a table of positions that was not trained, such as sinusoids."""
    return is_of_positions(name) and is_table(values)


def has_spectrum(tensor: Tensor) -> bool:
    """Whether the spectrum of a tensor can be computed, once it was read in full."""
    return tensor.dtype in TYPES and 1 < _side(tuple(tensor.shape)) <= MAX_SIDE


def compute_spectra(tensors: Mapping[str, Tensor], source: str, *, seed: int) -> SpectrumReport:
    """Spectra of matrices, which are read one after the other."""
    settings, skipped = SpectrumSettings(num_bootstrap=0, seed=seed), dict[str, str]()
    layers = tuple(analyze_layer(layer, settings) for layer in layer_matrices(tensors, settings.conv, skipped))
    return SpectrumReport(source, vars(settings), layers, skipped)


def missing_spectra(tensors: Sequence[TensorStatistics], report: SpectrumReport | None) -> dict[str, str]:
    """Matrices without a spectrum, with the reason; codes of quantisations are named by their own rule."""
    codes, _ = find_codes(tensors)
    known = _by_tensor(report)
    return {
        x.name: _why_none(x, report)
        for x in tensors
        if x.is_floating and _side(x.shape) > 1 and x.name not in codes and x.name not in known
    }


def missing_alphas(tensors: Sequence[TensorStatistics], report: SpectrumReport | None) -> dict[str, str]:
    """Matrices that are large enough for an alpha but have none, with the reason.

    Args:
        tensors: Statistics of all tensors.
        report: Their spectra; `None` if they were not computed.
    """
    codes, _ = find_codes(tensors)
    known, found = _by_tensor(report), dict[str, str]()
    for x in tensors:
        layers = known.get(x.name, [])
        if _side(x.shape) < MIN_SIDE or not (x.is_floating or x.name in codes):
            continue
        if not layers:
            found[x.name] = COARSE if x.name in codes else _why_none(x, report)
        elif left_out := [layer.alpha_left_out for layer in layers if layer.alpha is None]:
            found[x.name] = left_out[0] or "no power law"
    return found


def _by_tensor(report: SpectrumReport | None) -> dict[str, list[LayerSpectrum]]:
    """Spectra by tensor; a stack of matrices has several."""
    found: dict[str, list[LayerSpectrum]] = {}
    for layer in report.layers if report is not None else ():
        found.setdefault(layer.name.removesuffix("]").rpartition("[")[0], []).append(layer)
        found.setdefault(layer.name, []).append(layer)
    return found


def _why_none(tensor: TensorStatistics, report: SpectrumReport | None) -> str:
    if report is None:
        return NOT_ASKED
    if tensor.dtype.startswith("float8"):
        return COARSE
    if _side(tensor.shape) > MAX_SIDE:
        return TOO_LARGE
    if not tensor.is_whole:
        return NOT_WHOLE
    if tensor.nan or tensor.infinite:
        return NOT_FINITE
    return report.skipped.get(tensor.name, f"values of type {tensor.dtype}")


def _side(shape: tuple[int, ...]) -> int:
    """Length of the shorter side of a tensor as a matrix; 0 for vectors."""
    return min(shape[0], math.prod(shape[1:])) if len(shape) >= 2 else 0
