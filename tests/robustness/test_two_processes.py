"""Two programs at once on one folder: the second one is told about the first, which ends as if it had been alone."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import Fork, run_in_fork
from small_runs import SmallRun, looks_finished, program

MAX_SECONDS = 300

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def stop_in_the_middle(process: Fork, owner: Path) -> None:
    """Wait until it holds the lock, and halt it there: however slow the second one is, the first one is at work."""
    end = time.monotonic() + MAX_SECONDS
    while not owner.is_file() or not owner.stat().st_size:  # it says who it is, right after it has begun the file
        assert os.waitpid(process.pid, os.WNOHANG) == (0, 0), "it ended"
        assert time.monotonic() < end, "it never took the lock"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGSTOP)


@pytest.mark.parametrize("name", ["zoo build", "pretrain"])
def test_the_second_process_names_the_first_which_ends_as_if_alone(
    name: str, small_run: Callable[[str], SmallRun], tmp_path: Path
) -> None:
    run, alone, place = small_run(name), tmp_path / "alone" / "place", tmp_path / "place"
    for folder in (alone, place):
        run.fresh(folder)
    run_in_fork(program(run, alone))
    first = Fork(program(run, place))
    try:
        stop_in_the_middle(first, place / ".out.hf_sane-lock-owner")
        second = Fork(program(run, place)).wait()
        assert second.code == 2, second.stderr
        (line,) = [line for line in second.stderr.splitlines() if line.startswith("hf-sane: ")]
        assert f"{place / 'out'} is being written by process {first.pid} on {os.uname().nodename} since " in line
        assert f"(hf-sane {name} " in line
        assert "wait until it has finished, stop it, or choose another folder" in line
    finally:
        os.kill(first.pid, signal.SIGCONT)
        ending = first.wait()
    assert ending.code == 0, ending.stderr
    assert looks_finished(run, place)
    assert run.content(place) == run.content(alone)
