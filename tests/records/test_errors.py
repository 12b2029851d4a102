"""What counts as a fault of a file, and what does not."""

import errno

import pytest

from hf_sane.records._errors import InvalidFileError, reading


def read(error: Exception, also: tuple[type[Exception], ...] = (), *, by_arrow: bool = True) -> None:
    with reading("some.file", expected="rows", remedy="take another", also=also, by_arrow=by_arrow):
        raise error


@pytest.mark.parametrize(
    ("error", "got"),
    [
        (ValueError("x"), "ValueError: x"),
        (KeyError("no such key"), "KeyError: 'no such key'"),
        (OSError("Couldn't deserialize thrift"), "an error: Couldn't deserialize thrift"),
        (ValueError("expected 3, got 4"), "an error: expected 3, got 4"),  # without the name of a type
    ],
)
def test_a_parser_finds_fault_with_the_file(error, got):
    with pytest.raises(InvalidFileError) as caught:
        read(error)
    assert str(caught.value) == f"some.file: expected rows, got {got}; take another"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), FileNotFoundError("x"), ConnectionError("x"), RuntimeError("x")],
)
def test_disks_and_networks_are_not_the_fault_of_the_file(error):
    with pytest.raises(type(error)) as caught:
        read(error)
    assert caught.value is error


def test_unless_the_reader_says_so():
    with pytest.raises(InvalidFileError):
        read(FileNotFoundError("x"), also=(FileNotFoundError,))


def test_only_arrow_reports_damage_as_an_error_of_the_system():
    with pytest.raises(OSError, match="no such repository"):  # as Transformers has it
        read(OSError("no such repository"), by_arrow=False)
