"""Read scalars from TensorBoard's event files, by TensorBoard itself, which is optional."""

from collections.abc import Iterator
from pathlib import Path

VERSION = b"brain.Event:"  # part of the first event of every file


def is_event_file(content: bytes) -> bool:
    """Whether a file starts with the first event of TensorBoard."""
    return VERSION in content[:64]


def read_scalars(path: Path) -> Iterator[tuple[str, int, float]]:
    """Tag, step and value of each scalar, in order, up to the first record that is cut off or damaged.

    Raises:
        ValueError: If TensorBoard is not installed, or an event is malformed.
    """
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise ValueError("event files are read by TensorBoard: pip install 'hf_sane[train]'") from error
    try:
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield value.tag, event.step, value.simple_value
                elif value.HasField("tensor"):
                    array = make_ndarray(value.tensor)
                    if array.ndim == 0 and array.dtype.kind == "f":
                        yield value.tag, event.step, float(array)
    except DecodeError as error:
        raise ValueError(f"an event is malformed ({error})") from error
