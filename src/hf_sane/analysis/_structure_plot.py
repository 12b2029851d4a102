"""Plot of the linear structure that runs share."""

from pathlib import Path

from hf_sane.analysis._pictures import save_picture
from hf_sane.analysis._structure import SharedStructure

FOUND, CHANCE = "#08306b", "#969696"


def plot_structure(found: SharedStructure, path: Path) -> None:
    """Draw the held-out variance that principal directions explain against their number, beside chance.

    Args:
        found: Structure of whole networks.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    low, high = zip(*found.intervals, strict=True)
    axes.fill_between(found.directions, low, high, color=FOUND, alpha=0.2, linewidth=0)
    for values, colour, label in (
        (found.explained, FOUND, "training runs"),
        (found.chance, CHANCE, "shuffled weights"),
    ):
        axes.plot(found.directions, values, color=colour, marker="o", markersize=3)
        axes.annotate(label, (found.directions[-1], values[-1]), (4, 0), textcoords="offset points", color=colour)
    axes.set_xscale("log", base=2)
    axes.set_xticks(found.directions, [f"{number:,}" for number in found.directions])
    axes.set(ylim=(0, 1), xlabel="principal directions", ylabel="variance of other runs explained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    save_picture(figure, path)
