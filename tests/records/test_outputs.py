"""Output folders: refused when they are somebody's, finished or absent, one writer at a time."""

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import Timeout
from safetensors import SafetensorError

from hf_sane.records._errors import InvalidFileError
from hf_sane.records._file_kinds import PICTURE, FileKind
from hf_sane.records._files import move_folder, recover_folder, write_atomically
from hf_sane.records._locks import FolderInUseError, folder_lock
from hf_sane.records._manifests import MANIFEST, UNFINISHED, Manifest
from hf_sane.records._outputs import (
    add_file,
    begin_folder,
    check_finished,
    finish_folder,
    output_file,
    output_folder,
    resumable_folder,
)


def write(folder: Path, job: str = "soup", *, text: str = "weights", replace: bool = False) -> None:
    with output_folder(folder, job, replace=replace) as partial:
        (partial / "sub").mkdir()
        (partial / "sub/model.bin").write_text(text)
        (partial / "README.md").write_text("card")


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_finished_folder_lists_every_file_and_leaves_nothing_beside_it(tmp_path):
    write(tmp_path / "a/b/out")
    assert [entry.name for entry in (tmp_path / "a/b").iterdir()] == ["out"]
    manifest = check_finished(tmp_path / "a/b/out")
    assert manifest is not None
    assert set(manifest.files) == {"sub/model.bin", "README.md"}
    assert manifest.files["sub/model.bin"].size == 7


def test_nothing_is_visible_before_the_end_and_nothing_stays_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), output_folder(tmp_path / "new/out", "soup") as partial:
        (partial / "half").write_text("x")
        assert not (tmp_path / "new/out").exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_of_somebody_is_refused_before_the_work_and_not_touched(tmp_path, replace):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("theirs")
    with pytest.raises(FileExistsError, match=r"config\.json, not ours"):
        write(tmp_path / "out", replace=replace)
    assert contents(tmp_path) == {"out/config.json": "theirs"}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("theirs")
    with pytest.raises(NotADirectoryError, match="got the file"):
        write(tmp_path / "out")


def test_only_the_same_job_replaces_and_only_what_nobody_changed(tmp_path):
    out = tmp_path / "out"
    write(out)
    with pytest.raises(FileExistsError, match="already holds a finished soup"):
        write(out)
    with pytest.raises(FileExistsError, match="a finished soup, not ours"):
        write(out, "sample", replace=True)
    write(out, text="newer", replace=True)
    assert (out / "sub/model.bin").read_text() == "newer"
    for name in ("notes.txt", "README.md", ".hidden"):
        before = (out / name).read_text() if (out / name).exists() else None
        (out / name).write_text("mine")
        with pytest.raises(FileExistsError, match=re.escape(name)):
            write(out, replace=True)
        if before is None:
            (out / name).unlink()
        else:
            (out / name).write_text(before)
    write(out, text="newest", replace=True)


def test_what_is_missing_cut_or_changed_is_named_but_a_card_may_be_edited(tmp_path):
    out = tmp_path / "out"
    write(out)
    (out / "README.md").write_text("edited by its owner")
    check_finished(out)
    check_finished(out / "sub")
    (out / "sub/model.bin").write_text("Weights")
    for folder in (out, out / "sub"):
        with pytest.raises(InvalidFileError, match=r"model\.bin: expected the content that .* lists"):
            check_finished(folder)
    (out / "sub/model.bin").write_text("w")
    with pytest.raises(InvalidFileError, match=r"expected 7 bytes, got 1 bytes"):
        check_finished(out)
    (out / "sub/model.bin").unlink()
    with pytest.raises(InvalidFileError, match="got no such file"):
        check_finished(out)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: "{",
        lambda content: "[]",
        lambda content: json.dumps({**content, "format_version": 2}),
        lambda content: json.dumps({**content, "files": {"../x": {"size": 1, "sha256": ""}}}),
        lambda content: json.dumps({**content, "files": {"x": {"size": True, "sha256": ""}}}),
        lambda content: json.dumps({**content, "job": None}),
        lambda content: "[" * 100_000,
    ],
)
def test_a_damaged_manifest_is_one_error(tmp_path, change):
    write(tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(InvalidFileError, match=MANIFEST):
        check_finished(tmp_path / "out")


def test_a_resumable_folder_is_unfinished_until_its_manifest_is_there(tmp_path):
    out = tmp_path / "out"
    with resumable_folder(out, "pretrain"):
        pass
    assert not out.exists()
    with pytest.raises(RuntimeError), resumable_folder(out, "pretrain") as folder:
        begin_folder(folder, "pretrain")
        (folder / "step-1").write_text("state")
        raise RuntimeError
    with pytest.raises(InvalidFileError, match="an interrupted pretrain; run it again"):
        check_finished(out)
    with pytest.raises(FileExistsError), resumable_folder(out, "zoo"):
        pass
    with resumable_folder(out, "pretrain") as folder:
        begin_folder(folder, "pretrain")
        finish_folder(folder, "pretrain", facts={"steps": 3})
    manifest = check_finished(out)
    assert manifest is not None
    assert manifest.facts == {"steps": 3}
    assert not (out / UNFINISHED).exists()


def test_two_processes_do_not_write_one_folder(tmp_path):
    code = (
        "import sys; from hf_sane.records._outputs import output_folder\nwith output_folder(sys.argv[1], 'soup'): pass"
    )
    with output_folder(tmp_path / "out", "soup"):
        ran = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=False
        )
        with pytest.raises(FolderInUseError, match=rf"process {os.getpid()} on .* since "):
            write(tmp_path / "out")
    assert f"is being written by process {os.getpid()}" in ran.stderr


