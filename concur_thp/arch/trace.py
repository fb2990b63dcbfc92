"""Per-CPU event rings under the kernel's tracepoint names. One writer each; read after the machine has stopped."""

from enum import IntEnum, unique

from concur_thp.arch.builtins import cycles
from concur_thp.arch.cpu import Cpu, Event
from concur_thp.arch.linker import inline
from concur_thp.arch.shared import SharedArray
from concur_thp.config import NR_CPUS

RING_EVENTS = 1024
"""Events each CPU remembers; a power of two."""

rings = SharedArray("rings", Event, lambda config: NR_CPUS * RING_EVENTS)


@unique
class Tracepoint(IntEnum):
    """What happened; the comment names the three values of the event."""

    page_fault_user = 1  # exceptions: address, error code, VM_FAULT_* result
    mm_page_alloc = 2  # kmem: pfn, order, migratetype
    mm_page_free = 3  # kmem: pfn, order, 0
    mm_khugepaged_scan_pmd = 4  # huge_memory: mm, address, SCAN_*
    mm_collapse_huge_page = 5  # huge_memory: mm, address, SCAN_*
    mm_collapse_huge_page_isolate = 6  # huge_memory: pfn of the first page, none or zero ptes, SCAN_*
    tlb_flush = 7  # tlb: mm, start, end
    contention_begin = 8  # lock: offset, class, 1 read or 2 write
    contention_end = 9  # lock: offset, class, 0
    sched_process_fork = 10  # sched: parent mm, child mm, 0
    sched_process_exit = 11  # sched: mm, 0, 0
    sys_enter = 12  # raw_syscalls: Op | prot or advice << SYS_ARGUMENT_SHIFT, first argument, second argument
    thp_split_pmd = 13  # not Linux's: a pmd split; pfn, address, mm
    thp_deferred_split = 14  # not Linux's: queued for deferred split; pfn, 0, 0
    page_remove_rmap = 15  # not Linux's: pfn, compound, mapcount left
    zap_huge_pmd = 16  # not Linux's: pfn, address, mm
    split_huge_page = 17  # not Linux's: pfn of the head, pfn of the caller's page, result
    migrate_page = 24  # not Linux's: pfn, new pfn, result
    mm_compaction_end = 25  # compaction: zone, order, COMPACT_*
    mm_vmscan_writepage = 26  # vmscan: pfn, slot, flags
    mm_vmscan_lru_shrink_inactive = 27  # vmscan: list, pages taken, pages reclaimed


@inline
def trace(cpu: Cpu, what: int, a: int, b: int, c: int):
    """Write one event."""
    trace_at(cpu, cycles(), what, a, b, c)


@inline
def trace_at(cpu: Cpu, when: int, what: int, a: int, b: int, c: int):
    """Write one event of many for which the clock was read once, before the first: nobody else may be able to tell."""
    number = cpu.ring_next
    event = rings[cpu.id * RING_EVENTS + (number & (RING_EVENTS - 1))]
    event.when = when
    event.what = what
    event.a = a
    event.b = b
    event.c = c
    event.number = number
    cpu.ring_next = number + 1
