"""Scripts fail as the command line does: one line for what the user can mend, a traceback for everything else."""

import errno
import json
import os
import sys
import tomllib
from pathlib import Path

import pytest
from torch import nn

import hf_sane
from hf_sane.records._extras import PACKAGES, require_package
from hf_sane.records._failures import describe_error, run_script
from hf_sane.records._run_record import RunRecord
from hf_sane.training._lora import add_lora
from hf_sane.workflows.results import Result


@pytest.mark.parametrize("error", [OSError("disk\nfull"), KeyError("disk full"), ValueError("disk full")])
def test_expected_errors_are_one_line_and_exit_code_two(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_script(main, name="build_zoo.py")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "build_zoo.py: disk full\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("No module named 'sklearn.svm'", name="sklearn.svm"),
            "scikit-learn, got none; pip install",
        ),
        (ImportError("t-SNE requires scikit-learn: pip install 'hf_sane[analysis]'"), "t-SNE requires scikit-learn"),
    ],
)
def test_a_missing_optional_package_is_one_line_with_the_command_that_installs_it(error, said, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_script(main, name="build_zoo.py")
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert said in line
    assert line.endswith("pip install 'hf_sane[analysis]'\n")


def test_other_missing_modules_are_faults_of_the_program():
    def main():
        raise ModuleNotFoundError("No module named 'hf_sane.nothing'", name="hf_sane.nothing")

    with pytest.raises(ModuleNotFoundError):
        run_script(main, name="build_zoo.py")


@pytest.mark.parametrize("module", PACKAGES)
def test_an_extra_installs_each_optional_package(module, monkeypatch):
    package, extra = PACKAGES[module]
    listed = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(line.startswith(package) for line in listed["optional-dependencies"][extra])
    monkeypatch.setattr("hf_sane.records._extras.find_spec", lambda name: None)
    said = f"expected the package {package} for plots, got none; pip install 'hf_sane\\[{extra}\\]'"
    with pytest.raises(ImportError, match=said):
        require_package(module, "plots")


def test_digits_and_adapters_say_what_they_need(monkeypatch):
    monkeypatch.setattr("hf_sane.records._extras.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="expected the package scikit-learn for the images 'digits', got none"):
        hf_sane.load_images("digits")
    with pytest.raises(ImportError, match="expected the package peft for LoRA, got none"):
        add_lora(nn.Linear(2, 2), rank=1, alpha=1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "zoo/a b"),
            "zoo/a b: Permission denied; give this user access to it and to its folder (chmod, or ask its owner)",
        ),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"zoo"), "zoo: Is a directory"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), "a: Too many levels of symbolic links"),
        (FileNotFoundError("no such file: a"), "no such file: a"),
    ],
)
def test_what_the_system_says_of_a_file_is_a_sentence(error, said):
    assert describe_error(error) == said


def test_a_missing_key_is_no_message():
    """The text of `KeyError("width")` is just 'width'."""
    for error, said in [
        (KeyError("width"), "KeyError: 'width'; --debug shows where it comes from"),
        (KeyError(3), "KeyError: 3; --debug shows where it comes from"),
        (KeyError(), "KeyError; --debug shows where it comes from"),
        (KeyError("the zoo has no column 'width'"), "the zoo has no column 'width'"),
    ]:
        assert describe_error(error) == said
    with pytest.raises(KeyError) as caught:
        json.loads('{"height": 3}', object_hook=lambda given: given["width"])
    line = caught.traceback[0].lineno + 1
    said = f"KeyError: 'width' (test_failures.py, line {line}); --debug shows where it comes from"
    assert describe_error(caught.value) == said
    with pytest.raises(KeyError) as caught:
        RunRecord(command="x").results["accuracy"]
    assert "(test_failures.py, line" in describe_error(caught.value)


def test_debug_shows_the_traceback_and_is_no_option_of_the_script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["build_zoo.py", "--debug", "--zoo"])

    def main():
        raise ValueError(*sys.argv)

    with pytest.raises(ValueError, match="--zoo") as raised:
        run_script(main, name="build_zoo.py")
    assert raised.value.args == ("build_zoo.py", "--zoo")


def test_other_errors_are_not_hidden_and_exit_codes_pass():
    def main():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run_script(main, name="x.py")
    for result, code in ((1, 1), ("text", 0), (None, 0)):
        with pytest.raises(SystemExit) as ended:
            run_script(lambda result=result: result, name="x.py")
        assert ended.value.code == code


def test_output_that_nobody_reads_ends_the_program_quietly(monkeypatch, capsys):
    def end(main):
        with pytest.raises(SystemExit) as left:
            run_script(main, name="x")
        return left.value.code, capsys.readouterr().err

    def lose_connection():
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    assert end(lose_connection) == (2, "x: [Errno 32] Broken pipe\n")  # of something else than the output
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        result = Result(record=RunRecord(command="x"), notes=["a note"])
        assert end(result.print) == (141, "")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert end(lambda: sys.stdout.write("a table\n") and sys.stdout.flush()) == (141, "")
