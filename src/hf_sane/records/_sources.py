"""Sources, which are local paths or repositories on the Hub."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, Literal

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

RepoType = Literal["model", "dataset"]
# Endings of names that can only be local files. Names of repositories may contain dots, too.
FILE_SUFFIXES = (
    *(".safetensors", ".json", ".bin", ".pt", ".pth", ".th", ".ckpt", ".pkl", ".pickle", ".tar", ".gz", ".zip"),
    *(".gguf", ".onnx", ".h5", ".hdf5", ".keras", ".npz", ".npy", ".pb", ".msgpack", ".parquet"),
)
ASK_SECONDS = 5.0  # time limit for the request whether a repository exists
TOKEN_HINT = "if it is private or gated, log in with an account that may read it (hf auth login)"


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository on the Hub.

    Attributes:
        repo_id: `owner/name`.
        revision: Branch, tag or commit; `None` for the default branch.
    """

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"


def parse_source(source: str | Path, *, revision: str | None = None) -> Path | HubRepo:
    """Decide whether a source is a path or a repository, without requests to the Hub.

    Any existing path is a path. Otherwise, `owner/name` and `owner/name@revision` are repositories. A `Path`, and a
    text that starts with `.`, `~` or `/`, contains a backslash or several slashes, or ends like a file name, is a
    missing path.

    Args:
        source: Text of the user; `~` is expanded to the home folder.
        revision: Branch, tag or commit, instead of `@revision`.

    Returns:
        A path or a repository, which need not exist.

    Raises:
        ValueError: If the name is empty, or two revisions differ.
    """
    text = str(source)
    if not text:
        raise ValueError("expected a path or a repository on the Hub, got an empty name")
    path = _as_path(text)
    if isinstance(source, Path) or _exists(path) or text.startswith((".", "~", "/")) or "\\" in text:
        return path
    try:
        found = parse_repo(text, revision=revision)
    except HFValidationError:
        return path
    return path if found.repo_id.lower().endswith(FILE_SUFFIXES) else found


def parse_repo(text: str, *, revision: str | None = None) -> HubRepo:
    """Parse the id of a repository to push to or pull from.

    Args:
        text: `owner/name` or `owner/name@revision`.
        revision: Branch, tag or commit, instead of `@revision`.

    Raises:
        HFValidationError: If it is not a valid repository id; a `ValueError`.
        ValueError: If two revisions differ, or the one after `@` is empty.
    """
    repo_id, at, named = text.partition("@")
    validate_repo_id(repo_id)
    if at and not named:
        raise ValueError(f"expected a revision after '@', got {text!r}; write owner/name@revision, or leave '@' out")
    if named and revision is not None and revision != named:
        raise ValueError(f"two revisions of one repository: {text} and {revision!r}; give one of them")
    return HubRepo(repo_id, named or revision)


def find_source(
    source: str | Path, *, revision: str | None = None, repo_type: RepoType = "model", api: HfApi | None = None
) -> Path | HubRepo:
    """Find a source locally or, with one request, on the Hub.

    Args:
        source: See [`parse_source`].
        revision: Branch, tag or commit of a repository.
        repo_type: Type of a repository.
        api: Client to use.

    Returns:
        An existing path, or a repository that exists (or is in the cache if the Hub cannot be reached).

    Raises:
        FileNotFoundError: If it is neither; the message has the path and the address that were tried.
        ConnectionError: If it is not a path, and the Hub cannot be reached.
        ValueError: See [`parse_source`].
    """
    found = parse_source(source, revision=revision)
    if isinstance(found, Path):
        return check_path(found, remedy="give an existing path or a Hub repo id (owner/name)")
    if (beside := _folder_of(found)) is not None:
        raise FileNotFoundError(
            f"no such file or folder: {source} (tried {Path(str(source)).absolute()}); the folder {beside} is here: "
            f"give an existing path, or {found}@main for the repository on the Hub"
        )
    client = api or HfApi()
    tried = f"tried {Path(str(source)).absolute()} and {_address(client, found, repo_type)}"
    try:
        within(
            ASK_SECONDS,
            lambda: client.repo_info(found.repo_id, revision=found.revision, repo_type=repo_type, timeout=ASK_SECONDS),
        )
    except GatedRepoError:
        pass  # some of its files may be public
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{found.repo_id} has no branch, tag or commit {found.revision!r} on the Hub ({tried})"
        ) from error
    except RepositoryNotFoundError as error:
        kind = "dataset " if repo_type == "dataset" else ""
        raise FileNotFoundError(
            f"no such file or folder, and no such {kind}repository on the Hub: {tried}; {TOKEN_HINT}"
        ) from error
    except HfHubHTTPError:
        pass  # busy or out of order: reading the files repeats the request and reports the error
    except (HTTPError, OSError) as error:
        _explain_silence(error, found, repo_type, tried)
    return found


