"""One-sentence errors for full disks and missing permissions."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ACCESS = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Report a disk that is full or not writable in one sentence; other errors pass unchanged."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"cannot write to {place}: {error}; is the disk full or read-only?") from error
    except OSError as error:
        # If the error has a file name, it shows whether the file is ours; writes to an open file have none.
        if error.errno in (*NO_SPACE, *NO_ACCESS) and _is_beside(error.filename, place):
            remedy = "free some space" if error.errno in NO_SPACE else "make it writable"
            raise OSError(
                f"cannot write to {place}: {os.strerror(error.errno)}; {remedy}, or choose another place"
            ) from error
        raise


def describe_os_error(error: OSError) -> str:
    """Message about a denied access with a remedy, which a `PermissionError` lacks."""
    if error.errno is None or error.filename is None:
        return str(error)
    said = f"{os.fsdecode(error.filename)}: {os.strerror(error.errno)}"
    if error.errno not in NO_ACCESS:
        return said
    return f"{said}; give this user access to it and to its folder (chmod, or ask its owner)"


def _is_beside(name: object, place: Path) -> bool:
    """Whether a file is `place`, inside or above it, a temporary file next to it, or nameless."""
    if not isinstance(name, str | bytes | os.PathLike):
        return True
    path = Path(os.path.abspath(os.fsdecode(name)))
    if place.parent not in path.parents:
        return path in place.parents
    entry = path.relative_to(place.parent).parts[0]
    return entry == place.name or entry.startswith(f".{place.name}.")
