"""Read scalars from TensorBoard's event files, by TensorBoard itself, which is optional."""

from pathlib import Path

FRAME_BYTES = 16  # around every event: its length and two checksums
VERSION = b"brain.Event:"  # part of the first event of every file


def is_event_file(content: bytes) -> bool:
    """Whether a file starts with the first event of TensorBoard."""
    return VERSION in content[:64]


def read_scalars(path: Path) -> tuple[list[tuple[str, int, float]], str | None]:
    """Tag, step and value of each scalar, in order, up to the first event that is cut off or damaged.

    Returns:
        The scalars, and where the file is damaged, if it is.

    Raises:
        ValueError: If TensorBoard is not installed, or an event is malformed.
    """
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise ValueError("event files are read by TensorBoard: pip install 'hf_sane[train]'") from error
    found = []
    end, step = 0, None
    content = path.read_bytes()
    try:
        for event in LegacyEventFileLoader(str(path)).Load():
            end += FRAME_BYTES + int.from_bytes(content[end : end + 8], "little")
            step = event.step
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.append((value.tag, event.step, value.simple_value))
                elif value.HasField("tensor"):
                    array = make_ndarray(value.tensor)
                    if array.ndim == 0 and array.dtype.kind == "f":
                        found.append((value.tag, event.step, float(array)))
    except DecodeError as error:
        raise ValueError(f"an event is malformed ({error})") from error
    if end == len(content):
        return found, None
    return found, "an event file that is damaged or cut off" + ("" if step is None else f" after step {step}")
