"""Two programs at once on one folder: the second one is told about the first, which ends as if it had been alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import SmallRun, looks_finished

PROGRAM = "import sys; sys.argv[0] = 'hf-sane'; from hf_sane.cli.app import main; main()"
MAX_SECONDS = 300


def start(run: SmallRun, place: Path) -> subprocess.Popen[str]:
    """A verb in a Python of its own."""
    command = [sys.executable, "-c", PROGRAM, *run.command(place)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stop_in_the_middle(process: subprocess.Popen[str], owner: Path) -> None:
    """Wait until it holds the lock, and halt it there: however slow the second one is, the first one is at work."""
    end = time.monotonic() + MAX_SECONDS
    while not owner.is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never took the lock"
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)


@pytest.mark.parametrize("name", ["zoo build", "pretrain"])
def test_the_second_process_names_the_first_which_ends_as_if_alone(
    name: str, small_run: Callable[[str], SmallRun], tmp_path: Path
) -> None:
    run, alone, place = small_run(name), tmp_path / "alone" / "place", tmp_path / "place"
    for folder in (alone, place):
        run.fresh(folder)
    with start(run, alone) as undisturbed:  # not a fork: it would have this process's number of threads
        output, errors = undisturbed.communicate(timeout=MAX_SECONDS)
    assert undisturbed.returncode == 0, (output, errors)
    owner = place / ".out.hf_sane-lock-owner"
    with start(run, place) as first:
        try:
            stop_in_the_middle(first, owner)
            with start(run, place) as second:
                refusal = second.communicate(timeout=MAX_SECONDS)[1]
            assert second.returncode == 2, refusal
            (line,) = [line for line in refusal.splitlines() if line.startswith("hf-sane: ")]
            assert f"{place / 'out'} is being written by process {first.pid} on {os.uname().nodename} since " in line
            assert f"(hf-sane {name} " in line
            assert "wait until it has finished, stop it, or choose another folder" in line
        finally:
            first.send_signal(signal.SIGCONT)
        output, errors = first.communicate(timeout=MAX_SECONDS)
    assert first.returncode == 0, (output, errors)
    assert looks_finished(run, place)
    assert run.content(place) == run.content(alone)
