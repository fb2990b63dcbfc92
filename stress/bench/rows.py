"""The rows of the bench as data: what is measured, on which sides, and by how many at once."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import multiprocess

from concur_thp.arch.bug import describe_bug
from concur_thp.arch.system import system
from concur_thp.errors import EmulatorError, KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.fork import mm_alloc, mmget, mmput
from concur_thp.mm.mm_types import Mm, mms
from stress.bench import emulator, host_kernel, host_locks
from stress.bench.children import Measured, NotHere, in_children, sampled

Side = Callable[[], list[float]]
"""Takes the samples of one turn: ns per operation."""


@dataclass(frozen=True)
class Row:
    """`per`: what the ns are for. `apart`, `together`: can N processes do it in mms of their own, and in one mm?"""

    name: str
    per: str
    apart: bool = True
    together: bool = True

    @property
    def kind(self) -> str:
        return "lock" if self.name in host_locks.LOCK_ROWS else "operation"


_PER = {
    "atomic_add": "add", "spin_lock_pair": "lock and unlock", "rwsem_read_pair": "down and up",
    "rwsem_write_pair": "down and up", "page_lock_pair": "lock and unlock", "user_store_tlb_hit": "store",
    "fault_pte": "fault", "zap_pte": "page", "wp_reuse": "fault", "wp_copy": "fault", "dontneed_part": "call",
    "mmap_munmap_pair": "pair", "gup_fast": "page", "gup_slow": "page",
}
_FORKS = ("wp_reuse", "wp_reuse_huge", "wp_copy", "wp_copy_huge", "fork_huge_pmd")
"""A fork of an mm that others work in write-protects what they measure."""
_ALONE = ("deferred_split_drain",)
"""One queue for the whole machine: with two at work nobody knows whose pages he splits."""
ROWS = {name: Row(name, _PER.get(name, "huge page"), name not in _ALONE, name not in (*_FORKS, *_ALONE))
        for name in emulator.ROWS}

assert set(ROWS) == set(host_kernel.ROWS) | set(host_kernel.NOT_FOR_PROGRAMS), "each row has a kernel side or a reason"


def sides(machine: Machine, row: Row, processes: int, one_mm: bool, rounds: int) -> dict[str, Side]:
    """Name of each side -> how to take its samples."""
    found: dict[str, Side] = {
        "emulator": functools.partial(_emulator, machine, row.name, processes, one_mm, rounds),
        "kernel": lambda: _samples(host_kernel.measure(row.name, processes, rounds, one_mm and processes > 1)),
    }
    if row.kind == "lock":
        for side in host_locks.PAIRS:
            found[side] = functools.partial(_lock, row.name, processes, rounds, side, one_mm)
    return found


def _lock(name: str, processes: int, rounds: int, side: str, one_lock: bool) -> list[float]:
    return _samples(host_locks.measure(name, processes, rounds, side, one_lock))


def _samples(measured: Measured) -> list[float]:
    if measured.reason is not None:
        raise NotHere(measured.reason)
    return list(measured.samples)


def _emulator(machine: Machine, name: str, processes: int, one_mm: bool, rounds: int) -> list[float]:
    """`processes` CPU processes; the mm they share, if they do, is made and ended here."""
    tickets = multiprocess.get_context("fork").Value("i", 0)
    shared: Mm | None = mms[mms.index(mm_alloc(machine.cpu(0)))] if one_mm else None
    if shared is not None:
        for _ in range(processes):
            mmget(shared)  # Here: as plain Python it is not atomic, and in the children it would have to be.

    def row(stack: ExitStack) -> Callable[[], float]:
        with tickets.get_lock():
            number, tickets.value = tickets.value, tickets.value + 1
        bed = emulator.Bed(machine, number, shared)
        stack.callback(bed.close)
        return emulator.ROWS[name](bed)

    try:
        samples = in_children(sampled(row, processes, rounds), processes)
    except NotHere as why:
        if system.panicked.load():
            raise KernelBug(describe_bug()) from None
        raise EmulatorError(f"bench row {name}: {why}") from None
    if shared is not None:
        mmput(machine.cpu(0), shared)
    return samples
