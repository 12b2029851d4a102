"""The writer of all output folders: checks whether it may write, and whether a folder is finished.

Every command, script and Python function that writes a folder uses [`output_folder`] (written under another name and
moved into place as a whole) or [`resumable_folder`] (written in place over a long time, with a note that it is
unfinished). Both refuse a folder that is not theirs before any work is done, hold a lock against a second process, and
end by writing a manifest of every file with its size and digest. Loaders and pushes verify a folder with
[`check_finished`].
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

INDEX_SUFFIX = ".index.json"  # of files that name the shards beside them
_open: set[Path] = set()  # folders that a block of `output_folder` fills at the moment


def check_finished(folder: str | Path, *, all_digests: bool = False) -> Manifest | None:
    """Raise an error for a folder that is unfinished, or whose files were removed or changed afterwards.

    A folder inside of an output, such as one sampled network out of several, is checked with the manifest of the
    output, unless it has its own, and so is a file: an index of shards with its folder. A folder without
    manifest is taken as it is: Transformers and people write folders, too.

    Args:
        folder: That is to be loaded or pushed, or a file in one; what does not exist, such as the id of a repository,
            is left to others, and so is a folder that this process fills at the moment.
        all_digests: Compare the digests of files above 256 MiB, too.

    Returns:
        The manifest of the folder itself, if there is one.

    Raises:
        InvalidFileError: Naming the file that is missing, cut or changed, or the command that has to be run again.
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
    """Compare a file or folder with the first of the outputs around it that lists it."""
    for home in homes:
        _check_no_note(home, place)
        outer, within = Manifest.load(home), place.relative_to(home).as_posix()
        if outer is not None and any(PurePosixPath(name).is_relative_to(within) for name in outer.files):
            outer.check(home, all_digests=all_digests, within=within)
            return


def check_may_write(
    folder: str | Path, job: str, *, replace: bool = False, is_ours: Callable[[Path], bool] | None = None
) -> None:
    """Raise an error if a folder holds files of others.

    Args:
        folder: Output folder: absent, empty, or left unfinished by the same job.
        job: What would write there.
        replace: Also accept a finished folder of the same job, as long as nobody has added or changed a file in it.
        is_ours: Recognises further folders that the job may continue, such as a zoo that gets another configuration.

    Raises:
        FileExistsError: Naming what is there, and what to do.
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
    # Nothing but the beginnings of a file: the process was killed while it noted that it began.
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
    """Write a folder as a whole: either the finished folder is visible or none.

    Enter it before the work begins, so that a folder that cannot be written costs nothing. A function that saves an
    artefact enters it, too; called inside of another block, with the folder of that block or one below it, it adds to
    that output.

    Args:
        folder: Output folder, which must be absent or empty.
        job: What writes, such as `"sample"`; noted in the manifest.
        replace: Replace a finished folder of the same job, if it is unchanged.

    Yields:
        An empty folder next to the final one; what the block leaves in it is swapped in at the end, with a manifest.
        If the block raises, it is removed and `folder` is as it was.

    Raises:
        FileExistsError: If the folder is not ours to write; see [`check_may_write`].
        FolderInUseError: If another process writes it.
        OSError: If the place cannot be written or the disk is full.
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
        if _read_note(folder) is not None:  # it was moved in file by file
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
    """Hold a folder that a long job fills in place, file by file with [`write_atomically`], and can continue.

    The block decides when it has checked its input and settings: it then calls [`begin_folder`], and at the end
    [`finish_folder`]. Until `begin_folder` nothing is in the folder, so a failed start leaves nothing behind.

    Args:
        folder: Absent, empty, or left unfinished by the same job.
        job: What writes.
        is_ours: Recognises further folders that the job may continue.
        describe: Says what an interruption left, and what to do; told by the note of [`begin_folder`] if left out.

    Yields:
        `folder`, absolute; made when [`begin_folder`] is called.

    Raises:
        FileExistsError: If the folder is not ours to write; see [`check_may_write`].
        FolderInUseError: If another process writes it.
        OSError: If the place cannot be written or the disk is full.
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
    """Write one more file into a folder, or write it anew, and list it in the manifest if the folder is finished.

    Raises:
        FileExistsError: If there is a file of that name that is not as our manifest lists it.
    """
    folder = absolute_folder(folder)
    path = folder / name
    with _alone(folder, of=path), writing(path):
        manifest = Manifest.load(folder)
        with write_atomically(path) as partial:
            yield partial
            entry = FileEntry.of(partial)
            known = manifest.files.get(name) if manifest is not None else None
            # Equal content that is not listed is from a process that was killed before it could.
            if path.exists() and FileEntry.of(path) not in (known, entry):
                raise FileExistsError(
                    f"{path} was written or edited by somebody else; move it away, it would be replaced"
                )
        if manifest is not None:
            replace(manifest, files={**manifest.files, name: entry}).save(folder)


@contextmanager
def output_file(path: str | Path, kind: FileKind) -> Iterator[Path]:
    """Write a single file whose name the user chose; it takes the place of a file of the same kind only.

    Args:
        path: Final place.
        kind: What is written.

    Yields:
        Where to write; see [`write_atomically`].

    Raises:
        FileExistsError: If something else has that name; see [`check_may_replace`].
        FolderInUseError: If another process writes it.
        OSError: If the place cannot be written or the disk is full.
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
    """Refuse to write a single file over something of another kind. Asked before the work begins, it costs nothing.

    Raises:
        FileExistsError: If a folder, or a file of another kind, has that name.
    """
    path = Path(path)
    if not path.exists():
        return
    if not path.is_file() or not kind.matches(path.read_bytes()):
        raise FileExistsError(f"{path} is not {kind.name}, which would take its place; choose another name")


