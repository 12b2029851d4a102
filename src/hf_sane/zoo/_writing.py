"""Write zoo folders: data are staged inside; facts and card are moved first, data with their manifest last.

A folder may hold several zoos. Each has its own data folder, whose manifest lists its files and contains the digest of
the zoo's section in `zoo.json`: the zoo is complete when the two agree. Until then, loaders do not see it.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from hf_sane.records._command import again
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._files import is_partial_file, move_folder, recover_folder, write_atomically
from hf_sane.records._locks import folder_lock, is_locked
from hf_sane.records._manifests import AGAIN, CARD, Manifest
from hf_sane.records._outputs import (
    absolute_folder,
    begin_folder,
    check_finished,
    finish_folder,
    resumable_folder,
    unfinished_command,
)
from hf_sane.records._progress import tracked
from hf_sane.records._run_files import ALIGNMENT_REPORT, REPORT, RUN_FILE, write_run_file
from hf_sane.zoo._alignment_record import FILE_NAME as ALIGNMENT_NAME
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._cards import zoo_card
from hf_sane.zoo._facts import FILE_NAME as FACTS_NAME
from hf_sane.zoo._facts import (
    LAYOUT_DIGITS,
    ZooFacts,
    check_config_name,
    data_folder,
    read_facts,
    read_sections,
    save_facts,
    section_digest,
)
from hf_sane.zoo._records import SPLITS

logger = logging.getLogger(__name__)

JOB = "zoo"
WORK_NAME = ".build"  # unfinished work: one folder per configuration
NETWORKS_NAME = ".import"  # networks that an import has read: one folder per configuration
RECORD_NAME = "run.json"
REPORT_NAME = "import.json"
CACHE_NAME = ".cache"  # Arrow copies of the parquet files, inside the zoo's folder
SECTION_FACT, CARD_FACT = "zoo.json section", "README.md written"  # digests in a manifest in addition to its files


class ZooWriter:
    """A zoo that is being written to a folder; made by [`writing_zoo`]."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder, self.config = folder, config
        self.data, self.work = data_folder(folder, config), work_folder(folder, config)
        self.stage, self.cache = self.work / "data", self.work / "cache"
        self._is_new = not folder.exists()
        self._published: Manifest | None = None

    def begin(self) -> Path:
        """Mark the zoo as unfinished; return an empty folder for its files."""
        begin_folder(self.work, JOB)
        shutil.rmtree(self.stage, ignore_errors=True)
        self.stage.mkdir()
        return self.stage

    def publish(self, facts: ZooFacts) -> None:
        """Publish card, facts and staged files; readers see the old zoo, no zoo or the new zoo, never a mixture."""
        before = read_facts(self.folder) if (self.folder / FACTS_NAME).exists() else {}
        facts = _with_digests(facts, self.stage)
        old = {
            path: path.read_bytes() if path.is_file() else None
            for path in (self.folder / CARD, self.folder / FACTS_NAME)
        }
        done = None
        try:
            card = self._write_card(before, {**before, self.config: facts})
            if not (self.stage / RUN_FILE).exists():  # an alignment keeps the files that reproduce the build
                write_run_file(self.folder, self.stage)
            section = save_facts(self.folder, self.config, facts)
            self._published = done = finish_folder(
                self.stage, JOB, facts={SECTION_FACT: section_digest(section), **card}
            )
            move_folder(self.stage, self.data)
        except BaseException:
            if done is None or Manifest.load(self.data) != done:
                _restore(old)
            raise
        _clear(self.work)

    def publish_alignment(self, alignment: Alignment, describe: Callable[[Path], object] | None = None) -> None:
        """Add or replace the alignment of the finished zoo, without copying its other files.

        Args:
            alignment: The alignment.
            describe: Called with the folder of the files before it is finished, to add a report.
        """
        facts = read_facts(self.folder)[self.config]
        stage = self.begin()
        for path in self.data.iterdir():
            if _is_zoo_file(path.name) and path.name not in (ALIGNMENT_NAME, ALIGNMENT_REPORT):
                _link(path, stage / path.name)
        alignment.save(stage)
        if describe is not None:
            describe(stage)
        self.publish(facts)

    def clear(self) -> None:
        """Remove files that a continuation would not use."""
        for folder in (self.stage, self.cache):
            shutil.rmtree(folder, ignore_errors=True)
        if not any(self.work.glob("*.safetensors")):
            _clear(self.work)
        if self._is_new:
            with suppress(OSError):
                self.folder.rmdir()

    def describe_rest(self) -> str:
        """Describe what an interruption leaves for the next call."""
        if self._published is not None and Manifest.load(self.data) == self._published:
            return f"the zoo {self.config!r} in {self.folder} is finished"
        work = [path for path in (self.work, self.folder / NETWORKS_NAME / self.config) if path.is_dir()]
        kept = [str(path) for path in work if any(path.glob("*.safetensors"))]
        if not kept:
            return f"nothing was written to {self.folder}; {again('start again')}"
        return f"what was finished is kept in {' and '.join(kept)}; {again('continue')}"

    def check_data(self, *, replace: bool) -> None:
        """Raise an error if the data folder holds other files, or a finished zoo that may not be replaced."""
        recover_folder(self.data)
        if not self.data.exists():
            return
        if not self.data.is_dir():
            raise NotADirectoryError(
                f"expected a folder for the data of the zoo, got the file {self.data}; move it away"
            )
        if not any(self.data.iterdir()):
            return
        if (manifest := Manifest.load(self.data)) is not None:
            strangers, is_ours = manifest.strangers(self.data), manifest.job == JOB
        else:
            strangers = sorted(name for name in os.listdir(self.data) if not _is_zoo_file(name))
            is_ours = self.work.is_dir() or self.config in read_facts_or_none(self.folder)
        if strangers or not is_ours:
            names = ", ".join((strangers or sorted(os.listdir(self.data)))[:3])
            raise FileExistsError(
                f"{self.data} holds files that this library did not write, or that were changed ({names}); move "
                "them, or choose another folder or another name (--zoo-config)"
            )
        if not replace and is_finished(self.folder, self.config):
            raise FileExistsError(
                f"{self.folder} already holds a finished zoo named {self.config!r}; use another "
                "folder, or another name (--zoo-config)"
            )

    def _write_card(self, before: dict[str, ZooFacts], after: dict[str, ZooFacts]) -> dict[str, str]:
        """Write README.md unless it was edited by hand; return the digest of what was written, for the manifest."""
        path, text = self.folder / CARD, zoo_card(after).encode()
        if path.is_file() and (found := path.read_bytes()) != text:
            rendered = [zoo_card(before).encode()] if before else []
            written = {manifest.facts.get(CARD_FACT) for manifest in _manifests(self.folder, before)}
            if found not in rendered and sha256(found).hexdigest() not in written:
                logger.warning(
                    "%s was edited by hand and is not overwritten; it does not describe the current zoo %r (move it "
                    "away "
                    "and write the zoo again to get a new one)",
                    path,
                    self.config,
                )
                return {}
        with write_atomically(path) as partial:
            partial.write_bytes(text)
        return {CARD_FACT: sha256(text).hexdigest()}


