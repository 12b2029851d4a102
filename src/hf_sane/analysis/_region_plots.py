"""Plots of regions: maps, and scores of points inside regions."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from hf_sane.analysis._pictures import (
    BLUE,
    GREEN,
    GREY,
    MAX_VECTOR_DOTS,
    PALETTE,
    RED,
    SCALE,
    legend_columns,
    make_figure,
    save_pictures,
)
from hf_sane.analysis._region_results import RegionScores
from hf_sane.records._escaping import plot_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LABELS = 20  # with distinguishable colours
POSITIONS = {"tsne": "positions: t-SNE", "umap": "positions: UMAP", "pca": "positions: two principal components"}
PLACES = {"outside": GREY, "corners": GREEN, "line": BLUE, "hull": RED}


def plot_maps(
    maps: Mapping[str, tuple[Tensor, Sequence[str]]], path: Path, *, method: str = "tsne", columns: int = 3
) -> None:
    """Plot maps side by side, with one dot per network, coloured by label.

    Args:
        maps: Coordinates `[M, 2]` (see [`project`]) and `M` labels, by title.
        path: PNG to write.
        method: Method to name below the maps.
        columns: Number of panels in a row.

    Raises:
        ValueError: If there are no maps, coordinates are not `[M, 2]`, or there are more labels than colours.
    """
    if not maps:
        raise ValueError("expected at least one map to draw, got none")
    for title, (points, labels) in maps.items():
        if points.shape != (len(labels), 2):
            raise ValueError(f"{title}: expected coordinates [{len(labels)}, 2], got {list(points.shape)}")
    names = list(dict.fromkeys(label for _, labels in maps.values() for label in labels))
    if len(names) > MAX_LABELS:
        raise ValueError(f"expected at most {MAX_LABELS} labels to draw, got {len(names)}; choose a coarser level")
    save_pictures(partial(_draw_maps, maps, names, POSITIONS.get(method, f"positions: {method}"), columns), path)


def _draw_maps(
    maps: Mapping[str, tuple[Tensor, Sequence[str]]],
    names: Sequence[str],
    positions: str,
    columns: int,
    *,
    narrow: bool,
) -> "Figure":
    from matplotlib import colormaps

    palette = PALETTE if len(names) <= len(PALETTE) else colormaps["tab20"].colors  # type: ignore[attr-defined]
    colours = dict(zip(names, palette, strict=False))
    columns = 1 if narrow else min(columns, len(maps))
    rows = -(-len(maps) // columns)
    figure, panels = make_figure(3.4 * columns, 3.2 * rows + 0.3, rows, columns, narrow=narrow)
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    for axes, (title, (points, labels)) in zip(panels, maps.items(), strict=False):
        for name in dict.fromkeys(labels):
            member = [label == name for label in labels]
            axes.scatter(
                points[member, 0],
                points[member, 1],
                s=11,
                color=colours[name],
                linewidths=0,
                label=plot_text(name, 80),
                rasterized=len(points) > MAX_VECTOR_DOTS,
            )
        _as_map(axes, plot_text(title.replace("_", " "), 80))
    drawn = panels[: len(maps)]
    if len({frozenset(labels) for _, labels in maps.values()}) == 1:
        handles, texts = drawn[0].get_legend_handles_labels()
        figure.legend(
            handles,
            texts,
            loc="outside lower center",
            ncols=legend_columns(texts, figure.get_figwidth(), most=6),
            fontsize=8,
            frameon=False,
            title=positions,
            title_fontsize=8,
        )
    else:
        for axes in drawn:
            texts = axes.get_legend_handles_labels()[1]
            beside = legend_columns(texts, figure.get_figwidth() / columns, most=3)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=beside, fontsize=8, frameon=False)
        figure.supxlabel(positions, fontsize=8)
    return figure


def plot_properties(points: np.ndarray, properties: Mapping[str, Any], path: Path) -> None:
    """Plot one panel per property, with one dot per network, coloured by the property.

    Args:
        points: `[M, 2]` positions in the plane.
        properties: Values `[M]` by title.
        path: PNG to write.
    """
    save_pictures(partial(_draw_properties, points, properties), path)


def _draw_properties(points: np.ndarray, properties: Mapping[str, Any], *, narrow: bool) -> "Figure":
    from matplotlib.ticker import MaxNLocator

    figure, panels = make_figure(4.6 * len(properties), 4.4, columns=len(properties), narrow=narrow)
    is_large = len(points) > MAX_VECTOR_DOTS
    for axes, (title, values) in zip(panels, properties.items(), strict=True):
        dots = axes.scatter(
            points[:, 0],
            points[:, 1],
            c=values,
            s=12,
            cmap=SCALE,
            edgecolors=GREY,  # since the ends of the scale may be as dark, or as light, as the page
            linewidths=0.4,
            rasterized=is_large,
        )
        scale = figure.colorbar(dots, ax=axes, location="bottom", aspect=40, pad=0.02)
        scale.outline.set_visible(False)
        scale.ax.tick_params(labelsize=8)
        scale.locator = MaxNLocator(5)
        _as_map(axes, plot_text(title.replace("_", " "), 80))
    return figure


def _as_map(axes: "Axes", title: str) -> None:
    """Format axes as a plane whose directions have no meaning."""
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)
    axes.spines[:].set_visible(False)


def plot_scores(scores: Mapping[str, RegionScores], path: Path, *, quantity: str = "accuracy") -> None:
    """Plot scores of points on lines and in the hull of regions, with those of corners and networks outside.

    Args:
        scores: Scores by region.
        path: PNG to write.
        quantity: Name of the scores.

    Raises:
        ValueError: If there are no scores.
    """
    if not scores:
        raise ValueError("expected the scores of at least one region, got none")
    save_pictures(partial(_draw_scores, scores, quantity), path)


def _draw_scores(scores: Mapping[str, RegionScores], quantity: str, *, narrow: bool) -> "Figure":
    figure, (axes,) = make_figure(max(4.0, 1.6 * len(scores) + 1), 3.4, narrow=narrow)
    for position, found in enumerate(scores.values()):
        for step, (place, colour) in enumerate(PLACES.items()):
            values = getattr(found, place).numpy()
            where = np.full(len(values), position + 0.2 * (step - 1.5))
            axes.scatter(where, values, s=8, color=colour, alpha=0.5, linewidths=0, label=None if position else place)
    turned = 90 if narrow and len(scores) > 2 else 0
    axes.set_xticks(range(len(scores)), [plot_text(name, 40) for name in scores], fontsize=8, rotation=turned)
    axes.set_ylabel(quantity)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(fontsize=7)
    return figure