def test_a_lock_ends_with_its_process_and_a_killed_writers_leftovers_go(tmp_path):
    code = (
        "import os, sys, signal; from hf_sane.records._outputs import output_folder\n"
        "with output_folder(sys.argv[1], 'soup') as partial:\n"
        "    (partial / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=False)
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) > 1  # the lock and the partial folder
    write(tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_files_get_the_permissions_of_new_files(tmp_path):
    with output_folder(tmp_path / "out", "soup") as partial:
        (partial / "private").write_text("x")
        (partial / "private").chmod(0o600)
        (partial / "plain").write_text("x")
    modes = {name: stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) for name in ("private", "plain", MANIFEST)}
    assert len(set(modes.values())) == 1
    with write_atomically(tmp_path / "file") as partial:
        partial.write_text("x")
        partial.chmod(0o600)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == modes["plain"]


def test_the_working_folder_can_be_filled_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    write(Path("."))
    assert Path("sub/model.bin").read_text() == "weights"
    assert check_finished(tmp_path / "out") is not None


def test_the_working_folder_is_replaced_where_it_is_without_what_only_the_old_one_had(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with output_folder(".", "soup") as partial:
        (partial / "old/deep").mkdir(parents=True)
        (partial / "old/deep/model.bin").write_text("old")
        (partial / "sub").mkdir()
        (partial / "sub/model.bin").write_text("old")
    write(Path("."), text="newer", replace=True)
    assert {**contents(tmp_path / "out"), MANIFEST: ""} == {
        "README.md": "card",
        "sub/model.bin": "newer",
        MANIFEST: "",
    }
    assert not Path("old").exists()
    assert check_finished(tmp_path / "out") is not None


@pytest.mark.parametrize("rerun_from", ["out", "."])
def test_a_move_into_the_working_folder_that_was_interrupted_is_unfinished_and_can_be_repeated(
    rerun_from, tmp_path, monkeypatch
):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    move = shutil.move

    def stop_at_weights(source, target):
        if Path(source).name == "model.bin":
            raise RuntimeError("stopped")
        return move(source, target)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="stopped"):
        patched.setattr(shutil, "move", stop_at_weights)
        write(Path("."))
    with pytest.raises(InvalidFileError, match="got an interrupted soup"):
        check_finished(tmp_path / "out")
    (tmp_path / "out/notes.txt").write_text("theirs")
    monkeypatch.chdir(tmp_path / rerun_from)
    write(tmp_path / "out")
    assert (tmp_path / "out/sub/model.bin").read_text() == "weights"
    assert (tmp_path / "out/notes.txt").read_text() == "theirs"
    assert check_finished(tmp_path / "out") is not None


def test_a_retired_folder_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_sane.records._files._exchange", lambda one, other: False)
    write(tmp_path / "out")
    write(tmp_path / "out", text="newer", replace=True)
    assert (tmp_path / "out/sub/model.bin").read_text() == "newer"
    (tmp_path / "out").rename(tmp_path / ".out.hf_sane-retired")
    recover_folder(tmp_path / "out")
    assert (tmp_path / "out/sub/model.bin").read_text() == "newer"


