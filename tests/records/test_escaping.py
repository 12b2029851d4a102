"""Untrusted text on cards: no HTML, link or heading gets through, and YAML stays valid."""

import re

import pytest
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_sane.architectures.presets import cnn_digits
from hf_sane.cards._tables import fact_table, markdown_table, result_tables
from hf_sane.hub._cards import adapter_card, network_card, soup_card
from hf_sane.records._errors import shorten
from hf_sane.records._escaping import (
    MAX_TEXT,
    Markup,
    markdown_code,
    markdown_text,
    plot_text,
    python_literal,
    single_lines,
)
from hf_sane.records._failures import describe_error
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._export import Provenance
from hf_sane.zoo._cards import zoo_card
from hf_sane.zoo._facts import IMPORT_KEY, IMPORTED, ZooFacts

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "[click](data:text/html;base64,AAAA)",
    "![](https://evil.example/pixel.png)",
    "<https://evil.example>",
    "https://evil.example/a?b=c www.evil.example a@evil.example",
    "[a]: https://evil.example",
    "\n# Heading\n\n---\nlicense: mit\n---\n",
    "x\n---\n\ny: 1",
    "# Heading",
    "- list",
    "1. list",
    "> quote",
    "=====",
    "a | b | c",
    "a \\| b",
    "a\\",
    "`code` ``` fence",
    "```\n",
    "\x1b[31mred\x1b[0m\x07",
    "\u202egnp.exe\u2066\u200f",
    "\ud800",
    '"); import os; os.system("true")  # ',
    "$\\frac{a$",
    "&lt;b&gt; &#60;i&#62;",
    "{{ card_data }} {% raw %}",
    "a" * 5000,
    "!!python/object/apply:os.system [true]",
    ": [mit",
    "\u2028\u2029\x85",
]
TEXT = st.one_of(
    st.sampled_from(ATTACKS),
    st.text(max_size=60),
    st.text(alphabet="<>[]()`|\\#*_~$&!:/@.-+=\n\t 1aw\"'{}%", max_size=40),
    st.lists(st.sampled_from(ATTACKS), min_size=1, max_size=3).map("".join),
)
PARSER = MarkdownIt("commonmark").enable("table").enable("strikethrough")
BARE_ADDRESS = re.compile(r"(https?://|www\.|mailto:)\S", re.IGNORECASE)
OURS = re.compile(r"^https://(arxiv\.org|huggingface\.co/docs)/")


def tokens_of(text):
    for token in PARSER.parse(text):
        yield token
        yield from token.children or ()


def assert_harmless(body, headings=None):
    """No HTML, no address outside of code but our own, and no headings but the expected ones."""
    found = []
    parsed = list(tokens_of(body))
    for previous, token in zip([None, *parsed], parsed, strict=False):
        assert token.type not in ("html_inline", "html_block", "image"), token
        if token.type == "link_open":
            assert OURS.match(token.attrs["href"]), token
        if token.type == "text":
            assert not BARE_ADDRESS.search(token.content), token
        if previous is not None and previous.type == "heading_open":
            found.append((previous.tag, token.content))
    assert not {letter for letter in body if not letter.isprintable()} - {"\n"}
    if headings is not None:
        assert found == headings


def one_cell(text):
    return [token.content for token in tokens_of(text) if token.type == "inline"]