def _with_digests(facts: ZooFacts, data: Path) -> ZooFacts:
    """Facts with a digest of the rows of each split.

    The same settings give different weights on another processor. Without digests, Datasets would return the cached
    rows of one zoo for another.
    """
    splits = {}
    for split, found in facts.splits.items():
        digest = sha256()
        for path in sorted(data.glob(f"{split}-*.parquet")):
            with path.open("rb") as file:
                digest.update(file_digest(file, "sha256").digest())
        splits[split] = {**found, "digest": digest.hexdigest()[:LAYOUT_DIGITS]}
    return replace(facts, splits=splits)


@contextmanager
def writing_zoo(folder: str | Path, config: str, *, replace: bool = False) -> Iterator[ZooWriter]:
    """Context with the exclusive right to write a zoo; enter it before the work begins.

    Args:
        folder: Folder of the zoo, which is missing, empty or holds zoos.
        config: Name of the zoo in the folder.
        replace: Whether to replace a finished zoo of that name, if its files are unchanged.

    Yields:
        A writer that stages and publishes the zoo. If the block raises an error, staged files are removed, but not
        work that a continuation would use.

    Raises:
        FileExistsError: If the folder holds something else, or a finished zoo of that name.
        FolderInUseError: If another process is writing to the folder.
        ValueError: If the name of the zoo is not a portable folder name.
        OSError: If the folder is not writable or the disk is full.
    """
    check_config_name(config)
    writer = ZooWriter(absolute_folder(folder), config)
    with resumable_folder(folder, JOB, is_ours=is_zoo_folder, describe=writer.describe_rest):
        try:
            writer.check_data(replace=replace)
            yield writer
        finally:
            writer.clear()


