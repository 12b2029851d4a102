"""Downloads from the Hub; sizes, file names and pickles are checked before the first file is fetched."""

import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest, sha1
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile as HubFile
from huggingface_hub.utils import validate_repo_id

from hf_sane.records._errors import InvalidFileError
from hf_sane.records._manifests import MANIFEST, UNFINISHED, Manifest
from hf_sane.records._outputs import begin_folder, check_may_write, finish_folder, resumable_folder
from hf_sane.records._patience import patiently
from hf_sane.records._sources import RepoType, parse_repo
from hf_sane.records._uploads import PICKLES, RepoFile

MAX_BYTES = 20 * 2**30
SHA256_DIGITS = 64
COMMIT = re.compile(r"[0-9a-f]{40}")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
CACHE = Path(".cache", "huggingface")  # where the Hub's client keeps incomplete downloads


def find_repository(repo_id: str, *, revision: str | None = None, api: HfApi | None = None) -> tuple[RepoType, str]:
    """Type of a repository, model or dataset, and the commit of a revision.

    Args:
        repo_id: `user/name`.
        revision: Branch, tag or commit.
        api: Client to use.

    Raises:
        HFValidationError: If `repo_id` is not a valid repo id.
        RepositoryNotFoundError: If there is no such repository, or it is private and the token has no access to it.
    """
    validate_repo_id(repo_id)
    api = api or HfApi()
    try:
        return "model", str(patiently(api.model_info, repo_id, revision=revision).sha)
    except RepositoryNotFoundError as error:
        try:
            return "dataset", str(patiently(api.dataset_info, repo_id, revision=revision).sha)
        except RepositoryNotFoundError:
            raise error from None


def plan_pull(
    repo_id: str,
    *,
    repo_type: RepoType,
    revision: str | None = None,
    allow_pickle: bool = False,
    api: HfApi | None = None,
) -> tuple[list[RepoFile], list[str]]:
    """List the files that a pull would fetch.

    Args:
        repo_id: `user/name`.
        repo_type: Type of the repository.
        revision: Branch, tag or commit.
        allow_pickle: Also fetch pickles, which can run code when they are loaded carelessly.
        api: Client to use.

    Returns:
        Files to fetch, and the paths of pickles that are skipped.

    Raises:
        ValueError: If a file name points outside the target folder.
    """
    api = api or HfApi()

    def list_files() -> list[HubFile]:
        tree = api.list_repo_tree(repo_id, recursive=True, repo_type=repo_type, revision=revision)
        return [entry for entry in tree if isinstance(entry, HubFile) and entry.path not in (MANIFEST, UNFINISHED)]

    files, refused = [], []
    for entry in patiently(list_files):
        check_path(entry.path, repo_id)
        if entry.path.lower().endswith(PICKLES) and not allow_pickle:
            refused.append(entry.path)
        else:
            digest = entry.blob_id if entry.lfs is None else entry.lfs.sha256
            files.append(RepoFile(entry.path, entry.size, digest=digest))
    return files, refused


