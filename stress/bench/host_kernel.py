"""The bench rows measured on the running Linux kernel: ns per operation, from an ordinary program.

Every row runs in a child process of its own, on regions of its own, asks for huge pages with madvise (no
sysfs switch is written), and proves from smaps, the fault count or vmstat that the kernel did what the row
says. What the program adds (the call, the loop, the store) is measured beside it and subtracted. A row that
cannot be measured here says why.
"""

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

from concur_thp.errors import Misuse
from stress.bench.children import Measured, NotHere, check_counts, measured

PAGE = 4096
HPAGE = 2 << 20

MADV_DONTNEED, MADV_DONTFORK, MADV_DOFORK = 4, 10, 11
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE = 14, 15, 25
ADVICE_NAMES = {14: "MADV_HUGEPAGE", 15: "MADV_NOHUGEPAGE", 25: "MADV_COLLAPSE"}

#: How many huge pages one sample covers. Enough that a syscall is small beside them. A fork costs hundreds of
#: microseconds whatever is mapped, and a huge pmd well under one, so that row needs many more.
SAMPLE_HPAGES = 8
FORK_HPAGES = 256

# --- the system calls ---

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t) + (ctypes.c_int,) * 3 + (ctypes.c_long,)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = _libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MAP_FAILED = ctypes.c_void_p(-1).value
_PROT_NONE, _RW = 0, mmap.PROT_READ | mmap.PROT_WRITE


def _refused(what: str) -> NotHere:
    number = ctypes.get_errno()
    name = errno.errorcode.get(number, str(number))
    return NotHere(f"the kernel refused {what}: {name} ({os.strerror(number)})")


class Region:
    """Anonymous private memory, 2 MiB aligned, between two PROT_NONE guards so that its VMA never merges."""

    def __init__(self, hpages: int, *, huge: bool) -> None:
        self.hpages, self.length = hpages, hpages * HPAGE
        self.step = HPAGE if huge else PAGE
        self._mapped = self.length + 2 * HPAGE
        got = _libc.mmap(None, self._mapped, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if got is None or got == _MAP_FAILED:
            raise _refused(f"mmap of {self._mapped >> 20} MiB")
        self._start = int(got)
        self.base = (self._start + PAGE + HPAGE - 1) // HPAGE * HPAGE
        self.protect(0, self.length, _RW)
        self.advise(MADV_HUGEPAGE if huge else MADV_NOHUGEPAGE)
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * self.length).from_address(self.base))

    def __enter__(self) -> "Region":
        return self

    def __exit__(self, *_error: object) -> None:
        _libc.munmap(self._start, self._mapped)

    def protect(self, offset: int, length: int, prot: int) -> None:
        if _libc.mprotect(self.base + offset, length, prot):
            raise _refused("mprotect")

    def advise(self, advice: int) -> None:
        if _libc.madvise(self.base, self.length, advice):
            raise _refused(f"madvise {ADVICE_NAMES.get(advice, advice)}")

    def touch(self) -> None:
        """One store into each page, or into each huge page."""
        self.bytes[:: self.step] = 1

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


def _need_thp() -> None:
    try:
        enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        raise NotHere("this kernel has no Transparent Hugepages") from None
    if "[never]" in enabled:
        raise NotHere("Transparent Hugepages are switched off here (transparent_hugepage/enabled says never)")


