"""The engine of cards: what templates show is escaped by itself, and nothing they name may be missing."""

import re
from importlib.resources import files

import pytest
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import UndefinedError

from hf_sane.cards import _rendering
from hf_sane.cards._rendering import HERE, LOCAL_NOTE, address_card, render, render_model_card
from hf_sane.records._escaping import Markup
from hf_sane.records._run_record import RunRecord

STRANGE = "[a](b) <i> `c`"
ESCAPED = r"\[a\](b) &lt;i&gt; \`c\`"


@pytest.fixture
def shown(monkeypatch):
    """Renders the source of a template."""
    environment = _rendering._environment()
    return lambda source, **facts: environment.from_string(source).render(**facts)


def test_text_is_escaped_and_markup_is_not(shown):
    assert shown("{{ x }}", x=STRANGE) == ESCAPED
    assert shown("{{ x }} {{ y }}", x=Markup(STRANGE), y=5) == f"{STRANGE} 5"
    assert shown("{% for x in xs %}{{ x }};{% endfor %}", xs=[STRANGE, "b"]) == f"{ESCAPED};b;"
    assert shown("{{ x.y | upper }}", x={"y": STRANGE}) == ESCAPED.replace("a", "A").replace("(b)", "(B)").replace(
        "&lt;i&gt;", "&lt;I&gt;"
    ).replace("c", "C")


def test_filters_escape_once(shown):
    assert shown("{{ x | code }}", x="a `b`\n# c") == "`a 'b' # c`"
    assert shown("{{ x | listed }}", x=[STRANGE, 1]) == f"{ESCAPED}, 1"
    assert shown("{{ x | map('code') | listed }}", x=["a_", "b"]) == "`a_`, `b`"
    assert shown("{{ x | literal }}", x='"); `_x_`') == r'"\"); \u0060_x_\u0060"'
    assert shown("{{ x | facts }}", x={"a|b": STRANGE}) == f"|  |  |\n| --- | --- |\n| a\\|b | {ESCAPED} |"


def test_what_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="'networks' is undefined"):
        render("other_networks.md", example="x")


def test_a_template_in_a_value_is_no_template():
    assert "{{ networks }}" in render("other_networks.md", example="{{ networks }}", networks=Markup("| t |"))


def test_provenance_is_what_the_record_knows():
    record = RunRecord(command="x `y`", seed=0, data={"zoo": "z"}, versions={"torch": "2"})
    facts = {"title": "T", "source": HERE, "code": None, "standardised": None, "settings": {"a": 1}, "latents": "one"}
    card = render_model_card("sane_model.md", ModelCardData(license="mit"), record, is_linear=False, **facts)
    assert isinstance(card, ModelCard)
    assert card.data.license == "mit"
    assert card.text.endswith("| command | `x 'y'` |\n| seed | 0 |\n| torch | 2 |\n")
    assert re.findall("^#+ .*", card.text, flags=re.MULTILINE) == [
        *("# T", "## Training data", "## Model", "## Intended use and limitations", "## Provenance")
    ]


def test_a_card_is_addressed_to_its_repository():
    text = f'{LOCAL_NOTE}A.from_pretrained(".")\nB.from_pretrained(a, ".")\nC.from_pretrained("org/c")\n'
    loads = 'A.from_pretrained("me/x")\nB.from_pretrained(a, "me/x")\nC.from_pretrained("org/c")\n'
    assert address_card(text, "me/x") == loads
    named = address_card('A.from_pretrained(".")', "me/x", subfolder='a"b`')
    assert named == r'A.from_pretrained("me/x", subfolder="a\"b\u0060")'


def test_model_cards_say_the_note_that_addressing_removes():
    (template,) = (files("hf_sane.cards") / "templates").glob("model_card.md")
    assert LOCAL_NOTE.strip() in template.read_text(encoding="utf-8")
