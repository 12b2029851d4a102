"""Plots of spectra: densities with their fits, and alpha over depth, during training, and against accuracy."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_sane.analysis._pictures import BLUE, GREEN, GREY, NARROW, RED, SKY, make_figure, save_pictures, use_decades
from hf_sane.analysis._report import LayerSpectrum, SpectrumReport
from hf_sane.core._marchenko_pastur import density
from hf_sane.records._escaping import plot_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 48
MAX_NARROW, MAX_NAMES = 12, 16  # panels and names on a narrow screen
COLUMNS = 4
DATA, BULK, TAIL, OTHER = SKY, GREEN, RED, BLUE


def plot_densities(report: SpectrumReport, path: Path, *, bins: int = 60) -> None:
    """Plot the empirical spectral density of every layer with its Marchenko-Pastur bulk, edge and power-law tail.

    For networks with many layers, 48 evenly spaced layers are shown, and 12 on narrow screens.

    Args:
        report: Report of one network.
        path: PNG to write.
        bins: Number of bins of each histogram.
    """
    save_pictures(partial(_draw_densities, report, bins), path)


def _draw_densities(report: SpectrumReport, bins: int, *, narrow: bool) -> "Figure":
    from matplotlib.lines import Line2D

    most = min(len(report), MAX_NARROW if narrow else MAX_PANELS)
    chosen = np.unique(np.linspace(0, len(report) - 1, most).round().astype(int))
    columns = 1 if narrow else min(COLUMNS, len(chosen))
    height = math.ceil(len(chosen) / columns)
    figure, panels = make_figure(3.4 * columns, 2.5 * height + 0.4, height, columns, narrow=narrow)
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    for axes, index in zip(panels, chosen, strict=False):
        _draw_density(axes, report.layers[index], bins, size=8 if narrow else 7)
    thinned = "" if len(chosen) == len(report) else f", {len(chosen)} of {len(report)} layers"
    kinds = {"eigenvalues of W W^T": DATA}
    kinds |= {"Marchenko-Pastur bulk and edge": BULK} if any(report.layers[index].sigma for index in chosen) else {}
    kinds |= {"power law": TAIL} if any(report.layers[index].alpha is not None for index in chosen) else {}
    lines = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in kinds.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=1 if narrow else 3, fontsize=8, frameon=False)
    title = f"{plot_text(report.source)}{thinned}"
    figure.suptitle("\n".join(textwrap.wrap(title, 40)) if narrow else title, fontsize=10)
    return figure


def _draw_density(axes: "Axes", layer: LayerSpectrum, bins: int, *, size: float) -> None:
    """Plot the density per decade, so that areas are proportional to counts."""
    edges, values = layer.histogram(bins)
    centres = np.sqrt(edges[1:] * edges[:-1])
    axes.stairs(values * centres * math.log(10), edges, fill=True, color=DATA)
    total = layer.columns * layer.num_matrices
    if layer.sigma and layer.num_spikes is not None and layer.upper_edge and layer.lower_edge is not None:
        span = np.geomspace(max(layer.lower_edge, edges[0]), layer.upper_edge, 300)
        share = 1 - layer.num_spikes / total
        # The deflated sides to which the edges refer.
        root_sum, root_gap = math.sqrt(layer.upper_edge) / layer.sigma, math.sqrt(layer.lower_edge) / layer.sigma
        rows, columns = ((root_sum + root_gap) / 2) ** 2, ((root_sum - root_gap) / 2) ** 2
        bulk = share * density(span, rows, columns, layer.sigma)
        axes.plot(span, bulk * span * math.log(10), color=BULK, linewidth=1.2)
        axes.axvline(layer.spike_threshold or layer.upper_edge, color=BULK, linewidth=0.8, linestyle=":")
    if layer.alpha is not None and layer.xmin is not None and layer.tail_size is not None:
        span = np.geomspace(layer.xmin, layer.eigenvalues[0], 100)
        tail = layer.tail_size / total * (layer.alpha - 1) / layer.xmin * (span / layer.xmin) ** -layer.alpha
        axes.plot(span, tail * span * math.log(10), color=TAIL, linewidth=1.2)
    axes.set_xscale("log")
    use_decades(axes.xaxis)
    axes.set_yticks([])
    alpha = "" if layer.alpha is None else f", alpha {layer.alpha:.2f}"
    axes.set_title(f"{plot_text(layer.name, 80)}\n{layer.phase or 'too small'}{alpha}", fontsize=size)
    axes.tick_params(labelsize=size)


def plot_depth(report: SpectrumReport, path: Path, *, spread: Mapping[str, float] | None = None) -> None:
    """Plot alpha with its interval, if it was measured, stable rank, and the spread of SANE's latents over depth.

    Args:
        report: Report of one network.
        path: PNG to write.
        spread: Result of [`layer_embedding_spread`], by name of the tensor.
    """
    save_pictures(partial(_draw_depth, report, spread), path)


def _draw_depth(report: SpectrumReport, spread: Mapping[str, float] | None, *, narrow: bool) -> "Figure":
    alpha = _column(report, "alpha")
    has_alpha = bool(np.isfinite(alpha).any())
    count = 1 + has_alpha + (spread is not None)
    figure, panels = make_figure(8, 2.4 * count + (count == 1), count, sharex=True, narrow=narrow)
    depth = np.arange(len(report))
    if has_alpha:
        low, high = (np.abs(_column(report, name) - alpha) for name in ("alpha_low", "alpha_high"))
        bars = np.nan_to_num(np.stack([low, high]))
        panels[0].errorbar(depth, alpha, bars, marker="o", markersize=4, color=TAIL, ecolor=GREY, linewidth=1.2)
        panels[0].set(ylabel="alpha (95% interval)")
    panels[0].set_title(plot_text(report.source), fontsize=9)
    ranks = panels[int(has_alpha)]
    ranks.plot(depth, _column(report, "stable_rank"), marker="o", markersize=4, color=BULK)
    ranks.set(ylabel="stable rank", yscale="log")
    use_decades(ranks.yaxis)
    if spread is not None:
        values = [spread.get(layer.name.partition("[")[0], math.nan) for layer in report.layers]
        panels[-1].plot(depth, values, marker="o", markersize=4, color=OTHER)
        panels[-1].set(ylabel="spread of SANE latents")
    _name_ticks(panels[-1], [layer.name for layer in report.layers], narrow=narrow)
    return figure


def _name_ticks(axes: "Axes", names: Sequence[str], *, narrow: bool) -> None:
    """Name places by layers or tensors, with evenly spaced ones if there are too many to be legible."""
    step = math.ceil(len(names) / (MAX_NAMES if narrow else MAX_PANELS))
    places = range(0, len(names), step)
    axes.set_xticks(places, [plot_text(names[place], 40) for place in places], rotation=90, fontsize=8)
    if step > 1:
        axes.set_xlabel(f"in the order of the network; one of {step} is named")


def plot_distances(distances: Sequence[tuple[str, float]], path: Path) -> None:
    """Plot the distances between the tensors of two networks, in the order of the network.

    Args:
        distances: Name and distance of each tensor, see `hf_sane.screening`.
        path: PNG to write.
    """
    save_pictures(partial(_draw_distances, distances), path)


def _draw_distances(distances: Sequence[tuple[str, float]], *, narrow: bool) -> "Figure":
    figure, (axes,) = make_figure(max(5.0, min(16.0, 0.2 * len(distances) + 2)), 5 if narrow else 4, narrow=narrow)
    axes.bar(range(len(distances)), [distance for _, distance in distances], color=DATA)
    axes.axhline(1, color=OTHER, linewidth=0.8, linestyle=":")
    _name_ticks(axes, [name for name, _ in distances], narrow=narrow)
    axes.set(ylabel="distance (0: equal, 1: independent networks)", ylim=(0, None))
    return figure


def plot_trees(
    families: Sequence[Sequence[str]], edges: Mapping[tuple[str, str], tuple[str, float]], path: Path
) -> None:
    """Draw the derivation of networks, with one line per network and children below and to the right of their parents.

    Args:
        families: Related networks, by family.
        edges: Change and its probability, by child and parent.
        path: Picture to write.
    """
    save_pictures(partial(_draw_trees, families, edges), path)


def _draw_trees(
    families: Sequence[Sequence[str]], edges: Mapping[tuple[str, str], tuple[str, float]], *, narrow: bool
) -> "Figure":
    from matplotlib.figure import Figure

    first: dict[str, str] = {}
    for child, parent in edges:
        first.setdefault(child, parent)
    places: dict[str, tuple[int, int]] = {}

    def place(name: str, depth: int) -> None:
        places[name] = depth, len(places)
        for child, parent in first.items():
            if parent == name:
                place(child, depth + 1)

    for name in (name for family in families for name in family if name not in first):
        place(name, 0)
    depth = max(x for x, _ in places.values())
    # On narrow screens, changes are below the names of children instead of beside the lines.
    size = (NARROW, max(1.0, 0.45 * len(places))) if narrow else (3 + 1.2 * depth + 3, max(2.0, 0.28 * len(places)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    changes: dict[tuple[int, int], list[str]] = {}
    for (child, parent), (change, sure) in edges.items():
        (x, y), (left, top) = places[child], places[parent]
        style = "-" if first[child] == parent else ":"
        axes.plot([left, left, x], [top, y, y], color=OTHER, linestyle=style, linewidth=0.6 + 1.8 * sure, alpha=0.7)
        changes.setdefault((x, y), []).append(f"{change}, {sure:.2f}")
        if not narrow:
            axes.text(x - 0.04, y - 0.08, f"{change}, {sure:.2f}", fontsize=7, ha="right", va="bottom")
    for name, (x, y) in places.items():
        axes.plot([x], [y], marker="o", color=TAIL if name not in first else BULK, markersize=5)
        lines = [plot_text(name, 40), *(changes.get((x, y), ()) if narrow else ())]
        axes.text(x + (0.25 if narrow else 0.08), y, "\n".join(lines), fontsize=8, va="center")
    axes.set_xlim(-0.2, depth + (6.5 if narrow else 2.5))
    axes.invert_yaxis()
    axes.set_axis_off()
    return figure


def _column(report: SpectrumReport, name: str) -> np.ndarray:
    values = [getattr(layer, name) for layer in report.layers]
    return np.array([math.nan if value is None else value for value in values])
