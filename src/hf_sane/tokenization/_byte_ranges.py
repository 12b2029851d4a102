"""Read parts of files, on this machine or on the Hub."""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from hf_sane.records._errors import InvalidFileError
from hf_sane.records._patience import FIRST_WAIT, TRIES, patiently
from hf_sane.tokenization._kept_ranges import KeptRanges

REQUESTS = 8  # concurrent requests to the Hub
AHEAD = 12  # requests sent before the first answer is used, which bounds the memory
MAX_REQUEST_BYTES = 2**23  # of one request: larger parts are fetched in parallel, and kept piece by piece
MAX_WHOLE_BYTES = 2**26  # of a file that a server without ranges sends when only a part is requested
JOINED_GAP = 2**16  # gaps up to this size are cheaper to read than to make a second request

Range = tuple[int, int]  # the first byte, and the byte after the last


class RandomAccessFile(Protocol):
    """A file whose parts can be read in any order."""

    @property
    def size(self) -> int:
        """Size of the file in bytes."""

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes `start` to `stop`, or to the end of the file."""

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Read several parts, in the order of `ranges`."""


class LocalFile:
    """A file on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size

    def __str__(self) -> str:
        return str(self.path)

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes `start` to `stop`, or to the end of the file."""
        return b"".join(self.read_ranges([(start, stop)]))

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Read several parts, in the order of `ranges`."""
        with self.path.open("rb", buffering=0) as file:
            for start, stop in ranges:
                parts, place = [], start
                while place < stop and (part := os.pread(file.fileno(), stop - place, place)):
                    parts.append(part)
                    place += len(part)
                yield parts[0] if len(parts) == 1 else b"".join(parts)


class MemoryFile:
    """A file in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes `start` to `stop`, or to the end of the file."""
        return self._content[start:stop]

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Read several parts, in the order of `ranges`."""
        return (self.read(start, stop) for start, stop in ranges)


