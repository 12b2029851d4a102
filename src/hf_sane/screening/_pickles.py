"""Find the code that a pickle would run if opened, with picklescan, which reads opcodes without running them."""

import logging
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hf_sane.records._errors import MALFORMED, InvalidFileError, name_some, shorten
from hf_sane.screening._finding import Finding
from hf_sane.screening._other_formats import INSTALL
from hf_sane.tokenization._checkpoints import AGAIN
from hf_sane.tokenization._formats import PICKLE, TORCH_LEGACY, TORCH_ZIP, TORCHSCRIPT, file_format
from hf_sane.tokenization._pickles import DAMAGED, WHOLE_FILE, unpickle

SCANNER = "picklescan"
MAX_OPCODES = 2**28  # bytes of a pickle that is not in a zip archive, whose opcodes are held in memory
MAX_CHECKED = 64 * 10**6  # bytes of a file next to the weights that are compared with their checksums
CHECKSUM = re.compile(r"Bad CRC-32 for file '(.*)'")
ADVICE = "save the tensors as safetensors (safetensors.torch.save_file)"
FAILURES: tuple[type[Exception], ...] = (
    *MALFORMED,
    RuntimeError,
    OSError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Opcodes:
    """Imports of a pickle, according to its opcodes.

    Attributes:
        dangerous: Functions that run code.
        unknown: Other functions and classes that are not known to be harmless.
        damage: Why the opcodes could not be read to their end; empty if they could.
        unread: Why they were not read at all; empty if they were.
    """

    dangerous: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    damage: str = ""
    unread: str = ""


def is_pickle(path: Path) -> bool:
    """Whether opening a file means to unpickle it, judged by its content."""
    return file_format(path) in (PICKLE, TORCH_ZIP, TORCH_LEGACY, TORCHSCRIPT)


def read_opcodes(path: Path) -> Opcodes:
    """Read the opcodes of a PyTorch file or a plain pickle, of any protocol."""
    found, size = file_format(path), path.stat().st_size
    if find_spec(SCANNER) is None:
        return Opcodes(unread=f"{SCANNER} is not installed")
    if found in (PICKLE, TORCH_LEGACY) and size > MAX_OPCODES:
        return Opcodes(unread=f"it has {size:,} bytes, more than {MAX_OPCODES:,}")
    from picklescan.scanner import SafetyLevel, scan_bytes

    logging.getLogger(SCANNER).setLevel(logging.CRITICAL)  # since it also logs its results
    try:
        with path.open("rb") as file:
            result = scan_bytes(file, str(path), ".pkl" if found == PICKLE else ".pt")
    except FAILURES as error:
        return Opcodes(damage=shorten(error))
    dangerous, unknown = (
        tuple(sorted({f"{x.module}.{x.name}" for x in result.globals if x.safety == level}))
        for level in (SafetyLevel.Dangerous, SafetyLevel.Suspicious)
    )
    return Opcodes(dangerous, unknown, damage="they end early" if result.scan_err else "")


def scan_pickle(path: Path, *, name: str = "") -> list[Finding]:
    """Findings about code in a PyTorch file or a plain pickle; empty for other formats.

    Args:
        path: The file.
        name: Name for messages, if it is one of several.
    """
    if not is_pickle(path):
        return []
    opcodes, prefix = read_opcodes(path), f"{name}: " if name else ""
    if opcodes.dangerous:
        message = f"{prefix}opening it would run {name_some(opcodes.dangerous)}"
        return [Finding("pickle", "error", message, "do not open it without weights_only=True; inform its author")]
    if opcodes.unread:
        remedy = f"{INSTALL}; {ADVICE}" if find_spec(SCANNER) is None else ADVICE
        message = f"{prefix}a pickle, whose opcodes were not scanned, since {opcodes.unread}"
        return [Finding("pickle", "warning", message, remedy)]
    what = f", which imports {name_some(opcodes.unknown)}" if opcodes.unknown else ""
    what += f"; parts of it could not be scanned ({opcodes.damage})" if opcodes.damage else ""
    return [Finding("pickle", "warning", f"{prefix}a pickle{what}", ADVICE)]


def check_whole(path: Path, *, max_bytes: int | None = None) -> None:
    """Check that a PyTorch file or a plain pickle is not damaged, as far as that is possible without opening it.

    Args:
        path: The file.
        max_bytes: Only the opcodes of larger files are checked.

    Raises:
        InvalidFileError: If it is truncated, or its bytes differ from their checksums.
    """
    found, is_small = file_format(path), max_bytes is None or path.stat().st_size <= max_bytes
    try:
        if found in (TORCH_ZIP, TORCHSCRIPT):
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    if is_small or member.filename.endswith(".pkl"):
                        with archive.open(member) as file:
                            while file.read(2**20):
                                pass
        elif found == PICKLE and is_small:
            with path.open("rb") as file:
                for _ in pickletools.genops(file):
                    pass
        elif found == TORCH_LEGACY and is_small:
            _check_legacy(path)
    except InvalidFileError:
        raise
    except FAILURES as error:
        wrong = CHECKSUM.search(str(error))
        expected = "a whole pickle" if found == PICKLE else WHOLE_FILE
        why = f" ({shorten(wrong[1])} does not have its checksum)" if wrong else ""
        raise InvalidFileError(path, expected=expected, got=DAMAGED + why, remedy=AGAIN) from error


def _check_legacy(path: Path) -> None:
    """Open a file of the old format, which has no checksums, with weights_only=True."""
    try:
        unpickle(path)
    except InvalidFileError as error:
        if error.__cause__ is not None and not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
