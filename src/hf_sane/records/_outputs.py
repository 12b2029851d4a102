"""Writing of all output folders, and checks of whether a folder may be written and is finished.

Every command, script and function that writes a folder uses [`output_folder`], which writes a temporary folder and
moves it into place, or [`resumable_folder`], which writes in place and marks the folder as unfinished. Both refuse
folders of others before any work is done, lock the folder, and finally write a manifest of every file with its size
and digest. Loading and pushing verify a folder with [`check_finished`].
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from hf_sane.records._command import again, command_line
from hf_sane.records._disks import writing
from hf_sane.records._errors import InvalidFileError, name_some
from hf_sane.records._file_kinds import FileKind
from hf_sane.records._files import (
    PARTIAL,
    is_partial_file,
    move_folder,
    recover_folder,
    remove_partial_files,
    sync,
    write_atomically,
)
from hf_sane.records._interruptions import explaining
from hf_sane.records._locks import folder_lock, is_locked
from hf_sane.records._manifests import AGAIN, MANIFEST, UNFINISHED, FileEntry, Manifest, file_names
from hf_sane.records._run_files import claim_run_file, write_run_file

INDEX_SUFFIX = ".index.json"  # ending of files that list the shards next to them
_open: set[Path] = set()  # folders that are currently written in a block of `output_folder`


def check_finished(folder: str | Path, *, all_digests: bool = False) -> Manifest | None:
    """Raise an error if a folder is unfinished, or its files were removed or changed afterwards.

    A folder inside an output, such as one of several sampled networks, is checked against the manifest of the output,
    unless it has its own. So is a file; for an index of shards, its whole folder is checked. Folders without a
    manifest, such as those of Transformers, are accepted.

    Args:
        folder: Folder to load or push, or a file in one. Names that do not exist locally, such as repository ids, and
            folders that this process is currently writing are not checked.
        all_digests: Also compare the digests of files of more than 256 MiB.

    Returns:
        The manifest of the folder itself, if it has one.

    Raises:
        InvalidFileError: About the missing, truncated or changed file, or with the command to run again.
    """
    place = Path(os.path.abspath(folder))
    if not place.exists() or not _open.isdisjoint((place, *place.parents)):
        return None
    if place.is_file():
        if place.name.endswith(INDEX_SUFFIX):
            place = place.parent
        else:
            _check_inside((place.parent, place.parent.parent), place, all_digests=all_digests)
            return None
    _check_no_note(place, place)
    if (manifest := Manifest.load(place)) is not None:
        manifest.check(place, all_digests=all_digests)
        return manifest
    _check_inside((place.parent,), place, all_digests=all_digests)
    return None


def _check_inside(homes: Iterable[Path], place: Path, *, all_digests: bool) -> None:
    """Compare a file or folder with the manifest of the innermost output that contains it."""
    for home in homes:
        _check_no_note(home, place)
        outer, within = Manifest.load(home), place.relative_to(home).as_posix()
        if outer is not None and any(PurePosixPath(name).is_relative_to(within) for name in outer.files):
            outer.check(home, all_digests=all_digests, within=within)
            return


def check_may_write(
    folder: str | Path, job: str, *, replace: bool = False, is_ours: Callable[[Path], bool] | None = None
) -> None:
    """Raise an error if a folder holds other files than those of an unfinished job of the same kind.

    Args:
        folder: Output folder: absent, empty, or left unfinished by the same kind of job.
        job: Kind of job that would write the folder.
        replace: Also accept a finished folder of the same kind of job, if no files were added or changed.
        is_ours: Function that recognises further folders that the job may continue, such as a zoo that receives
            another configuration.

    Raises:
        FileExistsError: If it holds anything else.
        NotADirectoryError: If it is a file.
    """
    folder = Path(folder)
    for place in (folder, *folder.parents):
        if place.is_dir():
            break
        if place.exists() or place.is_symlink():
            raise NotADirectoryError(f"expected a folder to write to, got the file {place}; choose another name")
    if not folder.exists():
        return
    # The folder has only unfinished files: the process was killed while it wrote its first note.
    if all(is_partial_file(name) for name in os.listdir(folder)) or (is_ours is not None and is_ours(folder)):
        return
    if (note := _read_note(folder)) is not None and note.get("job") == job:
        return
    manifest = Manifest.load(folder)
    if manifest is None or manifest.job != job:
        what = f"a finished {manifest.job}" if manifest is not None else name_some(sorted(os.listdir(folder)))
        raise FileExistsError(f"{folder} holds {what}, not ours to replace; choose a new or an empty folder")
    if not replace:
        raise FileExistsError(f"{folder} already holds a finished {job}; choose another output folder or delete it")
    if strangers := manifest.strangers(folder):
        raise FileExistsError(
            f"{folder} holds a finished {job} with files that were added or changed since ({name_some(strangers)}); "
            "move them away or choose another folder"
        )


@contextmanager
def output_folder(folder: str | Path, job: str, *, replace: bool = False) -> Iterator[Path]:
    """Write a folder that appears only when it is complete.

    Enter the block before the work begins, so that a folder that cannot be written is reported early. A function that
    saves an artefact enters it, too; inside another block, with the folder of that block or a subfolder, it adds to
    that output.

    Args:
        folder: Output folder, which must be absent or empty.
        job: Kind of job, such as `"sample"`, for the manifest.
        replace: Replace a finished folder of the same kind of job, if it is unchanged.

    Yields:
        An empty folder next to the final one, which replaces it at the end, with a manifest. If the block raises an
        exception, it is removed and `folder` stays unchanged.

    Raises:
        FileExistsError: If the folder may not be written; see [`check_may_write`].
        FolderInUseError: If another process is writing to it.
        OSError: If its place is not writable or the disk is full.
    """
    folder = absolute_folder(folder)
    if not _open.isdisjoint((folder, *folder.parents)):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        except BaseException:
            if is_new:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    claim_run_file(folder)
    mine: Manifest | None = None

    def describe() -> str:
        if _read_note(folder) is not None:  # files are moved one by one
            return f"{folder} is unfinished; {again('start again')}"
        if mine is not None and Manifest.load(folder) == mine:
            return f"{folder} is finished"
        return f"nothing was written to {folder}; {again('start again')}"

    with explaining(describe, output=folder):
        with _tidied(folder):
            check_may_write(folder, job, replace=replace)
        with writing(folder), _made_parents(folder), folder_lock(folder):
            recover_folder(folder)
            check_may_write(folder, job, replace=replace)
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir()
            _open.add(partial)
            try:
                _write_note(partial, job)
                yield partial
                write_run_file(folder, partial)
                mine = finish_folder(partial, job)
                _swap_in(partial, folder, job)
            finally:
                _open.discard(partial)
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def resumable_folder(
    folder: str | Path,
    job: str,
    *,
    is_ours: Callable[[Path], bool] | None = None,
    describe: Callable[[], str] | None = None,
) -> Iterator[Path]:
    """Lock a folder that a long job writes in place, file by file with [`write_atomically`], and can continue.

    The block calls [`begin_folder`] when its input and settings have been checked, and [`finish_folder`] at the end.
    The folder is created by `begin_folder`, so a failed start leaves nothing behind.

    Args:
        folder: Output folder: absent, empty, or left unfinished by the same kind of job.
        job: Kind of job.
        is_ours: Function that recognises further folders that the job may continue.
        describe: Function that describes the state of the output after an interruption and the next step; by default
            derived from the note of [`begin_folder`].

    Yields:
        The absolute path of `folder`.

    Raises:
        FileExistsError: If the folder may not be written; see [`check_may_write`].
        FolderInUseError: If another process is writing to it.
        OSError: If its place is not writable or the disk is full.
    """
    folder = absolute_folder(folder)
    before = _stamp(folder / MANIFEST)
    claim_run_file(folder)

    def describe_rest() -> str:
        if _read_note(folder) is not None:
            return f"what was finished is kept in {folder}; {again('continue')}"
        if _stamp(folder / MANIFEST) not in (None, before):
            return f"{folder} is finished"
        return f"nothing was written to {folder}; {again('start again')}"

    with explaining(describe or describe_rest, output=folder):
        with _tidied(folder):
            check_may_write(folder, job, is_ours=is_ours)
        with writing(folder), _made_parents(folder), folder_lock(folder):
            recover_folder(folder)
            check_may_write(folder, job, is_ours=is_ours)
            remove_partial_files(folder)
            yield folder


@contextmanager
def add_file(folder: Path, name: str) -> Iterator[Path]:
    """Add a file to a folder, or replace it, and list it in the manifest if the folder is finished.

    Raises:
        FileExistsError: If there is a file of that name that differs from the manifest.
    """
    folder = absolute_folder(folder)
    path = folder / name
    with _alone(folder, of=path), writing(path):
        manifest = Manifest.load(folder)
        with write_atomically(path) as partial:
            yield partial
            entry = FileEntry.of(partial)
            known = manifest.files.get(name) if manifest is not None else None
            # A process that was killed before updating the manifest may have left a file with equal content.
            if path.exists() and FileEntry.of(path) not in (known, entry):
                raise FileExistsError(f"{path} was written or edited by hand and would be replaced; move it away")
        if manifest is not None:
            replace(manifest, files={**manifest.files, name: entry}).save(folder)


@contextmanager
def output_file(path: str | Path, kind: FileKind) -> Iterator[Path]:
    """Write a single file with a name given by the user, which may only replace a file of the same kind.

    Args:
        path: Final path.
        kind: Kind of the file.

    Yields:
        Path to write to; see [`write_atomically`].

    Raises:
        FileExistsError: If the path exists and may not be replaced; see [`check_may_replace`].
        FolderInUseError: If another process is writing the file.
        OSError: If its place is not writable or the disk is full.
    """
    path = absolute_folder(path)
    before = _stamp(path)

    def describe() -> str:
        if _stamp(path) not in (None, before):
            return f"{path} is finished"
        return f"nothing was written to {path}; {again('start again')}"

    check_may_replace(path, kind)
    errors = writing(path) if _open.isdisjoint(path.parents) else nullcontext()
    with explaining(describe, output=path), errors, _alone(path, of=path), write_atomically(path) as partial:
        yield partial


def check_may_replace(path: str | Path, kind: FileKind) -> None:
    """Raise an error, before any work is done, if an output file would replace a file of another kind.

    Raises:
        FileExistsError: If a folder, or a file of another kind, has that name.
    """
    path = Path(path)
    if not path.exists():
        return
    if not path.is_file() or not kind.matches(path.read_bytes()):
        raise FileExistsError(f"{path} is not {kind.name}, which would take its place; choose another name")


def begin_folder(folder: Path, job: str) -> None:
    """Mark the folder as unfinished, with a note of the command that continues it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_note(folder, job)
    write_run_file(folder, folder)


