"""Publish artefacts on the Hub, download repositories, and list all files involved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

from hf_sane.hub._pull import check_size, find_repository, parse_size, plan_pull
from hf_sane.hub._pull import pull as fetch
from hf_sane.hub._push import plan_push
from hf_sane.records._run_files import REPORT
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import CheckedSettings, as_arguments, setting
from hf_sane.records._sources import check_path, parse_repo
from hf_sane.records._uploads import RepoFile, Upload
from hf_sane.workflows.results import Result, Table, report_writer


@dataclass(kw_only=True)
class PushSettings(CheckedSettings):
    """Settings of [`push`]."""

    kind: Literal["zoo", "model", "samples", "adapter"] = setting("Kind of artefact in the folder.", positional=True)
    folder: Path = setting("Folder of the artefact; it is not changed.", positional=True)
    repo_id: str = setting("user/name or user/name@branch on the Hub; created if missing.", positional=True)
    private: bool | None = setting(
        "Whether a new repository is private; by default as set in the account.", default=None, opposite="--public"
    )
    revision: str | None = setting("Branch; by default the repository's main branch.", default=None)
    include_code: bool = setting(
        "Add the modelling code of autoencoders and networks (for trust_remote_code).", default=True
    )
    dry_run: bool = setting("Only list the files.", default=False)


class PushJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        repo_id: Repo id on the Hub.
        repo_type: `"model"` or `"dataset"`.
        commit: Address of the commit; null with --dry-run.
        files: Size of each file in bytes.
        removed: Files of the repository that are deleted.
    """

    repo_id: str
    repo_type: str
    commit: str | None
    files: dict[str, int]
    removed: list[str]


@dataclass(kw_only=True)
class PushResult(Result):
    """The result of an upload.

    Attributes:
        upload: Files that were or would be added, replaced and removed.
        commit: URL of the commit; `None` after a dry run.
    """

    JSON: ClassVar[Any] = PushJson

    upload: Upload
    commit: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Repository, files and commit."""
        upload = self.upload
        place = {"repo_id": upload.repo_id, "repo_type": upload.repo_type, "commit": self.commit}
        return place | {"files": _sizes(upload.files), "removed": list(upload.deleted)}

    def tables(self) -> list[Table]:
        """Every file with its size, and the repository."""
        place = parse_repo(self.upload.repo_id, revision=self.record.arguments["revision"])
        not_sent = f"nothing was sent; without --dry-run, these files go to {place} ({self.upload.repo_type})"
        removed = [f"removed: {path}" for path in self.upload.deleted]
        return [_file_table(self.upload.files, [*removed, self.commit or not_sent])]


def push(kind: str, folder: str | Path, repo_id: str, **options: Any) -> PushResult:
    """Publish an artefact in one commit.

    Args:
        kind: `"zoo"`, `"model"` (a SANE), `"samples"` (networks) or `"adapter"`.
        folder: Folder with the artefact.
        repo_id: `user/name` or `user/name@branch`; created if missing.
        **options: Other fields of [`PushSettings`].
    """
    return run_push(PushSettings(kind=kind, folder=Path(folder), repo_id=repo_id, **options))  # type: ignore[arg-type]


def run_push(settings: PushSettings) -> PushResult:
    """Publish an artefact in one commit; repeat the command to resume after a broken connection."""
    record = RunRecord.start(arguments=as_arguments(settings))
    place = parse_repo(settings.repo_id, revision=settings.revision)
    record.arguments["revision"] = place.revision
    check_path(settings.folder)
    upload = plan_push(settings.kind, settings.folder, place.repo_id, include_code=settings.include_code)
    commit = None if settings.dry_run else upload.push(private=settings.private, revision=place.revision)
    return PushResult(record=record.finish({}), upload=upload, commit=commit)


@dataclass(kw_only=True)
class PullSettings(CheckedSettings):
    """Settings of [`pull`]."""

    repo_id: str = setting("user/name or user/name@revision on the Hub.", positional=True)
    output: Path = setting("Folder for the files.", short="-o")
    repo_type: Literal["auto", "model", "dataset"] = setting(
        "Kind of repository; zoos are datasets.", default="auto", formerly="--type"
    )
    revision: str | None = setting("Branch, tag or commit.", default=None)
    max_size: str = setting("Largest total size to download, such as 500M or 20G.", default="20G")
    allow_pickle: bool = setting("Also download pickle files.", default=False)
    dry_run: bool = setting("Only list the files.", default=False)


class PullJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        repo_id: Repo id on the Hub.
        repo_type: `"model"` or `"dataset"`.
        revision: Commit, or the requested branch or tag.
        files: Size of each file in bytes.
    """

    repo_id: str
    repo_type: str
    revision: str | None
    files: dict[str, int]


