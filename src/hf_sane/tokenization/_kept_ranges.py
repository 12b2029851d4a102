"""Downloaded parts of files on the Hub, kept on disk until the work that reads them is done."""

import hashlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import constants

from hf_sane.records._files import write_atomically

WHOLE = "whole"  # name of a file that was sent in full
MAX_AGE = 7 * 24 * 3600.0  # seconds after which nobody continues a scan


def kept_root() -> Path:
    """Folder of all kept parts."""
    return Path(constants.HF_ASSETS_CACHE) / "hf_sane" / "ranges"


def kept_bytes() -> int:
    """Total size of all kept parts, in bytes."""
    return sum(path.stat().st_size for path in kept_root().rglob("*") if path.is_file())


def remove_old_ranges() -> None:
    """Remove the parts of files that nobody has read for a week."""
    now = time.time()
    for folder in kept_root().glob("*"):
        if now - max((path.stat().st_mtime for path in folder.glob("*")), default=now) > MAX_AGE:
            shutil.rmtree(folder, ignore_errors=True)


class KeptRanges:
    """The kept parts of one file.

    Args:
        address: Address of the file at a commit, so that it cannot change.
    """

    def __init__(self, address: str) -> None:
        self.folder = kept_root() / hashlib.sha256(address.encode()).hexdigest()[:32]

    def find(self, start: int, stop: int) -> tuple[bytes, int] | None:
        """The part kept for these bounds, and the size of the file."""
        for path in self.folder.glob(f"{start}-{stop}-of-*"):
            return path.read_bytes(), int(path.name.rpartition("-")[2])
        return None

    def keep(self, start: int, stop: int, content: bytes, size: int) -> None:
        """Keep a part of a file of `size` bytes."""
        with write_atomically(self.folder / f"{start}-{stop}-of-{size}", durable=False) as partial:
            partial.write_bytes(content)

    @property
    def whole(self) -> Path | None:
        """The whole file, if it is kept."""
        path = self.folder / WHOLE
        return path if path.is_file() else None

    def keep_whole(self, parts: Iterable[bytes]) -> Path:
        """Keep a whole file."""
        with write_atomically(self.folder / WHOLE, durable=False) as partial, partial.open("wb") as file:
            for part in parts:
                file.write(part)
        return self.folder / WHOLE

    def forget(self) -> None:
        """Remove all parts of the file."""
        shutil.rmtree(self.folder, ignore_errors=True)
