"""Every road is one command and one call that is as short: docs/reference/api.md lists both, guides show both."""

import ast
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from program import parse_settings

import hf_sane
from hf_sane.cli.verbs import VERBS, ZOO_VERBS
from hf_sane.workflows.results import Result

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| `(hf-sane [^`]+)` \| `([^`]+)` \|$", re.MULTILINE)
PAIRS = ROW.findall((DOCS / "reference" / "api.md").read_text(encoding="utf-8"))
OF_PROGRAM = {**{verb.name: verb for verb in VERBS}, **{f"zoo {verb.name}": verb for verb in ZOO_VERBS}}
WITHOUT_CALL = {"demo", "doctor"}  # they check an installation
NAMES = {"hf_sane": hf_sane}
GUIDES = [page for folder in ("how-to", "tutorials") for page in sorted((DOCS / folder).glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What a page may show in place of the function: the method of SANE, or a call in another form.
METHODS = {"embed": "sane.embed(", "sample": "sane.sample(", "zoo show": "load_zoo("}


class Reached(Exception):
    """A workflow was called with these settings."""


def verb_of(command: str) -> str:
    words = shlex.split(command)[1:]
    return " ".join(words[: 2 if words[0] == "zoo" else 1])


def function_of(verb: str) -> str:
    """The function that the table pairs with a verb."""
    return next(call.partition("(")[0] for command, call in PAIRS if verb_of(command) == verb)


def test_every_verb_has_a_call():
    assert {verb_of(command) for command, _ in PAIRS} == OF_PROGRAM.keys() - WITHOUT_CALL


def settings_of(call: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """What a call passes to its workflow, which does not run."""

    def stop(made: object, **_: object) -> None:
        raise Reached(made)

    for verb in OF_PROGRAM.values():
        run = verb.load()[1]
        monkeypatch.setitem(run.__globals__, run.__name__, stop)
    with pytest.raises(Reached) as reached:
        eval(call, NAMES)
    return reached.value.args[0]


@pytest.mark.parametrize(("command", "call"), PAIRS, ids=[verb_of(command) for command, _ in PAIRS])
def test_a_call_has_the_settings_of_its_command_and_is_as_short(command, call, tiny_zoo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_zoo").symlink_to(tiny_zoo_folder)  # `pretrain` opens it first
    (tmp_path / "checkpoints").mkdir()
    verb = OF_PROGRAM[verb_of(command)]
    words = shlex.split(command)[2 if verb in VERBS else 3 :]
    expected = parse_settings(verb.load()[0], words, name=verb.name)
    if verb.name == "mix":
        expected.zoos = dict(pair.split("=") for pair in expected.zoos)
    assert settings_of(call, monkeypatch) == expected
    (statement,) = ast.parse(call).body
    values = [node for node in ast.walk(statement) if isinstance(node, ast.Constant)]
    assert len(values) <= len(re.split("[ =,]", " ".join(words)))
    assert len(call) <= len(command) + len("[]{}()") + 4 * len(values)  # brackets, quotes and commas


def returned_by(function: Callable) -> list[type]:
    returned = get_type_hints(function)["return"]
    return list(get_args(returned) or (returned,))


def test_results_save_what_their_functions_return():
    """`run_NAME(settings).save(folder)` saves the zoo or SANE that `NAME(...)` returns; all others are results."""
    saved = []
    for command, call in PAIRS:
        name = call.partition("(")[0].removeprefix("hf_sane.")
        for result in returned_by(OF_PROGRAM[verb_of(command)].load()[1]):
            assert issubclass(result, Result)
            if result not in returned_by(getattr(hf_sane, name)):
                saved.append(name)
                assert result.save is not Result.save, name
    made = {"build_zoo", "fit_zoo", "import_zoo", "mix_zoos", "align_zoo", "pretrain", "fit_linear"}
    assert set(saved) == made


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_that_shows_a_command_shows_its_call(page):
    text = page.read_text(encoding="utf-8")
    commands = {
        verb_of(line)
        for language, block in FENCE.findall(text)
        for line in block.replace("\\\n", " ").splitlines()
        if language == "bash" and line.startswith("hf-sane ")
    } - WITHOUT_CALL
    python = "\n".join(block for language, block in FENCE.findall(text) if language in ("py", "python"))
    missing = [
        verb
        for verb in sorted(commands)
        if f"{function_of(verb).removeprefix('hf_sane.')}(" not in python
        and METHODS.get(verb, "nothing") not in python
    ]
    assert not missing, f"{page.name} shows these as commands only: {missing}"


def calls_of_guides() -> list[str]:
    """Calls without variables in fences that are not run, but those of `pretrain`, which opens its zoo first."""
    calls = []
    for page in GUIDES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            for statement in ast.parse(block).body if language == "py" else ():
                call = statement.value if isinstance(statement, ast.Expr | ast.Assign) else None
                function = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
                is_fixed = call is not None and not {
                    ast.unparse(n) for n in ast.walk(call) if isinstance(n, ast.Name)
                } - {*NAMES}
                if is_fixed and function.partition(".")[0] in NAMES and function != "hf_sane.pretrain":
                    calls.append(ast.unparse(call))
    return calls


@pytest.mark.parametrize("call", calls_of_guides())
def test_calls_of_guides_are_right(call, monkeypatch):
    settings_of(call, monkeypatch)
