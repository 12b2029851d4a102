"""Exit codes of all verbs: 0 done, 1 finding, 2 wrong use or bad input (test_refusals.py), 130 interrupted."""

import json
import shlex
from dataclasses import dataclass

import pytest
from program import run_command

from hf_sane.cli.verbs import VERBS, ZOO_VERBS, Verb
from hf_sane.records._run_record import RunRecord
from hf_sane.workflows.results import Result, Table

EXAMPLES = [(verb.name, *verb.example.split()) for verb in VERBS]
EXAMPLES += [("zoo", verb.name, *verb.example.split()) for verb in ZOO_VERBS]


@dataclass(kw_only=True)
class Found(Result):
    """A result with or without a finding."""

    code: int

    @property
    def exit_code(self):
        """As given."""
        return self.code

    def tables(self):
        """One cell."""
        return [Table(("", "value"), [["found", self.code]])]


@pytest.fixture(params=EXAMPLES, ids=lambda words: words[1] if words[0] == "zoo" else words[0])
def run(request, monkeypatch):
    """Call a verb whose workflow is replaced by another function."""

    def call(workflow, *options, exit_code):
        load = Verb.load
        with monkeypatch.context() as patched:
            patched.setattr(Verb, "load", lambda verb: (load(verb)[0], workflow))
            return run_command(*request.param, *options, exit_code=exit_code), [*request.param, *options]

    return call


def test_all_codes(run):
    def found(code):
        return lambda settings: Found(record=RunRecord(command="x", results={"found": code}), code=code, notes=["n"])

    def interrupted(settings):
        raise KeyboardInterrupt

    for code in (0, 1):
        told, _ = run(found(code), exit_code=code)
        assert (told.stdout.split(), told.stderr) == (["value", "found", str(code)], "n\n")
        told, _ = run(found(code), "--json", exit_code=code)
        assert json.loads(told.stdout) == {"found": code, "notes": ["n"]}
        told, _ = run(found(code), "--quiet", exit_code=code)
        assert told.output == ""
        told, _ = run(found(code), "-q", "--json", exit_code=code)
        assert json.loads(told.output)["found"] == code
    told, words = run(interrupted, exit_code=130)
    assert told.stdout == ""
    before, _, command = told.stderr.partition("; to start again: ")
    assert before == "\nhf-sane: interrupted: nothing was written"
    assert shlex.split(command) == ["hf-sane", *words]