def unfinished_command(folder: Path) -> str | None:
    """Command that started an unfinished folder, if known."""
    note = _read_note(folder) or {}
    return str(note["command"]) if note.get("command") else None


def finish_folder(folder: Path, job: str, *, facts: Mapping[str, Any] | None = None) -> Manifest:
    """Write the manifest of all files in the folder, then remove the note that it is unfinished."""
    write_run_file(folder, folder)
    for name in sorted(file_names(folder)):
        sync(folder / name)
    _open_permissions(folder)
    manifest = Manifest.of(folder, job, facts=facts)
    manifest.save(folder)
    (folder / UNFINISHED).unlink(missing_ok=True)
    return manifest


def _write_note(folder: Path, job: str) -> None:
    with write_atomically(folder / UNFINISHED) as partial:
        partial.write_text(json.dumps({"job": job, "command": command_line()}) + "\n", encoding="utf-8")


def _check_no_note(home: Path, folder: Path) -> None:
    if (note := _read_note(home)) is not None:
        remedy = f"run it again: {command}" if (command := unfinished_command(home)) else AGAIN
        raise InvalidFileError(
            folder, expected="a finished folder", got=f"an interrupted {note.get('job', 'run')}", remedy=remedy
        )


def _read_note(folder: Path) -> dict[str, Any] | None:
    """Note in an unfinished folder; an unreadable note is empty but still marks the folder."""
    path = folder / UNFINISHED
    if not path.is_file():
        return None
    with suppress(ValueError, RecursionError):
        note = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(note, dict):
            return note
    return {}


