"""Plots of zoos and training runs for reports: accuracies, alignment, losses."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_sane.analysis._pictures import BLUE, GREY, PALETTE, RED, SKY, label_ends, make_figure, save_pictures
from hf_sane.records._escaping import plot_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_BINS = 30


def plot_accuracies(splits: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: Path) -> None:
    """Plot how many runs reach which accuracy, and the accuracy over the epochs, by split.

    Args:
        splits: By split: accuracy of each run at its last epoch; epochs and accuracies of all networks. NaN is left
            out.
        path: Picture to write.
    """
    save_pictures(partial(_draw_accuracies, splits), path)


def _draw_accuracies(splits: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], *, narrow: bool) -> "Figure":
    from matplotlib.ticker import MaxNLocator

    figure, (counts, curves) = make_figure(9, 3.2, 1, 2, narrow=narrow)
    figure.set_layout_engine(None)  # it takes as long as the drawing
    if narrow:
        figure.subplots_adjust(left=0.15, right=0.78, bottom=0.07, top=0.98, hspace=0.25)
    else:
        figure.subplots_adjust(left=0.06, right=0.91, bottom=0.15, top=0.97, wspace=0.2)
    finals = {name: final[np.isfinite(final)] for name, (final, _, _) in splits.items()}
    values = np.concatenate(list(finals.values()))
    edges = np.histogram_bin_edges(values, min(MAX_BINS, 1 + math.isqrt(len(values))))
    ends = []
    for colour, (name, (_, epochs, accuracy)) in zip(PALETTE, splits.items(), strict=False):
        counts.hist(finals[name], edges.tolist(), histtype="step", linewidth=1.5, color=colour, label=name)
        known = sorted({epoch for epoch in epochs.tolist() if math.isfinite(epoch)})
        at = [np.quantile(accuracy[epochs == epoch], (0.1, 0.5, 0.9)) for epoch in known]
        if at:
            low, middle, high = np.array(at).T
            curves.fill_between(known, low, high, color=colour, alpha=0.15, linewidth=0)
            curves.plot(known, middle, color=colour, marker="o", markersize=3)
            ends.append((name, known[-1], middle[-1], colour))
    counts.set(xlabel="test accuracy at the last epoch", ylabel="runs")
    counts.legend(frameon=False, fontsize=8)
    counts.yaxis.set_major_locator(MaxNLocator(integer=True))
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.set(xlabel="epoch", ylabel="test accuracy (median, 10 to 90%)")
    if ends:
        label_ends(curves, ends)
    return figure


def plot_alignment(distances: Mapping[str, np.ndarray], path: Path) -> None:
    """Plot the distances of networks to the reference of their architecture before and after alignment.

    Args:
        distances: `[2, R]` before and after, by architecture.
        path: Picture to write.
    """
    save_pictures(partial(_draw_alignment, distances), path)


def _draw_alignment(distances: Mapping[str, np.ndarray], *, narrow: bool) -> "Figure":
    figure, (axes,) = make_figure(5, 4, narrow=narrow)
    for colour, (name, (before, after)) in zip(PALETTE, distances.items(), strict=False):
        axes.scatter(before, after, s=12, color=colour, label=plot_text(name, 60), alpha=0.7)
    high = 1.05 * max(float(found.max(initial=0)) for found in distances.values())
    axes.plot([0, high], [0, high], color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlim=(0, high), ylim=(0, high))
    axes.set(xlabel="distance to the reference before alignment (in its norms)", ylabel="after alignment")
    if len(distances) > 1:
        axes.legend(frameon=False, fontsize=8)
    return figure


def plot_losses(history: Sequence[tuple[int, float]], path: Path) -> None:
    """Plot the training loss over the optimizer steps.

    Args:
        history: Steps and losses.
        path: Picture to write.
    """
    save_pictures(partial(_draw_losses, history), path)


def _draw_losses(history: Sequence[tuple[int, float]], *, narrow: bool) -> "Figure":
    figure, (axes,) = make_figure(7, 3.2, narrow=narrow)
    steps, losses = zip(*history, strict=True)
    axes.plot(steps, losses, color=BLUE, linewidth=1.2, marker="o" if len(steps) < MAX_BINS else None, markersize=3)
    axes.set(xlabel="optimizer step", ylabel="training loss", ylim=(0, None) if min(losses) >= 0 else None)
    return figure


def plot_methods(accuracies: Mapping[str, Sequence[float]], path: Path) -> None:
    """Plot the test accuracy of the networks of each method, one row per method, with the mean as a line.

    Args:
        accuracies: Test accuracies by method, the first of which is at the top.
        path: Picture to write.
    """
    save_pictures(partial(_draw_methods, accuracies), path)


def _draw_methods(accuracies: Mapping[str, Sequence[float]], *, narrow: bool) -> "Figure":
    # On narrow screens, names are above their dots.
    height, reach = (0.42, 0.2) if narrow else (0.26, 0.35)  # of a row, in inches, and of its line
    figure, (axes,) = make_figure(7, max(2.0, height * len(accuracies) + 0.8), narrow=narrow)
    places = range(len(accuracies))
    for place, (name, values) in enumerate(accuracies.items()):
        axes.scatter(values, [place] * len(values), s=14, color=SKY, alpha=0.8, linewidth=0)
        axes.plot([sum(values) / len(values)] * 2, [place - reach, place + reach], color=RED, linewidth=2)
        if narrow:
            where = ("axes fraction", "data")
            axes.annotate(plot_text(name, 50), (0.01, place - 0.4), xycoords=where, fontsize=8, va="center")
    axes.set_yticks(places, [plot_text(name, 80) for name in accuracies])
    axes.invert_yaxis()
    if narrow:
        axes.set_yticks([])
        axes.set_ylim(top=-0.6)
    axes.set(xlabel="test accuracy (dots: networks, lines: means)")
    return figure
