"""Separate the values of an ONNX file from the rest, without reading them.

An ONNX file is one message of Protocol Buffers, whose parser needs the complete message. The encoding
(https://protobuf.dev/programming-guides/encoding) gives the length of every field, so large values can be skipped.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from hf_sane.tokenization._byte_ranges import RandomAccessFile, Range

AHEAD = 2**16  # bytes to read at a time
SMALL = 2**10  # values of up to this many bytes stay with their tensor
LARGEST_RECORD = 2**16  # of a field of the model, other than its graph, that is parsed
MAX_VARINT = 10  # bytes
MAX_DEPTH = 20  # of graphs inside each other
FLOAT_BYTES = 4
SPARSE = "sparse values are not supported"


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


class Weights(NamedTuple):
    """A tensor in an ONNX file.

    Attributes:
        name: Its name; in subgraphs and nodes, after the names of these.
        tensor: Its message, without values that were left out; `None` if it is not supported.
        values: Range of the values that were left out, if any.
        in_node: Whether it is an attribute of a node, which may also hold other things than weights.
        reason: Why it is not supported.
    """

    name: str
    tensor: Any
    values: Range | None = None
    in_node: bool = False
    reason: str = ""


def split_onnx(file: RandomAccessFile, onnx: Any) -> tuple[Any, list[Weights]]:
    """Parse an ONNX file without its nodes and large values.

    Args:
        file: The file.
        onnx: The package.

    Returns:
        The model without its graph; and all initialisers and tensors of nodes, also those in subgraphs and functions.

    Raises:
        ValueError, DecodeError: If the file is damaged.
    """
    reader, model, found = Reader(file), bytearray(), list[Weights]()
    walk = _Walk(reader, onnx)
    for part in reader.fields(0, reader.size):
        if part.number == onnx.ModelProto.GRAPH_FIELD_NUMBER:
            found += walk.graph(part, "")
        elif part.number == onnx.ModelProto.TRAINING_INFO_FIELD_NUMBER:
            for graph in reader.fields(part.place, part.stop):
                is_graph = graph.number in (
                    walk.training.INITIALIZATION_FIELD_NUMBER,
                    walk.training.ALGORITHM_FIELD_NUMBER,
                )
                found += walk.graph(graph, "training.") if is_graph else ()
        elif part.number == onnx.ModelProto.FUNCTIONS_FIELD_NUMBER:
            found += walk.function(part)
        elif part.stop - part.start <= LARGEST_RECORD:
            model += reader.read(part.start, part.stop)
    return onnx.ModelProto.FromString(bytes(model)), found


class _Walk:
    """Finds the tensors of graphs, nodes and subgraphs."""

    def __init__(self, reader: Reader, onnx: Any) -> None:
        self._reader, self._onnx = reader, onnx
        self.training = onnx.TrainingInfoProto
        self._depth = 0

    def graph(self, field: Field, prefix: str) -> Iterator[Weights]:
        """Tensors of a graph, whose names start with `prefix`."""
        kinds = self._onnx.GraphProto
        if self._depth == MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} graphs inside each other")
        self._depth += 1
        for part in self._reader.fields(field.place, field.stop):
            if part.number == kinds.INITIALIZER_FIELD_NUMBER:
                tensor, values = _tensor(self._reader, part, self._onnx)
                yield Weights(prefix + tensor.name, tensor, values)
            elif part.number == kinds.SPARSE_INITIALIZER_FIELD_NUMBER:
                yield from self._sparse(part, prefix)
            elif part.number == kinds.NODE_FIELD_NUMBER:
                yield from self.node(part, prefix)
        self._depth -= 1

    def function(self, field: Field) -> Iterator[Weights]:
        """Tensors of a function."""
        kinds, parts = self._onnx.FunctionProto, list(self._reader.fields(field.place, field.stop))
        prefix = self._text(parts, kinds.NAME_FIELD_NUMBER) + "."
        for part in parts:
            if part.number == kinds.NODE_FIELD_NUMBER:
                yield from self.node(part, prefix)
            elif part.number == kinds.ATTRIBUTE_PROTO_FIELD_NUMBER:
                yield from self._attribute(part, prefix, is_constant=False)

    def node(self, field: Field, prefix: str) -> Iterator[Weights]:
        """Tensors of a node and its subgraphs."""
        kinds, parts = self._onnx.NodeProto, list(self._reader.fields(field.place, field.stop))
        attributes = [part for part in parts if part.number == kinds.ATTRIBUTE_FIELD_NUMBER]
        if not attributes:
            return
        kind, output, name = (
            self._text(parts, number)
            for number in (kinds.OP_TYPE_FIELD_NUMBER, kinds.OUTPUT_FIELD_NUMBER, kinds.NAME_FIELD_NUMBER)
        )
        is_constant = kind == "Constant"
        label = prefix + ((output or name) if is_constant else (name or output or kind))
        for part in attributes:
            yield from self._attribute(part, label if is_constant else f"{label}.", is_constant=is_constant)

    def _attribute(self, field: Field, label: str, *, is_constant: bool) -> Iterator[Weights]:
        kinds, parts = self._onnx.AttributeProto, list(self._reader.fields(field.place, field.stop))
        name = label if is_constant else label + self._text(parts, kinds.NAME_FIELD_NUMBER)
        for part in parts:
            match part.number:
                case kinds.T_FIELD_NUMBER | kinds.TENSORS_FIELD_NUMBER:
                    tensor, values = _tensor(self._reader, part, self._onnx)
                    yield Weights(name, tensor, values, in_node=True)
                case kinds.G_FIELD_NUMBER | kinds.GRAPHS_FIELD_NUMBER:
                    yield from self.graph(part, f"{name}.")
                case kinds.SPARSE_TENSOR_FIELD_NUMBER | kinds.SPARSE_TENSORS_FIELD_NUMBER:
                    yield Weights(name, None, reason=SPARSE)
        numbers = [part.stop - part.place for part in parts if part.number == kinds.FLOATS_FIELD_NUMBER]
        if is_constant and sum(numbers) > FLOAT_BYTES:
            yield Weights(name, None, reason=f"a list of {sum(numbers) // FLOAT_BYTES:,} numbers in a node")

    def _sparse(self, field: Field, prefix: str) -> Iterator[Weights]:
        kinds = self._onnx.SparseTensorProto
        for part in self._reader.fields(field.place, field.stop):
            if part.number == kinds.VALUES_FIELD_NUMBER:
                tensor, _ = _tensor(self._reader, part, self._onnx)
                yield Weights(prefix + tensor.name, None, reason=SPARSE)

    def _text(self, parts: Iterable[Field], number: int) -> str:
        """The first text in a field of this number, or nothing."""
        found = (self._reader.read(part.place, part.stop) for part in parts if part.number == number)
        return next(found, b"").decode()


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
