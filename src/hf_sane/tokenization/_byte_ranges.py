"""Reading of parts of files, on this machine or on the Hub."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Protocol

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from hf_sane.records._errors import InvalidFileError
from hf_sane.records._patience import patiently

REQUESTS = 8  # to the Hub at a time
AHEAD = 32  # requests that are sent before the answer to the first is used: what bounds the memory
JOINED_GAP = 2**16  # bytes between two ranges that are cheaper to read than to ask for the second range

Range = tuple[int, int]  # the first byte, and the one past the last


class RandomAccessFile(Protocol):
    """A file of which any part can be read."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, or to the end of the file."""

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Several parts, in the order of `ranges`."""


class LocalFile:
    """A file on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size

    def __str__(self) -> str:
        return str(self.path)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, or to the end of the file."""
        return b"".join(self.read_ranges([(start, stop)]))

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Several parts, in the order of `ranges`."""
        with self.path.open("rb", buffering=0) as file:
            for start, stop in ranges:
                parts, place = [], start
                while place < stop and (part := os.pread(file.fileno(), stop - place, place)):
                    parts.append(part)
                    place += len(part)
                yield parts[0] if len(parts) == 1 else b"".join(parts)


class HubFile:
    """A file in a repository on the Hub, of which only the bytes that are asked for are downloaded.

    Args:
        repo_id: `user/name`.
        name: Path in the repository.
        revision: Branch, tag or commit. Only that of a commit cannot change between two requests.
        api: Hub client, for another endpoint or token.

    Attributes:
        size: Bytes of the whole file; known after the first request.
        bytes_read: Bytes downloaded.
    """

    def __init__(self, repo_id: str, name: str, revision: str | None = None, api: HfApi | None = None) -> None:
        self._api = api or HfApi()
        self._url = hf_hub_url(repo_id, name, revision=revision, endpoint=self._api.endpoint)
        self._name = f"{repo_id}/{name}"
        self.size = 0
        self.bytes_read = 0

    def __str__(self) -> str:
        return self._name

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, or to the end of the file.

        Raises:
            EntryNotFoundError, RepositoryNotFoundError: If there is no such file.
            ConnectionError: If the Hub cannot be reached, or is busy.
        """
        return patiently(self._fetch, start, stop)

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Several parts, in the order of `ranges`: neighbours in one request, several requests at a time.

        Raises:
            InvalidFileError: If the file ends before one of them does.
            ConnectionError: If the Hub cannot be reached, or is busy.
        """
        requests = iter(joined(ranges))
        with ThreadPoolExecutor(REQUESTS) as pool:

            def ask(request: list[Range]) -> tuple[list[Range], Future[bytes]]:
                return request, pool.submit(self.read, request[0][0], max(stop for _, stop in request))

            waiting = [ask(request) for request in islice(requests, AHEAD)]
            while waiting:
                request, answer = waiting.pop(0)
                content, first = answer.result(), request[0][0]
                waiting += [ask(following) for following in islice(requests, 1)]
                for start, stop in request:
                    part = content[start - first : stop - first]
                    if len(part) < stop - start:
                        raise InvalidFileError(
                            str(self), expected=f"{stop:,} bytes", got=f"{self.size:,}", remedy="scan it again"
                        )
                    yield part

    def _fetch(self, start: int, stop: int) -> bytes:
        headers = {**build_hf_headers(token=self._api.token), "Range": f"bytes={start}-{stop - 1}"}
        response = http_backoff("GET", self._url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # the range of an empty file
            return b""
        hf_raise_for_status(response)
        self.bytes_read += len(response.content)
        found = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if found is None:  # a server without ranges
            self.size = len(response.content)
            return response.content[start:stop]
        self.size = int(found[1])
        return response.content


def joined(ranges: Sequence[Range]) -> Iterator[list[Range]]:
    """Runs of ranges that follow one another in the file, with gaps of at most `JOINED_GAP` bytes."""
    run: list[Range] = []
    for start, stop in ranges:
        if run and not 0 <= start - run[-1][1] <= JOINED_GAP:
            yield run
            run = []
        run.append((start, stop))
    if run:
        yield run