def test_folders_are_exchanged_in_one_step(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    move_folder(tmp_path / "new", tmp_path / "old")
    assert [p.name for p in tmp_path.rglob("*")] == ["old", "new"]


def test_a_full_disk_is_a_sentence(tmp_path):
    with pytest.raises(OSError, match="is the disk full"), output_folder(tmp_path / "out", "soup"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert list(tmp_path.iterdir()) == []


def test_the_owner_of_a_lock_that_cannot_be_read_is_another_process(tmp_path):
    with folder_lock(tmp_path / "out"):
        (tmp_path / ".out.hf_sane-lock-owner").write_text("[")
        with pytest.raises(FolderInUseError, match="written by another process"), folder_lock(tmp_path / "out"):
            pass


def test_a_place_where_no_lock_can_be_made_is_not_in_use(tmp_path, monkeypatch):
    """As in /proc, where filelock waits as if another process held the lock."""

    def refuse(*arguments: object, **options: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

    def wait(self: object, **options: object) -> None:
        raise Timeout("x")

    monkeypatch.setattr("filelock.FileLock.acquire", wait)
    with pytest.raises(FolderInUseError), folder_lock(tmp_path / "out"):
        pass
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with (
        pytest.raises(OSError, match=r"cannot write to .*out: No such file or directory; choose another") as caught,
        folder_lock(tmp_path / "out"),
    ):
        pass
    assert not isinstance(caught.value, FolderInUseError)


def test_manifests_are_equal_after_saving(tmp_path):
    write(tmp_path / "out")
    manifest = Manifest.of(tmp_path / "out", "soup")
    assert Manifest.load(tmp_path / "out") == manifest


def test_what_is_saved_inside_an_output_is_a_part_of_it(tmp_path):
    with output_folder(tmp_path / "out", "sample") as partial:
        write(partial / "network_0")
        with output_folder(partial, "soup") as same:
            assert same == partial
        assert not (partial / "network_0" / MANIFEST).exists()
        with pytest.raises(RuntimeError), output_folder(partial / "network_1", "soup") as inner:
            (inner / "half").touch()
            raise RuntimeError
    assert contents(tmp_path / "out").keys() == {MANIFEST, "network_0/README.md", "network_0/sub/model.bin"}
    manifest = check_finished(tmp_path / "out")
    assert manifest is not None
    assert manifest.job == "sample"
    with pytest.raises(FileExistsError):
        write(tmp_path / "out/network_0")


def test_an_artefact_with_its_own_manifest_does_not_depend_on_an_unfinished_folder_around_it(tmp_path):
    with pytest.raises(RuntimeError), resumable_folder(tmp_path / "demo", "demo") as folder:
        begin_folder(folder, "demo")
        write(folder / "sane")
        (folder / "loose").mkdir()
        raise RuntimeError
    check_finished(tmp_path / "demo/sane")
    with pytest.raises(InvalidFileError, match="an interrupted demo"):
        check_finished(tmp_path / "demo/loose")


def test_a_link_to_a_folder_stands_for_that_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    write(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert check_finished(tmp_path / "disk") is not None


@pytest.mark.parametrize("name", [None, "out/model.bin", ".out.hf_sane-partial/x", "", ".out.hf_sane-lock"])
def test_a_disk_that_is_full_or_read_only_is_named_in_a_sentence(tmp_path, name):
    for number, text in (
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EROFS, "make it writable"),
    ):
        error = OSError(number, "?", *(() if name is None else (str(tmp_path / name),)))
        with (
            pytest.raises(OSError, match=rf"cannot write to .*out: .*{text}"),
            output_folder(tmp_path / "out", "soup"),
        ):
            raise error


def test_a_full_disk_inside_an_output_names_the_output(tmp_path):
    kind = FileKind.json_with("a run record", "command")
    with (
        pytest.raises(OSError, match=r"cannot write to \S*/out: No space left"),
        output_folder(tmp_path / "out", "soup") as partial,
        output_file(partial / "run.json", kind),
    ):
        raise OSError(errno.ENOSPC, "?")


def test_other_files_that_cannot_be_written_or_read_keep_their_own_error(tmp_path):
    for number in (errno.ENOSPC, errno.EACCES):
        error = OSError(number, "?", str(tmp_path / "input.npz"))
        with pytest.raises(OSError, match=r"input\.npz") as raised, output_folder(tmp_path / "out", "soup"):
            raise error
        assert raised.value is error


def test_a_single_file_replaces_its_own_kind_only(tmp_path):
    kind, path = FileKind.json_with("a run record", "command"), tmp_path / "new/run.json"
    for text in ('{"command": 1}', '{"command": 2}'):
        with output_file(path, kind) as partial:
            partial.write_text(text)
    assert path.read_text() == '{"command": 2}'
    for other in ('{"commands": 1}', "[1]", "{", "[" * 100_000, ""):
        path.write_text(other)
        with pytest.raises(FileExistsError, match=r"run\.json is not a run record"), output_file(path, kind):
            raise AssertionError
        assert path.read_text() == other
    with pytest.raises(FileExistsError, match="is not a picture"), output_file(path, PICTURE):
        raise AssertionError
    with pytest.raises(FileExistsError, match="is not a picture"), output_file(tmp_path, PICTURE):
        raise AssertionError
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["run.json"]


def test_what_a_killed_writer_of_a_single_file_left_goes_with_the_next_write(tmp_path):
    """And nothing else: neither what belongs to another file, nor what another process writes."""
    path = tmp_path / "run.json"
    (tmp_path / ".other.json.1.hf_sane-partial").write_text("of another file")
    (tmp_path / ".run.json.mine.hf_sane-partial").write_text("theirs")
    start = "import sys; from hf_sane.records._outputs import *; kind = FileKind.json_with('a record', 'command')\n"
    write = f"{start}with output_file(sys.argv[1], kind) as partial:\n    partial.write_text('half'); "
    with subprocess.Popen(
        [sys.executable, "-c", f"{write}print(flush=True); input()", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        kind = FileKind.json_with("a run record", "command")
        with (
            pytest.raises(FolderInUseError, match=f"is being written by process {other.pid}"),
            output_file(path, kind),
        ):
            raise AssertionError
        assert len(list(tmp_path.glob(".run.json.*.hf_sane-partial"))) == 2
        other.kill()
    assert not path.exists()
    with output_file(path, kind) as partial:
        partial.write_text('{"command": 1}')
    names = [".other.json.1.hf_sane-partial", ".run.json.mine.hf_sane-partial", "run.json"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_file_that_was_added_by_a_killed_process_can_be_added_again(tmp_path, point, monkeypatch):
    """Killed before the file is in place, or before it is listed; afterwards the folder can be replaced."""
    write(tmp_path / "out")
    pid = os.fork()
    if pid == 0:
        if point == "after":
            monkeypatch.setattr(Manifest, "save", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with add_file(tmp_path / "out", "note.md") as partial:
            partial.write_text("text")
            if point == "before":
                os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    if point == "before":
        write(tmp_path / "out", replace=True)
    with add_file(tmp_path / "out", "note.md") as partial:
        partial.write_text("text")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert contents(tmp_path / "out").keys() == {MANIFEST, "README.md", "note.md", "sub/model.bin"}
    manifest = check_finished(tmp_path / "out")
    assert manifest is not None
    assert "note.md" in manifest.files
    (tmp_path / "out/note.md").write_text("edited")
    with (
        pytest.raises(FileExistsError, match="edited by hand"),
        add_file(tmp_path / "out", "note.md") as partial,
    ):
        partial.write_text("text")
    assert (tmp_path / "out/note.md").read_text() == "edited"


@pytest.mark.parametrize("writer", [output_folder, resumable_folder])
def test_a_folder_in_which_a_job_was_killed_before_it_could_say_that_it_began_is_empty(tmp_path, writer):
    (tmp_path / "out").mkdir()
    (tmp_path / f"out/.{UNFINISHED}.123.hf_sane-partial").write_text("{")
    with writer(tmp_path / "out", "pull") as folder:
        begin_folder(folder, "pull")
        (folder / "file").touch()
        finish_folder(folder, "pull")
    assert contents(tmp_path).keys() == {"out/file", f"out/{MANIFEST}"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.123.hf_sane-partial").write_text("theirs")  # not a name that we give
    with pytest.raises(FileExistsError, match="not ours"), writer(tmp_path / "other", "pull"):
        raise AssertionError


@pytest.mark.parametrize("name", ["out/sub/model.bin", "out/sub", "out"])
def test_a_single_file_of_an_output_is_compared_with_its_manifest(tmp_path, name):
    write(tmp_path / "out")
    check_finished(tmp_path / name)
    (tmp_path / "out/sub/model.bin").write_text("WEIGHTS")
    with pytest.raises(InvalidFileError, match=f"model.bin: expected the content that {MANIFEST} lists"):
        check_finished(tmp_path / name)
    check_finished(tmp_path / "out/README.md")  # another file is as it was


def test_an_index_is_compared_with_all_that_is_beside_it(tmp_path):
    with output_folder(tmp_path / "out", "soup") as partial:
        (partial / "model.safetensors.index.json").write_text("{}")
        (partial / "model-1.safetensors").write_text("a")
    check_finished(tmp_path / "out/model.safetensors.index.json")
    (tmp_path / "out/model-1.safetensors").write_text("b")
    with pytest.raises(InvalidFileError, match=r"model-1\.safetensors"):
        check_finished(tmp_path / "out/model.safetensors.index.json")


def test_a_file_of_an_unfinished_output_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    begin_folder(tmp_path / "out", "soup")
    (tmp_path / "out/model.bin").write_text("half")
    with pytest.raises(InvalidFileError, match="expected a finished folder, got an interrupted soup"):
        check_finished(tmp_path / "out/model.bin")


def test_a_home_that_the_shell_left_as_it_is_is_no_name_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (output_folder, resumable_folder):
        with (
            pytest.raises(ValueError, match="a folder to write to, got ~/out, with a literal ~"),
            write("~/out", "sample"),
        ):
            pass
    assert not list(tmp_path.iterdir())