@contextmanager
def _alone(place: Path, *, of: Path) -> Iterator[None]:
    """Lock a file or folder, and remove unfinished files of killed processes.

    Nothing is done inside a folder that this process is writing, since it is already locked and started empty.
    """
    if not _open.isdisjoint((place, *place.parents)):
        yield
        return
    with _made_parents(place), folder_lock(place):
        remove_partial_files(of.parent, of=of.name)
        yield


def _stamp(path: Path) -> tuple[int, int] | None:
    """Identifies the version of a file that is only replaced as a whole; `None` if there is none."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _swap_in(partial: Path, folder: Path, job: str) -> None:
    """Move the finished folder to its place, or its files one by one if the place itself cannot be renamed."""
    is_fixed = folder.is_dir() and (os.path.ismount(folder) or folder.samefile(Path.cwd()))
    if not is_fixed and _read_note(folder) is None:
        move_folder(partial, folder)
        return
    old = Manifest.load(folder)
    _write_note(folder, job)  # from here on the same kind of job may start again
    if old is not None:
        (folder / MANIFEST).unlink()
        for name in old.files:
            _remove_file(folder, name)
    for name in (*sorted(file_names(partial, hidden=True)), MANIFEST):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(partial / name, folder / name)
    (folder / UNFINISHED).unlink()


def _remove_file(folder: Path, name: str) -> None:
    """Remove a file and the folders that become empty."""
    (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        for parent in PurePosixPath(name).parents[:-1]:
            (folder / parent).rmdir()


def _open_permissions(folder: Path) -> None:
    """Give all files default permissions, since safetensors writes files that only their owner can read (0600)."""
    probe = folder / f".permissions{PARTIAL}"
    probe.touch()
    mode = probe.stat().st_mode & 0o7777
    probe.unlink()
    for name in file_names(folder):
        path = folder / name
        if not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600:
            path.chmod(mode)


@contextmanager
def _made_parents(folder: Path) -> Iterator[None]:
    """Create the parents of a folder; those that are empty after the block are removed again."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()


def absolute_folder(folder: str | Path) -> Path:
    """Absolute path of a folder, with links resolved.

    Raises:
        ValueError: If it starts with `~`, which shells do not expand in `--output=~/x`.
    """
    if Path(folder).parts[:1] == ("~",):
        raise ValueError(f"expected a folder to write to, got {folder}, with a literal ~; write the full path")
    path = Path(os.path.abspath(folder))
    return path.resolve() if path.is_symlink() else path


@contextmanager
def _tidied(folder: Path) -> Iterator[None]:
    """Before an error, remove files next to the folder that were left by a process killed after finishing it."""
    try:
        yield
    except FileExistsError:
        partial = folder.with_name(f".{folder.name}{PARTIAL}")
        if partial.exists() or is_locked(folder):
            with suppress(OSError), folder_lock(folder):
                shutil.rmtree(partial, ignore_errors=True)
        raise
