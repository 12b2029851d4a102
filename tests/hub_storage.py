"""What the loopback Hub of the tests keeps: repositories with commits, branches and tags, and large files by hash."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import yaml

LARGE_SUFFIXES = re.compile(r"\.(safetensors|bin|parquet|arrow|pt|th|npz|gz|zip|png)$")
LARGE_SIZE = 10 * 2**20
NOW = "2026-01-01T00:00:00.000Z"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str, size: int) -> bool:
    """Whether the Hub keeps a file as a large object."""
    return size >= LARGE_SIZE or bool(LARGE_SUFFIXES.search(path))


class Refused(Exception):
    """A request that the Hub answers with an error."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Commit:
    """Files by path and their content; parent is the commit before."""

    sha: str
    title: str
    parent: str | None
    files: dict[str, bytes]


@dataclass
class Repository:
    """One repository; commits are never lost."""

    kind: str
    name: str
    private: bool = False
    downloads: int = 0
    likes: int = 0
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = count()
        self._add("main", "initial commit", None, {})

    def _add(self, branch: str, title: str, parent: str | None, files: dict[str, bytes]) -> Commit:
        sha = hashlib.sha1(f"{self.kind}{self.name}{next(self._numbers)}{title}".encode()).hexdigest()
        commit = self.commits[sha] = Commit(sha, title, parent, files)
        self.branches[branch] = sha
        return commit

    @property
    def head(self) -> Commit:
        return self.commits[self.branches["main"]]

    @property
    def files(self) -> dict[str, bytes]:
        """Files of the newest commit on `main`."""
        return self.head.files

    @property
    def titles(self) -> list[str]:
        """Titles on `main`, oldest first."""
        found, sha = [], self.branches["main"]
        while sha is not None:
            found.append(self.commits[sha].title)
            sha = self.commits[sha].parent
        return found[::-1]

    def at(self, revision: str) -> Commit:
        """Branch, tag or commit."""
        name = revision.removeprefix("refs/heads/")
        sha = self.branches.get(name) or self.tags.get(name) or name
        if sha not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[sha]

    def card(self, commit: Commit) -> dict[str, Any]:
        """The metadata at the top of README.md."""
        found = re.match(r"---\n(.*?)\n---", commit.files.get("README.md", b"").decode(), re.DOTALL)
        return (yaml.safe_load(found[1]) or {}) if found else {}

    def info(self, commit: Commit) -> dict[str, Any]:
        """What the clients call model or dataset info."""
        card = self.card(commit)
        tags = [*card.get("tags", []), *([f"license:{card['license']}"] if "license" in card else [])]
        return {
            "_id": git_hash(self.name.encode())[:24],
            "id": self.name,
            "modelId": self.name,
            "author": self.name.split("/")[0],
            "sha": commit.sha,
            "private": self.private,
            "gated": False,
            "disabled": False,
            "downloads": self.downloads,
            "likes": self.likes,
            "tags": tags,
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
            "cardData": card,
            "createdAt": NOW,
            "lastModified": NOW,
            "siblings": [
                {
                    "rfilename": path,
                    "size": len(content),
                    "blobId": git_hash(content),
                    **self.large_object(path, content),
                }
                for path, content in sorted(commit.files.items())
            ],
        }

    def entries(self, commit: Commit, folder: str = "", *, recursive: bool = True) -> list[dict[str, Any]]:
        """Files and folders below `folder`, as the tree of a revision lists them."""
        found: dict[str, dict[str, Any]] = {}
        for path, content in sorted(commit.files.items()):
            if folder and not path.startswith(f"{folder}/"):
                continue
            parts = path.removeprefix(f"{folder}/" if folder else "").split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                name = "/".join([*([folder] if folder else []), *parts[:depth]])
                found[name] = {"type": "directory", "path": name, "size": 0, "oid": git_hash(name.encode())}
            if recursive or len(parts) == 1:
                found[path] = self.entry(path, content)
        return list(found.values())

    @staticmethod
    def entry(path: str, content: bytes) -> dict[str, Any]:
        large = Repository.large_object(path, content)
        if large:
            large["lfs"]["oid"] = large["lfs"].pop("sha256")
        return {"type": "file", "path": path, "size": len(content), "oid": git_hash(content), **large}

    @staticmethod
    def large_object(path: str, content: bytes) -> dict[str, Any]:
        """What is said about a file that is kept as a large object; nothing about others."""
        if not is_large(path, len(content)):
            return {}
        return {"lfs": {"sha256": sha256(content), "size": len(content), "pointerSize": 134}}


class Storage:
    """All repositories by `("models" or "datasets", name)`, and large objects by SHA-256. It outlives its servers."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.uploads: list[str] = []  # hashes of large objects in the order they came, every time they came
        self.lock = threading.RLock()

    def create(self, kind: str, name: str, *, private: bool = False) -> bool:
        """Make a repository; says whether it is new."""
        with self.lock:
            if (kind, name) in self.repositories:
                return False
            self.repositories[kind, name] = Repository(kind, name, private)
            return True

    def put(self, digest: str, content: bytes) -> None:
        """Keep a large object."""
        if sha256(content) != digest:
            raise Refused(400, None, f"content does not have the hash {digest}")
        with self.lock:
            self.large[digest] = content
            self.uploads.append(digest)

    def commit(self, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> Commit:
        """Apply the operations of a commit, all or none."""
        with self.lock:
            parent = repository.at(branch)
            files, title = dict(parent.files), ""
            for line in lines:
                key, value = line["key"], line["value"]
                if key == "header":
                    title = value["summary"]
                    if value.get("parentCommit") not in (None, parent.sha):
                        raise Refused(412, None, "A commit has happened since. Please refresh and try again.")
                elif key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    if value["oid"] not in self.large:
                        raise Refused(400, None, f"large object {value['oid']} was not uploaded")
                    files[value["path"]] = self.large[value["oid"]]
                elif key == "deletedFile":
                    del files[value["path"]]
                elif key == "deletedFolder":
                    files = {path: held for path, held in files.items() if not path.startswith(value["path"])}
                else:
                    raise Refused(400, None, f"unexpected operation {key}")
            return repository._add(branch, title, parent.sha, files)

    def add_files(self, kind: str, name: str, files: dict[str, bytes], **facts: Any) -> Repository:
        """Put files into a repository without a client; `facts` are attributes such as `downloads` and `private`."""
        self.create(kind, name)
        repository = self.repositories[kind, name]
        lines = [{"key": "header", "value": {"summary": "add files"}}]
        for path, content in files.items():
            encoded = base64.b64encode(content).decode()
            lines.append({"key": "file", "value": {"path": path, "content": encoded}})
        self.commit(repository, "main", lines)
        for key, value in facts.items():
            setattr(repository, key, value)
        return repository

    def listing(self, kind: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """Public repositories that match author, search words and filters (tags)."""
        found = []
        for (held, name), repository in self.repositories.items():
            info = repository.info(repository.head)
            labels = {*info["tags"], info["library_name"], info["pipeline_tag"]}
            if (
                held == kind
                and not repository.private
                and all(name.startswith(f"{author}/") for author in query.get("author", []))
                and all(word.lower() in name.lower() for word in query.get("search", []))
                and labels.issuperset(query.get("filter", []))
            ):
                found.append(info)
        found.sort(key=lambda info: -info["downloads"])
        return found[: int(query["limit"][0])] if "limit" in query else found


def to_json(body: object) -> bytes:
    return json.dumps(body).encode()
