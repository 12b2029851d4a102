"""`hf-sane analyze`: spectra of the weight matrices of a checkpoint."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_sane.cli.output import RECORD, optional_output, print_table
from hf_sane.cli.weights import Key, Subfolder, Variant

if TYPE_CHECKING:
    from hf_sane.analysis.report import LayerSpectrum, SpectrumReport
    from hf_sane.tokenization.checkpoints import Checkpoint

FINDING = 1  # exit code: the analysis is done, and something is wrong with the checkpoint
NAMES_SHOWN = 3
COLUMNS = ("layer", "N x M", "alpha", "95 %", "alpha-w", "spikes", "st. rank", "log F", "log max", "w. corr", "phase")


def analyze(
    checkpoint: Annotated[str, typer.Argument(help="safetensors file, folder, weights-only pickle, or Hub repo id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder for report, pictures and run record.")
    ] = None,
    conv: Annotated[
        Literal["flatten", "slices", "pooled"],
        typer.Option(help="Convolutions as one matrix, one per kernel position, or those pooled into one spectrum."),
    ] = "flatten",
    method: Annotated[
        Literal["exact", "lanczos", "randomized"],
        typer.Option(help="Of large matrices: all eigenvalues, or only the largest by an approximate method."),
    ] = "exact",
    num_values: Annotated[int, typer.Option(help="Largest eigenvalues that approximate methods compute.")] = 128,
    exact_up_to: Annotated[int, typer.Option(help="Shorter side up to which matrices count as small.")] = 1024,
    min_values: Annotated[int, typer.Option(help="Eigenvalues a layer must have for alpha, spikes and phase.")] = 50,
    min_tail: Annotated[
        int, typer.Option(help="Different eigenvalues a tail must have for its alpha to count in means and phases.")
    ] = 10,
    num_bootstrap: Annotated[int, typer.Option(help="Resamples for the uncertainty of alpha; 0 for none.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    sane: Annotated[str | None, typer.Option(help="SANE folder or Hub id to embed the same layers with.")] = None,
    eigenvalues: Annotated[bool, typer.Option(help="Write every eigenvalue into the report.")] = False,
    plots: Annotated[bool, typer.Option(help="Draw pictures (needs matplotlib).")] = True,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repo.")] = None,
    subfolder: Subfolder = None,
    variant: Variant = None,
    key: Key = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; errors, too.")] = False,
) -> None:
    """Analyse spectra: bulk, spikes, heavy tails, norms and the phase of training they suggest, layer by layer.

    The exit code is 1 if the checkpoint has NaN or infinite weights; they are named on standard error.
    """
    from hf_sane.analysis.report import NOT_FINITE
    from hf_sane.analysis.spectral import SpectrumSettings, analyze_spectrum
    from hf_sane.records.run_record import RunRecord
    from hf_sane.tokenization.checkpoints import Checkpoint

    if output is not None and plots and find_spec("matplotlib") is None:
        raise ValueError("pictures need matplotlib: pip install 'hf_sane[analysis]', or give --no-plots")
    settings = SpectrumSettings(
        conv=conv,
        method=method,
        num_values=num_values,
        exact_up_to=exact_up_to,
        min_values=min_values,
        min_tail=min_tail,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    source = Checkpoint(checkpoint, revision, subfolder, variant, key)
    arguments = {"checkpoint": checkpoint, "revision": revision, "sane": sane, "conv": conv, "method": method}
    arguments |= {"subfolder": subfolder, "variant": variant, "key": key}
    record = RunRecord.start(seed=seed, arguments={**arguments, "min_values": min_values, "min_tail": min_tail})
    with optional_output(output, "analysis") as partial:
        report = analyze_spectrum(source, settings)
        spread = None if sane is None else _spread(sane, source)
        if as_json:
            typer.echo(json.dumps(report.to_dict(eigenvalues=eigenvalues), indent=2))
        else:
            print_report(report)
        if partial is not None:
            report.save_json(partial / "spectrum.json", eigenvalues=eigenvalues)
            if plots:
                from hf_sane.analysis.plots import plot_densities, plot_depth

                plot_densities(report, partial / "densities.png")
                plot_depth(report, partial / "depth.png", spread=spread)
            results = {"summary": report.summary(), **({"embedding_spread": spread} if spread else {})}
            record.finish(results).save(partial / RECORD)
    if broken := report.not_finite:
        more = f" and {len(broken) - NAMES_SHOWN} more" if len(broken) > NAMES_SHOWN else ""
        typer.echo(f"{NOT_FINITE} in {', '.join(broken[:NAMES_SHOWN])}{more}: left out of the analysis", err=True)
        raise typer.Exit(FINDING)


def print_report(report: "SpectrumReport") -> None:
    """Print a table of the layers, the summary, what to keep in mind and what was skipped."""
    print_table(COLUMNS, [_cells(layer) for layer in report.layers])
    typer.echo()
    summary = {name: value for name, value in report.summary().items() if name != "phases"}
    print_table(("all layers", ""), [[name.replace("_", " "), value] for name, value in summary.items()])
    for title, groups in (("warnings", _warnings(report)), ("skipped", _reasons(report))):
        if groups:
            typer.echo(f"\n{title}")
        for text, names in groups.items():
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            typer.echo(f"  {text}: {', '.join(names[:NAMES_SHOWN])}{more}")


def _cells(layer: "LayerSpectrum") -> list[Any]:
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


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _warnings(report: "SpectrumReport") -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for layer in report.layers:
        for text in layer.warnings:
            groups.setdefault(text, []).append(layer.name)
    return groups


def _reasons(report: "SpectrumReport") -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, reason in report.skipped.items():
        groups.setdefault(reason, []).append(name)
    return groups


def _spread(sane: str, checkpoint: "Checkpoint") -> dict[str, float]:
    from hf_sane.analysis.embedding import layer_embedding_spread
    from hf_sane.hub.publish import load_sane

    return layer_embedding_spread(*load_sane(sane), checkpoint)
