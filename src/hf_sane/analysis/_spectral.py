"""Spectra of all weight matrices of a network: bulk, spikes and tail."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from numpy.typing import NDArray
from torch import Tensor

from hf_sane.analysis._adapter_products import read_products
from hf_sane.analysis._matrices import ConvReshaping, LayerMatrices, layer_matrices
from hf_sane.analysis._phases import suggest_phase
from hf_sane.analysis._report import LayerSpectrum, SpectrumReport, grouped_names, known
from hf_sane.core._layer_kinds import LOW_RANK
from hf_sane.core._marchenko_pastur import MarchenkoPasturFit, fit_bulk, fit_energy
from hf_sane.core._power_law import bootstrap_alpha, fit_power_law
from hf_sane.core._spectra import (
    BLOCK_SCALARS,
    PartialMethod,
    gram_eigenvalues,
    rank_tolerance,
    singular_values,
    top_singular_values,
    weight_correlation,
)
from hf_sane.records._progress import tracked
from hf_sane.records._settings import setting
from hf_sane.tokenization._checkpoints import CheckpointSource, Source, as_checkpoint, local_path
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint
from hf_sane.tokenization._saved_form import as_saved

INTERVAL = (0.025, 0.975)
MIN_TAIL_SPAN = 1.1  # largest over smallest eigenvalue: within a tenth, power laws cannot be distinguished
SAME_VALUE = 1e-6  # relative; float32 weights do not resolve closer eigenvalues
POOR_TAIL_DISTANCE = 0.1


@strict
@dataclass(kw_only=True)
class SpectrumSettings:
    """Settings for computing and fitting spectra."""

    conv: ConvReshaping = setting(
        "Treat convolutions as one matrix (flatten), one per kernel position (slices), or pool the slices' spectra "
        "(pooled).",
        default="flatten",
    )
    method: Literal["exact", "lanczos", "randomized"] = setting(
        "For large matrices, compute all eigenvalues (exact), or only the largest by an approximate method.",
        default="exact",
    )
    num_values: int = setting("Number of eigenvalues that approximate methods compute.", default=128)
    exact_up_to: int = setting("Decompose matrices exactly if their shorter side is at most this long.", default=1024)
    min_values: int = setting(
        "Minimum number of eigenvalues of a layer for alpha, bulk, spikes and phase; layers with fewer only get "
        "norms and ranks.",
        default=50,
    )
    min_tail: int = setting(
        "Minimum number of different eigenvalues in a tail for its alpha to count in means and phases.", default=10
    )
    num_bootstrap: int = setting("Number of resamples for the uncertainty of alpha; 0 for none.", default=100)
    spike_level: float = setting(
        "Share of random matrices whose largest eigenvalue is below the spike threshold.",
        default=0.99,
        only_python=True,
    )
    correlation_channels: int = setting(
        "Maximum number of channels to compare for a layer's weight correlation.", default=4096, only_python=True
    )
    seed: int = setting("Random seed for resamples, starting vectors and the choice of channels.", default=0)

    def __post_init__(self) -> None:
        if min(self.num_values, self.exact_up_to) < 1 or self.correlation_channels < 2:
            raise ValueError(
                "expected num_values and exact_up_to >= 1 and correlation_channels >= 2, got "
                f"{self.num_values}, {self.exact_up_to} and {self.correlation_channels}"
            )
        if self.min_values < 3 or self.num_bootstrap < 0:
            raise ValueError(
                f"expected min_values >= 3 and num_bootstrap >= 0, got {self.min_values} and {self.num_bootstrap}"
            )
        if self.min_tail < 2:
            raise ValueError(f"expected min_tail >= 2, got {self.min_tail}")
        if not 0 < self.spike_level < 1:
            raise ValueError(f"expected spike_level in (0, 1), got {self.spike_level}")


def analyze_spectrum(
    source: Source, settings: SpectrumSettings | None = None, *, revision: str | None = None
) -> SpectrumReport:
    """Analyse the spectrum of every weight matrix (Martin and Mahoney, arXiv:1810.01075 and arXiv:2002.06716).

    Safetensors checkpoints, sharded or not, are read one tensor at a time. For LoRA adapters, the products `s B A` are
    analysed, since spectra of the factors depend on their gauge (`A -> M A`, `B -> B M^-1`).

    Args:
        source: A module, a state dict, a checkpoint path or a Hub repo id, as in `load_state_dict`.
        settings: The defaults of [`SpectrumSettings`] if `None`.
        revision: Branch, tag or commit of a Hub repo.

    Returns:
        One record per matrix, and the tensors that were skipped with the reason (biases, norms, NaN, all zero, ...).

    Raises:
        FileNotFoundError: If a path or shard is missing, or a folder or repo holds no safetensors.
        ValueError: If a file is damaged, or nothing in it has a spectrum.
        TypeError: If `source` is none of the above.
    """
    settings = settings or SpectrumSettings()
    label, source = _label(source), as_saved(source)
    tensors = open_checkpoint(source, revision=revision)
    if not tensors:
        raise ValueError(f"{label} holds no tensors; expected the weights of a network")
    skipped: dict[str, str] = {}
    found = layer_matrices(tensors, settings.conv, skipped)
    layers = tuple(analyze_layer(layer, settings) for layer in tracked(found, desc="spectra", unit="matrix"))
    if isinstance(source, str | Path | CheckpointSource) and (
        factors := [name for name in tensors if LOW_RANK.search(name)]
    ):
        checkpoint = as_checkpoint(source, revision=revision)
        place = local_path(checkpoint)
        folder = place / (checkpoint.subfolder or "").strip("/")
        products = read_products(folder if place.is_dir() else place, factors, skipped)
        layers += tuple(analyze_layer(layer, settings) for layer in products)
    if not layers:
        reasons = "; ".join(f"{names}: {reason}" for reason, names in grouped_names(skipped.items()).items())
        raise ValueError(f"{label} holds no matrix to analyse among {len(skipped)} tensors ({reasons})")
    return SpectrumReport(label, asdict(settings), layers, skipped)


def analyze_layer(layer: LayerMatrices, settings: SpectrumSettings) -> LayerSpectrum:
    """Analyse one row of the report.

    Args:
        layer: Finite and non-zero matrices from `layer_matrices`.
        settings: See [`SpectrumSettings`].
    """
    count, *sides = layer.matrices.shape
    rows, columns = max(sides), min(sides)
    is_partial = settings.method != "exact" and count == 1 and max(settings.exact_up_to, settings.num_values) < columns
    if is_partial:
        eigenvalues = _largest_eigenvalues(layer.matrices[0], settings)
        squared_norm = _squared_norm(layer.matrices)
    else:
        eigenvalues = _all_eigenvalues(layer.matrices)
        squared_norm = float(eigenvalues.sum())
    largest = float(eigenvalues[0])
    tolerance = rank_tolerance(math.sqrt(largest), (rows, columns), layer.weight.dtype) ** 2
    positive = eigenvalues[eigenvalues > tolerance]
    found: dict[str, Any] = {
        "name": layer.name,
        "shape": tuple(layer.weight.shape),
        "reshaping": layer.reshaping,
        "rows": rows,
        "columns": columns,
        "num_matrices": count,
        "eigenvalues": eigenvalues,
        "is_partial": is_partial,
        "rank": None if is_partial else len(positive),
        "log_frobenius_norm": math.log10(squared_norm),
        "log_spectral_norm": math.log10(largest),
        "stable_rank": squared_norm / largest,
        "weight_correlation": _correlation(layer, settings),
    }
    warnings = [] if is_partial or len(positive) == columns * count else [f"rank {len(positive)} of {columns * count}"]
    if layer.warning:
        warnings.append(layer.warning)
    if len(positive) < settings.min_values or layer.reshaping == "product":
        reason = (
            "the rank of a product is limited by its factors: no power law, bulk or phase"
            if layer.reshaping == "product"
            else (
                f"{len(positive)} eigenvalues are too few for a power law, a bulk or a phase (min_values: "
                f"{settings.min_values})"
            )
        )
        warnings.append(reason)
        phase, evidence = suggest_phase(None, None, len(positive), columns * count, is_partial=is_partial)
        if layer.reshaping == "product":
            phase, evidence = None, reason
        return LayerSpectrum(**found, alpha_left_out=reason, phase=phase, evidence=evidence, warnings=tuple(warnings))
    bulk = _fit_bulk(layer.matrices, positive, squared_norm, settings, is_partial=is_partial)
    tail, tail_warnings = _fit_tail(positive, settings)
    if is_partial:
        warnings.append(f"only the {len(positive)} largest of {columns} eigenvalues are known")
        if bulk.num_spikes == len(positive):
            warnings.append("all of them are beyond the bulk: there may be more spikes")
        if tail["tail_size"] == len(positive):
            warnings.append("the tail reaches the smallest of them: it may start below")
    phase, evidence = suggest_phase(bulk, tail, len(positive), columns * count, is_partial=is_partial)
    return LayerSpectrum(
        **found,
        **tail,
        sigma=bulk.sigma,
        lower_edge=bulk.lower_edge,
        upper_edge=bulk.upper_edge,
        spike_threshold=bulk.threshold,
        num_spikes=bulk.num_spikes,
        bulk_distance=known(bulk.ks_distance),
        phase=phase,
        evidence=evidence,
        warnings=(*warnings, *tail_warnings),
    )


def _all_eigenvalues(matrices: Tensor) -> NDArray[np.float64]:
    needs_all_digits = matrices.dtype == torch.float64
    found = singular_values(matrices).square() if needs_all_digits else gram_eigenvalues(matrices)
    return found.flatten().sort(descending=True).values.cpu().numpy()


def _largest_eigenvalues(matrix: Tensor, settings: SpectrumSettings) -> NDArray[np.float64]:
    method: PartialMethod = "lanczos" if settings.method == "lanczos" else "randomized"
    return top_singular_values(matrix, settings.num_values, method=method, seed=settings.seed).square().numpy()


def _squared_norm(matrices: Tensor) -> float:
    parts = matrices.flatten().split(BLOCK_SCALARS)
    return sum(part.double().square().sum().item() for part in parts)


def _correlation(layer: LayerMatrices, settings: SpectrumSettings) -> float | None:
    weight = layer.matrices[0] if layer.reshaping == "slice" else layer.weight
    return known(weight_correlation(weight, max_channels=settings.correlation_channels, seed=settings.seed))


def _fit_bulk(
    matrices: Tensor,
    positive: NDArray[np.float64],
    squared_norm: float,
    settings: SpectrumSettings,
    *,
    is_partial: bool,
) -> MarchenkoPasturFit:
    """Fit the bulk, without rows and columns of zeros (dead units, unused embeddings)."""
    alive = [int((matrices != 0).any(dim).any(0).sum()) for dim in (1, 2)]
    rows, columns = max(alive), min(alive)
    if is_partial:
        return fit_energy(positive, rows, columns, squared_norm, level=settings.spike_level)
    count = len(matrices)
    columns = min(columns, math.ceil(len(positive) / count))
    return fit_bulk(positive, rows, columns, num_matrices=count, level=settings.spike_level)


def _fit_tail(positive: NDArray[np.float64], settings: SpectrumSettings) -> tuple[dict[str, Any], list[str]]:
    """Fields of the record that follow from the power law, and warnings."""
    values = torch.from_numpy(positive.copy())
    fit = fit_power_law(values[None])
    alpha, tail_size = fit.alpha.item(), int(fit.tail_size.item())
    tail = positive[:tail_size]
    if math.isnan(alpha) or tail[0] < MIN_TAIL_SPAN * tail[-1]:
        # The formula would give arbitrarily large numbers for close values: millions for an orthogonal matrix.
        reason = "the eigenvalues of the tail differ by less than a tenth: they show no power law"
        return {"tail_size": 0, "alpha_left_out": reason}, [reason]
    distance = fit.ks_distance.item()
    found: dict[str, Any] = {
        "alpha": alpha,
        "alpha_weighted": alpha * math.log10(positive[0]),
        "log_alpha_norm": (torch.logsumexp(alpha * values.log(), 0) / math.log(10)).item(),
        "xmin": fit.xmin.item(),
        "tail_size": tail_size,
        "tail_distance": distance,
    }
    warnings: list[str] = []
    if settings.num_bootstrap:
        resampled = bootstrap_alpha(values, settings.num_bootstrap, seed=settings.seed).numpy()
        if len(resampled):
            found["alpha_low"], found["alpha_high"] = np.quantile(resampled, INTERVAL).tolist()
    different = 1 + int((tail[:-1] > tail[1:] * (1 + SAME_VALUE)).sum())
    if different < settings.min_tail:
        found["alpha_left_out"] = (
            f"alpha is based on {different} different eigenvalues: left out of means (min_tail: {settings.min_tail})"
        )
        warnings.append(found["alpha_left_out"])
    if distance > POOR_TAIL_DISTANCE:
        warnings.append("the tail is not close to a power law (see tail_distance)")
    return found, warnings


def _label(source: Source) -> str:
    if isinstance(source, str | Path | CheckpointSource):
        return str(source)
    return "state dict" if isinstance(source, Mapping) else type(source).__name__
