"""Plot the linear structure that runs share."""

from pathlib import Path

from hf_sane.analysis._pictures import BLUE, GREY, label_ends, make_figure, save_picture
from hf_sane.analysis._structure import SharedStructure


def plot_structure(found: SharedStructure, path: Path) -> None:
    """Plot the held-out variance explained by principal directions against their number, with the chance level.

    Args:
        found: Structure of whole networks.
        path: PNG to write.
    """
    figure, (axes,) = make_figure(5.6, 3.4)
    low, high = zip(*found.intervals, strict=True)
    axes.fill_between(found.directions, low, high, color=BLUE, alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    shown = [*low, *high, *found.explained, *found.chance]
    axes.set_ylim(min(0, *shown), min(1, 1.1 * max(shown)) or 1)
    axes.set(xlabel="principal directions", ylabel="variance of other runs explained")
    ends = []
    for values, colour, label in ((found.explained, BLUE, "training runs"), (found.chance, GREY, "shuffled weights")):
        axes.plot(found.directions, values, color=colour, marker="o", markersize=3)
        ends.append((label, found.directions[-1], values[-1], colour))
    axes.set_xticks(found.directions, [f"{number:,}" for number in found.directions])
    axes.minorticks_off()
    label_ends(axes, ends)
    save_picture(figure, path)