@settings(max_examples=300, deadline=None)
@given(TEXT)
@example("a\\")
@example("1.")
@example("+")
@example("_a_ b_c")
def test_text_is_one_harmless_line_that_reads_as_it_was(text):
    shown = markdown_text(text)
    assert "\n" not in shown
    assert_harmless(f"# {shown}\n\n- {shown}\n\n{shown}\n")
    line = shorten(text, MAX_TEXT)
    for place in (shown, f"- {shown}", f"## {shown}"):
        (inline,) = [token for token in PARSER.parse(place) if token.type == "inline"] if line else [None]
        if line:
            read = "".join(child.content for child in inline.children)
            assert read == (line.replace("`", "'") if "://" in line or shown.startswith("`") else line)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_tables_keep_their_shape(pairs):
    table = fact_table(dict(pairs) | {"last": "end"})
    rows = [token for token in PARSER.parse(table) if token.type == "tr_open"]
    cells = [token for token in PARSER.parse(table) if token.type == "td_open"]
    known = {name: value for name, value in dict(pairs).items() if value != ""} | {"last": "end"}
    assert len(rows) == len(known) + 1
    assert len(cells) == 2 * len(known)
    assert one_cell(table)[-1] == "end"
    assert_harmless(table, [])
    assert_harmless(result_tables({"m": {name: {value: 1.0} for name, value in pairs}}), [])


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT, TEXT)
def test_the_card_of_an_imported_zoo(name, licence, architecture):
    data = {
        IMPORT_KEY: 3,
        "licenses": {licence: 2, name: 1},
        "license": licence,
        "networks": 3,
        "metrics": [f"metric_{name}"],
    }
    facts = ZooFacts(
        name=name,
        layouts={},
        architectures={
            "a": {"model_type": IMPORTED, "config": {"architectures": [architecture], "model_type": name}},
            "b": {"model_type": IMPORTED, "config": {"architectures": 5}},
            "c": {"model_type": IMPORTED, "config": {"model_type": architecture}},
        },
        arguments={"group_by": "repository"},
        data=data,
        splits={"train": {"runs": 3, "networks": 3}},
    )
    card = DatasetCard(zoo_card({"default": facts}))
    title = f"Model zoo: {shorten(name)}"
    assert card.data.pretty_name == title.strip() or card.data.pretty_name == title
    assert re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", card.data.license or "none")
    assert [entry["config_name"] for entry in card.data.configs] == ["default"]
    assert card.data.tags == ["model-zoo", "weight-space-learning", "hf_sane"]
    headings = [found for found in tokens_of(card.text) if found.type == "heading_open"]
    assert [found.tag for found in headings] == ["h1", "h2", "h2"]
    assert_harmless(card.text)


@settings(max_examples=40, deadline=None)
@given(TEXT, TEXT)
def test_cards_of_networks_adapters_and_soups(text, other):
    record = RunRecord(
        command=f"hf-sane {text}",
        arguments={"zoo": text, "metric": "accuracy", "learning_rate": other},
        data={"zoo": text, "images": {"name": other, "mean": [text], "std": [1]}},
        results={"test_accuracy": 0.5, text: {other: 0.5}, "ingredients": {text: {"weight": 1.0}, "b": {"weight": 0}}},
    )
    adapter = {"base_model_name_or_path": text, "r": 2, "target_modules": [text, other], "lora_alpha": other}
    for card, title in (
        (network_card(cnn_digits(), record, title=text, provenance=Provenance(other, sane_model=text)), text),
        (adapter_card(cnn_digits(), adapter, record), "LoRA adapter"),
        (soup_card(cnn_digits(), record, title=text), text),
        (soup_card(cnn_digits(), record, adapter=adapter), "Model soup"),
    ):
        read = ModelCard(str(card))
        assert read.data.library_name in ("hf_sane", "peft")
        assert read.data.to_dict() == card.data.to_dict()
        first = next(found for found in tokens_of(read.text) if found.type in ("heading_open",))
        assert first.tag == "h1"
        assert_harmless(read.text)
        fences = [token for token in PARSER.parse(read.text) if token.type == "fence"]
        assert len(fences) <= 1
        for fence in fences:
            compile(fence.content, "card", "exec")
            assert "os.system" not in fence.content or text not in fence.content
        assert shorten(title) in (shorten(title), read.data.model_name)


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_literals_give_the_value_and_end_nothing(text):
    literal = python_literal(text)
    assert eval(literal) == text
    assert "\n" not in literal
    assert "`" not in literal


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_what_goes_to_a_terminal_has_no_control_characters(text):
    assert describe_error(ValueError(text)).isprintable()
    assert shorten(text).isprintable()
    assert len(shorten(text)) <= 200
    assert single_lines({text: [text, {"a": text}]}) == {
        shorten(text, MAX_TEXT): [shorten(text, MAX_TEXT)] * 1 + [{"a": shorten(text, MAX_TEXT)}]
    }


def test_tables_of_the_program_print_no_escape_codes(capsys):
    from hf_sane.workflows.results import Result, Table

    class Shown(Result):
        def tables(self):
            return [Table(("layer", "kind"), [["\x1b[31mred\u202e\nnext", "linear"]])]

    Shown(record=RunRecord(command="x")).print()
    assert capsys.readouterr().out == "layer           kind\n[31mred next  linear\n"


@pytest.mark.parametrize("text", ATTACKS)
def test_labels_of_pictures_are_drawn_as_they_are(text):
    plt = pytest.importorskip("matplotlib.pyplot")
    figure = plt.figure()
    figure.suptitle(plot_text(text))
    figure.canvas.draw()
    plt.close(figure)


def test_what_we_wrote_ourselves_is_not_escaped_again():
    assert markdown_text(Markup("[a](b)")) == "[a](b)"
    assert markdown_code("a`b") == "`a'b`"
    assert markdown_code("") == ""
    assert markdown_table(["a"], [[markdown_text("x|y")]]).endswith("| x\\|y |")
