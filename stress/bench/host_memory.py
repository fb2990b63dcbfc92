"""Memory of the running kernel: system calls by ctypes, regions between guards, and what /proc says about them."""

import ctypes
import errno
import mmap
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stress.bench.children import NotHere
from stress.bench.kernels import host_store

PAGE = 4096
HPAGE = 2 << 20

MADV_DONTNEED, MADV_DONTFORK, MADV_DOFORK = 4, 10, 11
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLD, MADV_PAGEOUT, MADV_COLLAPSE = 14, 15, 20, 21, 25
ADVICE_NAMES = {14: "MADV_HUGEPAGE", 15: "MADV_NOHUGEPAGE", 20: "MADV_COLD", 21: "MADV_PAGEOUT", 25: "MADV_COLLAPSE"}
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
PROT_NONE, PROT_READ, PROT_RW = 0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


libc = ctypes.CDLL(None, use_errno=True)
"""Lets go of the interpreter's lock during a call: threads are in the kernel at once."""
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t) + (ctypes.c_int,) * 3 + (ctypes.c_long,)
libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.madvise.argtypes = libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.vmsplice.restype = libc.process_vm_readv.restype = ctypes.c_ssize_t
libc.vmsplice.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
libc.process_vm_readv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong,
                                  ctypes.c_ulong)
MAP_FAILED = ctypes.c_void_p(-1).value


def refused(what: str) -> NotHere:
    number = ctypes.get_errno()
    name = errno.errorcode.get(number, str(number))
    return NotHere(f"the kernel refused {what}: {name} ({os.strerror(number)})")


def map_memory(length: int, prot: int) -> int:
    got = libc.mmap(None, length, prot, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if got is None or got == MAP_FAILED:
        raise refused(f"mmap of {length >> 20} MiB")
    return int(got)


class Region:
    """Anonymous private memory, 2 MiB aligned, between two PROT_NONE guards so that its VMA never merges."""

    def __init__(self, hpages: int, *, huge: bool) -> None:
        self.hpages, self.length = hpages, hpages * HPAGE
        self.step = HPAGE if huge else PAGE
        self.mapped = self.length + 2 * HPAGE
        self.start = map_memory(self.mapped, PROT_NONE)
        self.base = (self.start + PAGE + HPAGE - 1) // HPAGE * HPAGE
        self.protect(0, self.length, PROT_RW)
        self.advise(MADV_HUGEPAGE if huge else MADV_NOHUGEPAGE)
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * self.length).from_address(self.base))

    def __enter__(self) -> "Region":
        return self

    def __exit__(self, *_error: object) -> None:
        self.unmap()

    def unmap(self) -> None:
        """The guards too: a hole between them could become somebody else's memory."""
        if self.start and libc.munmap(self.start, self.mapped):
            raise refused("munmap")
        self.start = 0

    def protect(self, offset: int, length: int, prot: int) -> None:
        if libc.mprotect(self.base + offset, length, prot):
            raise refused("mprotect")

    def advise(self, advice: int) -> None:
        self.advise_part(0, self.length, advice)

    def advise_part(self, offset: int, length: int, advice: int) -> None:
        if libc.madvise(self.base + offset, length, advice):
            raise refused(f"madvise {ADVICE_NAMES.get(advice, advice)}")

    def touch(self) -> None:
        """One store into each page, or into each huge page, without the interpreter's lock."""
        host_store(self.base, self.step, self.length // self.step)

    def drop(self) -> None:
        self.advise(MADV_DONTNEED)

    def huge_now(self) -> int:
        """How many of the region's 2 MiB are mapped by a pmd, from smaps."""
        kib, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            word = line.split(maxsplit=1)[0]
            if not word.endswith(":"):
                low, high = (int(part, 16) for part in word.split("-"))
                inside = low < self.base + self.length and high > self.base
            elif inside and word == "AnonHugePages:":
                kib += int(line.split()[1])
        return (kib << 10) // HPAGE

    def need_huge(self, wanted: int) -> None:
        if (got := self.huge_now()) != wanted:
            raise NotHere(f"smaps shows {got} huge pages where {wanted} were expected (of {self.hpages})")


def need_thp() -> None:
    try:
        enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        raise NotHere("this kernel has no Transparent Hugepages") from None
    if "[never]" in enabled:
        raise NotHere("Transparent Hugepages are switched off here (transparent_hugepage/enabled says never)")


def need_memory(wanted: int) -> None:
    available = proc_figure("/proc/meminfo", "MemAvailable:") << 10
    if available < wanted:
        raise NotHere(f"{available >> 20} MiB of memory are available and the row wants {wanted >> 20}")


def need_swap() -> None:
    if proc_figure("/proc/meminfo", "SwapFree:") << 10 < 1 << 30:
        raise NotHere("no swap device with 1 GiB free here")


def faults() -> int:
    """Page faults of this thread."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def proc_figure(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        word, figure = line.split()[:2]
        if word == name:
            return int(figure)
    raise NotHere(f"{path} has no {name}, which the row needs")


def ns(call: Callable[..., object], *args: Any) -> int:
    start = time.perf_counter_ns()
    call(*args)
    return time.perf_counter_ns() - start


class Floor:
    """The least that something has taken so far: what it costs when nobody interferes. It is what gets subtracted."""

    def __init__(self) -> None:
        self.least = 1 << 62

    def __call__(self, call: Callable[..., object], *args: Any) -> int:
        self.least = min(self.least, ns(call, *args))
        return self.least
