"""Prose of the package and its pages is idiomatic English: phrases that were once mended stay away."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "scripts", "experiments", "benchmarks")
PYTHON = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PAGES = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "RELEASING", "SECURITY")]
PAGES += sorted(path for folder in ("docs", "model_cards") for path in (ROOT / folder).rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef

# Line breaks in docstrings, comments, paragraphs, and messages that consist of several strings.
LINE_BREAK = re.compile(r'\n[\s#]*(?:f?"(?!"))?')


# American spellings, but words of libraries: optimizer (PyTorch), tokenizer and tokenize (Transformers). Names of
# arguments, options and functions are spelt as in PyTorch, too.
STEMS = (
    *(
        "canonical",
        "categor",
        "custom",
        "dequant",
        "emphas",
        "factor",
        "final",
        "general",
        "initial",
        "local",
        "maxim",
    ),
    *("minim", "normal", "organ", "penal", "quant", "random", "real", "recogn", "regular", "serial", "special"),
    *("standard", "summar", "synchron", "util", "visual"),
)
SPELLING = re.compile(
    r"(?<![\w.\-=/'\"<{\[$\\])(?<!hf-sane )(?:"
    rf"(?:{'|'.join(STEMS)})iz(?:e|ed|es|ing|ation|ations|able)|analyz(?:e|ed|es|ing)|behaviors?|behavioral|colors?|"
    "colored|centers?|centered|gray|grayscale|artifacts?|neighbors?|neighboring|favor(?:ed|ite)?|labeled|unlabeled|"
    "labeling|modeled|modeling|optimisers?|tokenis\\w+"
    r")(?![\w\-=/:\"'\[]|\.\w| ?\()",
    re.IGNORECASE,
)
CODE = re.compile(r"^ *```.*?^ *```|`[^`]*`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)


class Phrase(NamedTuple):
    """A phrase to avoid.

    Attributes:
        pattern: Regular expression for lower-case text in one line.
        example: Text that has the phrase.
        plain: How to say it instead.
    """

    pattern: str
    example: str
    plain: str


PHRASES = [
    Phrase(r" whoever", "for whoever trusts us", "anyone who"),
    Phrase(r"somebody", "unless somebody else edited it", "someone, or 'by hand'"),
    Phrase(r"that nobody has changed", "a folder that nobody has changed since", "an unchanged folder"),
    Phrase(r"is not known;", "the bulk is not known; measure it", "unknown, or 'cannot be determined'"),
    Phrase(r"when `none`", "all networks when `None`", "if `None`, or 'by default'"),
    Phrase(r"which of it", "which of it is saved", "which part"),
    Phrase(r" of it[.,;:]", "the last row of it.", "its last row"),
    Phrase(r"asked for", "properties that are asked for", "requested"),
    Phrase(r" asks for\b", "what the card asks for", "needs, or requires"),
    Phrase(
        r"error: (?:for (?!\w+ in )|without|as for|as there\b)", "ValueError: For fewer networks", "start with 'If'"
    ),
    Phrase(r"in the midst", "in the midst of a run", "in the middle of"),
    Phrase(r" shall\b", "networks that shall be ordered", "should, or 'to order networks'"),
    Phrase(r"there and back", "a trip there and back", "round trip"),
    Phrase(r"here and there", "the difference here and there", "name both places"),
    Phrase(r" in earnest\b", "used in earnest", "in practice, use"),
    Phrase(r"in one stay", "read in one stay", "at once"),
    Phrase(r" stands\b(?! for| in for)", "the record stands beside it", "is"),
    Phrase(r" knows\b", "the codec knows its layout", "has, contains or recognises"),
    Phrase(r"does not know", "the spec does not know the axis", "the spec has no such axis"),
    Phrase(r" tells\b", "the norm tells more", "shows, or distinguishes"),
    Phrase(r" roads?\b", "both take one road", "way, or 'use the same code'"),
    Phrase(r" as of \[", "shape: As of [`noisy_anchors`]", "the same as in, or 'see'"),
    Phrase(r": (?:of|that) (?:the|a|an|all|loads|is to)\b", "path: Of the new file", "start with a noun: 'Path of'"),
    Phrase(r'"""what ', '"""What was measured."""', "a noun phrase: 'Measurements'"),
    Phrase(
        r"[a-z`)][.;] what (?:is|was|are|were|has|had|it|they|cannot|can|seems)\b(?![^.]*\?)",
        "Save it. What is unknown is None.",
        "turn the sentence around: 'Unknown fields are None.'",
    ),
    Phrase(r" (?:is|are) there\b(?! (?:a|an|any|no)\b)(?!\?)", "all records that are there", "existing"),
    Phrase(r" gives? (?:it|them|the \w+) back", "prove that it gives the network back", "restores, or returns"),
    Phrase(r" go(?:es)? together\b", "what does not go together", "match, or 'are compatible'"),
    Phrase(r" one's own\b", "modules of one's own", "your own"),
    Phrase(r" the best so many\b", "keep the best so many", "the number of best"),
    Phrase(r"\d %(?=[ ,.;:)|])(?! \d)", "an interval of 95 %.", "95%, without a space"),
    Phrase(r" [a-z]+\(s\)(?=[ .,;]| \()", "with 1 thread(s).", "the singular or the plural"),
    Phrase(r" images? a class", "5 images a class", "per class"),
    Phrase(r"name others with", "name others with --images", "choose others with"),
    Phrase(r" in busy loops", "threads wait in busy loops", "'spend their time waiting', or leave it out"),
    Phrase(r"\brepeatable\b", "Zoos of one architecture. Repeatable.", "Repeat the option for several"),
    Phrase(r"\bhub (?:dataset )?ids?\b", "a folder or Hub id", "Hub repo id"),
    Phrase(r" counts? on\b", "Children count on from their ancestor", "are counted from"),
    Phrase(r" means all\b", "A folder means all in it", "stands for all"),
    Phrase(r" did not arrive", "parts of it did not arrive", "name what is missing"),
    Phrase(r"\b(?:the|a) walk\b", "They were not taken on the walk", "test"),
    Phrase(r"one line per verb", "hf-sane: one line per verb", "a table of verbs"),
    Phrase(r" as many latents", "a linear code with as many latents", "the same latent_dim"),
    Phrase(r"beside other (?:work|jobs)", "25 minutes beside other work", "next to other jobs"),
    Phrase(r" told to be\b", "0 are told to be the same", "classified as"),
    Phrase(r" are to be \w+ed\b", "Trained networks are to be spared", "turn it around, or 'should be'"),
    Phrase(r"files of strangers", "opens files of strangers", "untrusted sources"),
    Phrase(r" do(?:es)? not pay\b", "codes of a few numbers do not pay", "are not worthwhile"),
    Phrase(r" costs? nothing\b", "its weights cost nothing", "is not counted"),
    Phrase(r" is wanted\b", "a network for these images is wanted", "the task is to find"),
    Phrase(r"do not flatter", "Results that do not flatter", "unfavourable"),
    Phrase(r"who wins|what it is for\b", "the table says who wins", "which one wins"),
    Phrase(r"by day and by night", "shown by day and by night", "light and dark mode"),
    Phrase(r" verbs? beside (?:each other|one another)", "run verbs beside each other", "at the same time"),
]


