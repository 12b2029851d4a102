"""Analyse the spectra of a network's weight matrices, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, NotRequired, TypedDict

from hf_sane.analysis._embedding import layer_embedding_spread
from hf_sane.analysis._report import NOT_FINITE, LayerSpectrum, SpectrumReport, grouped_names
from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, check_numbers, setting
from hf_sane.tokenization._checkpoints import Source
from hf_sane.workflows.results import FINDING, Result, Table, optional_output
from hf_sane.workflows.sane import SANE, open_sane
from hf_sane.workflows.schemas import Fields
from hf_sane.workflows.shared import CheckpointSettings, PlotSettings, SaneSettings

COLUMNS = ("layer", "N x M", "alpha", "95%", "alpha-w", "spikes", "st. rank", "log F", "log max", "w. corr", "phase")


@dataclass(kw_only=True)
class AnalyzeSettings(SpectrumSettings, CheckpointSettings, SaneSettings, PlotSettings):
    """Settings of [`analyze`]: how to compute and fit spectra, and what to write."""

    checkpoint: Source = setting(
        "Checkpoint: safetensors file, folder, weights-only pickle, or Hub repo id.", positional=True
    )
    output: Path | None = setting("New folder for the report, the plots and the run record.", default=None, short="-o")
    sane: str | SANE | None = setting("SANE (folder or Hub repo id) that embeds the same layers.", default=None)
    eigenvalues: bool = setting("Include every eigenvalue in the report.", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self)


class AnalyzeJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        source: Path or repo id of the checkpoint.
        settings: Settings of the analysis.
        summary: Means over layers, and counts.
        layers: Spectrum of each matrix; eigenvalues only with --eigenvalues.
        skipped: Tensors without a spectrum, with the reason.
    """

    source: str
    settings: dict[str, Any]
    summary: dict[str, Any]
    layers: list[Annotated[LayerSpectrum, Fields(eigenvalues=NotRequired[list[float]])]]
    skipped: dict[str, str]


@dataclass(kw_only=True)
class AnalyzeResult(Result):
    """Spectra of a network's layers.

    Attributes:
        report: One record per analysed layer, and the reason why each of the others was skipped.
        spread: Spread of the latents of each layer, by weight tensor; `None` unless a SANE was given.
        eigenvalues: Whether to write all eigenvalues.
        plots: Whether to draw plots.
    """

    JSON: ClassVar[Any] = AnalyzeJson
    JOB: ClassVar[str] = "analysis"

    report: SpectrumReport
    spread: dict[str, float] | None = None
    eigenvalues: bool = False
    plots: bool = True

    @property
    def exit_code(self) -> int:
        """1 if the network has NaN or infinite weights."""
        return FINDING if self.report.not_finite else 0

    def to_dict(self) -> dict[str, Any]:
        """The report."""
        return self.report.to_dict(eigenvalues=self.eigenvalues)

    def tables(self) -> list[Table]:
        """The layers, their summary, caveats, and the layers that were skipped."""
        report = self.report
        summary = [[name.replace("_", " "), value] for name, value in report.summary().items() if name != "phases"]
        warnings = grouped_names((layer.name, text) for layer in report.layers for text in layer.warnings)
        skipped = grouped_names(report.skipped.items())
        tables = [Table(COLUMNS, [_cells(layer) for layer in report.layers]), Table(("all layers", ""), summary)]
        lists = {"warnings": warnings, "skipped": skipped}
        return tables + [_listed(title, names) for title, names in lists.items() if names]

    def write(self, partial: Path) -> None:
        """Write the report and the run record."""
        self.report.save_json(partial / "spectrum.json", eigenvalues=self.eigenvalues)
        super().write(partial)

    def draw(self, partial: Path) -> None:
        """Draw densities.png and depth.png."""
        if self.plots:
            from hf_sane.analysis._plots import plot_densities, plot_depth

            plot_densities(self.report, partial / "densities.png")
            plot_depth(self.report, partial / "depth.png", spread=self.spread)


def analyze(checkpoint: Source, **options: Any) -> AnalyzeResult:
    """Analyse spectra: bulk, spikes, heavy tails, norms and the training phase they suggest, layer by layer.

    ```python
    result = hf_sane.analyze("org/some-network")
    result.report["lm_head.weight"].alpha
    ```

    Args:
        checkpoint: A module, state dict, path or Hub repo id.
        **options: Other fields of [`AnalyzeSettings`].
    """
    return run_analyze(AnalyzeSettings(checkpoint=checkpoint, **options))


def run_analyze(settings: AnalyzeSettings) -> AnalyzeResult:
    """Analyse spectra: bulk, spikes, heavy tails, norms and the training phase they suggest, layer by layer.

    If the checkpoint has NaN or infinite weights, their tensors are named on standard error and the exit code is 1.
    """
    if settings.output is not None:
        settings.check_matplotlib()
    spectrum = SpectrumSettings(**{entry.name: getattr(settings, entry.name) for entry in fields(SpectrumSettings)})
    source = settings.selected(settings.checkpoint)
    record = RunRecord.start(seed=settings.seed, arguments=as_arguments(settings))
    with optional_output(settings.output, AnalyzeResult.JOB) as output:
        report = analyze_spectrum(source, spectrum)
        spread = None
        if settings.sane is not None:
            sane = open_sane(settings.sane, **settings.sane_place)
            spread = layer_embedding_spread(sane.model, sane.extractor, source)
        if not isinstance(settings.checkpoint, str | Path):
            record.arguments["checkpoint"] = report.source
        record.finish({"summary": report.summary(), **({"embedding_spread": spread} if spread else {})})
        broken = grouped_names((name, NOT_FINITE) for name in report.not_finite)
        result = AnalyzeResult(
            record=record,
            notes=[f"{reason} in {names}: left out of the analysis" for reason, names in broken.items()],
            report=report,
            spread=spread,
            eigenvalues=settings.eigenvalues,
            plots=settings.plots,
        )
        return output.write(result)


def _cells(layer: LayerSpectrum) -> list[Any]:
    known = layer.alpha_low is not None and layer.alpha_high is not None
    pooled = f"{layer.num_matrices} x " if layer.num_matrices > 1 else ""
    return [
        layer.name,
        f"{pooled}{layer.rows} x {layer.columns}",
        _rounded(layer.alpha),
        f"{layer.alpha_low:.1f}-{layer.alpha_high:.1f}" if known else None,
        _rounded(layer.alpha_weighted),
        layer.num_spikes,
        _rounded(layer.stable_rank),
        _rounded(layer.log_frobenius_norm),
        _rounded(layer.log_spectral_norm),
        _rounded(layer.weight_correlation),
        layer.shown_phase,
    ]


def _listed(title: str, names: Mapping[str, str]) -> Table:
    return Table(title=title, caption="\n".join(f"  {text}: {listed}" for text, listed in names.items()))


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


__all__ = ["AnalyzeResult", "analyze"]