def describe_silence(error: Exception, text: str, *, api: HfApi) -> str:
    """Message that a name is no path, and that the Hub cannot say whether it is a repository.

    Args:
        error: Error of a request to the Hub, which cannot be reached.
        text: `owner/name`, or a wrong path.
        api: Client that sent the request.
    """
    found = parse_repo(text)
    beside = _folder_of(found)
    tried = f"tried {Path(text).absolute()} and {_address(api, found, 'model')}"
    return _silence(error, tried) + (f"; the folder {beside} is here, without that in it" if beside else "")


def check_path(path: Path, *, remedy: str = "give an existing path") -> Path:
    """An existing path; a `FileNotFoundError` with the absolute path and a remedy if it does not exist."""
    if not _exists(path):
        what = "a link to a file that is missing" if os.path.islink(path) else "no such file or folder"
        raise FileNotFoundError(f"{what}: {path} (tried {path.absolute()}); {remedy}")
    return path


def pretrained_arguments(
    source: str | Path, *, revision: str | None = None, subfolder: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Name and keyword arguments of a source, or a subfolder of one, for `from_pretrained` of Transformers.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: See [`find_source`].
    """
    found = find_source(source, revision=revision)
    if isinstance(found, Path):
        return str(found if subfolder is None else check_path(found / subfolder)), {}
    chosen = {"revision": found.revision, "subfolder": subfolder}
    return found.repo_id, {name: value for name, value in chosen.items() if value is not None}


def source_name(source: str | Path) -> str:
    """Name of a source: the last part of a path, or the repository."""
    found = parse_source(source)
    return str(found) if isinstance(found, HubRepo) else found.resolve().name


def hub_id(name: str | Path | None) -> str | None:
    """Id of a repository without its revision; `None` for `None`, for paths, existing or not, and for other texts.

    Cards link to repositories, never to local paths.
    """
    try:
        found = parse_source(name) if name else None
    except ValueError:  # an empty revision
        return None
    return found.repo_id if isinstance(found, HubRepo) else None


def _folder_of(repo: HubRepo) -> str | None:
    """Local folder that a name without revision starts with, which suggests a missing path inside it."""
    owner, slash, _ = repo.repo_id.partition("/")
    return owner if slash and repo.revision is None and Path(owner).is_dir() else None


def within(seconds: float, ask: Callable[[], object]) -> None:
    """Send a request to the Hub with a time limit that includes resolving its host name, which may take 30 seconds.

    Raises:
        TimeoutError: If there is no response in time.
        Exception: Any exception of `ask`.
    """
    answers: Queue[Exception | None] = Queue()

    def answer() -> None:
        try:
            ask()
        except (HTTPError, OSError, ValueError) as error:
            answers.put(error)
        else:
            answers.put(None)

    Thread(target=answer, daemon=True).start()
    try:
        error = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error


def _explain_silence(error: Exception, repo: HubRepo, repo_type: RepoType, tried: str) -> None:
    """Raise an error that the Hub cannot be reached, unless the repository is in the cache."""
    name = repo_folder_name(repo_id=repo.repo_id, repo_type=repo_type)
    if (Path(constants.HF_HUB_CACHE) / name / "snapshots").is_dir():
        return
    kind = FileNotFoundError if isinstance(error, OfflineModeIsEnabled) else ConnectionError
    raise kind(_silence(error, tried)) from error


def _silence(error: Exception, tried: str) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return (
            "no such file or folder, and in offline mode (HF_HUB_OFFLINE) only repositories in the cache are read: "
            f"{tried}"
        )
    return (
        f"no such file or folder, and the Hub cannot be reached to ask for a repository of that name: {tried}; "
        "check the path, or the connection"
    )


def _as_path(text: str) -> Path:
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:  # no such user, as in ~nobody
        return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # not a valid file name
        return False


def _address(client: HfApi, repo: HubRepo, repo_type: RepoType) -> str:
    return f"{client.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
