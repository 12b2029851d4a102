"""Common style of all plots, which are saved as files and, for reports, as SVG for wide and for narrow screens.

Plots label their curves at the ends, give units on their axes, and show intervals if there are any. Their colours are
distinguishable with every kind of colour vision, on white and on black.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_sane.records._file_kinds import PICTURE
from hf_sane.records._outputs import output_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# After Okabe and Ito; the lighter colours are darkened for contrast with white.
BLUE, RED, GREEN, PURPLE, ORANGE, SKY, GREY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#b4639a",
    "#b37800",
    "#3d94c9",
    "#7a7a7a",
)
PALETTE = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, GREY)
SCALE = "cividis"  # for numbers; every kind of colour vision can order its shades
NARROW = 3.5  # inches, the width of a plot on a phone
MANY_DECADES = 300  # from the smallest to the largest number of an axis
LETTER = 0.58  # width of a letter, as a share of the font size
SMALLEST = 0.7  # share of its width to which a page may shrink a plot; below, its labels are illegible
# Fonts of other scripts than those of Matplotlib's own font, on common systems.
OTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC"),
    *("Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS"),
    *("Noto Sans Devanagari", "Kohinoor Devanagari", "Nirmala UI", "Noto Sans Thai", "Leelawadee UI"),
)
MAX_VECTOR_DOTS = 2000  # in one drawing; more dots are embedded as a bitmap
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
NAMES = re.compile(r'(\bid="|url\(#|href="#)')


@dataclass(frozen=True)
class Picture:
    """A figure as SVG that fits into a page in HTML.

    Attributes:
        name: Title.
        svg: The figure.
        narrow: The figure for narrow screens, with its panels one below the other, if there is one.
    """

    name: str
    svg: str
    narrow: str = ""


_collected: ContextVar[list[Picture] | None] = ContextVar("collected", default=None)
_writes_files: ContextVar[bool] = ContextVar("writes_files", default=True)


def make_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, *, narrow: bool = False, **grid: Any
) -> "tuple[Figure, list[Axes]]":
    """Create a figure and its axes, row by row, with no frame, a light grid and small type.

    Args:
        width: Width of the figure in inches.
        height: Height of the figure in inches.
        rows: Number of rows of axes.
        columns: Number of columns of axes.
        narrow: Make it as narrow as a phone, with all axes in one column.
        **grid: Arguments of `Figure.subplots`.
    """
    from matplotlib.figure import Figure

    if narrow:
        width, height, rows, columns = NARROW, height * columns, rows * columns, 1
        grid.pop("width_ratios", None)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(np.asarray(figure.subplots(rows, columns, squeeze=False, **grid)).flatten())
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        axes.title.set_fontsize(9)
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
    return figure, panels


def label_ends(axes: "Axes", ends: Sequence[tuple[str, float, float, str]], *, size: float = 8) -> None:
    """Label curves at their right ends; labels that would overlap are moved apart, and connected with the ends.

    Args:
        axes: Axes with all of their curves and final limits.
        ends: Name, position of the end, and colour of each curve.
        size: Font size in points.
    """
    height = axes.get_window_extent().height / axes.figure.dpi * 72
    step = 1.25 * size / height
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_axes.transform((x, y))[1]) for _, x, y, _ in ends]
    places = _spread_out(wanted, step)
    right = max(x for _, x, _, _ in ends)
    for index, (name, x, y, colour) in enumerate(ends):
        axes.annotate(
            name,
            (x, y),
            (1.06, places[index]),
            xycoords=("data", "data"),
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            color=colour,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )
    axes.set_xlim(right=right)


def _spread_out(wanted: Sequence[float], step: float) -> list[float]:
    """Positions from 0 to 1, at least a step apart, each as near as possible to the wanted one."""
    groups: list[list[int]] = []

    def start(group: list[int]) -> float:
        middle = sum(wanted[index] for index in group) / len(group)
        return max(0.0, min(1.0 - step * (len(group) - 1), middle - step * (len(group) - 1) / 2))

    for index in sorted(range(len(wanted)), key=wanted.__getitem__):
        groups.append([index])
        while len(groups) > 1 and start(groups[-2]) + step * len(groups[-2]) > start(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    places = [0.0] * len(wanted)
    for group in groups:
        for place, index in enumerate(group):
            places[index] = start(group) + step * place
    return places


def legend_columns(names: Sequence[str], width: float, *, most: int, size: float = 8) -> int:
    """Number of columns of a legend that fit.

    Args:
        names: Its texts.
        width: Width in inches.
        most: Largest number.
        size: Font size in points.
    """
    letters = max(map(len, names), default=0) + 8  # with the mark and the gap between columns
    return max(1, min(most, int(72 * width / (LETTER * size * letters))))


def scale_colours(count: int) -> list[str]:
    """Colours of a scale of numbers, from the smallest to the largest."""
    from matplotlib import colormaps, colors

    return [colors.to_hex(colour) for colour in colormaps[SCALE](np.linspace(0, 1, count))]


def use_decades(axis: Any) -> None:
    """Set ticks of a logarithmic axis, whose limits are final, as plain numbers: at 1, 2 and 5 if there is room."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < MANY_DECADES * low else (1,), numticks=6))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


