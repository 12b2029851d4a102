"""The demo's plots: an overview, and accuracy during fine-tuning."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_sane.analysis._pictures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SCALE,
    label_ends,
    make_figure,
    save_pictures,
    use_decades,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERVIEW = ("anchors", "sane_subsampled", "linear_subsampled", "anchor_noise_selected", "scratch")
LEAST = 0.1  # % that is drawn on the logarithmic axis: no test error
# Name, colour and line of each method: a hue per family, and lines that tell its members apart.
STYLES = {
    "anchors": ("anchors (trained)", GREEN, "-"),
    "reconstructed_anchors": ("anchors, encoded and decoded", GREEN, "--"),
    "linear_reconstructed": ("anchors, through the linear code", GREEN, ":"),
    "nearest_training": ("nearest trained networks", GREEN, "-."),
    "sane_kde": ("SANE, KDE", BLUE, ":"),
    "sane_subsampled": ("SANE, subsampled", BLUE, "-"),
    "sane_bootstrapped": ("SANE, bootstrapped", BLUE, "--"),
    "sane_prior": ("SANE, from the prior", BLUE, "-."),
    "linear_kde": ("linear code, KDE", PURPLE, ":"),
    "linear_subsampled": ("linear code, subsampled", PURPLE, "-"),
    "linear_bootstrapped": ("linear code, bootstrapped", PURPLE, "--"),
    "anchor_noise": ("anchors + noise", RED, "-"),
    "anchor_noise_selected": ("anchors + noise, selected", RED, "--"),
    "shaped_noise": ("anchors + shaped noise", RED, ":"),
    "shaped_noise_selected": ("anchors + shaped noise, selected", RED, "-."),
    "interpolation": ("between two anchors", ORANGE, "--"),
    "anchor_average": ("average of anchors", ORANGE, "-"),
    "shrunken_anchor": ("anchors, shrunken", ORANGE, ":"),
    "shrunken_scratch": ("random initialisation, shrunken", GREY, ":"),
    "scratch": ("random initialisation", GREY, "-"),
}


def plane(embeddings: np.ndarray, *, seed: int) -> np.ndarray:
    """Project embeddings `[M, F]` to `[M, 2]` for plots: PCA to 30 dimensions, then t-SNE (scikit-learn)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    scale = embeddings.std(axis=0)
    standardised = (embeddings - embeddings.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    components = min(30, *standardised.shape)
    reduced = PCA(components, random_state=seed).fit_transform(standardised)
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)


def plot_overview(
    points: np.ndarray, accuracies: Sequence[float], curves: Mapping[str, Sequence[Sequence[float]]], path: Path
) -> None:
    """Plot the map of a zoo's test networks beside the accuracy of sampled networks before any training.

    Args:
        points: Coordinates `[M, 2]` of the test networks.
        accuracies: Test accuracy of each of them, which colours its dot.
        curves: Accuracies `[epochs + 1, networks]` by method; only row 0, before any training, is drawn.
        path: PNG to write.
    """
    save_pictures(partial(_draw_overview, points, accuracies, curves), path)


def _draw_overview(
    points: np.ndarray, accuracies: Sequence[float], curves: Mapping[str, Sequence[Sequence[float]]], *, narrow: bool
) -> "Figure":
    figure, (left, right) = make_figure(9.4, 3.7, 1, 2, width_ratios=(1, 1.15), narrow=narrow)
    left.scatter(
        points[:, 0],
        points[:, 1],
        c=100 * np.asarray(accuracies),
        s=12,
        cmap=SCALE,
        edgecolors=GREY,  # since the ends of the scale may be as dark, or as light, as the page
        linewidths=0.4,
    )
    scale = figure.colorbar(left.collections[0], ax=left, location="bottom", aspect=40, pad=0.02)
    scale.outline.set_visible(False)
    scale.ax.tick_params(labelsize=8)
    scale.set_label("test accuracy (%)", fontsize=9)
    left.set_title("Trained networks, embedded from their weights (t-SNE)", fontsize=9)
    left.set(xticks=[], yticks=[])
    left.spines[:].set_visible(False)
    shown = [name for name in OVERVIEW if name in curves]
    for row, name in enumerate(reversed(shown)):
        values = 100 * np.asarray(curves[name][0], dtype=np.float64)
        label, colour, _ = STYLES[name]
        heights = row + np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else np.full(1, row)
        right.scatter(values, heights, s=13, color=colour, alpha=0.55, linewidths=0)
        right.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.2)
        right.annotate(f"{label}: {values.mean():.1f}", (1, row + 0.26), color=colour, fontsize=8, va="bottom")
    right.set_title("Sampled networks before any training", fontsize=9)
    right.set(xlabel="test accuracy (%); bars are means", yticks=[])
    right.set(xlim=(0, 101), ylim=(-0.5, len(shown) - 0.2))
    return figure


def plot_finetuning(curves: Mapping[str, Sequence[Sequence[float]]], path: Path) -> None:
    """Plot mean test error over fine-tuning epochs, with a 95% interval of the mean for each method.

    Errors have a logarithmic axis, on which the best methods lie apart.

    Args:
        curves: Accuracies `[epochs + 1, networks]` by method; row 0 is before any training.
        path: PNG to write.
    """
    save_pictures(partial(_draw_finetuning, curves), path)


def _draw_finetuning(curves: Mapping[str, Sequence[Sequence[float]]], *, narrow: bool) -> "Figure":
    figure, (axes,) = make_figure(8.2, 5.2 + (0.17 * len(curves) if narrow else 0), narrow=narrow)
    axes.set_yscale("log")
    ends, floor = [], 100.0
    for name, rows in curves.items():
        label, colour, line = STYLES.get(name, (name.replace("_", " "), GREY, ":"))
        errors = 100 * (1 - np.asarray(rows, dtype=np.float64))
        mean = np.maximum(errors.mean(axis=1), LEAST)
        spread = 1.96 * errors.std(axis=1, ddof=errors.shape[1] > 1) / np.sqrt(errors.shape[1])
        epochs = np.arange(len(mean))
        axes.plot(epochs, mean, line, color=colour, marker="o", markersize=3, linewidth=1.8, label=label)
        low, high = np.maximum(mean - spread, LEAST), mean + spread
        axes.fill_between(epochs, low, high, alpha=0.15, color=colour, linewidth=0)
        ends.append((label, float(epochs[-1]), float(mean[-1]), colour))
        floor = min(floor, float(low.min()))
    axes.set(xlabel="fine-tuning (epochs)", ylabel="test error (%), mean and its 95% interval")
    axes.set_ylim(0.8 * floor, 100)
    use_decades(axes.yaxis)
    axes.set_xticks(range(len(next(iter(curves.values())))))
    if narrow:
        figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    else:
        label_ends(axes, ends)
    return figure


__all__: list[str] = []  # part of the command