def one_line(text: str) -> str:
    """Text without line breaks, in lower case."""
    return LINE_BREAK.sub(" ", text.replace(' "\n', "\n")).lower()


def prose(path: Path) -> str:
    """Text of a file; of a notebook, that of its cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def faults(text: str) -> Iterator[str]:
    """A message for each phrase to avoid in a text."""
    text = one_line(text)
    for pattern, _, plain in PHRASES:
        for found in re.finditer(pattern, text):
            around = text[max(found.start() - 50, 0) : found.end() + 40]
            yield f"{found.group().strip()!r} in '...{around}...'; plain English: {plain}"


def comments(path: Path) -> str:
    """Comments and docstrings of a Python file."""
    source = path.read_text(encoding="utf-8")
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Module | ast.ClassDef | FUNCTION)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = [ast.get_docstring(node) or "" for node in nodes]
    return "\n".join([*found, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def american(text: str) -> list[str]:
    """American spellings in a text outside of its code."""
    return SPELLING.findall(CODE.sub(" ", text))


def test_prose_is_spelt_alike():
    assert american("The color of a normalized layer; its tokenised weights.") == ["color", "normalized", "tokenised"]
    assert not american("The colour, `color`, `hf-sane analyze`, [a](normalize.md), optimizer, tokenized; size: 3.")
    pages = [path for path in PAGES if "model_cards" not in path.parts]  # which list names of settings
    texts = {path: prose(path) for path in pages} | {path: comments(path) for path in PYTHON}
    assert {
        path.relative_to(ROOT).as_posix(): words for path, text in texts.items() if (words := american(text))
    } == {}


@pytest.mark.parametrize("phrase", PHRASES, ids=lambda phrase: phrase.plain)
def test_a_planted_phrase_is_found_wherever_its_line_breaks(phrase):
    first, _, rest = phrase.example.rpartition(" ")
    texts = [f"{first}\n        # {rest}", f'f"{first} "\n    f"{rest}"'] if '"""' not in phrase.example else []
    for text in [phrase.example, *texts]:
        assert any(phrase.plain in fault for fault in faults(text)), text


def test_plain_english_has_no_faults():
    plain = (
        '"""Write the record, if there is one.\n\n    Args:\n        path: Path of the new file; unknown if `None`."""'
    )
    assert not list(faults(plain))


def test_prose_is_plain_english():
    found = [
        f"{path.relative_to(ROOT)}: {fault}" for path in [*PYTHON, *PAGES, *NOTEBOOKS] for fault in faults(prose(path))
    ]
    assert not found, "\n".join(found)
