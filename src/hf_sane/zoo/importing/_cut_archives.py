"""Read the part of a tar or zip archive before the place where it was cut off."""

import errno
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# A zip archive has a header in front of every member, and a list of all members at its end, which is lost first.
LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
ENTRY = struct.Struct("<4s6H3I5H2I")
LIST_END_64 = struct.Struct("<4sQ2H2I4Q")
START, DESCRIPTOR_START, ENTRY_START = b"PK\x03\x04", b"PK\x07\x08", b"PK\x01\x02"
UNKNOWN_SIZE, UNKNOWN_COUNT = 0xFFFFFFFF, 0xFFFF  # the number is elsewhere, with 64 bits
ZIP64, DAY_ONE = 45, 33  # version that reads such numbers; 1 January 1980
HAS_DESCRIPTOR = 0x8  # flag: sizes follow the member instead of preceding it
LARGE_FILES = 1  # extra field with sizes of 64 bits
CHUNK = 2**20
CUT: tuple[type[Exception], ...] = (EOFError, tarfile.ReadError)


class CutZip(zipfile.ZipFile):
    """A zip archive without the list of members at its end: its complete members are found by their own headers."""

    def __init__(self, path: Path) -> None:
        self._restored = io.BufferedReader(_Restored(path))
        try:
            super().__init__(self._restored)
        except BaseException:
            self._restored.close()
            raise

    def close(self) -> None:
        """Close the archive and its file."""
        super().close()
        self._restored.close()


class _Restored(io.RawIOBase):
    """The bytes of a zip archive up to the end of its last complete member, and a list of its complete members."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        members = list(_members_of(self._file))
        self._end = members[-1].end if members else 0
        self._list = _list_of(members, self._end)
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._end + len(self._list)}[whence]
        if start + place < 0:
            raise OSError(errno.EINVAL, "negative position")
        self._place = start + place
        return self._place

    def readinto(self, buffer: Any) -> int:
        if self._place < self._end:
            self._file.seek(self._place)
            found = self._file.read(min(len(buffer), self._end - self._place))
        else:
            start = self._place - self._end
            found = self._list[start : start + len(buffer)]
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class _Member:
    """A complete member of a zip archive: what its header says, and where it starts and ends."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    start: int
    end: int


def _list_of(members: Sequence[_Member], start: int) -> bytes:
    """The list of members at the end of a zip archive, from a position on; all numbers have 64 bits."""
    entries = bytearray()
    for x in members:
        extra = struct.pack("<HHQQQ", LARGE_FILES, 24, x.size, x.packed, x.start)
        facts = (ZIP64, ZIP64, x.flags, x.method, 0, DAY_ONE, x.crc, UNKNOWN_SIZE, UNKNOWN_SIZE)
        lengths = (len(x.name), len(extra), 0, 0, 0, 0, UNKNOWN_SIZE)
        entries += ENTRY.pack(ENTRY_START, *facts, *lengths) + x.name + extra
    count, place = len(members), start + len(entries)
    end = LIST_END_64.pack(b"PK\x06\x06", 44, ZIP64, ZIP64, 0, 0, count, count, len(entries), start)
    where = struct.pack("<4sIQI", b"PK\x06\x07", 0, place, 1)
    unknown = (UNKNOWN_COUNT, UNKNOWN_COUNT, UNKNOWN_SIZE, UNKNOWN_SIZE)
    return bytes(entries) + end + where + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, *unknown, 0)


def _members_of(file: IO[bytes]) -> Iterator[_Member]:
    """The complete members of a zip archive, in order, up to the first that is not."""
    end = file.seek(0, 2)
    place = 0
    while True:
        begin = file.seek(place)
        head = file.read(LOCAL_HEADER.size)
        if len(head) < LOCAL_HEADER.size or not head.startswith(START):
            return
        _, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes = LOCAL_HEADER.unpack(head)
        name, extra = file.read(name_bytes), file.read(extra_bytes)
        start = place + LOCAL_HEADER.size + name_bytes + extra_bytes
        if size == UNKNOWN_SIZE or packed == UNKNOWN_SIZE:
            size, packed = _large_sizes(extra, size, packed)
        place = start + packed
        if flags & HAS_DESCRIPTOR:
            found = _unpacked(file, start) if method == zipfile.ZIP_DEFLATED else None
            if found is None:
                return
            crc, packed, size, place = found
        if place > end:
            return
        yield _Member(name, flags, method, crc, packed, size, begin, place)


def _large_sizes(extra: bytes, size: int, packed: int) -> tuple[int, int]:
    """Both sizes of a member with 64 bits."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == LARGE_FILES and length >= 16:
            return struct.unpack("<QQ", extra[4:20])
        extra = extra[4 + length :]
    return size, packed


def _unpacked(file: IO[bytes], start: int) -> tuple[int, int, int, int] | None:
    """Checksum, sizes and end of a compressed member whose header lacks them; `None` if it is not complete."""
    file.seek(start)
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    crc = size = read = 0
    while not unpacker.eof:
        chunk = file.read(CHUNK)
        if not chunk:
            return None
        read += len(chunk)
        try:
            content = unpacker.decompress(chunk)
        except zlib.error:
            return None
        crc, size = zlib.crc32(content, crc), size + len(content)
    packed = read - len(unpacker.unused_data)
    file.seek(start + packed)
    told = file.read(24)
    mark = DESCRIPTOR_START if told.startswith(DESCRIPTOR_START) else b""
    for sizes in ("II", "QQ"):
        expected = mark + struct.pack(f"<I{sizes}", crc, packed, size)
        if told.startswith(expected):
            return crc, packed, size, start + packed + len(expected)
    return None


def tar_members(archive: tarfile.TarFile) -> tuple[list[tarfile.TarInfo], bool]:
    """The complete members of a tar archive, and whether it ends before its end.

    Raises:
        OSError: If it is damaged otherwise.
    """
    members: list[tarfile.TarInfo] = []
    try:
        for member in archive:
            members.append(member)
    except CUT:
        if members and not _is_whole(archive, members[-1]):
            members.pop()
        return members, True
    assert archive.fileobj is not None
    # The end is a block of zeros; an archive that is cut off in or before a header has none, and raises no error.
    return members, bool(members) and archive.fileobj.tell() - archive.offset < tarfile.BLOCKSIZE


def _is_whole(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    """Whether a member can be read to its end."""
    if not member.isreg():
        return True
    read = 0
    try:
        stream = archive.extractfile(member)
        while stream is not None and (chunk := stream.read(CHUNK)):
            read += len(chunk)
    except CUT:
        return False
    return read == member.size