def is_finished(folder: Path, config: str) -> bool:
    """Whether a zoo is complete, with or without a manifest; [`check_zoo`] checks its files."""
    if config not in (sections := read_facts_or_none(folder)):
        return False
    manifest = Manifest.load(data_folder(folder, config))
    if manifest is None:  # written before zoos had manifests
        return not work_folder(folder, config).exists()
    return manifest.facts.get(SECTION_FACT) == section_digest(sections[config])


def check_zoo(folder: Path, config: str, *, all_digests: bool = False) -> None:
    """Raise an error for an incomplete zoo, or removed or changed files; zoos without a manifest pass.

    Args:
        folder: Folder of the zoo.
        config: Name of the zoo in `zoo.json`.
        all_digests: Whether to compare the digests of files above 256 MiB, too.

    Raises:
        InvalidFileError: With the name of the file, or the command to run again.
    """
    _check_section(folder, config)
    check_finished(data_folder(folder, config), all_digests=all_digests)


def check_stream(folder: Path, config: str) -> None:
    """Like [`check_zoo`], for a copy of a zoo's facts, manifest and alignment without its rows.

    Raises:
        InvalidFileError: With the name of the file.
    """
    _check_section(folder, config)
    data = data_folder(folder, config)
    if (manifest := Manifest.load(data)) is not None and ALIGNMENT_NAME in manifest.files:
        manifest.check(data, within=ALIGNMENT_NAME)


def _check_section(folder: Path, config: str) -> None:
    if is_finished(folder, config):
        return
    command = unfinished_command(work_folder(folder, config))
    raise InvalidFileError(
        folder / FACTS_NAME,
        field=f"configs.{config}",
        expected=f"a finished zoo in {data_folder(Path(), config)}",
        got="one with missing or foreign files, since writing was interrupted",
        remedy=f"run it again: {command}" if command else AGAIN,
    )


def remove_networks(folder: Path, config: str) -> None:
    """Remove the networks that an import has read, once no network will be retried."""
    work = folder / NETWORKS_NAME / config
    files = [os.path.join(parent, name) for parent, _, names in os.walk(work) for name in names]
    for file in tracked(files, desc="remove what was read", unit="file"):  # slow for many thousands of networks
        with suppress(OSError):
            os.unlink(file)
    _clear(work)


def remove_state(path: Path) -> None:
    """Remove the state for continuing training, once the result is on disk."""
    path.unlink(missing_ok=True)


def tidy(folder: Path, config: str) -> None:
    """Remove the work folder and lock of a process that was killed after it had finished."""
    if work_folder(folder, config).exists() or is_locked(folder):
        with suppress(OSError), folder_lock(folder):
            _clear(work_folder(folder, config))


def is_zoo_folder(folder: Path) -> bool:
    """Whether a folder holds zoos, finished or not, or only the beginnings of one."""
    names = {name for name in os.listdir(folder) if not is_partial_file(name)}
    return FACTS_NAME in names or (
        bool(names & {WORK_NAME, NETWORKS_NAME}) and names <= {WORK_NAME, NETWORKS_NAME, CACHE_NAME, CARD}
    )


def work_folder(folder: Path, config: str) -> Path:
    """Folder of an unfinished zoo."""
    return folder / WORK_NAME / config


def read_facts_or_none(folder: Path) -> dict[str, Any]:
    """Sections of `zoo.json` by configuration; empty if there is no such file."""
    return read_sections(folder) if (folder / FACTS_NAME).is_file() else {}


def _restore(contents: dict[Path, bytes | None]) -> None:
    """Restore the previous content of small files."""
    for path, content in contents.items():
        with suppress(OSError):
            if content is None:
                path.unlink(missing_ok=True)
            elif path.read_bytes() != content:
                with write_atomically(path) as partial:
                    partial.write_bytes(content)


def _manifests(folder: Path, known: dict[str, ZooFacts]) -> list[Manifest]:
    found = (Manifest.load(data_folder(folder, config)) for config in known)
    return [manifest for manifest in found if manifest is not None]


def _is_zoo_file(name: str) -> bool:
    """Whether a data folder without a manifest may contain a file of this name."""
    is_rows = name.endswith(".parquet") and name.partition("-")[0] in SPLITS
    return is_rows or name in (ALIGNMENT_NAME, RECORD_NAME, REPORT_NAME, RUN_FILE, REPORT, ALIGNMENT_REPORT)


def _link(source: Path, target: Path) -> None:
    """Create a hard link to a file that is never written to, or a copy if links are not supported."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _clear(work: Path) -> None:
    """Remove the folder of one configuration, and its parent if that is then empty."""
    shutil.rmtree(work, ignore_errors=True)
    with suppress(OSError):
        work.parent.rmdir()
