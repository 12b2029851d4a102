"""What an interruption says, by the state in which it finds the output."""

import io
import json
import signal
import subprocess
import sys
import time

import pytest

from hf_sane.records._failures import run_script
from hf_sane.records._file_kinds import FileKind
from hf_sane.records._interruptions import explaining
from hf_sane.records._outputs import (
    add_file,
    begin_folder,
    finish_folder,
    output_file,
    output_folder,
    resumable_folder,
)

KIND = FileKind.json_with("a record", "command")


COMMAND = "python script.py --zoo 'a zoo'"


@pytest.fixture(autouse=True)
def _heeds_sigint():
    """Shells start jobs in the background with SIGINT ignored, and these pass that on to the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["script.py", "--zoo", "a zoo"])


def said(capsys, work):
    """The line of a script that is interrupted."""

    def main():
        work()
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ending:
        run_script(main, name="script")
    assert ending.value.code == 130
    line = capsys.readouterr().err
    assert line.startswith("\n")  # below what a progress bar has left
    return line[1:]


def test_before_anything_was_written(capsys):
    line = f"script: interrupted: nothing was written; to start again: {COMMAND}\n"
    assert said(capsys, lambda: None) == line


@pytest.mark.parametrize("there_before", [False, True])
def test_inside_an_output_that_is_swapped_in(tmp_path, capsys, there_before):
    def fill(*, interrupted):
        with output_folder(tmp_path / "out", "soup", replace=True) as partial:
            (partial / "file").touch()
            if interrupted:
                raise KeyboardInterrupt

    if there_before:
        fill(interrupted=False)
    line = f"script: interrupted: nothing was written to {tmp_path / 'out'}; to start again: {COMMAND}\n"
    assert said(capsys, lambda: fill(interrupted=True)) == line
    assert said(capsys, lambda: fill(interrupted=False)) == f"script: interrupted: {tmp_path / 'out'} is finished\n"


def test_while_the_lock_is_let_go(tmp_path, capsys, monkeypatch):
    """The output is in its place, and the block has ended."""

    def stop(*_):
        raise KeyboardInterrupt

    def work():
        with output_folder(tmp_path / "out", "soup") as partial:
            (partial / "file").touch()
            monkeypatch.setattr("filelock.FileLock.release", stop)

    assert said(capsys, work) == f"script: interrupted: {tmp_path / 'out'} is finished\n"


def test_inside_a_folder_that_is_continued(tmp_path, capsys):
    def fill(*, stop_at):
        with resumable_folder(tmp_path / "out", "demo") as folder:
            if stop_at == "start":
                raise KeyboardInterrupt
            begin_folder(folder, "demo")
            if stop_at == "middle":
                raise KeyboardInterrupt
            finish_folder(folder, "demo")
            if stop_at == "end":
                raise KeyboardInterrupt

    nothing = f"script: interrupted: nothing was written to {tmp_path / 'out'}; to start again: {COMMAND}\n"
    kept = f"script: interrupted: what was finished is kept in {tmp_path / 'out'}; to continue: {COMMAND}\n"
    finished = f"script: interrupted: {tmp_path / 'out'} is finished\n"
    expected = {"start": nothing, "middle": kept, "end": finished}
    for stop_at, line in expected.items():
        assert said(capsys, lambda stop_at=stop_at: fill(stop_at=stop_at)) == line


def test_the_outermost_block_speaks_after_the_others_have_tidied(tmp_path, capsys):
    def work():
        with resumable_folder(tmp_path / "out", "demo") as folder:
            begin_folder(folder, "demo")
            with output_folder(folder / "sane", "SANE"):
                raise KeyboardInterrupt

    line = f"script: interrupted: what was finished is kept in {tmp_path / 'out'}; to continue: {COMMAND}\n"
    assert said(capsys, work) == line


def test_a_single_file(tmp_path, capsys):
    def write(*, interrupted):
        with output_file(tmp_path / "run.json", KIND) as partial:
            partial.write_text(json.dumps({"command": "x"}))
            if interrupted:
                raise KeyboardInterrupt

    line = f"script: interrupted: nothing was written to {tmp_path / 'run.json'}; to start again: {COMMAND}\n"
    assert said(capsys, lambda: write(interrupted=True)) == line
    assert (
        said(capsys, lambda: write(interrupted=False)) == f"script: interrupted: {tmp_path / 'run.json'} is finished\n"
    )


def test_what_was_finished_before_is_named_beside_what_was_not(tmp_path, capsys):
    def work():
        with output_folder(tmp_path / "adapter", "adapter") as partial:
            (partial / "file").touch()
            with add_file(partial, "README.md") as card:
                card.write_text("card")
        with explaining(lambda: "org/adapter holds nothing"):
            raise KeyboardInterrupt

    line = f"script: interrupted: {tmp_path / 'adapter'} is finished; org/adapter holds nothing\n"
    assert said(capsys, work) == line


def test_a_second_one_does_not_cut_the_message(monkeypatch):
    """Ctrl-C is pressed again while the first one is described, and while it is printed."""
    handler = signal.getsignal(signal.SIGINT)

    def describe():
        signal.raise_signal(signal.SIGINT)
        return "half of it is kept"

    def work():
        with explaining(describe):
            signal.raise_signal(signal.SIGINT)

    class Stderr(io.StringIO):
        def write(self, text):
            signal.raise_signal(signal.SIGINT)
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", Stderr())
    with pytest.raises(SystemExit):
        run_script(work, name="script")
    assert sys.stderr.getvalue() == "\nscript: interrupted: half of it is kept\n"
    assert signal.getsignal(signal.SIGINT) is handler


def test_one_that_a_finalizer_drops_is_repeated(capsys):
    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def work():
        Finalized()
        time.sleep(60)

    hook = sys.unraisablehook
    assert said(capsys, work) == f"script: interrupted: nothing was written; to start again: {COMMAND}\n"
    assert sys.unraisablehook is hook


def test_the_exit_code_is_right_if_code_from_a_string_was_interrupted(tmp_path):
    """After it, Python would end a module by SIGINT, even though the interruption was handled."""
    lines = ["import huggingface_hub.errors", "from hf_sane.records import run_script"]
    lines += ["run_script(lambda: exec('raise KeyboardInterrupt'), name='x')"]
    (tmp_path / "module.py").write_text("\n".join(lines))
    ran = subprocess.run([sys.executable, "-m", "module"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 130
    assert ran.stderr.startswith("\nx: interrupted: nothing was written; ")
