"""The C library's memory allocator: settings that keep large blocks, and the memory used."""

import ctypes
import os
import sys
from typing import Any

REPLACEMENTS = ("jemalloc", "tcmalloc", "mimalloc")  # they keep large blocks by default
# Parameters of `mallopt` (malloc.h), and the environment variables by which users may have set them.
# The aim is not to map large blocks and never to trim; the padding makes the heap grow in few, large steps.
SETTINGS = {
    "mmap_max": (-4, 0, "MALLOC_MMAP_MAX_"),
    "trim_threshold": (-1, -1, "MALLOC_TRIM_THRESHOLD_"),  # -1: never
    "top_pad": (-2, 2**28, "MALLOC_TOP_PAD_"),
}

_tuned: dict[str, int] = {}


def tune_allocator() -> dict[str, Any]:
    """Make glibc keep large freed blocks instead of returning each to the kernel.

    By default every large temporary of a training step is mapped, faulted in page by page, and unmapped again, which
    can take most of the step. In exchange, the process keeps the memory. Programs call this first, before PyTorch
    allocates; importing the library never does. Settings from the environment (such as `MALLOC_MMAP_MAX_`) are
    respected; on other systems, and with another allocator preloaded, nothing is done.

    Returns:
        [`allocator_state`] afterwards; `tuned` names the parameters that were set.
    """
    state = allocator_state()
    if state["name"].startswith("glibc"):
        mallopt = ctypes.CDLL(None).mallopt
        for name, (parameter, value, variable) in SETTINGS.items():
            if variable not in os.environ and mallopt(parameter, value) == 1:
                _tuned[name] = value
    return allocator_state()


def allocator_state() -> dict[str, Any]:
    """The allocator of this process and its settings, for run records.

    Returns:
        `name` (`"glibc 2.36"`, a preloaded library, or the platform's default), `environment` (the `MALLOC_*` and
        `GLIBC_TUNABLES` variables that are set) and `tuned` (parameters set by [`tune_allocator`]).
    """
    variables = {k: v for k, v in sorted(os.environ.items()) if k.startswith("MALLOC_") or k == "GLIBC_TUNABLES"}
    return {"name": _allocator_name(), "environment": variables, "tuned": dict(_tuned)}


def peak_rss_bytes() -> int | None:
    """Largest resident memory of this process so far, in bytes; `None` if the system does not report it."""
    if sys.platform == "linux":
        # ru_maxrss of getrusage survives exec, so a child of a large process would start with its parent's peak.
        with open("/proc/self/status") as status:
            peaks = [line.split()[1] for line in status if line.startswith("VmHWM:")]
        return int(peaks[0]) * 1024 if peaks else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _allocator_name() -> str:
    preloaded = os.environ.get("LD_PRELOAD", "")
    for name in REPLACEMENTS:
        if name in preloaded:
            return name
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return f"default of {sys.platform}"
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "default of linux"
    except OSError:  # another C library, such as musl
        return "default of linux"
