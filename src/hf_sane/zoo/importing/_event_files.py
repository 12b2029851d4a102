"""Read scalars from TensorBoard's event files: records of TFRecord, each with an event as a protocol buffer."""

import struct
from collections.abc import Iterator

VERSION = b"brain.Event:"  # the first event says which version of the format follows
HEAD, CHECKSUM = struct.Struct("<QI"), 4  # length and its checksum come before each record, its own checksum after it
WALL_TIME_KEY = 0x09
# Numbers of fields: Event.step, Event.summary, Summary.value, Value.tag, Value.simple_value, Value.tensor, and of a
# TensorProto its dtype, its bytes and its values.
STEP, SUMMARY, VALUE, TAG, SIMPLE, TENSOR = 2, 5, 1, 1, 2, 8
DTYPE, CONTENT = 1, 4
TENSORS = {1: ("<f", 5), 2: ("<d", 6)}  # by dtype, float and double: format, and field of values
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def is_event_file(content: bytes) -> bool:
    """Whether a file starts with the first event of TensorBoard."""
    return content[HEAD.size : HEAD.size + 1] == bytes([WALL_TIME_KEY]) and VERSION in content[:64]


def read_scalars(content: bytes) -> Iterator[tuple[str, int, float]]:
    """Tag, step and value of each scalar, in order; a record that is cut off at the end of the file is left out.

    Raises:
        ValueError: If a record is malformed.
    """
    position = 0
    while position + HEAD.size <= len(content):
        length, _ = HEAD.unpack_from(content, position)
        start = position + HEAD.size
        position = start + length + CHECKSUM
        if position > len(content):
            return
        event = _fields(content[start : start + length])
        step = _signed(next((value for key, value in event if key == STEP and isinstance(value, int)), 0))
        for summary in _parts(event, SUMMARY):
            for part in _parts(_fields(summary), VALUE):
                value = _fields(part)
                tag = next(_parts(value, TAG), b"").decode()
                if tag and (number := _scalar(value)) is not None:
                    yield tag, step, number


def _scalar(value: list[tuple[int, int | bytes]]) -> float | None:
    """The number of a value, written as such or as a tensor without axes; `None` for images, texts and histograms."""
    for simple in _parts(value, SIMPLE):
        return float(struct.unpack("<f", simple)[0])
    for part in _parts(value, TENSOR):
        tensor = _fields(part)
        kind = next((found for key, found in tensor if key == DTYPE), None)
        if isinstance(kind, int) and kind in TENSORS:
            form, field = TENSORS[kind]
            for content in (*_parts(tensor, CONTENT), *_parts(tensor, field)):
                if len(content) == struct.calcsize(form):
                    return float(struct.unpack(form, content)[0])
    return None


def _parts(fields: list[tuple[int, int | bytes]], wanted: int) -> Iterator[bytes]:
    return (value for key, value in fields if key == wanted and isinstance(value, bytes))


def _fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer; nested messages and fixed numbers are bytes."""
    found: list[tuple[int, int | bytes]] = []
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, position = _varint(message, position)
            found.append((number, value))
            continue
        if kind == BYTES:
            size, position = _varint(message, position)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"expected a field of a protocol buffer, got one of type {kind}")
        if position + size > len(message):
            raise ValueError("a field of a protocol buffer is cut off")
        found.append((number, message[position : position + size]))
        position += size
    return found


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number in groups of 7 bits, and the position after it."""
    number = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError("a number of a protocol buffer is too long")


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