@contextmanager
def collecting_pictures(*, files: bool = True) -> Iterator[list[Picture]]:
    """Collect the figures of the block for a page in HTML.

    Args:
        files: Also write the files.
    """
    collected: list[Picture] = []
    tokens = _collected.set(collected), _writes_files.set(files)
    try:
        yield collected
    finally:
        _collected.reset(tokens[0])
        _writes_files.reset(tokens[1])


def save_pictures(draw: "Callable[..., Figure]", path: Path, *, dpi: int = 130) -> None:
    """Write a figure like [`save_picture`], which reports show on wide screens, and draw another for narrow ones.

    Args:
        draw: Makes the figure; its keyword `narrow` says whether it is for a narrow screen, see [`make_figure`].
        path: Picture to write.
        dpi: Resolution.
    """
    save_picture(draw(narrow=False), path, dpi=dpi)
    if (collected := _collected.get()) is not None:
        figure = draw(narrow=True)
        _use_other_fonts(figure)
        _wrap_texts(figure)
        wide, name = collected.pop(), f"{path.stem}_narrow"
        collected.append(Picture(wide.name, wide.svg, _inline_svg(figure, name, is_narrow=True)))


def _wrap_texts(figure: "Figure") -> None:
    """Break titles and labels that are longer than a narrow figure into lines."""
    letters = 72 * figure.get_figwidth() / LETTER
    for axes in figure.axes:
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            room = letters if text is not axes.yaxis.label else letters * 0.8
            lines = text.get_text().split("\n")
            text.set_text(
                "\n".join(textwrap.fill(line, max(10, int(room / float(text.get_fontsize())))) for line in lines)
            )


def save_picture(figure: "Figure", path: Path, *, dpi: int = 130) -> None:
    """Write a figure in the format given by the suffix of `path`, PNG by default; only pictures are replaced.

    Raises:
        FileExistsError: If the file exists and is not a picture.
    """
    _use_other_fonts(figure)
    # First, since the places of labels depend a little on what was drawn before.
    if (collected := _collected.get()) is not None:
        collected.append(Picture(path.stem.replace("_", " "), _inline_svg(figure, path.stem)))
    if _writes_files.get():
        from matplotlib import rc_context

        kind = path.suffix.removeprefix(".") or "png"
        undated = {"Date": None} if kind == "svg" else None  # the same figure gives the same file
        settings = rc_context({"svg.hashsalt": path.stem})
        with output_file(path, PICTURE) as partial, settings, _without_font_warnings():
            figure.savefig(partial, format=kind, dpi=dpi, metadata=undated)


def _use_other_fonts(figure: "Figure") -> None:
    """Draw letters that the usual font lacks in other fonts, as far as they are installed."""
    from matplotlib.font_manager import findfont, fontManager, get_font
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and not text.get_text().isascii()]
    if not texts:
        return
    usual = get_font(findfont("DejaVu Sans"))
    installed = {font.name for font in fontManager.ttflist}
    others = [name for name in OTHER_FONTS if name in installed]
    for text in texts:
        if others and not all(usual.get_char_index(ord(letter)) for letter in text.get_text()):
            text.set_fontfamily([*text.get_fontfamily(), *others])


@contextmanager
def _without_font_warnings() -> Iterator[None]:
    """Without a warning for each letter that no font has; it is drawn as a box, and as text in reports."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)
        yield


def _inline_svg(figure: "Figure", name: str, *, is_narrow: bool = False) -> str:
    """A figure as an element of HTML, in the colour of the surrounding text, with unique names."""
    from matplotlib import rc_context

    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), _without_font_warnings():
        figure.savefig(drawn, format="svg", transparent=True, metadata=NO_METADATA)
    svg = HEAD.sub("", drawn.getvalue(), count=1).replace("#000000", "currentColor")
    if not is_narrow:
        svg = svg.replace("<svg ", f'<svg style="min-width: {SMALLEST * figure.get_figwidth():.1f}in" ', 1)
    prefix = re.sub(r"\W", "-", name)
    return NAMES.sub(lambda found: f"{found[0]}{prefix}-", svg)
