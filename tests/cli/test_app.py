"""The program: its verbs, their help, and how it fails."""

import errno
import gc
import io
import json
import os
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from forks import Fork, run_in_fork
from typer.testing import CliRunner

import hf_sane
from hf_sane.cli import app as program
from hf_sane.cli import entry
from hf_sane.cli.app import app
from hf_sane.cli.verbs import GROUPS, ZOO_VERBS, Verb
from hf_sane.cli.verbs import VERBS as DOORS
from hf_sane.records._failures import describe_error, print_error
from hf_sane.sampling._samplers import SAMPLERS

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
    assert result.stderr.startswith("hf-sane: No such option: --no-such-option")
    assert result.stderr.endswith(f"; see hf-sane {' '.join(verb)} --help\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--no-such",), "No such option: --no-such; see hf-sane --help"),
        (("infos",), "No such command 'infos'. Did you mean 'info'? see hf-sane --help"),
        (("zoo", "bild"), "No such command 'bild'. Did you mean 'build'? see hf-sane zoo --help"),
    ],
)
def test_wrong_use_of_the_program_is_one_line(arguments, message, hf_sane_command):
    assert hf_sane_command(*arguments, exit_code=2).stderr == f"hf-sane: {message}\n"


def test_every_verb_is_listed_under_what_it_is_for(hf_sane_command):
    shown = hf_sane_command("--help").stdout
    places = [shown.index(f"\n{group}:\n") for group in GROUPS]
    assert places == sorted(places)
    verbs = {verb.name: verb for verb in DOORS} | {f"zoo {verb.name}": verb for verb in ZOO_VERBS}
    assert {verb.group for verb in verbs.values()} == set(GROUPS)
    for name, verb in verbs.items():
        section = shown[shown.index(f"\n{verb.group}:\n") :][1:].partition("\n\n")[0]
        assert f"\n  {name} " in section


def test_the_version(hf_sane_command):
    assert hf_sane_command("--version").stdout == f"hf-sane {hf_sane.__version__}\n"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("hf-sane p", ["pretrain", "probe", "push", "pull"]),
        ("hf-sane zoo ", ["build", "fit", "import", "mix", "align", "show", "structure"]),
        ("hf-sane scan folder --fai", ["--fail-on"]),
        ("hf-sane push ", ["zoo", "model", "samples", "adapter"]),
        ("hf-sane sample --unit la", ["latent_std", "latent"]),
        ("hf-sane sample --method ", list(SAMPLERS)),
        ("hf-sane regions --metric=c", ["cosine"]),
        ("hf-sane scan folder --fail-on error,w", ["error,warning"]),
        ("hf-sane zoo build --optimizers adam,", ["adam,sgd"]),
        ("hf-sane zoo build --output ", []),  # then shells offer files
        ("hf-sane scan ", []),
    ],
)
def test_shells_complete_verbs_options_and_values(line, offered):
    environment = {"_HF_SANE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    result = CliRunner().invoke(app, [], env=environment, prog_name="hf-sane")
    assert result.stdout.split() == offered
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("is_terminal", "environment", "is_red"),
    [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False)],
)
def test_errors_are_red_on_a_terminal_only(is_terminal, environment, is_red, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return is_terminal

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Terminal())
    print_error("no such file", 2, name="hf-sane")
    line = "hf-sane: no such file"
    assert sys.stderr.getvalue() == (f"\33[31m{line}\33[0m\n" if is_red else f"{line}\n")


def test_an_interruption_ends_with_the_command_that_goes_on(tmp_path, monkeypatch):
    """Whatever is in it, a shell takes it as it was given."""

    def interrupt(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_sane.workflows.info.run_info", interrupt)
    words = ["info", str(tmp_path / "it's a $file"), "--key", "a b"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 130
    start, _, command = result.stderr.partition("; to start again: ")
    assert start == "\nhf-sane: interrupted: nothing was written"
    assert shlex.split(command) == ["hf-sane", *words]
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stderr)
    assert told["exit_code"] == 130
    assert told["error"].startswith("interrupted: nothing was written; to start again: hf-sane info ")


def interrupt_the_imports(folder, *, ignored):
    """Run the program where importing typer raises SIGINT; its exit code and output."""
    (folder / "typer.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nraise SystemExit(7)\n")
    handler = "SIG_IGN" if ignored else "default_int_handler"
    code = f"import signal\nsignal.signal(signal.SIGINT, signal.{handler})\nfrom hf_sane.cli.entry import main\nmain()"
    path = os.pathsep.join([str(folder), str(Path(hf_sane.__file__).parents[1])])
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_an_interruption_of_the_imports_ends_without_a_traceback(tmp_path):
    assert interrupt_the_imports(tmp_path, ignored=False) == (130, b"")


def test_a_program_in_the_background_ignores_interruptions_of_its_imports(tmp_path):
    assert interrupt_the_imports(tmp_path, ignored=True) == (7, b"")


def test_an_interruption_before_the_verb_runs_ends_without_a_traceback():
    """As while typer prepares the options; later ones are explained."""

    def work(*, before):
        def interrupt(*_):
            signal.raise_signal(signal.SIGINT)
            return ()

        def verb(settings):
            interrupt()

        if before:
            program.plugin_verbs = interrupt
        load = Verb.load
        Verb.load = lambda found: (load(found)[0], verb)
        sys.argv = ["hf-sane", "info", "x"]
        entry.main()

    ended = Fork(lambda: work(before=True)).wait()
    assert (ended.code, ended.stdout + ended.stderr) == (130, "")
    ended = Fork(lambda: work(before=False)).wait()
    assert ended.code == 130
    assert ended.stderr == "\nhf-sane: interrupted: nothing was written; to start again: hf-sane info x\n"


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
    monkeypatch.setattr("gc.disable", lambda: calls.append("collect nothing"))
    program.main()
    assert calls == ["tune", "collect nothing", "hf-sane"]


def test_garbage_is_collected_while_a_verb_runs():
    """But not before, while its modules are imported."""

    def work():
        def run(settings):
            sys.stdout.write(f"{gc.isenabled()} {gc.get_freeze_count() > 0}\n")
            raise ValueError

        load = Verb.load
        Verb.load = lambda verb: (load(verb)[0], run)
        sys.argv = ["hf-sane", "info", "x"]
        program.main()

    assert Fork(work).wait().stdout == "True True\n"


def test_the_package_runs_as_the_program(tmp_path):
    """`python -m hf_sane` is `hf-sane`, in its messages, too."""

    def run(*arguments):
        sys.argv = ["python -m", *arguments]
        runpy.run_module("hf_sane", run_name="__main__", alter_sys=True)

    ran = Fork(lambda: run("info", str(tmp_path / "nothing"))).wait()
    assert ran.code == 2
    assert ran.stderr.startswith("hf-sane: no such file or folder")
    assert "Usage: hf-sane [OPTIONS]" in run_in_fork(lambda: run("--help"))


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["scan", "--help"], ["zoo", "--help"]], ids=" ".join)
def test_help_that_nobody_reads_ends_like_other_output(words):
    def work():
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
        sys.argv = ["hf-sane", *words]
        program.main()

    ended = Fork(work).wait()
    assert (ended.code, ended.stderr) == (141, "")
