"""The deferred split queue: THPs with holes, kept for the time of memory pressure (R38). (Linux: mm/huge_memory.c)

A THP that lost a mapping of some subpage is only noted here, because whoever notices holds a ptl and cannot split. The
list runs through tail 2 of each THP; a link word of 0 means "on no list" (I17). The shrinker moves what it works on to
a private list; a page may leave that one by anybody's hand too, so the outer links of a list say which list it is.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, Struct, field
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_ORDER, NR_CPUS
from concur_thp.mm.mm_types import NIL, Page, Pgdat, mem_map, pgdat
from concur_thp.mm.page_flags import PageHead, page_to_pfn, tail_page
from concur_thp.mm.vmstat import Stat, count_vm_event
from concur_thp.sync.lock_classes import SPLIT_QUEUE_LOCK
from concur_thp.sync.spinlock import spin_lock_init, spin_lock_irq, spin_unlock_irq

QUEUED = 1 << 32
"""Set in both link words of a queued THP; the rest is the neighbour's pfn + 1, 0 at the ends."""
LIST_SHIFT = 40
"""At the ends of a list: its number, 0 for the queue, n for the private list of CPU n - 1."""
QUEUE_HEAD = Pgdat.FIELDS["split_queue_head"].offset
assert Pgdat.FIELDS["split_queue_tail"].offset == QUEUE_HEAD + 4, "they are a SplitList"


class SplitList(Struct, size=8, align=4):
    """The ends of a list. The queue's are in pgdat."""

    head = field(I32, "split_queue_lock|racy", "first THP (pfn of the head), or NIL")
    tail = field(I32, "split_queue_lock", "last, or NIL")


split_lists = SharedArray("split_lists", SplitList, lambda config: NR_CPUS)
"""The private list of each CPU; guarded by split_queue_lock like the queue."""


def init_deferred_split() -> None:
    """Boot: an empty queue."""
    for number in range(NR_CPUS):
        split_lists[number].head = NIL
        split_lists[number].tail = NIL
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
def split_list(number: int) -> SplitList:
    """A list by its number."""
    return split_lists[number - 1] if number else SplitList(int(pgdat) + QUEUE_HEAD)


@inline
def link_word(pfn: int, number: int):
    """A link to a neighbour, or, when that is NIL, to list `number` itself."""
    return QUEUED | (pfn + 1 if pfn != NIL else number << LIST_SHIFT)


@inline
def list_add_tail(head: Page, number: int):
    """Link a THP at the end of a list; split_queue_lock held."""
    pfn = page_to_pfn(head)
    ends = split_list(number)
    last = ends.tail
    node = tail_page(head, 2)
    node.deferred_next = link_word(NIL, number)
    node.deferred_prev = link_word(last, number)
    if last == NIL:
        ends.head = pfn
    else:
        tail_page(mem_map[last], 2).deferred_next = link_word(pfn, number)
    ends.tail = pfn


@inline
def list_del(head: Page):
    """Unlink a THP from the list that it is on; split_queue_lock held."""
    node = tail_page(head, 2)
    prev = node.deferred_prev
    next = node.deferred_next
    before = link_pfn(prev)
    after = link_pfn(next)
    if before == NIL:
        split_list(prev >> LIST_SHIFT).head = after
    else:
        tail_page(mem_map[before], 2).deferred_next = next
    if after == NIL:
        split_list(next >> LIST_SHIFT).tail = before
    else:
        tail_page(mem_map[after], 2).deferred_prev = prev
    node.deferred_next = 0
    node.deferred_prev = 0


@inline
def split_queue_add_tail(head: Page):
    """Queue a THP; split_queue_lock held."""
    list_add_tail(head, 0)
    pgdat.split_queue_len = pgdat.split_queue_len + 1


@inline
def split_queue_del(head: Page):
    """Unlink a queued THP for good, be it on the queue or on a private list; split_queue_lock held."""
    list_del(head)
    pgdat.split_queue_len = pgdat.split_queue_len - 1


@kernel
def deferred_split_huge_page(cpu: Cpu, head: Page):
    """Note that a THP has lost some of its mappings, so that memory pressure finds it.

    Context: usually under a ptl; takes split_queue_lock.
    Linux: mm/huge_memory.c deferred_split_huge_page
    Differs: looks before it takes the lock, as Linux since 5.7: a split of N ptes would take it N times.
    """
    bug_on(cpu, not PageHead(head) or tail_page(head, 1).compound_order != HPAGE_PMD_ORDER,
           "deferred split of a page that is no THP (value: pfn)", page_to_pfn(head), 0)
    # Only a split or the last put take it off the queue, and neither can while the caller still has its reference.
    if split_queued(head):
        return 0
    point(cpu, Point.DEFERRED_SPLIT_QUEUE)
    spin_lock_irq(cpu, pgdat.split_queue_lock)
    # Under the lock: two mms may drop mappings of this THP at once, and the shrinker may have it on its own list.
    if not split_queued(head):
        count_vm_event(cpu, Stat.thp_deferred_split_page)
        trace(cpu, Tracepoint.thp_deferred_split, page_to_pfn(head), 0, 0)
        split_queue_add_tail(head)
    spin_unlock_irq(cpu, pgdat.split_queue_lock)
    return 0


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