def begin_folder(folder: Path, job: str) -> None:
    """Note that the folder is unfinished, and the command that continues it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_note(folder, job)
    write_run_file(folder, folder)


def unfinished_command(folder: Path) -> str | None:
    """The command that began an unfinished folder, if it is known."""
    note = _read_note(folder) or {}
    return str(note["command"]) if note.get("command") else None


def finish_folder(folder: Path, job: str, *, facts: Mapping[str, Any] | None = None) -> Manifest:
    """Write the manifest of everything in the folder, then take the note away that it is unfinished."""
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
    """The note that a folder is unfinished; one that cannot be read says so, too."""
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
    """Hold a file or folder against other processes, and remove what one that was killed left of a file.

    Not inside of a folder that this process fills: it holds that already, and began with an empty one.
    """
    if not _open.isdisjoint((place, *place.parents)):
        yield
        return
    with _made_parents(place), folder_lock(place):
        remove_partial_files(of.parent, of=of.name)
        yield


def _stamp(path: Path) -> tuple[int, int] | None:
    """Tells one version of a file that is replaced as a whole from the next; `None` if there is none."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _swap_in(partial: Path, folder: Path, job: str) -> None:
    """Move the finished folder to its place; into it, file by file, where the place itself cannot be renamed."""
    is_fixed = folder.is_dir() and (os.path.ismount(folder) or folder.samefile(Path.cwd()))
    if not is_fixed and _read_note(folder) is None:
        move_folder(partial, folder)
        return
    old = Manifest.load(folder)
    _write_note(folder, job)  # from here on the same job may begin again, wherever it is called from
    if old is not None:
        (folder / MANIFEST).unlink()
        for name in old.files:
            _remove_file(folder, name)
    for name in (*sorted(file_names(partial, hidden=True)), MANIFEST):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(partial / name, folder / name)
    (folder / UNFINISHED).unlink()


def _remove_file(folder: Path, name: str) -> None:
    """Remove a file, and the folders around it that are empty then."""
    (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        for parent in PurePosixPath(name).parents[:-1]:
            (folder / parent).rmdir()


def _open_permissions(folder: Path) -> None:
    """Give all files the permissions of a new file: safetensors writes 0600, which nobody else could read."""
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
    """Make the parents of a folder; those that are empty afterwards, because nothing came of it, go again."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()


def absolute_folder(folder: str | Path) -> Path:
    """Where a folder is, whatever the working folder will be; a link to a folder stands for that folder.

    Raises:
        ValueError: For `~`, which shells leave as it is in `--output=~/x`: a folder of that name is never meant.
    """
    if Path(folder).parts[:1] == ("~",):
        raise ValueError(f"expected a folder to write to, got {folder}, with a literal ~; write the full path")
    path = Path(os.path.abspath(folder))
    return path.resolve() if path.is_symlink() else path


@contextmanager
def _tidied(folder: Path) -> Iterator[None]:
    """Before a refusal, remove what a process that was killed after it had finished left next to the folder."""
    try:
        yield
    except FileExistsError:
        partial = folder.with_name(f".{folder.name}{PARTIAL}")
        if partial.exists() or is_locked(folder):
            with suppress(OSError), folder_lock(folder):
                shutil.rmtree(partial, ignore_errors=True)
        raise
