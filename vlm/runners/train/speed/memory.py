"""Memory of a training process on a CPU: kept for the next step instead of given back after each tensor."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM, MMAP = -1, -3  # numbers of glibc's parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
KEPT = 2**31 - 1  # bytes; the largest value that mallopt takes
LARGEST = 2**28  # bytes of a block up to which it comes out of the kept memory: activations, not weights
SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let glibc keep up to 2 GiB of freed memory.

    It would give the memory of every large tensor back to the system, which then hands out zeroed pages for the next
    one: more than half of the time of an operation such as GELU. What the user has set by :data:`SET_BY_USER` stays.

    Returns:
        whether it was done: only with glibc.
    """
    if sys.platform != "linux" or any(name in os.environ for name in SET_BY_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(MMAP, LARGEST) and mallopt(TRIM, KEPT))
