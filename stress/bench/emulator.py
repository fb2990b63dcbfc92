"""The emulator's side of the bench: each row a native loop on one CPU process, in an mm of its own.

`ROWS[name](bed, rounds)` returns ns per operation, one sample a round.
"""

import time
from collections.abc import Callable

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.linker import kernel
from concur_thp.arch.tlbflush import switch_mm
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.errors import EmulatorError
from concur_thp.machine import Machine
from concur_thp.mm.collapse_check import Scan
from concur_thp.mm.flags import (
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
)
from concur_thp.mm.fork import dup_mm, mm_alloc, mmput
from concur_thp.mm.huge_memory import split_huge_pmd
from concur_thp.mm.khugepaged import khugepaged_scan_pmd
from concur_thp.mm.migrate import NEW_PAGE
from concur_thp.mm.mm_types import Mm, mms, percpu
from concur_thp.mm.move_pages import move_page
from concur_thp.mm.pgtable import mm_pmd, pmd_trans_huge
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_madvise, sys_mmap
from concur_thp.mm.uaccess import user_store
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.rwsem import down_read, up_read
from concur_thp.sync.spinlock import spin_lock, spin_unlock

BASE = 1 << 30
BLOCKS = 8
PAIRS = 20_000


@kernel
def bench_atomic_add(cpu: Cpu, mm: Mm, times: int):
    """`times` atomic adds on one word of the segment.

    Context: any.
    Emulator: bench row atomic_add.
    """
    for _ in range(times):
        mm.faults.add(1)


@kernel
def bench_spin_lock(cpu: Cpu, mm: Mm, times: int):
    """Take and release one spinlock `times` times.

    Context: no lock held.
    Emulator: bench row spin_lock_pair.
    """
    for _ in range(times):
        spin_lock(cpu, mm.page_table_lock)
        spin_unlock(cpu, mm.page_table_lock)


@kernel
def bench_mmap_sem_read(cpu: Cpu, mm: Mm, times: int):
    """Take and release mmap_sem for reading `times` times.

    Context: no lock held.
    Emulator: bench row mmap_sem_read_pair.
    """
    for _ in range(times):
        down_read(cpu, mm.mmap_sem)
        up_read(cpu, mm.mmap_sem)


@kernel
def bench_touch(cpu: Cpu, addr: int, step: int, times: int):
    """Store to `times` addresses, `step` bytes apart.

    Context: user mode.
    Return: the first error, or 0.
    Emulator: what a program's first touches are.
    """
    for i in range(times):
        status = user_store(cpu, addr + i * step, i + 1)
        if status < 0:
            return status
    return 0


@kernel
def bench_split(cpu: Cpu, mm: Mm, addr: int, blocks: int):
    """Split the huge pmds of `blocks` blocks.

    Context: user mode; takes mmap_sem read.
    Return: how many were huge.
    Emulator: bench row split_huge_pmd.
    """
    split = 0
    down_read(cpu, mm.mmap_sem)
    for i in range(blocks):
        haddr = addr + i * HPAGE_PMD_SIZE
        pmd = mm_pmd(mm, haddr)
        if pmd and pmd_trans_huge(pmd.val.load()):
            split_huge_pmd(cpu, find_vma(mm, haddr), pmd, haddr)
            split += 1
    up_read(cpu, mm.mmap_sem)
    return split


@kernel
def bench_collapse(cpu: Cpu, mm: Mm, addr: int, blocks: int):
    """Scan and collapse `blocks` blocks of small pages, as khugepaged does.

    Context: user mode; takes mmap_sem.
    Return: how many were collapsed.
    Emulator: bench row collapse.
    """
    done = 0
    for i in range(blocks):
        down_read(cpu, mm.mmap_sem)
        result = khugepaged_scan_pmd(cpu, mm, addr + i * HPAGE_PMD_SIZE)
        if cpu.scratch[0] == 0:
            up_read(cpu, mm.mmap_sem)
        if result == Scan.SCAN_SUCCEED:
            done += 1
    return done


@kernel
def bench_migrate(cpu: Cpu, mm: Mm, addr: int, blocks: int):
    """Move the huge pages of `blocks` blocks to other frames.

    Context: user mode; takes mmap_sem read, then page locks.
    Return: how many were moved.
    Emulator: bench row migrate_huge.
    """
    moved = 0
    for i in range(blocks):
        moved += move_page(cpu, mm, addr + i * HPAGE_PMD_SIZE, NEW_PAGE) == 0
    return moved


class Bed:
    """A machine with one CPU of ours in a fresh mm."""

    def __init__(self, machine: Machine, number: int):
        self.machine, self.cpu = machine, machine.cpu(number)
        self.mm = mms[mms.index(mm_alloc(self.cpu))]
        percpu[number].mm = mms.index(self.mm)
        cpu_resume(self.cpu)
        switch_mm(self.cpu, mms.index(self.mm))

    def map(self, addr: int, size: int, advice: int) -> None:
        """Fresh anonymous memory with an advice."""
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        if sys_mmap(self.cpu, addr, size, PROT_READ | PROT_WRITE, flags, 0, 0) != addr:
            raise EmulatorError("bench: mmap failed")
        if sys_madvise(self.cpu, addr, size, advice):
            raise EmulatorError("bench: madvise failed")

    def timed(self, operations: int, run: Callable[[], int]) -> float:
        """ns per operation."""
        start = time.perf_counter_ns()
        status = run()
        took = time.perf_counter_ns() - start
        if status < 0:
            raise EmulatorError(f"bench: an operation failed with {status}")
        return took / operations

    def close(self) -> None:
        """Leave the mm and end it."""
        switch_mm(self.cpu, 0)
        percpu[int(self.cpu.id)].mm = 0
        mmput(self.cpu, self.mm)
        cpu_park(self.cpu)


