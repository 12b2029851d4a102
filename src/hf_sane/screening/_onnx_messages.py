"""Separate the values of an ONNX file from the rest, without reading them.

An ONNX file is one message of Protocol Buffers, whose parser needs the complete message. The encoding
(https://protobuf.dev/programming-guides/encoding) gives the length of every field, so large values can be skipped.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from hf_sane.tokenization._byte_ranges import RandomAccessFile, Range

AHEAD = 2**16  # bytes to read at a time
SMALL = 2**10  # values of up to this many bytes stay with their tensor
LARGEST_RECORD = 2**16  # of a field of the model, other than its graph, that is parsed
MAX_VARINT = 10  # bytes


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        number: Its number.
        start: Offset of its tag.
        place: Offset of its value.
        stop: Offset after its value.
    """

    number: int
    start: int
    place: int
    stop: int


class Reader:
    """Reads a file in pieces, and fields of messages in it."""

    def __init__(self, file: RandomAccessFile) -> None:
        self._file = file
        self._start, self._content = 0, file.read(0, AHEAD)
        self.size = file.size

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes `start` to `stop`, or to the end of the file."""
        if not self._start <= start <= min(stop, self.size) <= self._start + len(self._content):
            self._start, self._content = start, self._file.read(start, max(stop, start + AHEAD))
        return self._content[start - self._start : stop - self._start]

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of a message between two offsets.

        Raises:
            ValueError: If the message is damaged.
        """
        while start < stop:
            tag, place = self._varint(start)
            match tag & 7:
                case 0:
                    _, end = self._varint(place)
                case 1:
                    end = place + 8
                case 2:  # text, bytes, a message, or packed numbers
                    length, place = self._varint(place)
                    end = place + length
                case 5:
                    end = place + 4
                case kind:
                    raise ValueError(f"a field of the unknown kind {kind} at byte {start:,}")
            if end > stop:
                raise ValueError(f"a field that ends at byte {end:,} of {stop:,}")
            yield Field(tag >> 3, start, place, end)
            start = end

    def _varint(self, place: int) -> tuple[int, int]:
        """A number of seven bits per byte, and the offset after it."""
        value = 0
        for index, byte in enumerate(self.read(place, place + MAX_VARINT)):
            value |= (byte & 127) << 7 * index
            if byte < 128:
                return value, place + index + 1
        raise ValueError(f"no number at byte {place:,}")


def split_onnx(file: RandomAccessFile, onnx: Any) -> tuple[Any, list[tuple[Any, Range | None]]]:
    """Parse an ONNX file without its nodes and large values.

    Args:
        file: The file.
        onnx: The package.

    Returns:
        The model without its graph; and each initialiser, with the range of its values if they were left out.

    Raises:
        ValueError, DecodeError: If the file is damaged.
    """
    reader, model, tensors = Reader(file), bytearray(), []
    for part in reader.fields(0, reader.size):
        if part.number == onnx.ModelProto.GRAPH_FIELD_NUMBER:
            for inside in reader.fields(part.place, part.stop):
                if inside.number == onnx.GraphProto.INITIALIZER_FIELD_NUMBER:
                    tensors.append(_tensor(reader, inside, onnx))
        elif part.stop - part.start <= LARGEST_RECORD:
            model += reader.read(part.start, part.stop)
    return onnx.ModelProto.FromString(bytes(model)), tensors


def _tensor(reader: Reader, field: Field, onnx: Any) -> tuple[Any, Range | None]:
    kinds = onnx.TensorProto
    # Those that are stored like in memory.
    plain = (kinds.RAW_DATA_FIELD_NUMBER, kinds.FLOAT_DATA_FIELD_NUMBER, kinds.DOUBLE_DATA_FIELD_NUMBER)
    rest, values = bytearray(), []
    for part in reader.fields(field.place, field.stop):
        if part.number in plain and part.stop - part.place > SMALL:
            values.append((part.place, part.stop))
        else:
            rest += reader.read(part.start, part.stop)
    if len(values) > 1:
        raise ValueError(f"a tensor with values in {len(values)} places")
    return kinds.FromString(bytes(rest)), values[0] if values else None
