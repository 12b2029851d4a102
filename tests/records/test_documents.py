"""JSON of strangers: every refusal names file and field."""

import pytest

from hf_sane.records._documents import Entry, parse_document, read_document, read_settings
from hf_sane.records._errors import InvalidFileError


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '{"a": 1, "a": 2}',
        '{"a": {"b": 1, "b": 1}}',
        '{"a": "\\ud800"}',
        "[" * 10**5,
        "9" * 5000,
    ],
)
def test_what_is_no_object_is_refused(text, tmp_path):
    (tmp_path / "facts.json").write_text(text)
    with pytest.raises(InvalidFileError, match="facts.json: expected the facts of a test, got .*; write them again"):
        read_document(tmp_path / "facts.json", expected="the facts of a test", remedy="write them again")


def test_other_bytes_are_refused_and_a_missing_file_is_missing(tmp_path):
    (tmp_path / "facts.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InvalidFileError, match="got an error: 'utf-8' codec can't decode"):
        read_document(tmp_path / "facts.json", expected="facts")
    with pytest.raises(FileNotFoundError):
        read_document(tmp_path / "none.json", expected="facts")


@pytest.fixture
def document():
    return parse_document(
        '{"text": "x", "whole": 3, "number": 2.5, "nan": NaN, "large": 1e400, "huge": 1%s, "flag": true, "none": null,'
        ' "list": [1, {"deep": "y"}], "object": {"a": 1}}' % ("0" * 400),
        "file.json",
    )


def test_values_of_the_right_type_come_back(document):
    assert document["text"].text() == "x"
    assert document["whole"].whole() == 3
    assert document["number"].number() == 2.5
    assert document["whole"].number() == 3.0
    assert document["flag"].flag() is True
    assert document.get("none") is None
    assert document.get("missing") is None
    assert [entry.value for entry in document["list"].entries(length=2)] == [1, {"deep": "y"}]
    assert [(key, entry.value) for key, entry in document["object"].items()] == [("a", 1)]
    assert document["text"].one_of(("x", "y")) == "x"


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        (lambda d: d["missing"], "file.json: expected a field 'missing', got an object with 10 fields"),
        (lambda d: d["text"]["a"], "file.json: text: expected an object, got 'x'"),
        (lambda d: d["text"].entries(), "text: expected a list, got 'x'"),
        (lambda d: d["list"].entries(length=3), "list: expected a list of 3, got a list of 2"),
        (
            lambda d: d["list"].entries()[1]["deep"].whole(),
            r"list\[1\].deep: expected a whole number from 0 to \d+, got 'y'",
        ),
        (lambda d: d["flag"].whole(), "flag: expected a whole number from 0 to .*, got True"),
        (lambda d: d["whole"].whole(at_least=4), "whole: expected a whole number from 4 to .*, got 3"),
        (lambda d: d["huge"].whole(), "huge: expected a whole number from 0"),
        (lambda d: d["flag"].number(), "flag: expected a finite number, got True"),
        (lambda d: d["nan"].number(), "nan: expected a finite number, got nan"),
        (lambda d: d["large"].number(), "large: expected a finite number, got inf"),
        (lambda d: d["huge"].number(), "huge: expected a finite number"),
        (lambda d: d["whole"].number(above=3), "whole: expected a finite number above 3, got 3"),
        (lambda d: d["whole"].flag(), "whole: expected true or false, got 3"),
        (lambda d: d["none"].text(), "none: expected text, got null"),
        (lambda d: d["text"].one_of(("y", 3)), "text: expected one of 'y', 3, got 'x'"),
        (lambda d: d["flag"].one_of((1,)), "flag: expected one of 1, got True"),
    ],
)
def test_other_values_are_refused_by_field(refuse, message, document):
    with pytest.raises(InvalidFileError, match=message) as caught:
        refuse(document)
    assert str(caught.value).endswith("; download or write the file again")


def test_an_entry_can_stand_for_a_mapping_that_is_no_file():
    with pytest.raises(InvalidFileError, match="a layout: token_dim: expected text, got 3"):
        Entry({"token_dim": 3}, "a layout")["token_dim"].text()


def test_settings_are_given_as_json_or_as_a_file(tmp_path):
    assert read_settings(' {"a": 1}', "model") == {"a": 1}
    (tmp_path / "model.json").write_text('{"a": 2}')
    assert read_settings(str(tmp_path / "model.json"), "model") == {"a": 2}
    with pytest.raises(InvalidFileError, match="^model: expected a JSON object, got an error: Expecting value"):
        read_settings('{"a": ', "model")
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(InvalidFileError, match=r"model.json: expected settings for model \(a JSON object\)"):
        read_settings(str(tmp_path / "model.json"), "model")
    with pytest.raises(FileNotFoundError):
        read_settings("no such file", "model")
