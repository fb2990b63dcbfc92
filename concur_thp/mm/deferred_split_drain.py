"""The shrinker that splits what waits on the deferred split queue, and so frees the unused pieces (3.19, R41).
(Linux: mm/huge_memory.c deferred_split_scan)

It runs in reclaim, where any lock may be held by whoever allocates: page locks by trylock only.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.mm.deferred_split import (
    link_pfn,
    list_add_tail,
    list_del,
    split_lists,
    split_queue_del,
    split_queued,
)
from concur_thp.mm.mm_types import NIL, mem_map, pgdat
from concur_thp.mm.page_flags import PageHead, page_to_pfn, tail_page
from concur_thp.mm.page_lock import trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page_unless_zero
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import put_page
from concur_thp.mm.vmstat import Stat, mod_stat
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq

SHRINK_STOP = -1
"""Nothing is left to be tried."""


@inline
def deferred_split_count():
    """How many THPs are queued; those on private lists are still counted."""
    return pgdat.split_queue_len


@kernel
def deferred_split_scan(cpu: Cpu, nr_to_scan: int):
    """Try to split up to `nr_to_scan` pages of the queue.

    Context: no page lock, no anon_vma lock or deeper; mmap_sem may be held. May sleep.
    Return: pages split; SHRINK_STOP when none was and the queue is empty.
    Linux: mm/huge_memory.c deferred_split_scan
    Differs: oldest first.
    """
    mine = split_lists[cpu.id]
    bug_on(cpu, mine.head != NIL, "deferred_split_scan inside of itself (value: pfn)", mine.head, nr_to_scan)
    pin_queued(cpu, nr_to_scan)
    point(cpu, Point.DEFERRED_SCAN_PINNED)
    split = 0
    pfn = mine.head
    while pfn != NIL:
        page = mem_map[pfn]
        # The next one has our pin, so it stays on this list. This one may be gone from it as soon as our pin is: split
        # by us, or freed by whoever had the last reference.
        pfn = link_pfn(tail_page(page, 2).deferred_next)
        if trylock_page(cpu, page):
            split += split_huge_page(cpu, page) == 0
            unlock_page(cpu, page)
        put_page(cpu, page)
    mod_stat(cpu, Stat.deferred_split_drained, split)
    spin_lock_irq(cpu, pgdat.split_queue_lock)
    splice_back(cpu)
    empty = pgdat.split_queue_head == NIL
    spin_unlock_irq(cpu, pgdat.split_queue_lock)
    return SHRINK_STOP if split == 0 and empty else split


@inline
def pin_queued(cpu: Cpu, nr: int):
    """Move up to `nr` pages to this CPU's private list, with a reference each; they stay counted in split_queue_len."""
    spin_lock_irq(cpu, pgdat.split_queue_lock)
    pfn = pgdat.split_queue_head
    while pfn != NIL and nr > 0:
        head = mem_map[pfn]
        pfn = link_pfn(tail_page(head, 2).deferred_next)
        bug_on(cpu, not PageHead(head), "deferred split queue: not a huge page (values: pfn, flags)", page_to_pfn(head),
               head.flags.read())
        if get_page_unless_zero(head):
            list_del(head)
            list_add_tail(head, cpu.id + 1)
        else:
            split_queue_del(head)  # Its last reference is just being dropped: free_transhuge_page() finds it unlinked.
        nr -= 1
    spin_unlock_irq(cpu, pgdat.split_queue_lock)


@inline
def splice_back(cpu: Cpu):
    """What is still on the private list goes back to the end of the queue; split_queue_lock held."""
    mine = split_lists[cpu.id]
    while mine.head != NIL:
        head = mem_map[mine.head]
        bug_on(cpu, not split_queued(head), "deferred split: a private list is broken (values: pfn, cpu)", mine.head,
               cpu.id)
        list_del(head)
        list_add_tail(head, 0)


__all__ = ["SHRINK_STOP", "deferred_split_count", "deferred_split_scan"]
