"""A verb that is killed or interrupted at any event of its files, and then run again, gives what it would have given.

Nobody else's file is touched, nothing that is half done looks finished, nothing of ours is left beside, and the line
of an interruption is true. So it is with scripts, and with functions that save an artefact.

`make test` takes some events of each, `make kill` all of them: `KILL_POINTS=all`, with a run record:
`KILL_RECORD=FILE`.
"""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artefact_writers import WRITERS
from hub_server import Hub
from kill_points import Outcome, in_child, spread
from kill_record import PROPERTY
from small_runs import LONG, SCRIPTS, STRANGERS, VERBS, SmallRun, looks_finished, program, run_app, talk_to, visible

POINTS = os.environ.get("KILL_POINTS", "1")
INTERRUPTED = 130
MIN_EVENTS = 5  # what does less to its files is not watched
SINGLE_FILES = ("RunRecord.save", "SpectrumReport.save_json", "save_picture")
FOLDERS = ("save_network in place of another", *(WRITERS if POINTS == "all" else ("save_sane", "save_adapter")))
RUNS = (*SINGLE_FILES, *FOLDERS, *VERBS, *SCRIPTS, *(LONG if POINTS == "all" else ()))

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def stop_and_run_again(
    run: SmallRun,
    place: Path,
    event: int,
    expected: dict[str, Any],
    by: signal.Signals,
    mended: set[tuple[str, ...]],
) -> None:
    """Stop it at an event, look at what is there, run it again and look again.

    Args:
        run: What is stopped.
        place: Where.
        event: Its number.
        expected: What is there when it is not stopped.
        by: Killed or interrupted.
        mended: States of the disk from which running it again was seen to work; it is not tried twice, added to.
    """
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
    left = run.content(place)
    for name in {*STRANGERS, "out/mine.txt"} & before.keys():
        assert left[name] == before[name], f"{what}: {name}"
    finished = looks_finished(run, place)
    if finished:
        good = [visible(expected), *([visible(before)] if run.starts_finished else [])]
        assert visible(left) in good, f"{what}: half done, but it looks finished"
    asked = ()
    if by == signal.SIGINT:
        asked = true_line(run, stopped.output, what, is_finished=finished, is_new=visible(left) != visible(before))
    state = (run.state(place), *asked)
    if state in mended:
        return
    again = in_child(program(run, place, *asked), place=place)
    if by == signal.SIGKILL and again.code == 2 and run.continued_by and run.continued_by[0] in again.output:
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
    mended.add(state)


def true_line(run: SmallRun, output: str, what: str, *, is_finished: bool, is_new: bool) -> tuple[str, ...]:
    """Check what an interruption says against what is on disk; gives the flags that it asks for."""
    start = f"{run.program}: interrupted: "
    lines = [line.removeprefix(start) for line in output.splitlines() if line.startswith(start)]
    assert len(lines) == 1, f"{what}: {output}"
    assert "Traceback" not in output, f"{what}: {output}"
    what = f"{what}: {lines[0]}"
    if "is finished" in lines[0]:
        assert is_finished, what
        return ()
    assert re.search("; to (start again|continue)(: |, repeat the call)", lines[0]), what
    if "nothing was written" in lines[0]:
        assert not is_new, what
    elif "holds no checkpoint" not in lines[0]:
        assert " kept" in lines[0], what
        assert not is_finished or run.starts_finished, what
    return run.continued_by if any(flag in lines[0] for flag in run.continued_by) else ()


def stop_everywhere(run: SmallRun, place: Path) -> dict[str, Any]:
    """All of it; gives the counts, and the failures."""
    run.fresh(place)
    fresh = run.state(place)
    whole = in_child(program(run, place), place=place)
    assert whole.code == 0, whole.output
    total = len(whole.events)
    assert total >= MIN_EVENTS
    expected = run.content(place)
    assert looks_finished(run, place)
    most = total if POINTS == "all" else int(POINTS)
    killed = [*spread(total, min(most, run.most or most))]
    interrupted = killed if POINTS == "all" else [total // 2]
    failures: list[str] = []
    mended: set[tuple[str, ...]] = set() if run.varies else {(fresh,)}  # clients of the Hub keep files elsewhere
    for by, events in ((signal.SIGKILL, killed), (signal.SIGINT, interrupted)):
        for event in events:
            try:
                stop_and_run_again(run, place, event, expected, by, mended)
            except AssertionError as failure:
                failures.append(f"{by.name}: {failure}")
    counts = {"events": total, "kills": len(killed), "interrupts": len(interrupted), "states": len(mended)}
    return counts | {"failures": failures} | {"seconds_of_one_run": round(whole.seconds, 2)}


@pytest.mark.parametrize("name", RUNS)
def test_what_is_killed_is_made_whole_by_running_it_again(
    name: str,
    small_run: Callable[[str], SmallRun],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    counts = stop_everywhere(small_run(name), tmp_path / "place")
    record_property(PROPERTY, {name: counts})
    assert not counts["failures"], "\n\n".join(counts["failures"])


def test_a_killed_push_leaves_all_or_nothing_and_can_be_repeated(
    inputs: Path, hub: Hub, home: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """At every request to the Hub; what is pushed is not changed."""
    before = {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()}

    def push(name: str, stop_at: int | None, by: signal.Signals = signal.SIGKILL) -> tuple[Outcome, dict[str, bytes]]:
        def work() -> None:
            talk_to(hub, home)
            run_app(["push", "samples", str(inputs / "sampled"), f"org/{name}"])

        outcome = in_child(work, place=tmp_path, stop_at=stop_at, by=by)
        repository = hub.storage.repositories.get(("models", f"org/{name}"))
        files = repository.files if repository is not None else {}
        return outcome, {path: text.replace(f"org/{name}".encode(), b"org/x") for path, text in files.items()}

    whole, expected = push("whole", None)
    assert whole.code == 0, whole.output
    total = len(whole.events)
    assert total >= MIN_EVENTS
    assert any("commit" in event for event in whole.events)
    points = [*spread(total, total if POINTS == "all" else int(POINTS))]
    for by in (signal.SIGKILL, signal.SIGINT):
        for event in points:
            name = f"stopped-{by.name}-{event}"
            hub.storage.large.clear()  # large files that the pushes before have sent
            stopped, files = push(name, event, by)
            assert stopped.code == (-signal.SIGKILL if by == signal.SIGKILL else INTERRUPTED), stopped.output
            assert files in ({}, expected), stopped.events[-1]
            if by == signal.SIGINT:
                assert stopped.output.count("hf-sane: interrupted: ") == 1
                assert re.search("; to (start again|continue): hf-sane push", stopped.output)
                assert not files or "nothing was written" not in stopped.output
            again, files = push(name, None)
            assert again.code == 0, again.output
            assert files == expected, stopped.events[-1]
    assert {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()} == before
    counts = {"events": total, "kills": len(points), "interrupts": len(points), "states": 2 * len(points)}
    record_property(PROPERTY, {"push": counts | {"failures": [], "seconds_of_one_run": round(whole.seconds, 2)}})


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
