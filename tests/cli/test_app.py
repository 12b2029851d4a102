"""The program: its verbs, their help, and how it fails."""

import errno
import runpy
import sys

import pytest
import typer
from forks import Fork, run_in_fork
from typer.testing import CliRunner

from hf_sane.cli import app as program
from hf_sane.cli.app import app
from hf_sane.records._failures import describe_error

VERBS = [
    ("zoo", "build"),
    ("zoo", "show"),
    *[
        (v,)
        for v in (
            "pretrain",
            "embed",
            "probe",
            "sample",
            "compare",
            "reconstruct",
            "finetune",
            "info",
            "regions",
            "demo",
        )
    ],
]


def test_help_names_every_verb(hf_sane_command):
    output = hf_sane_command("--help").output
    for verb in VERBS:
        assert f"  {verb[0]} " in output


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_explains_its_options(verb, hf_sane_command):
    output = hf_sane_command(*verb, "--help").output
    assert f"Usage: hf-sane {' '.join(verb)}" in output
    assert output.count("--") > 3


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_an_unknown_option_is_refused(verb, hf_sane_command):
    result = hf_sane_command(*verb, "--no-such-option", exit_code=2)
    assert "No such option" in result.stderr
    assert f"Usage: hf-sane {' '.join(verb)}" in result.stderr


def test_no_arguments_give_help(hf_sane_command):
    assert "Usage: hf-sane" in hf_sane_command(exit_code=2).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "missing.safetensors"), "no such file or folder: missing.safetensors"),
        (("info", "missing.safetensors", "--token-layout", "dense"), "give an existing path or a Hub repo id"),
        (("zoo", "build", "--output", "x", "--num-models", "0"), "num_models must be at least 1, got 0"),
        (("finetune", "./nowhere", "--output", "x"), "no such file or folder: nowhere"),
    ],
)
def test_expected_errors_are_one_line(arguments, message, hf_sane_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = hf_sane_command(*arguments, exit_code=2)
    assert message in result.stderr
    assert result.stderr.startswith("hf-sane: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


def test_debug_shows_the_traceback():
    result = CliRunner().invoke(app, ["--debug", "info", "missing.safetensors"])
    assert isinstance(result.exception, FileNotFoundError)


def test_unexpected_errors_are_not_hidden(monkeypatch):
    broken = typer.Typer(cls=program.Program)

    @broken.callback()
    def group():
        pass

    @broken.command("fail")
    def fail():
        raise RuntimeError("our own mistake")

    result = CliRunner().invoke(broken, ["fail"])
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("no column 'x'"), "no column 'x'"),
        (ValueError("two\n  lines"), "two lines"),
        (LookupError(), "LookupError"),
        (OSError(errno.ENOSPC, "No space left"), "[Errno 28] No space left"),
    ],
)
def test_errors_are_described_plainly(error, message):
    assert describe_error(error) == message


def test_the_entry_point_tunes_the_allocator_first(monkeypatch):
    calls = []
    monkeypatch.setattr(program, "tune_allocator", lambda: calls.append("tune"))
    monkeypatch.setattr(program, "app", lambda prog_name: calls.append(prog_name))
    program.main()
    assert calls == ["tune", "hf-sane"]


def test_the_package_runs_as_the_program(tmp_path):
    """`python -m hf_sane` is `hf-sane`, in its messages, too."""

    def run(*arguments):
        sys.argv = ["python -m", *arguments]
        runpy.run_module("hf_sane", run_name="__main__", alter_sys=True)

    ran = Fork(lambda: run("info", str(tmp_path / "nothing"))).wait()
    assert ran.code == 2
    assert ran.stderr.startswith("hf-sane: no such file or folder")
    assert "Usage: hf-sane [OPTIONS]" in run_in_fork(lambda: run("--help"))
