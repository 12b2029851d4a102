"""Read the part of a tar or zip archive before the place where it was cut off."""

import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

# A zip archive has a header in front of every member, and a list of all members at its end, which is lost first.
LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
START, DESCRIPTOR_START, UNKNOWN_SIZE = b"PK\x03\x04", b"PK\x07\x08", 0xFFFFFFFF
UTF8, HAS_DESCRIPTOR = 0x800, 0x8  # flags; sizes follow the member instead of preceding it
LARGE_FILES = 1  # extra field with sizes of 64 bits
CHUNK = 2**20
CUT: tuple[type[Exception], ...] = (EOFError, tarfile.ReadError)


class CutZip(zipfile.ZipFile):
    """A zip archive without the list of members at its end: its complete members are found by their own headers."""

    def _RealGetContents(self) -> None:  # the part of `ZipFile` that reads the list
        assert self.fp is not None
        self.filelist = list(_members_of(self.fp))
        self.NameToInfo = {member.filename: member for member in self.filelist}
        self.start_dir = 0


def _members_of(file: IO[bytes]) -> Iterator[zipfile.ZipInfo]:
    """The complete members of a zip archive, in order, up to the first that is not."""
    end = file.seek(0, 2)
    place = 0
    while True:
        file.seek(place)
        head = file.read(LOCAL_HEADER.size)
        if len(head) < LOCAL_HEADER.size or not head.startswith(START):
            return
        _, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes = LOCAL_HEADER.unpack(head)
        name, extra = file.read(name_bytes), file.read(extra_bytes)
        start = place + LOCAL_HEADER.size + name_bytes + extra_bytes
        if size == UNKNOWN_SIZE or packed == UNKNOWN_SIZE:
            size, packed = _large_sizes(extra, size, packed)
        member = zipfile.ZipInfo(name.decode("utf-8" if flags & UTF8 else "cp437"))
        place = start + packed
        if flags & HAS_DESCRIPTOR:
            found = _unpacked(file, start) if method == zipfile.ZIP_DEFLATED else None
            if found is None:
                return
            crc, packed, size, place = found
        if place > end:
            return
        member.header_offset, member.flag_bits, member.compress_type = start - len(head + name + extra), flags, method
        member.CRC, member.compress_size, member.file_size = crc, packed, size
        yield member


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