def _need_memory(wanted: int) -> None:
    available = _proc_figure("/proc/meminfo", "MemAvailable:") << 10
    if available < wanted:
        raise NotHere(f"{available >> 20} MiB of memory are available and the row wants {wanted >> 20}")


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _proc_figure(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        word, figure = line.split()[:2]
        if word == name:
            return int(figure)
    raise NotHere(f"{path} has no {name}, which the row needs")


def _split_pmds() -> int:
    return _proc_figure("/proc/vmstat", "thp_split_pmd")


def _ns(call: Callable[..., object], *args: Any) -> int:
    start = time.perf_counter_ns()
    call(*args)
    return time.perf_counter_ns() - start


def _samples(rounds: int, one: Callable[[], float]) -> list[float]:
    """The first round warms the page allocator, the page tables and the code, and is thrown away."""
    return [one() for _ in range(rounds + 1)][1:]


# --- the rows ---


def _fault(rounds: int, *, huge: bool) -> list[float]:
    with Region(SAMPLE_HPAGES, huge=huge) as region:
        expected = region.length // region.step

        def one() -> float:
            region.drop()
            before = _faults()
            cold = _ns(region.touch)
            # Fewer means that one fault brought several pages; a few more are the interpreter's own.
            if (took := _faults() - before) < expected:
                raise NotHere(f"the stores took {took} faults where {expected} were expected")
            region.need_huge(region.hpages if huge else 0)
            return (cold - _ns(region.touch)) / expected

        return _samples(rounds, one)


def fault_pte(rounds: int) -> list[float]:
    return _fault(rounds, huge=False)


def fault_huge(rounds: int) -> list[float]:
    _need_thp()
    return _fault(rounds, huge=True)


def _zap(rounds: int, *, huge: bool) -> list[float]:
    with Region(SAMPLE_HPAGES, huge=huge) as region:

        def one() -> float:
            region.touch()
            region.need_huge(region.hpages if huge else 0)
            full = _ns(region.drop)
            return (full - _ns(region.drop)) / (region.length // region.step)

        return _samples(rounds, one)


def zap_pte(rounds: int) -> list[float]:
    return _zap(rounds, huge=False)


def zap_huge(rounds: int) -> list[float]:
    _need_thp()
    return _zap(rounds, huge=True)


def _protect_one_page_each(region: Region) -> None:
    for offset in range(0, region.length, HPAGE):
        region.protect(offset + HPAGE // 2, PAGE, mmap.PROT_READ)


def split_huge_pmd(rounds: int) -> list[float]:
    """mprotect of one small page in each huge page, less the same where all pages are small already."""
    _need_thp()

    def one() -> float:
        with Region(SAMPLE_HPAGES, huge=True) as huge, Region(SAMPLE_HPAGES, huge=False) as small:
            huge.touch()
            small.touch()
            huge.need_huge(huge.hpages)
            before = _split_pmds()
            splitting = _ns(_protect_one_page_each, huge)
            if (split := _split_pmds() - before) < huge.hpages:
                raise NotHere(f"vmstat counted {split} pmd splits where {huge.hpages} were expected")
            huge.need_huge(0)
            return (splitting - _ns(_protect_one_page_each, small)) / huge.hpages

    return _samples(rounds, one)


def _fork() -> int:
    """A fork whose child leaves at once; ns of the parent's call."""
    start = time.perf_counter_ns()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    took = time.perf_counter_ns() - start
    os.waitpid(pid, 0)
    return took


def fork_huge_pmd(rounds: int) -> list[float]:
    """Forks that copy the huge pmds, less forks of the same mm that leave them out (MADV_DONTFORK)."""
    _need_thp()
    _need_memory(2 * FORK_HPAGES * HPAGE)
    with Region(FORK_HPAGES, huge=True) as region:

        def one() -> float:
            region.touch()  # write access again, as fork took it away
            region.need_huge(region.hpages)
            region.advise(MADV_DONTFORK)
            _fork()  # the first fork of a round also finds the pages that the interpreter wrote meanwhile
            without = _fork()
            region.advise(MADV_DOFORK)
            return (_fork() - without) / region.hpages

        return _samples(rounds, one)


def collapse(rounds: int) -> list[float]:
    """One MADV_COLLAPSE call over several ranges of 512 present small pages each."""
    with Region(SAMPLE_HPAGES, huge=False) as region:

        def one() -> float:
            region.advise(MADV_NOHUGEPAGE)
            region.drop()
            region.touch()
            region.need_huge(0)
            region.advise(MADV_HUGEPAGE)
            took = _ns(region.advise, MADV_COLLAPSE)
            region.need_huge(region.hpages)
            return took / region.hpages

        return _samples(rounds, one)


def user_store_tlb_hit(rounds: int) -> list[float]:
    """One store per cache line of two mapped pages, over and over; two lengths, so the call drops out."""
    pages, short, long = 2, 64, 576
    with Region(1, huge=False) as region:
        words = region.bytes[: pages * PAGE].view(np.uint64)
        lines = pages * PAGE // 64

        def again(repeat: int) -> np.ndarray:
            # Stride 0 starts over at the same two pages; 64 bytes apart, so no two stores join in a vector.
            return np.lib.stride_tricks.as_strided(words, shape=(repeat, lines), strides=(0, 64))

        few, many = again(short), again(long)

        def one() -> float:
            return (_ns(many.fill, 1) - _ns(few.fill, 1)) / ((long - short) * lines)

        return _samples(rounds, one)


ROWS: dict[str, Callable[[int], list[float]]] = {
    "fault_pte": fault_pte,
    "fault_huge": fault_huge,
    "split_huge_pmd": split_huge_pmd,
    "zap_pte": zap_pte,
    "zap_huge": zap_huge,
    "fork_huge_pmd": fork_huge_pmd,
    "collapse": collapse,
    "user_store_tlb_hit": user_store_tlb_hit,
}

NOT_FOR_PROGRAMS = {
    "atomic_add": "the kernel's own atomics cannot be reached from a program",
    "spin_lock_pair": "a program cannot take a kernel spinlock",
    "mmap_sem_read_pair": "a program cannot take mmap_sem without a system call that does more",
}


def measure(name: str, processes: int = 1, rounds: int = 30) -> Measured:
    """ns per operation of row `name` on the running kernel, in `processes` processes at once."""
    check_counts(processes, rounds)
    if name in NOT_FOR_PROGRAMS:
        return Measured(name, None, None, NOT_FOR_PROGRAMS[name])
    if name not in ROWS:
        raise Misuse(f"no bench row {name!r}; pass one of {', '.join([*NOT_FOR_PROGRAMS, *ROWS])}")
    if mmap.PAGESIZE != PAGE:
        return Measured(
            name, None, None, f"pages are {mmap.PAGESIZE} bytes here and the rows are about {PAGE}"
        )
    return measured(name, lambda: ROWS[name](rounds), processes)
