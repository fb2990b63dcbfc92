"""The emulator's side of the bench: rows that run natively on one CPU process.

`ROWS[name](bed)` prepares what the row needs and returns a function that takes one sample: ns per operation. A bed's
mm is its own, or one that all CPU processes share, each in a window of its own.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack

from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.tlbflush import switch_mm
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.errors import EmulatorError
from concur_thp.machine import Machine
from concur_thp.mm.deferred_split_drain import deferred_split_count, deferred_split_scan
from concur_thp.mm.flags import MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, PROT_READ
from concur_thp.mm.fork import dup_mm, mm_alloc, mmput
from concur_thp.mm.mm_types import Mm, mms, percpu
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_madvise, sys_mmap, sys_mprotect, sys_mremap, sys_munmap
from stress.bench import kernels

BASE = 1 << 30
WINDOWS = 16
"""CPU processes that an mm has room for; all their windows are under one PMD table, so that its lock is shared too."""
BLOCKS = 8
PAIRS = 20_000
CALLS = 2_000

Sample = Callable[[], float]
Row = Callable[["Bed"], Sample]


class Bed:
    """One CPU process in an mm: a fresh one, or `shared`, of which it has been given a reference."""

    def __init__(self, machine: Machine, number: int, shared: Mm | None = None):
        self.machine, self.cpu, self.at_end = machine, machine.cpu(number), ExitStack()
        cpu_resume(self.cpu)
        self.mm = mms[mms.index(mm_alloc(self.cpu) if shared is None else shared)]
        self.base = BASE + (number * 2 * BLOCKS * self.huge if shared is not None else 0)
        percpu[number].mm = mms.index(self.mm)
        switch_mm(self.cpu, mms.index(self.mm))

    @property
    def huge(self) -> int:
        return int(HPAGE_PMD_SIZE)

    @property
    def size(self) -> int:
        return self.huge * BLOCKS

    def map(self, advice: int, addr: int = 0, size: int = 0) -> None:
        """Fresh anonymous memory with an advice, at the bed's base if nothing else is said."""
        addr, size = addr or self.base, size or self.size
        if sys_mmap(self.cpu, addr, size, kernels.READ_WRITE, kernels.ANONYMOUS, 0, 0) != addr:
            raise EmulatorError("bench: mmap failed")
        if sys_madvise(self.cpu, addr, size, advice):
            raise EmulatorError("bench: madvise failed")

    def touch(self, step: int, size: int = 0) -> int:
        return kernels.bench_touch(self.cpu, self.base, step, (size or self.size) // step)

    def huge_pages(self) -> None:
        """BLOCKS fresh huge pages."""
        self.map(MADV_HUGEPAGE)
        ok(self.touch(self.huge))

    def small_pages(self) -> None:
        """BLOCKS blocks of fresh small pages."""
        self.map(MADV_NOHUGEPAGE)
        ok(self.touch(PAGE_SIZE))

    def close(self) -> None:
        """Leave the mm; the last one ends it."""
        self.at_end.close()
        switch_mm(self.cpu, 0)
        percpu[int(self.cpu.id)].mm = 0
        mmput(self.cpu, self.mm)
        lru_add_drain(self.cpu)
        cpu_park(self.cpu)


def ok(status: int) -> int:
    if status < 0:
        raise EmulatorError(f"bench: an operation failed with {status}")
    return status


def timed(operations: int, run: Callable[[], int], expected: int | None = None) -> float:
    """ns per operation; `run` returns how many it did, where that can be told."""
    start = time.perf_counter_ns()
    status = run()
    took = time.perf_counter_ns() - start
    if ok(status) != expected and expected is not None:
        raise EmulatorError(f"bench: {status} operations where {expected} were expected")
    return took / operations


def _loop(function: Callable[..., int]) -> Row:
    """An operation of a few ns on the mm, many times."""
    return lambda bed: lambda: timed(PAIRS, lambda: function(bed.cpu, bed.mm, PAIRS))


def _prepared(prepare: Callable[[Bed], None], run: Callable[[Bed], int], operations: int = BLOCKS,
              expected: int | None = BLOCKS) -> Row:
    """Something done once to what was prepared."""

    def row(bed: Bed) -> Sample:
        def one() -> float:
            prepare(bed)
            return timed(operations, lambda: run(bed), expected)

        return one

    return row


def _faults(huge: bool, zap: bool) -> Row:
    def row(bed: Bed) -> Sample:
        bed.map(MADV_HUGEPAGE if huge else MADV_NOHUGEPAGE)
        step = bed.huge if huge else PAGE_SIZE
        times = bed.size // step

        def one() -> float:
            touched = timed(times, lambda: bed.touch(step))
            zapped = timed(times, lambda: sys_madvise(bed.cpu, bed.base, bed.size, MADV_DONTNEED))
            return zapped if zap else touched

        return one

    return row


def _fork(bed: Bed) -> Sample:
    """A fork that copies the huge pmds, less one that has none to copy."""

    def one() -> float:
        spans = []
        for touched in (0, BLOCKS):
            bed.map(MADV_HUGEPAGE)
            ok(kernels.bench_touch(bed.cpu, bed.base, bed.huge, touched))
            start = time.perf_counter_ns()
            child = dup_mm(bed.cpu, bed.mm)
            spans.append(time.perf_counter_ns() - start)
            if not child:
                raise EmulatorError("bench: fork failed")
            mmput(bed.cpu, mms[mms.index(child)])
        return (spans[1] - spans[0]) / BLOCKS

    return one


def _write_protected(huge: bool, alive: bool) -> Row:
    """Stores after a fork, whose child is still there (copy) or not (reuse)."""

    def row(bed: Bed) -> Sample:
        step = bed.huge if huge else PAGE_SIZE
        times = bed.size // step

        def one() -> float:
            (bed.huge_pages if huge else bed.small_pages)()
            lru_add_drain(bed.cpu)  # A page still in a pagevec has a reference too many to be reused.
            child = dup_mm(bed.cpu, bed.mm)
            if not child:
                raise EmulatorError("bench: fork failed")
            if not alive:
                mmput(bed.cpu, mms[mms.index(child)])
            took = timed(times, lambda: bed.touch(step))
            if alive:
                mmput(bed.cpu, mms[mms.index(child)])
            return took

        return one

    return row


def _collapsible(bed: Bed) -> None:
    bed.small_pages()
    ok(sys_madvise(bed.cpu, bed.base, bed.size, MADV_HUGEPAGE))
    lru_add_drain(bed.cpu)  # A page still in a pagevec has a reference too many to be collapsed.


def _move(bed: Bed) -> Sample:
    bed.huge_pages()
    places = [bed.base, bed.base + bed.size]

    def one() -> float:
        places.reverse()
        there, here = places
        return timed(BLOCKS, lambda: sys_mremap(bed.cpu, here, bed.size, bed.size, there), there)

    return one


def _protect(bed: Bed) -> Sample:
    bed.huge_pages()

    def both() -> int:
        return (ok(sys_mprotect(bed.cpu, bed.base, bed.size, PROT_READ))
                or sys_mprotect(bed.cpu, bed.base, bed.size, kernels.READ_WRITE))

    return lambda: timed(2 * BLOCKS, both, 0)


def _drain(bed: Bed) -> Sample:
    """The shrinker over a queue of just our pages: what others have queued is split before."""

    def one() -> float:
        bed.huge_pages()
        while deferred_split_count():
            deferred_split_scan(bed.cpu, deferred_split_count())
        kernels.bench_dontneed_part(bed.cpu, bed.base, BLOCKS)
        return timed(BLOCKS, lambda: deferred_split_scan(bed.cpu, BLOCKS), BLOCKS)

    return one


def _pins(function: Callable[[Bed], int]) -> Row:
    def row(bed: Bed) -> Sample:
        bed.huge_pages()
        return lambda: timed(CALLS, lambda: function(bed), CALLS)

    return row


def _tlb_hit(bed: Bed) -> Sample:
    bed.map(MADV_NOHUGEPAGE, size=PAGE_SIZE)
    return lambda: timed(PAIRS, lambda: kernels.bench_touch(bed.cpu, bed.base, 0, PAIRS))


ROWS: dict[str, Row] = {
    "atomic_add": _loop(kernels.bench_atomic_add),
    "spin_lock_pair": _loop(kernels.bench_spin_lock),
    "rwsem_read_pair": _loop(kernels.bench_rwsem_read),
    "rwsem_write_pair": _loop(kernels.bench_rwsem_write),
    "page_lock_pair": _loop(kernels.bench_page_lock),
    "user_store_tlb_hit": _tlb_hit,
    "fault_pte": _faults(huge=False, zap=False),
    "fault_huge": _faults(huge=True, zap=False),
    "zap_pte": _faults(huge=False, zap=True),
    "zap_huge": _faults(huge=True, zap=True),
    "wp_reuse": _write_protected(huge=False, alive=False),
    "wp_reuse_huge": _write_protected(huge=True, alive=False),
    "wp_copy": _write_protected(huge=False, alive=True),
    "wp_copy_huge": _write_protected(huge=True, alive=True),
    "fork_huge_pmd": _fork,
    "split_huge_pmd": _prepared(Bed.huge_pages, lambda b: kernels.bench_split_pmd(b.cpu, b.mm, b.base, BLOCKS)),
    "split_huge_page": _prepared(Bed.huge_pages, lambda b: kernels.bench_split_page(b.cpu, b.mm, b.base, BLOCKS)),
    "collapse": _prepared(_collapsible, lambda b: kernels.bench_collapse(b.cpu, b.mm, b.base, BLOCKS)),
    "migrate_huge": _prepared(Bed.huge_pages, lambda b: kernels.bench_migrate(b.cpu, b.mm, b.base, BLOCKS)),
    "mremap_huge_move": _move,
    "mprotect_whole": _protect,
    "dontneed_part": _prepared(Bed.huge_pages, lambda b: kernels.bench_dontneed_part(b.cpu, b.base, BLOCKS)),
    "munmap": _prepared(Bed.huge_pages, lambda b: sys_munmap(b.cpu, b.base, b.size), expected=0),
    "mmap_munmap_pair": _prepared(lambda bed: None, lambda b: kernels.bench_map_unmap(b.cpu, b.base, b.size, 100), 100, 100),
    "gup_fast": _pins(lambda b: kernels.bench_gup_fast(b.cpu, b.base, CALLS)),
    "gup_slow": _pins(lambda b: kernels.bench_gup_slow(b.cpu, b.mm, b.base, CALLS)),
    "deferred_split_drain": _drain,
    "swap_out_huge": _prepared(Bed.huge_pages, lambda b: kernels.bench_swap_out(b.cpu, b.base, BLOCKS)),
}

