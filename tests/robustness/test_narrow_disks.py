"""A full disk or a read-only folder ends a verb with one sentence, damages nothing, and can be retried."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kill_points import in_child
from narrow_disks import grow_disk, limit_files, mount_small_disk, obey_permissions, unlimit_files
from small_runs import STRANGERS, VERBS, SmallRun, looks_finished, program, visible

PAGE = 4096
ROOM = 2**30

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def one_sentence(run: SmallRun, output: str) -> str:
    """What a program says when it gives up."""
    lines = [line for line in output.splitlines() if line.startswith(f"{run.program}: ")]
    assert len(lines) == 1, output
    assert "Traceback" not in output
    return lines[0]


def room(place: Path) -> int:
    """Bytes that a file system of pages needs for a folder."""
    sizes = (path.stat().st_size if path.is_file() else 0 for path in place.rglob("*"))
    return sum(PAGE * (1 + size // PAGE) for size in sizes)


@pytest.mark.parametrize("name", VERBS)
def test_a_full_disk_is_one_sentence_and_no_damage(
    name: str, small_run: Callable[[str], SmallRun], tmp_path: Path
) -> None:
    run, disk, report = small_run(name), tmp_path / "disk", tmp_path / "report.json"
    place = disk / "place"
    run.fresh(place)
    start = room(place)
    whole = in_child(program(run, place), place=place)
    assert whole.code == 0, whole.output
    expected, needed = run.content(place), room(place) - start
    largest = max(path.stat().st_size for path in (place / "out").rglob("*") if path.is_file())

    def work() -> None:
        is_mounted = mount_small_disk(disk, start + 2 * PAGE + int(run.share * needed))
        run.fresh(place)
        before = run.content(place)
        if not is_mounted:
            limit_files(largest // 2)
        failed = in_child(program(run, place), place=place)
        if is_mounted:
            grow_disk(disk, ROOM)
        else:
            unlimit_files()
        found = {"code": failed.code, "output": failed.output, "looks finished": looks_finished(run, place)}
        now = run.content(place)
        seen, wanted = visible(now), visible(expected)
        found["not whole"] = [key for key in seen.keys() | wanted.keys() if seen.get(key, 0) != wanted.get(key, 0)]
        found["strangers"] = all(now.get(key) == before[key] for key in {*STRANGERS, "out/mine.txt"} & before.keys())
        again = in_child(program(run, place), place=place)
        if again.code == 2 and run.continued_by and run.continued_by[0] in again.output:
            again = in_child(program(run, place, *run.continued_by), place=place)
        content = run.content(place)
        keys = content.keys() | expected.keys()
        found |= {"again": again.code, "said again": again.output}
        found["differing"] = [key for key in keys if content.get(key, 0) != expected.get(key, 0)]
        report.write_text(json.dumps(found))

    outer = in_child(work, place=tmp_path / "unwatched")
    assert outer.code == 0, outer.output
    found: dict[str, Any] = json.loads(report.read_text())
    assert found["code"] == 2, found["output"]
    said = one_sentence(run, found["output"])
    assert "disk full" in said.lower() or "space" in said
    assert found["strangers"]
    assert run.starts_finished or not (found["looks finished"] and found["not whole"]), found
    if found["again"] == 2:  # there was no room for what is done after it was written, such as copies to read from
        assert found["looks finished"]
        assert "finished" in found["said again"]
    else:
        assert found["again"] == 0, found["said again"]
    assert not found["differing"]


@pytest.mark.parametrize("name", VERBS)
def test_a_folder_that_cannot_be_written_is_one_sentence_before_the_work(
    name: str, small_run: Callable[[str], SmallRun], tmp_path: Path
) -> None:
    run, place = small_run(name), tmp_path / "place"
    run.fresh(place)
    before = run.content(place)
    folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        refused = in_child(program(run, place), place=place, before=obey_permissions)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert refused.code == 2, refused.output
    assert "cannot write to" in one_sentence(run, refused.output)
    assert "Permission denied" in refused.output
    assert run.content(place) == before


def test_a_child_obeys_permissions(tmp_path: Path) -> None:
    """Otherwise nothing above could fail."""
    tmp_path.chmod(0o555)
    try:
        outcome = in_child((tmp_path / "new").touch, place=tmp_path, before=obey_permissions)
    finally:
        tmp_path.chmod(0o755)
    assert "PermissionError" in outcome.output
    assert not os.listdir(tmp_path)
