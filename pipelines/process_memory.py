"""Memory allocation of a process that runs a network on a CPU."""

import ctypes
import platform
from typing import Final

KEPT_BYTES: Final = 2**30  # blocks up to this size, and this much at the end of the heap, are kept when they are freed
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next allocation; return whether the process now does so.

    By default glibc requests each block of some megabytes from the kernel and returns it when it is freed. A forward
    pass allocates a hundred such feature maps, and the kernel zeroes every page of them: 150,000 page faults and a
    sixth of the CPU time of an image of 800 x 1066 pixels (docs/measurements.md). One arena is used, because heaps of
    other arenas are limited to 64 MB.

    The process keeps its peak memory until it ends. Other C libraries and systems are not affected. Call it before the
    network runs.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = {_M_ARENA_MAX: 1, _M_MMAP_THRESHOLD: KEPT_BYTES, _M_TRIM_THRESHOLD: KEPT_BYTES}
    answers = [library.mallopt(parameter, value) for parameter, value in settings.items()]  # call all in any case
    return all(answers)
