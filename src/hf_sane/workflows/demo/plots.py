"""The demo's two plots: a map of embeddings, and accuracy during fine-tuning."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_sane.analysis._pictures import save_picture

# One hue per family: SANE in blues, the linear code in purples, the zoo's own networks in greens, cheap baselines in
# greys, reds and yellows.
COLOURS = {
    "anchors": "#1b7837",
    "reconstructed_anchors": "#7fbf7b",
    "linear_reconstructed": "#c7e9c0",
    "nearest_training": "#41ab5d",
    "sane_kde": "#9ecae1",
    "sane_subsampled": "#3182bd",
    "sane_bootstrapped": "#08306b",
    "linear_kde": "#dadaeb",
    "linear_subsampled": "#807dba",
    "linear_bootstrapped": "#3f007d",
    "anchor_noise": "#e6550d",
    "anchor_noise_selected": "#fdae6b",
    "shaped_noise": "#d95f0e",
    "shaped_noise_selected": "#fec44f",
    "interpolation": "#f768a1",
    "anchor_average": "#a50f15",
    "sane_prior": "#bcbddc",
    "shrunken_anchor": "#8c510a",
    "shrunken_scratch": "#969696",
    "scratch": "#636363",
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


def plot_finetuning(curves: Mapping[str, Sequence[Sequence[float]]], path: Path) -> None:
    """Plot mean test accuracy over fine-tuning epochs, with one line and its spread per method.

    Args:
        curves: Accuracies `[epochs + 1, networks]` by method; row 0 is before any training.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, rows in curves.items():
        accuracy = np.asarray(rows)
        mean, spread = accuracy.mean(axis=1), accuracy.std(axis=1)
        epochs = np.arange(len(mean))
        style: dict[str, Any] = {"linewidth": 2.4 if name.startswith("sane") else 1.5, "color": COLOURS.get(name)}
        axes.plot(epochs, mean, marker="o", markersize=3, label=name.replace("_", " "), **style)
        axes.fill_between(epochs, mean - spread, mean + spread, alpha=0.12, color=COLOURS.get(name), linewidth=0)
    axes.set(xlabel="fine-tuning epochs", ylabel="test accuracy", ylim=(0, 1))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=2, loc="lower right")
    save_picture(figure, path, dpi=130)


__all__ = []
