"""Plot the linear structure that runs share."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_sane.analysis._pictures import BLUE, GREY, label_ends, make_figure, save_pictures
from hf_sane.analysis._structure import SharedStructure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_structure(found: SharedStructure, path: Path) -> None:
    """Plot the held-out variance explained by principal directions against their number, with the chance level.

    Args:
        found: Structure of whole networks.
        path: PNG to write.
    """
    save_pictures(partial(_draw, found), path)


def _draw(found: SharedStructure, *, narrow: bool) -> "Figure":
    figure, (axes,) = make_figure(5.6, 3.4, narrow=narrow)
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
    ticks = found.directions[:: 1 + narrow]
    axes.set_xticks(ticks, [f"{number:,}" for number in ticks])
    axes.minorticks_off()
    label_ends(axes, ends)
    return figure
