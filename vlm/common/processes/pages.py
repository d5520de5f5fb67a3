"""Pages of mapped files: they count as memory of the process from when they are read until they are given back."""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/maps")
ADVICE = 4  # MADV_DONTNEED of Linux: a page that is read again comes from the file again
SHARED = ("/dev/shm/", "/memfd:", "/SYSV")


class MappedFiles:
    """The mapped files of this process as they are now. Elsewhere than on Linux there are none."""

    def __init__(self) -> None:
        self.regions: list[tuple[int, int]] = []  # first address and end, in order
        try:
            lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return
        for line in lines:
            span, _, _, _, inode, *name = line.split(maxsplit=5)
            if inode != "0" and name and not name[0].startswith(SHARED):
                start, end = (int(number, 16) for number in span.split("-"))
                self.regions.append((start, end))
        self.advise = ctypes.CDLL(None).madvise

    def give_back(self, tensor: Tensor) -> None:
        """Give back the pages of a tensor in a mapped file that has not been written to; else do nothing."""
        if tensor.device.type != "cpu" or not tensor.numel():
            return
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        start, end = tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
        place = bisect_right(self.regions, (start, 2**64)) - 1
        if place < 0 or end > self.regions[place][1]:
            return
        first = start - start % mmap.PAGESIZE
        self.advise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), ADVICE)
