"""Results of an analysis of spectra: one record per layer, one report per network."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hf_sane.records._errors import name_some
from hf_sane.records._file_kinds import FileKind
from hf_sane.records._outputs import output_file

if TYPE_CHECKING:
    import pandas as pd

SPECTRUM = FileKind.json_with("a report of spectra", "summary", "layers")
Phase = Literal["random-like", "bulk+spikes", "heavy-tailed", "rank-collapse", "undecided"]

NOT_FINITE = "NaN or infinite weights"
FROM_ALPHA = ("alpha", "alpha_weighted", "log_alpha_norm")
OTHER_MEANS = ("log_frobenius_norm", "log_spectral_norm", "stable_rank", "weight_correlation")


def grouped_names(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The first names to which each text applies, and the number of others, by text."""
    groups: dict[str, list[str]] = {}
    for name, text in pairs:
        groups.setdefault(text, []).append(name)
    return {text: name_some(names) for text, names in groups.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerSpectrum:
    """Spectrum of one matrix, or of several pooled ones.

    Eigenvalues `lambda` are those of `W W^T` (squared singular values), without the division by `N` in the papers of
    Martin and Mahoney; logarithms are decimal, of squared norms, as in `weightwatcher`. `None` means that a value was
    not computed; `warnings` or `evidence` give the reason.

    Attributes:
        name: Name of the tensor.
        shape: Its shape.
        reshaping: `"matrix"`, `"flatten"`, `"slice"`, `"pooled"`, `"expert"` or `"product"`.
        rows: `N`, the longer side of its matrices.
        columns: `M`, the shorter side.
        num_matrices: Number of matrices whose eigenvalues are pooled.
        eigenvalues: Known eigenvalues, descending, float64, including zeros of a rank-deficient matrix.
        is_partial: Whether only the largest are known.
        rank: Number of numerically non-zero singular values; `None` for a partial spectrum.
        log_frobenius_norm: `log10 ||W||_F^2`.
        log_spectral_norm: `log10 lambda_max`.
        log_alpha_norm: `log10 sum lambda^alpha` over the known eigenvalues.
        stable_rank: `||W||_F^2 / lambda_max`.
        alpha: Exponent of the density of the tail, `p(lambda) ~ lambda^-alpha`.
        alpha_weighted: `alpha log10 lambda_max`.
        alpha_low: 2.5% quantile of the bootstrapped alpha.
        alpha_high: 97.5% quantile of the bootstrapped alpha.
        xmin: Eigenvalue where the tail starts.
        tail_size: Number of eigenvalues in the tail.
        tail_distance: Kolmogorov-Smirnov distance between tail and power law.
        alpha_left_out: Why there is no alpha, or why it is left out of means; `None` if it counts.
        sigma: Standard deviation of the entries by the Marchenko-Pastur law of the bulk.
        lower_edge: Smallest eigenvalue of that law.
        upper_edge: Largest eigenvalue of that law.
        spike_threshold: Upper edge with the margin of the Tracy-Widom law.
        num_spikes: Number of eigenvalues beyond it.
        bulk_distance: Kolmogorov-Smirnov distance between bulk and law; `None` for a partial spectrum.
        weight_correlation: Mean absolute cosine similarity of channels (Jin et al., arXiv:2010.05983).
        phase: Phase of training that the spectrum resembles; `None` if the layer is too small.
        evidence: One sentence that explains the phase.
        warnings: Caveats.
    """

    name: str
    shape: tuple[int, ...]
    reshaping: str
    rows: int
    columns: int
    num_matrices: int
    eigenvalues: NDArray[np.float64] = field(repr=False)
    is_partial: bool
    rank: int | None
    log_frobenius_norm: float
    log_spectral_norm: float
    log_alpha_norm: float | None = None
    stable_rank: float
    alpha: float | None = None
    alpha_weighted: float | None = None
    alpha_low: float | None = None
    alpha_high: float | None = None
    xmin: float | None = None
    tail_size: int | None = None
    tail_distance: float | None = None
    alpha_left_out: str | None = None
    sigma: float | None = None
    lower_edge: float | None = None
    upper_edge: float | None = None
    spike_threshold: float | None = None
    num_spikes: int | None = None
    bulk_distance: float | None = None
    weight_correlation: float | None = None
    phase: Phase | None = None
    evidence: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def shown_phase(self) -> str:
        """The phase, or why there is none."""
        return self.phase or ("low-rank product" if self.reshaping == "product" else "too small")

    def row(self) -> dict[str, Any]:
        """All attributes except the eigenvalues, by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "eigenvalues"}

    def histogram(
        self, bins: int = 100, *, logarithmic: bool = True
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Empirical spectral density: bin edges `[bins + 1]` and density `[bins]` over the positive eigenvalues.

        The density integrates to the share of eigenvalues that are positive and known.

        Args:
            bins: Number of bins.
            logarithmic: Whether bins have equal width in the logarithm of the eigenvalue.
        """
        positive = self.eigenvalues[: self.rank]
        low, high = positive.min(), positive.max()
        high = high if high > low else low * 1.1
        edges = np.geomspace(low, high, bins + 1) if logarithmic else np.linspace(low, high, bins + 1)
        edges[0], edges[-1] = low, high
        counts, _ = np.histogram(positive, edges)
        return edges, counts / (np.diff(edges) * self.columns * self.num_matrices)


@dataclass(frozen=True, eq=False)
class SpectrumReport:
    """Spectra of the layers of one network.

    Attributes:
        source: The analysed path, repo id or class.
        settings: Settings by name.
        layers: Layers in the order of the network.
        skipped: Tensors without a spectrum, with the reason.
    """

    source: str
    settings: Mapping[str, Any]
    layers: tuple[LayerSpectrum, ...]
    skipped: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerSpectrum:
        for layer in self.layers:
            if layer.name == name:
                return layer
        if name in self.skipped:
            raise KeyError(f"{name} was skipped: {self.skipped[name]}")
        raise KeyError(
            f"no layer {name!r} in this report; its layers are {', '.join(layer.name for layer in self.layers)}"
        )

    @property
    def not_finite(self) -> list[str]:
        """Tensors with NaN or infinite weights, with which a network cannot give sensible outputs."""
        return [name for name, reason in self.skipped.items() if reason == NOT_FINITE]

    def rows(self) -> list[dict[str, Any]]:
        """One dict per layer, without eigenvalues."""
        return [layer.row() for layer in self.layers]

    def to_frame(self) -> "pd.DataFrame":
        """The same as a pandas table."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def summary(self) -> dict[str, Any]:
        """Means over layers that have a value (`None` if there are none), and counts.

        Alpha and derived values are averaged over the `layers_with_alpha`, which have no `alpha_left_out`.
        `alpha_weighted` is the mean that Martin and Mahoney call alpha-hat; `log_frobenius_norm` and
        `log_spectral_norm` are means of logarithms, so up to a factor the logarithm of a product of norms.
        """
        found: dict[str, Any] = {"layers": len(self.layers), "skipped": len(self.skipped)}
        with_alpha = [layer for layer in self.layers if layer.alpha is not None and layer.alpha_left_out is None]
        found["layers_with_alpha"] = len(with_alpha)
        for names, layers in ((FROM_ALPHA, with_alpha), (OTHER_MEANS, self.layers)):
            for name in names:
                values = [getattr(layer, name) for layer in layers if getattr(layer, name) is not None]
                found[f"mean_{name}"] = float(np.mean(values)) if values else None
        phases = [layer.shown_phase for layer in self.layers]
        found["phases"] = {phase: phases.count(phase) for phase in dict.fromkeys(phases)}
        return found

    def to_dict(self, *, eigenvalues: bool = False) -> dict[str, Any]:
        """The report in a form that JSON supports.

        Args:
            eigenvalues: Whether to include every eigenvalue.
        """
        layers = self.rows()
        if eigenvalues:
            for row, layer in zip(layers, self.layers, strict=True):
                row["eigenvalues"] = layer.eigenvalues.tolist()
        return {
            "source": self.source,
            "settings": dict(self.settings),
            "summary": self.summary(),
            "layers": layers,
            "skipped": dict(self.skipped),
        }

    def save_json(self, path: str | Path, *, eigenvalues: bool = False) -> Path:
        """Write the report; an interrupted write does not change the file.

        Returns:
            `path`.

        Raises:
            FileExistsError: If another file has that name.
        """
        text = json.dumps(self.to_dict(eigenvalues=eigenvalues), indent=2, allow_nan=False) + "\n"
        with output_file(path, SPECTRUM) as partial:
            partial.write_text(text, encoding="utf-8")
        return Path(path)


def known(value: float) -> float | None:
    """`None` for NaN, which JSON does not support."""
    return None if math.isnan(value) else float(value)
