"""Manifests, which list every file of an output folder with its size and digest to detect changes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import file_digest
from pathlib import Path, PurePosixPath
from typing import Any

from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.records._files import (
    files_below,
    is_partial_file,
    write_atomically,
)

MANIFEST = "hf_sane_manifest.json"
UNFINISHED = ".hf_sane_unfinished.json"
FORMAT_VERSION = 1
CARD = "README.md"  # users edit cards: an edited one does not invalidate the folder, but is never overwritten
MAX_BYTES_READ = 2**28  # loading compares digests of files up to this size, pushing those of all files


AGAIN = "run the command that wrote it again, into a new folder"
CHANGED = f"{AGAIN}, or delete {MANIFEST} if you changed it on purpose"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256 of a file, as 64 hexadecimal digits."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileEntry":
        """Compute size and digest by reading the file once, in chunks."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Manifest:
    """Content of a finished folder, written last.

    Attributes:
        job: Kind of job that wrote the folder, such as `"sample"`; only the same kind may replace or continue it.
        files: Size and digest by path inside the folder, with forward slashes; hidden files are not included.
        facts: Further facts that a reader compares, such as the digest of a section in a file that several folders
            share.
    """

    job: str
    files: Mapping[str, FileEntry]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, job: str, *, facts: Mapping[str, Any] | None = None) -> "Manifest":
        """Manifest of the current files of a folder."""
        entries = {name: FileEntry.of(folder / name) for name in file_names(folder)}
        return cls(job, entries, dict(facts or {}))

    def save(self, folder: Path) -> None:
        """Write the manifest, which marks the folder as finished."""
        content = {"format_version": FORMAT_VERSION, "job": self.job, "facts": dict(self.facts)}
        files = {name: asdict(entry) for name, entry in sorted(self.files.items())}
        with write_atomically(folder / MANIFEST) as partial:
            partial.write_text(json.dumps({**content, "files": files}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest | None":
        """Read the manifest of a folder; `None` if it has none.

        Raises:
            InvalidFileError: If it is damaged, or its format version is not supported.
        """
        path = folder / MANIFEST
        if not path.is_file():
            return None
        with reading(path, expected="the manifest of a finished folder", remedy=AGAIN):
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise InvalidFileError(
                    path, field="format_version", expected=str(FORMAT_VERSION), got=version, remedy="update hf_sane"
                )
            files = {str(name): FileEntry(**entry) for name, entry in content["files"].items()}
            for name, entry in files.items():
                _check_entry(path, name, entry)
            job, facts = content["job"], content["facts"]
            if not isinstance(job, str) or not isinstance(facts, dict):
                raise TypeError(f"job {job!r} and facts {facts!r}")
            return cls(job, files, facts)

    def check(self, folder: Path, *, all_digests: bool = False, within: str = "") -> None:
        """Compare a folder with the manifest.

        Args:
            folder: Folder that the manifest was read from.
            all_digests: Also compare the digests of files of more than 256 MiB.
            within: Compare only the files inside this subfolder.

        Raises:
            InvalidFileError: About the first file that is missing, truncated or changed.
        """
        for name, entry in self.files.items():
            path = folder / name
            if within and not PurePosixPath(name).is_relative_to(within):
                continue
            got = f"{path.stat().st_size:,} bytes" if path.is_file() else "no such file"
            if got != f"{entry.size:,} bytes" and (PurePosixPath(name).name != CARD or not path.is_file()):
                raise InvalidFileError(path, expected=f"{entry.size:,} bytes", got=got, remedy=CHANGED)
            if PurePosixPath(name).name == CARD or (entry.size > MAX_BYTES_READ and not all_digests):
                continue
            if (digest := FileEntry.of(path).sha256) != entry.sha256:
                expected = f"the content that {MANIFEST} lists (SHA-256 {entry.sha256[:12]}...)"
                raise InvalidFileError(path, expected=expected, got=f"{digest[:12]}...", remedy=CHANGED)

    def strangers(self, folder: Path) -> list[str]:
        """Files that are not in the manifest or were changed, including an edited card."""
        found = file_names(folder, hidden=True)
        names = {name for name in found if not is_partial_file(PurePosixPath(name).name)}  # of killed processes
        changed = [
            name for name, entry in self.files.items() if name in names and FileEntry.of(folder / name) != entry
        ]
        return sorted({*(names - self.files.keys()), *changed})


def file_names(folder: Path, *, hidden: bool = False) -> set[str]:
    """Paths of all files in a folder and its subfolders except manifest and note; hidden files are optional."""
    names = (path.relative_to(folder) for path in files_below(folder) if path.is_file() or path.is_symlink())
    return {
        name.as_posix()
        for name in names
        if name.as_posix() not in (MANIFEST, UNFINISHED)
        and (hidden or not any(part.startswith(".") for part in name.parts))
    }


def _check_entry(path: Path, name: str, entry: FileEntry) -> None:
    """Validate names, which must be inside the folder, and entries."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise InvalidFileError(path, field="files", expected="paths inside the folder", got=name, remedy=AGAIN)
    if type(entry.size) is not int or entry.size < 0 or not isinstance(entry.sha256, str):
        raise InvalidFileError(path, field=name, expected="a size and a digest", got=entry, remedy=AGAIN)
