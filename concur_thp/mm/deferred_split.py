"""The deferred split queue: THPs with holes, kept for the time of memory pressure (R38). (Linux: mm/huge_memory.c)

A THP that lost a mapping of some subpage is only noted here, because whoever notices holds a ptl and cannot split. The
list runs through tail 2 of each THP; a link word of 0 means "on no list" (I17).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_ORDER
from concur_thp.mm.mm_types import NIL, Page, mem_map, pgdat
from concur_thp.mm.page_flags import PageHead, page_to_pfn, tail_page
from concur_thp.mm.vmstat import Stat, count_vm_event
from concur_thp.sync.lock_classes import SPLIT_QUEUE_LOCK
from concur_thp.sync.spinlock import spin_lock_init, spin_lock_irq, spin_unlock_irq

QUEUED = 1 << 32
"""Set in both link words of a queued THP; the rest is the neighbour's pfn + 1, 0 at the ends."""


def init_deferred_split() -> None:
    """Boot: an empty queue."""
    spin_lock_init(pgdat.split_queue_lock, SPLIT_QUEUE_LOCK)
    pgdat.split_queue_head = NIL
    pgdat.split_queue_tail = NIL
    pgdat.split_queue_len = 0


@inline
def link_pfn(link: int):
    """The neighbour that a link word names, or NIL."""
    return (link & (QUEUED - 1)) - 1


@inline
def prep_transhuge_page(head: Page):
    """A fresh compound page becomes a THP: its queue node is empty. Nobody else can reach it yet."""
    node = tail_page(head, 2)
    node.deferred_next = 0
    node.deferred_prev = 0


@inline
def split_queued(head: Page):
    """Is this THP on the queue? Stable under split_queue_lock only."""
    return tail_page(head, 2).deferred_next != 0


@inline
def split_queue_add_tail(head: Page):
    """Link a THP at the end; split_queue_lock held."""
    pfn = page_to_pfn(head)
    last = pgdat.split_queue_tail
    node = tail_page(head, 2)
    node.deferred_next = QUEUED
    node.deferred_prev = QUEUED | (last + 1)
    if last == NIL:
        pgdat.split_queue_head = pfn
    else:
        tail_page(mem_map[last], 2).deferred_next = QUEUED | (pfn + 1)
    pgdat.split_queue_tail = pfn
    pgdat.split_queue_len = pgdat.split_queue_len + 1


@inline
def split_queue_del(head: Page):
    """Unlink a queued THP; split_queue_lock held."""
    node = tail_page(head, 2)
    before = link_pfn(node.deferred_prev)
    after = link_pfn(node.deferred_next)
    if before == NIL:
        pgdat.split_queue_head = after
    else:
        tail_page(mem_map[before], 2).deferred_next = QUEUED | (after + 1)
    if after == NIL:
        pgdat.split_queue_tail = before
    else:
        tail_page(mem_map[after], 2).deferred_prev = QUEUED | (before + 1)
    node.deferred_next = 0
    node.deferred_prev = 0
    pgdat.split_queue_len = pgdat.split_queue_len - 1


@kernel
def deferred_split_huge_page(cpu: Cpu, head: Page):
    """Note that a THP has lost some of its mappings, so that memory pressure finds it.

    Context: usually under a ptl; takes split_queue_lock.
    Linux: mm/huge_memory.c deferred_split_huge_page
    """
    bug_on(cpu, not PageHead(head) or tail_page(head, 1).compound_order != HPAGE_PMD_ORDER,
           "deferred split of a page that is no THP (value: pfn)", page_to_pfn(head), 0)
    point(cpu, Point.DEFERRED_SPLIT_QUEUE)
    spin_lock_irq(cpu, pgdat.split_queue_lock)
    # Under the lock: two mms may drop mappings of this THP at once, and the shrinker may have it on its own list.
    if not split_queued(head):
        count_vm_event(cpu, Stat.thp_deferred_split_page)
        trace(cpu, Tracepoint.thp_deferred_split, page_to_pfn(head), 0, 0)
        split_queue_add_tail(head)
    spin_unlock_irq(cpu, pgdat.split_queue_lock)


@kernel
def undefer_split_huge_page(cpu: Cpu, head: Page):
    """Take a THP off the queue, if it is on it: it is about to be freed.

    Context: takes split_queue_lock.
    Linux: mm/huge_memory.c free_transhuge_page, its first half
    """
    # Always with the lock: the shrinker may just now find our count at 0 and unlink the page itself (3.19).
    spin_lock_irq(cpu, pgdat.split_queue_lock)
    if split_queued(head):
        split_queue_del(head)
    bug_on(cpu, pgdat.split_queue_len < 0, "split_queue_len below 0 (value: pfn)", page_to_pfn(head),
           pgdat.split_queue_len)
    spin_unlock_irq(cpu, pgdat.split_queue_lock)