@dataclass(kw_only=True)
class PullResult(Result):
    """The result of a download.

    Attributes:
        repo_id: Repository on the Hub.
        repo_type: `"model"` or `"dataset"`.
        revision: Commit, or the requested branch or tag.
        files: Files of the repository that are now in the folder.
    """

    JSON: ClassVar[Any] = PullJson
    JOB: ClassVar[str] = "download"

    repo_id: str
    repo_type: str
    revision: str | None
    files: Sequence[RepoFile]

    def to_dict(self) -> dict[str, Any]:
        """Repository and files."""
        place = {"repo_id": self.repo_id, "repo_type": self.repo_type, "revision": self.revision}
        return place | {"files": _sizes(self.files)}

    def tables(self) -> list[Table]:
        """Every file with its size."""
        return [_file_table(self.files, [] if self.output else ["nothing was downloaded (--dry-run)"])]


def pull(repo_id: str, output: str | Path, **options: Any) -> PullResult:
    """Download a repository into a folder.

    Args:
        repo_id: `user/name` or `user/name@revision`.
        output: Folder for the files.
        **options: Other fields of [`PullSettings`].
    """
    return run_pull(PullSettings(repo_id=repo_id, output=Path(output), **options))


def run_pull(settings: PullSettings) -> PullResult:
    """Download a repository; repeat the command to resume after a broken connection."""
    record = RunRecord.start(arguments=as_arguments(settings))
    limit, place = parse_size(settings.max_size), parse_repo(settings.repo_id, revision=settings.revision)
    repo_id, revision = place.repo_id, place.revision
    if settings.repo_type == "auto":
        repo_type, revision = find_repository(repo_id, revision=revision)
    else:
        repo_type = settings.repo_type
    chosen: dict[str, Any] = {"repo_type": repo_type, "revision": revision, "allow_pickle": settings.allow_pickle}
    files, refused = plan_pull(repo_id, **chosen)
    check_size(files, limit, repo_id)

    def result() -> PullResult:
        return PullResult(
            record=record.finish({}),
            output=None if settings.dry_run else settings.output,
            notes=[f"left out: {path} is a pickle (--allow-pickle downloads it)" for path in refused],
            repo_id=repo_id,
            repo_type=repo_type,
            revision=revision,
            files=files,
        )

    if not settings.dry_run:
        has_own = any(file.path == REPORT for file in files)
        describe = None if has_own else report_writer(result)
        fetch(repo_id, settings.output, max_bytes=limit, describe=describe, **chosen)
    return result()


def _sizes(files: Sequence[RepoFile]) -> dict[str, int]:
    return {file.path: file.num_bytes for file in files}


def _file_table(files: Sequence[RepoFile], remarks: list[str]) -> Table:
    """Every file with its size, and the total."""
    total = [f"{len(files)} files", sum(file.num_bytes for file in files)]
    return Table(("file", "bytes"), [*map(list, _sizes(files).items()), total], caption="\n".join(remarks))


__all__ = ["PullResult", "PushResult", "pull", "push"]