def check_path(path: str, where: str) -> None:
    """Raise a `ValueError` for a file name that is absolute, contains `..`, or depends on the operating system."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in parts[0] or "\0" in path:
        raise ValueError(f"{where} contains the file name {path!r}, which points outside its folder; do not trust it")


def check_size(files: Sequence[RepoFile], max_bytes: int, where: str) -> None:
    """Raise a `ValueError` for a download of more than `max_bytes`."""
    total = sum(file.num_bytes for file in files)
    if total > max_bytes:
        raise ValueError(
            f"{where} holds {total:,} bytes in {len(files)} files, more than the limit of {max_bytes:,}; raise the "
            "limit if that is what you want"
        )


def parse_size(text: str) -> int:
    """Parse a number of bytes such as `500M`, `20G`, `1.5GB` or a plain number; a `ValueError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if found is None:
        raise ValueError(f"expected a size such as 500M or 20G, got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])


def pull(
    repo_id: str,
    folder: str | Path,
    *,
    repo_type: RepoType | None = None,
    revision: str | None = None,
    max_bytes: int = MAX_BYTES,
    allow_pickle: bool = False,
    api: HfApi | None = None,
    describe: Callable[[Path], object] | None = None,
) -> Path:
    """Download a repository into a folder, or continue an interrupted download.

    Every file, new or existing, is compared with the Hub's digest; if it differs, it is fetched once more. A manifest
    marks the folder as complete and lists its files, so the same pull can update an unmodified folder later.

    Args:
        repo_id: `user/name` or `user/name@revision`.
        folder: Receives the files; existing ones are not fetched again.
        repo_type: `"model"` or `"dataset"`; by default the one that exists.
        revision: Branch, tag or commit; all files are of one commit.
        max_bytes: Maximum total size.
        allow_pickle: Also fetch pickles.
        api: Client to use.
        describe: Called with the folder before it is finished, to add a report.

    Returns:
        `folder`.

    Raises:
        HFValidationError: If `repo_id` is not a valid repo id.
        RepositoryNotFoundError: If there is no such repository.
        ValueError: If it is too large, or a file name points outside the folder.
        FileExistsError: If the folder holds anything else, or files were added or changed.
        FolderInUseError: If another process is writing to the folder.
        InvalidFileError: If a downloaded file does not match the Hub's digest.
        HubBusyError: If the Hub is overloaded or out of order.
    """
    api, place = api or HfApi(), parse_repo(repo_id, revision=revision)
    repo_id, revision = place.repo_id, place.revision
    if repo_type is None:
        repo_type, revision = find_repository(repo_id, revision=revision, api=api)
    elif revision is None or not COMMIT.fullmatch(revision):
        revision = str(patiently(api.repo_info, repo_id, repo_type=repo_type, revision=revision).sha)
    job = f"pull of the {repo_type} {repo_id}"
    check_may_write(folder, job, is_ours=lambda home: _is_unchanged(home, job))
    files, _ = plan_pull(repo_id, repo_type=repo_type, revision=revision, allow_pickle=allow_pickle, api=api)
    check_size(files, max_bytes, repo_id)
    source = _Source(api, repo_id, repo_type, revision)
    with resumable_folder(folder, job, is_ours=lambda home: _is_unchanged(home, job)) as home:
        known = Manifest.load(home)
        begin_folder(home, job)
        _remove_old(home, known, files)
        source.fetch(home, files)
        shutil.rmtree(home / CACHE, ignore_errors=True)
        with suppress(OSError):
            (home / CACHE).parent.rmdir()
        if describe is not None:
            describe(home)
        hidden = [file.path for file in files if any(part.startswith(".") for part in PurePosixPath(file.path).parts)]
        finish_folder(home, job, facts={"revision": revision, "hidden": hidden})
    return Path(folder)


@dataclass(frozen=True)
class _Source:
    """Repository at one commit."""

    api: HfApi
    repo_id: str
    repo_type: RepoType
    revision: str

    def fetch(self, home: Path, files: Sequence[RepoFile]) -> None:
        """Fetch files that are missing or differ from the Hub's; once more if the download differs, too."""
        if missing := [file for file in files if _digest(home, file) != file.digest]:
            patiently(
                snapshot_download,
                self.repo_id,
                repo_type=self.repo_type,
                revision=self.revision,
                local_dir=home,
                allow_patterns=[_literal(file.path) for file in missing],
                endpoint=self.api.endpoint,
                token=self.api.token,
            )
        for file in missing:
            if _digest(home, file) != file.digest:
                self._fetch_again(home, file)
            if (got := _digest(home, file)) != file.digest:
                (home / file.path).unlink(missing_ok=True)
                raise InvalidFileError(
                    f"{self.repo_id}/{file.path}",
                    expected=f"a file with the Hub's digest ({file.digest})",
                    got=got or "no file",
                    remedy="two downloads failed and were removed; try again later, or over another network",
                )

    def _fetch_again(self, home: Path, file: RepoFile) -> None:
        patiently(
            self.api.hf_hub_download,
            self.repo_id,
            file.path,
            repo_type=self.repo_type,
            revision=self.revision,
            local_dir=home,
            force_download=True,
        )


def _digest(home: Path, file: RepoFile) -> str | None:
    """Digest of a local file, computed with the Hub's algorithm for this file."""
    path = home / file.path
    if not path.is_file() or path.is_symlink() or path.stat().st_size != file.num_bytes:
        return None
    with path.open("rb") as content:
        if file.digest is not None and len(file.digest) == SHA256_DIGITS:
            return file_digest(content, "sha256").hexdigest()
        prefixed = sha1(f"blob {file.num_bytes}\0".encode(), usedforsecurity=False)
        return file_digest(content, lambda: prefixed).hexdigest()


def _is_unchanged(home: Path, job: str) -> bool:
    """Whether a folder is the complete and unmodified result of the same pull."""
    manifest = Manifest.load(home)
    if manifest is None or manifest.job != job:
        return False
    strangers = sorted(set(manifest.strangers(home)) - set(manifest.facts.get("hidden", ())))
    if strangers:
        raise FileExistsError(
            f"{home} holds a finished {job} with files that were added or changed since ({', '.join(strangers[:3])}); "
            "move them away or choose another folder"
        )
    return True


def _remove_old(home: Path, known: Manifest | None, files: Sequence[RepoFile]) -> None:
    """Files of an earlier commit that this commit does not contain."""
    if known is None:
        return
    for name in known.files.keys() - {file.path for file in files}:
        (home / name).unlink(missing_ok=True)
    (home / MANIFEST).unlink()


def _literal(path: str) -> str:
    """A pattern that matches exactly one file."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)
