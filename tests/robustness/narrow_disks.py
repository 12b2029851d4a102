"""Disks that are full or cannot be written, for one child process: nothing of the machine changes."""

import ctypes
import os
import resource
import signal
from pathlib import Path

NEW_MOUNTS, PRIVATE, REMOUNT = 0x20000, 0x4000 | 0x40000, 0x20  # CLONE_NEWNS, MS_REC | MS_PRIVATE, MS_REMOUNT
CAPABILITIES_VERSION = 0x20080522
PASSES_PERMISSIONS = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: why root may write what nobody may

libc = ctypes.CDLL(None, use_errno=True)


def mount_small_disk(place: Path, num_bytes: int) -> bool:
    """Mount a file system of limited size on a folder for this process only; says whether that is allowed."""
    if not hasattr(libc, "unshare") or libc.unshare(NEW_MOUNTS) != 0:
        return False
    if libc.mount(b"none", b"/", None, PRIVATE, None) != 0:
        return False
    return libc.mount(b"none", os.fsencode(place), b"tmpfs", 0, f"size={num_bytes}".encode()) == 0


def grow_disk(place: Path, num_bytes: int) -> None:
    """Make room on it."""
    if libc.mount(b"none", os.fsencode(place), None, REMOUNT, f"size={num_bytes}".encode()) != 0:
        raise OSError(ctypes.get_errno(), "cannot make room")


def limit_files(num_bytes: int) -> None:
    """No file may grow beyond a size: a disk that is full, where none can be mounted."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def unlimit_files() -> None:
    """Files may grow again."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def obey_permissions() -> None:
    """Let permissions of files hold for this process, whoever runs it."""
    if os.geteuid() != 0 or not hasattr(libc, "capset"):
        return
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "cannot read the capabilities of this process")
    sets[0] &= ~PASSES_PERMISSIONS
    sets[1] &= ~PASSES_PERMISSIONS
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "cannot give up capabilities")
