"""Uploads to the Hub in one commit; all files are listed and checked before anything is sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from hf_sane.records._command import again
from hf_sane.records._file_kinds import PICKLE_SUFFIXES
from hf_sane.records._files import files_below
from hf_sane.records._interruptions import explaining
from hf_sane.records._manifests import MANIFEST
from hf_sane.records._patience import patiently
from hf_sane.records._redaction import holds_token
from hf_sane.records._run_files import ALIGNMENT_REPORT, REPORT, RUN_FILE

TEXT_SUFFIXES = (".md", ".json", ".py", ".txt", ".yaml", ".csv")
LOCAL = (MANIFEST, RUN_FILE, REPORT, ALIGNMENT_REPORT)  # files for local use
PICKLES = (*PICKLE_SUFFIXES, ".joblib")


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file of a repository.

    Attributes:
        path: Path inside the repository, with forward slashes.
        num_bytes: Size in bytes.
        content: Path of the content, or the content itself; `None` for a file that is only on the Hub.
        digest: Digest on the Hub, which is SHA-256 for large files and git's hash (SHA-1) for others; `None` for a
            file that is not on the Hub.
    """

    path: str
    num_bytes: int
    content: Path | bytes | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Upload:
    """A planned commit.

    Attributes:
        repo_id: Repository on the Hub.
        repo_type: `"model"` or `"dataset"`.
        files: Files to add or replace.
        deleted: Paths to remove.
        title: Title of the commit.
    """

    repo_id: str
    repo_type: str
    files: tuple[RepoFile, ...]
    deleted: tuple[str, ...] = ()
    title: str = "Upload with hf_sane"

    @property
    def num_bytes(self) -> int:
        """Total size of the files."""
        return sum(file.num_bytes for file in self.files)

    def push(self, api: HfApi | None = None, *, private: bool | None = None, revision: str | None = None) -> str:
        """Create the repository if it is missing, and commit.

        Large files are uploaded first, but only become visible with the commit. A broken connection therefore does not
        change the repository, and pushing again uploads only missing files.

        Args:
            api: Client to use, for another endpoint or token.
            private: Whether a new repository is private; by default as set in the account.
            revision: Branch, created if missing; by default the main one.

        Returns:
            URL of the commit.
        """
        with explaining(lambda: f"{self.repo_id} contains the whole upload or no part; {again('continue')}"):
            return self._commit(api or HfApi(), private, revision)

    def _commit(self, api: HfApi, private: bool | None, revision: str | None) -> str:
        patiently(api.create_repo, self.repo_id, repo_type=self.repo_type, private=private, exist_ok=True)
        if revision is not None:
            patiently(api.create_branch, self.repo_id, branch=revision, repo_type=self.repo_type, exist_ok=True)
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        for file in self.files:
            assert file.content is not None
            content = file.content if isinstance(file.content, bytes) else str(file.content)
            operations.append(CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=content))
        operations += [CommitOperationDelete(path_in_repo=path) for path in self.deleted]
        commit = patiently(
            api.create_commit,
            repo_id=self.repo_id,
            repo_type=self.repo_type,
            operations=operations,
            commit_message=self.title,
            revision=revision,
        )
        return str(commit.commit_url)


def folder_files(folder: Path, *, prefix: str = "") -> tuple[RepoFile, ...]:
    """All files in a folder except hidden ones (such as `.cache`), manifests and run files, sorted by path.

    Args:
        folder: Folder to list.
        prefix: Target folder in the repository.

    Raises:
        NotADirectoryError: If the folder does not exist.
        ValueError: If a file is a pickle, a link to a place outside the folder, or contains an access token.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"expected a folder to push, got {folder}; save the artefact there first")
    home = folder.resolve()
    files = []
    for path in sorted(files_below(folder)):
        name = path.relative_to(folder)
        if path.is_dir() or path.name in LOCAL or any(part.startswith(".") for part in name.parts):
            continue
        if not path.resolve().is_relative_to(home):
            raise ValueError(
                f"{path} leads to {path.resolve()}, out of the folder that is pushed; put a copy in its place"
            )
        if path.name.lower().endswith(PICKLES):
            raise ValueError(
                f"{path} is a pickle, which can run code where it is loaded; only safetensors and JSON are pushed: "
                "convert or remove it"
            )
        if path.suffix in TEXT_SUFFIXES and holds_token(path.read_text(encoding="utf-8", errors="replace")):
            raise ValueError(f"{path} holds an access token of the Hub; remove it, and revoke that token")
        where = PurePosixPath(prefix, name.as_posix()).as_posix()
        files.append(RepoFile(where, path.stat().st_size, path))
    return tuple(files)


def with_texts(files: Sequence[RepoFile], texts: Mapping[str, str]) -> tuple[RepoFile, ...]:
    """The files with some texts replaced or added, sorted by path; nothing on disk changes."""
    made = {path: text.encode("utf-8") for path, text in texts.items()}
    kept = [file for file in files if file.path not in made]
    return tuple(
        sorted([*kept, *(RepoFile(path, len(data), data) for path, data in made.items())], key=lambda file: file.path)
    )


def require_files(folder: Path, names: Sequence[str], *, what: str) -> None:
    """Raise a `ValueError` if files are missing in a folder; sharded weights count as `model.safetensors`."""
    present = {path.name.removesuffix(".index.json") for path in folder.iterdir()} if folder.is_dir() else set()
    if missing := [name for name in names if name not in present]:
        raise ValueError(
            f"{folder} is not a complete {what}: expected {', '.join(names)}, missing {missing}; save it first"
        )
