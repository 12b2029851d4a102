"""What comes from the Hub: listed, checked for size, names and pickles before the first file is fetched."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile as HubFile
from huggingface_hub.utils import validate_repo_id

from hf_sane.hub.transfer import PICKLES, RepoFile
from hf_sane.records.sources import RepoType, parse_repo

MAX_BYTES = 20 * 2**30


def find_repository(repo_id: str, *, revision: str | None = None, api: HfApi | None = None) -> tuple[RepoType, str]:
    """Whether a repository is a model or a dataset, and the commit that a revision stands for.

    Args:
        repo_id: `user/name`.
        revision: Branch, tag or commit.
        api: Client to use.

    Raises:
        HFValidationError: If `repo_id` is none.
        RepositoryNotFoundError: If there is neither, or it is private and the token does not open it: the Hub's own error.
    """
    validate_repo_id(repo_id)
    api = api or HfApi()
    try:
        return "model", str(api.model_info(repo_id, revision=revision).sha)
    except RepositoryNotFoundError as error:
        try:
            return "dataset", str(api.dataset_info(repo_id, revision=revision).sha)
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
    """List what a pull would fetch.

    Args:
        repo_id: `user/name`.
        repo_type: Of the repository.
        revision: Branch, tag or commit.
        allow_pickle: Take pickles too, which can run code where they are opened carelessly.
        api: Client to use.

    Returns:
        Files to fetch, and the paths of pickles that are left out.

    Raises:
        ValueError: If a file name would lead out of the folder it is put into.
    """
    tree = (api or HfApi()).list_repo_tree(repo_id, recursive=True, repo_type=repo_type, revision=revision)
    files, refused = [], []
    for entry in tree:
        if not isinstance(entry, HubFile):
            continue
        check_path(entry.path, repo_id)
        if PurePosixPath(entry.path).suffix in PICKLES and not allow_pickle:
            refused.append(entry.path)
        else:
            files.append(RepoFile(entry.path, entry.size))
    return files, refused


def check_path(path: str, where: str) -> None:
    """Refuse a file name that is absolute, climbs out with `..`, or means something else on another system.

    Raises:
        ValueError: If it does.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in parts[0] or "\0" in path:
        raise ValueError(
            f"{where} names the file {path!r}, which would lead out of its folder; refused, do not trust it"
        )


def check_size(files: Sequence[RepoFile], max_bytes: int, where: str) -> None:
    """Refuse a download that is larger than allowed.

    Raises:
        ValueError: If it is.
    """
    total = sum(file.num_bytes for file in files)
    if total > max_bytes:
        raise ValueError(
            f"{where} holds {total:,} bytes in {len(files)} files, more than the limit of {max_bytes:,}; raise the limit if "
            "that is what you want"
        )


def pull(
    repo_id: str,
    folder: str | Path,
    *,
    repo_type: RepoType | None = None,
    revision: str | None = None,
    max_bytes: int = MAX_BYTES,
    allow_pickle: bool = False,
    api: HfApi | None = None,
) -> Path:
    """Fetch a repository into a folder. A broken download continues where it stopped.

    Args:
        repo_id: `user/name` or `user/name@revision`.
        folder: Receives the files; those it has already are not fetched again.
        repo_type: `"model"` or `"dataset"`; whichever there is if `None`.
        revision: Branch, tag or commit; all files are of one commit.
        max_bytes: Refuse more than this.
        allow_pickle: Take pickles too.
        api: Client to use.

    Returns:
        `folder`.

    Raises:
        HFValidationError: If `repo_id` is none.
        RepositoryNotFoundError: If there is no such repository.
        ValueError: If it is too large, or names files outside its folder.
    """
    api, place = api or HfApi(), parse_repo(repo_id, revision=revision)
    repo_id, revision = place.repo_id, place.revision
    if repo_type is None:
        repo_type, revision = find_repository(repo_id, revision=revision, api=api)
    files, _ = plan_pull(repo_id, repo_type=repo_type, revision=revision, allow_pickle=allow_pickle, api=api)
    check_size(files, max_bytes, repo_id)
    snapshot_download(
        repo_id,
        repo_type=repo_type,
        revision=revision,
        local_dir=folder,
        allow_patterns=[_literal(file.path) for file in files],
        endpoint=api.endpoint,
        token=api.token,
    )
    return Path(folder)


def _literal(path: str) -> str:
    """A pattern that means one file."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)
