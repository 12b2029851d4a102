"""A verb that is killed or interrupted at any event of its files, and then run again, gives what it would have given.

Nobody else's file is touched, nothing that is half done looks finished, and nothing of ours is left beside.

`make test` takes some events of each verb, `make kill` all of them: `KILL_POINTS=all`.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from kill_points import Outcome, in_child, spread
from small_runs import STRANGERS, VERBS, SmallRun, looks_finished, program, visible

from hf_sane.records.run_record import RunRecord

POINTS = os.environ.get("KILL_POINTS", "3")
RECORDS = os.environ.get("KILL_RECORDS")  # folder that gets a run record for each verb
INTERRUPTED = 130
MIN_EVENTS = 10  # a verb that does less to its files is not watched

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def stop_and_run_again(
    run: SmallRun, place: Path, event: int, expected: dict[str, Any], by: signal.Signals = signal.SIGKILL
) -> None:
    run.fresh(place)
    before = run.content(place)
    stopped = in_child(program(run, place), place=place, stop_at=event, by=by)
    if run.varies and stopped.code == 0:  # fewer events than the last time
        return
    what = f"{run.name}, event {event}: {stopped.events[event - 1]}"
    if by == signal.SIGKILL:
        assert stopped.was_killed, stopped
    else:
        assert stopped.code == INTERRUPTED, f"{what}: {stopped.output}"
        lines = [line for line in stopped.output.splitlines() if line.startswith("hf-sane: ")]
        assert len(lines) == 1, stopped.output
        assert "hf-sane: interrupted: " in lines[0]
        assert "the same command" in lines[0]
    left = run.content(place)
    for name in {*STRANGERS, "out/mine.txt"} & before.keys():
        assert left[name] == before[name], f"{what}: {name}"
    finished = looks_finished(run, place)
    if finished and not run.starts_finished:
        assert visible(left) == visible(expected), f"{what}: half done, but it looks finished"
    again = in_child(program(run, place), place=place)
    if again.code == 2 and run.continued_by and run.continued_by[0] in again.output:
        again = in_child(program(run, place, *run.continued_by), place=place)
    if again.code == 2:
        assert finished, f"{what}: {again.output}"
        assert "finished" in again.output, what
    else:
        assert again.code == 0, f"{what}: {again.output}"
    found = run.content(place)
    assert found.keys() == expected.keys(), f"{what}: {found.keys() ^ expected.keys()}"
    differing = [name for name in expected if found[name] != expected[name]]
    assert not differing, f"{what}: {differing}"


def stop_everywhere(run: SmallRun, place: Path) -> None:
    record = RunRecord.start()
    run.fresh(place)
    whole = in_child(program(run, place), place=place)
    assert whole.code == 0, whole.output
    total = len(whole.events)
    assert total >= MIN_EVENTS
    expected = run.content(place)
    assert looks_finished(run, place)
    killed = range(1, total + 1) if POINTS == "all" else [*spread(total, int(POINTS))]
    interrupted = killed if POINTS == "all" else [total // 2]
    failures = []
    for by, events in ((signal.SIGKILL, killed), (signal.SIGINT, interrupted)):
        for event in events:
            try:
                stop_and_run_again(run, place, event, expected, by)
            except AssertionError as failure:
                failures.append(f"{by.name}: {failure}")
    assert not failures, "\n\n".join(failures)
    if RECORDS:
        results = {"events": total, "killed_at": len(killed), "interrupted_at": len(interrupted)}
        record.finish(results | {"seconds_of_one_run": round(whole.seconds, 2)})
        record.save(Path(RECORDS) / f"{run.name.replace(' ', '_')}.json")


@pytest.mark.parametrize("name", VERBS)
def test_a_killed_verb_is_made_whole_by_running_it_again(
    name: str, small_run: Callable[[str], SmallRun], tmp_path: Path
) -> None:
    stop_everywhere(small_run(name), tmp_path / "place")


def test_a_killed_pull_is_made_whole_by_running_it_again(local_hub: Hub, tmp_path: Path) -> None:
    files = {
        "model.safetensors": os.urandom(3000),
        "config.json": b"{}",
        "sub/notes.txt": b"x",
        ".gitattributes": b"y",
    }
    local_hub.storage.add_files("models", "org/model", files)
    stop_everywhere(SmallRun("pull", ("pull", "org/model"), varies=True), tmp_path / "place")


def test_the_harness_sees_what_it_kills(tmp_path: Path) -> None:
    """Otherwise nothing above could fail."""
    (tmp_path / "watched").mkdir()

    def work() -> None:
        for name in ("a", "b", "c"):
            (tmp_path / "watched" / name).write_text(name)
            (tmp_path / "beside").write_text(name)
        (tmp_path / "watched" / "a").rename(tmp_path / "watched" / "d")
        (tmp_path / "watched" / "b").unlink()

    whole = in_child(work, place=tmp_path / "watched")
    assert isinstance(whole, Outcome)
    assert [event.split()[0] for event in whole.events] == ["open", "open", "open", "os.rename", "os.remove"]
    for path in (tmp_path / "watched").iterdir():
        path.unlink()
    killed = in_child(work, place=tmp_path / "watched", stop_at=3)
    assert killed.was_killed
    assert sorted(path.name for path in (tmp_path / "watched").iterdir()) == ["a", "b"]
