"""Back to the state before the run, in microseconds: only what the dirty map says was written is copied back.

The checked build marks a byte for every 256 bytes of the segment that it writes (arch/checked.py). From the same map
comes the number of the state in which a run ended: equal states have equal numbers, so that what is true of one need not be
checked again. Left out of it is what only says how the state came about: event rings, lock_stat, the scheduler's words.
"""

import ctypes
import mmap

from concur_thp.arch.builtins import copy_bytes, lsr, wrap_mul
from concur_thp.arch.checked import GRANULE_SHIFT, MAP
from concur_thp.arch.cpu import NR_VMSTAT, Cpu, cpus
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.shared import Word
from concur_thp.arch.system import SEGMENT_ALIGN
from concur_thp.arch.tlb import tlb_contexts
from concur_thp.errors import EmulatorError
from concur_thp.sched.state import sched
from concur_thp.sched.words import Byte, Long

GRANULE = 1 << GRANULE_SHIFT
SEGMENT = Word("snapshot.segment")
"""Address of the segment."""
SNAPSHOT = Word("snapshot.base")
"""Address of the copy."""
COUNTED = Word("snapshot.counted")
"""Address of a byte for each granule: 1 when it is part of the state's number."""
BEFORE = Word("snapshot.before")
"""Address of the number of each granule of the snapshot."""
NOT_COUNTED = (
    "cpus", "rings", "dep_classes", "lockdep", "timespecs", "page_counts", "block_counts", "oracle_words",  # how it came about
    "checking", "check_counts", "seen_tables", "exiting_mms", "swap_device",
    "rmap_walks", "pvmws", "scan_controls", "compact_controls", "fallback_pages", "mmu_gathers",  # scratch of one operation
    "call_rows",  # and of one call
)
"""Arrays that say how a state came about, that only the test itself keeps, or that mean nothing between two operations."""
MULTIPLY = 0x9E3779B97F4A7C15 - (1 << 64)


class Snapshot:
    """The segment as it was when this was made. One at a time in a process."""

    def __init__(self, base: int, size: int, places: dict[str, tuple[int, int]]):
        if base % GRANULE or size % SEGMENT_ALIGN:
            raise EmulatorError("the segment is not aligned for a dirty map")
        self.base = base
        self.size = min((offset for name, (offset, _) in places.items() if name.startswith("sched")), default=size)
        self.granules = granules = self.size >> GRANULE_SHIFT
        self._copy = mmap.mmap(-1, self.size)
        self.counted = mmap.mmap(-1, granules + 8)
        self._before = mmap.mmap(-1, granules * 8)
        SEGMENT.set(base)
        for word, memory in ((SNAPSHOT, self._copy), (COUNTED, self.counted), (BEFORE, self._before)):
            word.set(address_of(memory))
        self._count(places)

    def _count(self, places: dict[str, tuple[int, int]]) -> None:
        for name, (offset, size) in places.items():
            if name and name not in NOT_COUNTED and offset < self.size:
                first, last = offset >> GRANULE_SHIFT, (offset + size + GRANULE - 1) >> GRANULE_SHIFT
                self.counted[first:last] = b"\1" * (last - first)

    def take(self) -> None:
        """Keep the segment as it is now; runs start from here."""
        ctypes.memmove(int(SNAPSHOT), self.base, self.size)
        ctypes.memset(int(MAP), 0, self.granules)
        number_granules(self.granules)

    def restore_all(self) -> None:
        """Copy everything back, whoever wrote it."""
        ctypes.memmove(self.base, int(SNAPSHOT), self.size)
        ctypes.memset(int(MAP), 0, self.granules)


def address_of(memory: mmap.mmap) -> int:
    """Where a mapping lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@inline
def granule_number(address: int, granule: int):
    """A number for the contents of 256 bytes and their place."""
    a = wrap_mul(granule + 1, MULTIPLY)
    b = granule
    at = address
    while at < address + GRANULE:
        a = wrap_mul(a ^ Long(at).value, MULTIPLY)
        b = wrap_mul(b ^ Long(at + 8).value, MULTIPLY)
        a = a ^ lsr(a, 29)
        b = b ^ lsr(b, 31)
        at += 16
    return wrap_mul(a + (b << 1), MULTIPLY)


@kernel
@quiet
def number_granules(granules: int):
    """The numbers of the snapshot's granules.

    Context: the machine stands still.
    Emulator: so that a granule that was written and is as before counts as not written.
    """
    for i in range(granules):
        if Byte(int(COUNTED) + i).value != 0:
            Long(int(BEFORE) + 8 * i).value = granule_number(int(SNAPSHOT) + (i << GRANULE_SHIFT), i)


@kernel
@quiet
def state_number(granules: int):
    """The number of the state the machine is in, in which equal states are equal.

    Context: the machine stands still.
    Return: 64 bits.
    Emulator: what runs that end alike have in common.
    """
    total = 0
    for w in range((granules + 7) >> 3):
        if Long(int(MAP) + 8 * w).value != 0:
            for i in range(8 * w, 8 * w + 8):
                if Byte(int(MAP) + i).value != 0 and Byte(int(COUNTED) + i).value != 0:
                    now = granule_number(int(SEGMENT) + (i << GRANULE_SHIFT), i)
                    total += now - Long(int(BEFORE) + 8 * i).value
    for i in range(sched.nr):
        total = wrap_mul(total, MULTIPLY) + cpu_number(cpus[i])
    return wrap_mul(total, MULTIPLY) + counters_number()


@inline
def cpu_number(cpu: Cpu):
    """What of a CPU belongs to the state: translations that count, what it holds."""
    a = cpu.irq_off + (cpu.preempt_off << 8) + (cpu.depth << 16) + (cpu.page_locks << 32)
    a = wrap_mul(a ^ cpu.context, MULTIPLY) ^ cpu.held_mask
    # What a CPU remembers of no mm, or of one that was flushed meanwhile, it drops before it uses its TLB again.
    if cpu.context != 0 and cpu.generation == tlb_contexts[cpu.context].generation.read():
        at = int(cpu) + TLB_AT
        while at < int(cpu) + TLB_END:
            if Long(at).value != 0:
                a = wrap_mul(a ^ Long(at).value, MULTIPLY)
                a = wrap_mul(a ^ Long(at + 8).value, MULTIPLY)
                a = a ^ lsr(a, 29)
            at += 16
    return a


@inline
def counters_number():
    """Counters, by what they sum up to: which CPU has counted is nobody's concern."""
    a = 1
    for kind in range(NR_VMSTAT):
        total = 0
        for i in range(sched.nr):
            total += cpus[i].vmstat[kind]
        a = wrap_mul(a ^ total, MULTIPLY)
        a = a ^ lsr(a, 29)
    return a


TLB_AT, TLB_END = Cpu.FIELDS["tlb_small"].offset, Cpu.FIELDS["flushes"].offset
"""From tag to tag: the entry stands behind its tag."""


@kernel
@quiet
def restore(granules: int):
    """Copy back what was written since the snapshot.

    Context: the machine stands still.
    Emulator: between two runs.
    """
    for w in range((granules + 7) >> 3):
        if Long(int(MAP) + 8 * w).value != 0:
            for i in range(8 * w, 8 * w + 8):
                if Byte(int(MAP) + i).value != 0:
                    copy_bytes(int(SEGMENT) + (i << GRANULE_SHIFT), int(SNAPSHOT) + (i << GRANULE_SHIFT), GRANULE)
            Long(int(MAP) + 8 * w).value = 0


__all__ = ["Snapshot", "address_of", "restore", "state_number"]