class HubFile:
    """A file in a repository on the Hub, from which only the requested bytes are downloaded.

    Args:
        repo_id: `user/name`.
        name: Path in the repository.
        revision: Branch, tag or commit. Only with a commit can the file not change between requests.
        api: Hub client, for another endpoint or token.
        takes_whole: Function of the file's size: whether the file may be downloaded in full, once, from a server that
            does not support ranges.
        keeps: Whether to keep the parts on disk until [`forget`], so that another process can continue.

    Attributes:
        size: Size of the file in bytes, which is known after the first request.
        bytes_read: Bytes downloaded.
    """

    def __init__(
        self,
        repo_id: str,
        name: str,
        revision: str | None = None,
        api: HfApi | None = None,
        *,
        takes_whole: Callable[[int], bool] = lambda size: size <= MAX_WHOLE_BYTES,
        keeps: bool = False,
    ) -> None:
        self._api = api or HfApi()
        self._url = hf_hub_url(repo_id, name, revision=revision, endpoint=self._api.endpoint)
        self._name = f"{repo_id}/{name}"
        self._takes_whole = takes_whole
        self._kept = KeptRanges(self._url)
        self._keeps = keeps
        self._content: bytes | None = None  # content of a file that was sent in full
        self._lock = Lock()
        self.size = 0
        self.bytes_read = 0

    def __str__(self) -> str:
        return self._name

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes `start` to `stop`, or to the end of the file.

        Raises:
            EntryNotFoundError, RepositoryNotFoundError: If there is no such file.
            ConnectionError: If the Hub cannot be reached, or is busy.
        """
        for attempt in range(TRIES):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            if (found := patiently(self._fetch, start, stop)) is not None:
                return found
        raise ConnectionError(
            f"the connection to the Hub broke off {TRIES} times while {self} was read; check it, then try again"
        )

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Read several parts, in the order of `ranges`: adjacent parts in one request, several requests at a time.

        Raises:
            InvalidFileError: If the file ends before one of the parts.
            ConnectionError: If the Hub cannot be reached, or is busy.
        """
        pieces = self._read_pieces([piece for start, stop in ranges for piece in split_range(start, stop)])
        for start, stop in ranges:
            found = list(islice(pieces, len(split_range(start, stop))))
            yield found[0] if len(found) == 1 else b"".join(found)

    def _read_pieces(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        requests = iter(joined(ranges))
        with ThreadPoolExecutor(REQUESTS) as pool:

            def ask(request: list[Range]) -> tuple[list[Range], Future[bytes]]:
                return request, pool.submit(self.read, request[0][0], max(stop for _, stop in request))

            waiting = [ask(request) for request in islice(requests, AHEAD)]
            while waiting:
                request, answer = waiting.pop(0)
                content, first = answer.result(), request[0][0]
                del answer
                waiting += [ask(following) for following in islice(requests, 1)]
                for start, stop in request:
                    part = content[start - first : stop - first]
                    if len(part) < stop - start:
                        raise InvalidFileError(
                            str(self), expected=f"{stop:,} bytes", got=f"{self.size:,}", remedy="scan it again"
                        )
                    yield part

    def forget(self) -> None:
        """Remove the kept parts, which are no longer needed."""
        self._kept.forget()

    def _fetch(self, start: int, stop: int) -> bytes | None:
        """Bytes of the file; `None` if the connection broke off within the answer."""
        if self._content is not None:
            return self._content[start:stop]
        if self._keeps and self._kept.whole is not None:
            file = LocalFile(self._kept.whole)
            self.size = file.size
            return file.read(start, stop)
        if self._keeps and (found := self._kept.find(start, stop)) is not None:
            content, self.size = found
            return content
        headers = {**build_hf_headers(token=self._api.token), "Range": f"bytes={start}-{stop - 1}"}
        with http_stream_backoff(
            "GET",
            self._url,
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            retry_on_status_codes=(),  # which `patiently` repeats
        ) as response:
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # the range of an empty file
                return b""
            hf_raise_for_status(response)
            found_range = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
            try:  # here, since the client would send the request again, but cannot use the answer
                if found_range is None:
                    return self._take_whole(response, start, stop)
                content = response.read()
            except HTTPError:
                return None
        with self._lock:
            self.bytes_read += len(content)
        self.size = int(found_range[1])
        if self._keeps:
            self._kept.keep(start, stop, content, self.size)
        return content

    def _take_whole(self, response: Any, start: int, stop: int) -> bytes:
        """Download the file in full, from a server that does not support ranges; later parts are taken from it."""

        def parts() -> Iterator[bytes]:
            size = int(response.headers.get("Content-Length") or 0)
            for part in chain([b""], response.iter_bytes()):
                self.bytes_read += len(part)
                if not self._takes_whole(max(size, self.bytes_read)):
                    raise InvalidFileError(
                        str(self),
                        expected="a server that sends the requested part of a file",
                        got=f"the whole file of {max(size, self.bytes_read):,} bytes",
                        remedy="read it in full (--budget 100%), or download it first (hf-sane pull)",
                    )
                yield part

        if self._keeps:
            file = LocalFile(self._kept.keep_whole(parts()))
            self.size = file.size
            return file.read(start, stop)
        self._content = b"".join(parts())
        self.size = len(self._content)
        return self._content[start:stop]


def split_range(start: int, stop: int) -> list[Range]:
    """A range as pieces of at most `MAX_REQUEST_BYTES`."""
    firsts = range(start, max(stop, start + 1), MAX_REQUEST_BYTES)
    return [(first, min(first + MAX_REQUEST_BYTES, stop)) for first in firsts]


def joined(ranges: Sequence[Range]) -> Iterator[list[Range]]:
    """Group ranges that follow each other in the file, for one request each.

    Gaps are at most `JOINED_GAP` bytes; several ranges together have at most `MAX_REQUEST_BYTES`, gaps included.
    """
    run: list[Range] = []
    for start, stop in ranges:
        if run and not (0 <= start - run[-1][1] <= JOINED_GAP and stop - run[0][0] <= MAX_REQUEST_BYTES):
            yield run
            run = []
        run.append((start, stop))
    if run:
        yield run