def _loop(function: Callable[..., int]) -> Callable[[Bed, int], list[float]]:
    return lambda bed, rounds: [bed.timed(PAIRS, lambda: function(bed.cpu, bed.mm, PAIRS)) for _ in range(rounds)]


def _faults(bed: Bed, rounds: int, huge: bool, zap: bool) -> list[float]:
    size = int(HPAGE_PMD_SIZE) * BLOCKS
    step = int(HPAGE_PMD_SIZE) if huge else PAGE_SIZE
    times = size // step
    bed.map(BASE, size, MADV_HUGEPAGE if huge else MADV_NOHUGEPAGE)
    touched, zapped = [], []
    for _ in range(rounds):
        touched.append(bed.timed(times, lambda: bench_touch(bed.cpu, BASE, step, times)))
        zapped.append(bed.timed(times, lambda: sys_madvise(bed.cpu, BASE, size, MADV_DONTNEED)))
    return zapped if zap else touched


def _blocks(bed: Bed, rounds: int, prepare: Callable[[], None], run: Callable[[], int]) -> list[float]:
    """Rounds of something done to BLOCKS blocks; `run` returns how many it was done to."""
    samples = []
    for _ in range(rounds):
        prepare()
        start = time.perf_counter_ns()
        count = run()
        samples.append((time.perf_counter_ns() - start) / BLOCKS)
        if count != BLOCKS:
            raise EmulatorError(f"bench: done to {count} of {BLOCKS} blocks")
    return samples


def _split(bed: Bed, rounds: int) -> list[float]:
    def prepare() -> None:
        bed.map(BASE, int(HPAGE_PMD_SIZE) * BLOCKS, MADV_HUGEPAGE)
        bench_touch(bed.cpu, BASE, int(HPAGE_PMD_SIZE), BLOCKS)

    return _blocks(bed, rounds, prepare, lambda: bench_split(bed.cpu, bed.mm, BASE, BLOCKS))


def _fork(bed: Bed, rounds: int) -> list[float]:
    size = int(HPAGE_PMD_SIZE) * BLOCKS
    samples = []
    for _ in range(rounds):
        spans = []
        for touched in (0, BLOCKS):
            bed.map(BASE, size, MADV_HUGEPAGE)
            bench_touch(bed.cpu, BASE, int(HPAGE_PMD_SIZE), touched)
            start = time.perf_counter_ns()
            child = dup_mm(bed.cpu, bed.mm)
            spans.append(time.perf_counter_ns() - start)
            if not child:
                raise EmulatorError("bench: fork failed")
            mmput(bed.cpu, mms[mms.index(child)])
        samples.append((spans[1] - spans[0]) / BLOCKS)
    return samples


def _collapse(bed: Bed, rounds: int) -> list[float]:
    def prepare() -> None:
        size = int(HPAGE_PMD_SIZE) * BLOCKS
        bed.map(BASE, size, MADV_NOHUGEPAGE)
        bench_touch(bed.cpu, BASE, PAGE_SIZE, int(HPAGE_PMD_NR) * BLOCKS)
        sys_madvise(bed.cpu, BASE, size, MADV_HUGEPAGE)
        lru_add_drain(bed.cpu)  # A page still in a pagevec has a reference too many to be collapsed.

    return _blocks(bed, rounds, prepare, lambda: bench_collapse(bed.cpu, bed.mm, BASE, BLOCKS))


def _migrate(bed: Bed, rounds: int) -> list[float]:
    def prepare() -> None:
        bed.map(BASE, int(HPAGE_PMD_SIZE) * BLOCKS, MADV_HUGEPAGE)
        bench_touch(bed.cpu, BASE, int(HPAGE_PMD_SIZE), BLOCKS)

    return _blocks(bed, rounds, prepare, lambda: bench_migrate(bed.cpu, bed.mm, BASE, BLOCKS))


def _tlb_hit(bed: Bed, rounds: int) -> list[float]:
    bed.map(BASE, PAGE_SIZE, MADV_NOHUGEPAGE)
    return [bed.timed(PAIRS, lambda: bench_touch(bed.cpu, BASE, 0, PAIRS)) for _ in range(rounds)]


ROWS: dict[str, Callable[[Bed, int], list[float]]] = {
    "atomic_add": _loop(bench_atomic_add),
    "spin_lock_pair": _loop(bench_spin_lock),
    "mmap_sem_read_pair": _loop(bench_mmap_sem_read),
    "fault_pte": lambda bed, rounds: _faults(bed, rounds, huge=False, zap=False),
    "fault_huge": lambda bed, rounds: _faults(bed, rounds, huge=True, zap=False),
    "split_huge_pmd": _split,
    "zap_pte": lambda bed, rounds: _faults(bed, rounds, huge=False, zap=True),
    "zap_huge": lambda bed, rounds: _faults(bed, rounds, huge=True, zap=True),
    "fork_huge_pmd": _fork,
    "collapse": _collapse,
    "migrate_huge": _migrate,
    "user_store_tlb_hit": _tlb_hit,
}
"""Name -> ns per operation, one sample a round."""
