"""Files that are either complete or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Write a file beside its final place and move it there when it is complete.

    A reader, or a run that continues after a crash, sees the old content or the new one, never half of it. Missing parent
    folders are made.

    Args:
        path: Final place of the file.

    Yields:
        Where to write; on the same file system. If the block raises, it is removed and `path` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
