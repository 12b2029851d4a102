"""Saving of plots."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_sane.records._file_kinds import PICTURE
from hf_sane.records._outputs import output_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_picture(figure: "Figure", path: Path, *, dpi: int = 110) -> None:
    """Write a figure in the format that the suffix of `path` names, PNG without one; only a picture is replaced.

    Raises:
        FileExistsError: If there is a file that is not a picture.
    """
    with output_file(path, PICTURE) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix(".") or "png", dpi=dpi)
