"""Instant invariants of pages: heads and tails, frozen and thawed ones, the LRU, the deferred split queue.

(I1, I2, I4, I11, I12, I13, I17, I18, I20, I24, I25.) Each says what keeps the other CPUs from making it speak wrongly.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from concur_thp.mm.deferred_split import link_pfn, split_lists
from concur_thp.mm.mm_types import (
    MAPPING_SHIFT,
    NIL,
    NR_LRU_LISTS,
    PAGE_MAPPING_ANON,
    PAGE_TYPE_NONE,
    Page,
    Vma,
    anon_vmas,
    mem_map,
    pgdat,
)
from concur_thp.mm.page_account import CACHE, account_cache, page_account
from concur_thp.mm.page_flags import (
    PageDoubleMap,
    PageHead,
    PageTail,
    PG_head,
    PG_locked,
    PG_lru,
    TestFlag,
    compound_head,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.split_huge_page_tail import TAIL_FLAGS

LOOK_AT = 8
"""So many members at each end of a list are looked at: who breaks a list breaks it at an end, or near what he works on."""


@kernel
def check_page(cpu: Cpu, page: Page):
    """I1, I2, I12 and I18 for a page that cannot be split or freed now.

    Sound: a reference, or the lack of any, keeps every split from freezing the page, so heads and tails stay what they
    are; and what is asked of each word holds for every value that other CPUs may give it meanwhile.

    Context: the caller has a reference, or a mapping of the page under its ptl, or has dropped or frozen the last one.
    Emulator: I1, I2, I12, I18.
    """
    pfn = page_to_pfn(page)
    bug_on(cpu, page.page_type == PAGE_TYPE_NONE and page._mapcount.read() < -1,
           "I2: mapcount below -1 (values: pfn, mapcount)", pfn, page._mapcount.read())
    if PageTail(page):
        check_tail(cpu, page, compound_head(page))
    elif PageHead(page):
        bug_on(cpu, pfn & (HPAGE_PMD_NR - 1) != 0, "I12: head is not aligned (value: pfn)", pfn, 0)
        bug_on(cpu, tail_page(page, 1).compound_mapcount.read() < -1,
               "I2: compound_mapcount below -1 (values: pfn, count)", pfn, tail_page(page, 1).compound_mapcount.read())
        for i in range(1, HPAGE_PMD_NR):
            check_tail(cpu, tail_page(page, i), page)


@inline
def check_tail(cpu: Cpu, tail: Page, head: Page):
    """One subpage against its head."""
    pfn = page_to_pfn(tail)
    bug_on(cpu, tail.compound_head != (page_to_pfn(head) << 1 | 1) or not PageHead(head),
           "I12: tail and head do not belong together (values: pfn, compound_head)", pfn, tail.compound_head)
    bug_on(cpu, tail._refcount.read() != 0,
           "I1: tail has references (values: pfn, refcount)", pfn, tail._refcount.read())
    bug_on(cpu, tail._mapcount.read() < -1,
           "I2: mapcount of a tail below -1 (values: pfn, mapcount)", pfn, tail._mapcount.read())
    bug_on(cpu, tail.flags.read() & (1 << PG_lru) != 0,
           "I18: tail has PG_lru (values: pfn, flags)", pfn, tail.flags.read())


@kernel
def check_pinned(cpu: Cpu, page: Page):
    """A page just pinned, with its head and tails.

    Sound: as check_page(), by the pin.

    Context: the caller has the pin.
    Emulator: I1, I2, I12, I18 on pages in use.
    """
    check_page(cpu, compound_head(page))


@kernel
def check_frozen(cpu: Cpu, page: Page):
    """The references of a page have just been frozen: nothing maps it, and those who were counted were all there were.

    Sound: a mapping is counted off before its reference is dropped, and with any reference but the freezer's and the
    cache's the freeze had failed; from 0 nobody else gets one. So no other CPU is between two steps of his.

    Context: page locked, frozen by this CPU.
    Emulator: I4 (the decision agrees), I11, I20, I25; and I1, I2, I12, I18 of a THP, all of whose tails are looked at.
    """
    pfn = page_to_pfn(page)
    bug_on(cpu, page._refcount.read() != 0, "I11: a frozen page has references (values: pfn, refcount)", pfn,
           page._refcount.read())
    check_nothing_maps(cpu, page)
    word = page_account(page)
    bug_on(cpu, word != account_cache(word) * CACHE,
           "I25: frozen, and not all references are accounted for (values: pfn, account)", pfn, word)
    check_page(cpu, page)


@kernel
def check_nothing_maps(cpu: Cpu, page: Page):
    """No mapcount and no PG_double_map is left.

    Sound: as check_frozen().

    Context: the page has no reference that a mapping could own.
    Emulator: I4 and I20.
    """
    pfn = page_to_pfn(page)
    left = page._mapcount.read() != -1
    if PageHead(page):
        left = left or tail_page(page, 1).compound_mapcount.read() != -1
        for i in range(1, HPAGE_PMD_NR):
            left = left or tail_page(page, i)._mapcount.read() != -1
        bug_on(cpu, not left and page.mapping & PAGE_MAPPING_ANON != 0 and PageDoubleMap(page),
               "I20: DoubleMap of a page that nothing maps (value: pfn)", pfn, 0)
    bug_on(cpu, left, "I4: decided that nothing maps the page, and something does (values: pfn, mapcount)", pfn,
           page._mapcount.read())


@kernel
def check_thaw(cpu: Cpu, page: Page):
    """A frozen page, or a piece of one, is about to get references: it is as it was frozen, and what it will be.

    Sound: it has no reference yet, so nobody else may write to it. A piece is one whose block still has its head: the
    splitter has the lock of all the pieces, so none can be frozen by somebody else meanwhile.

    Context: by the CPU that froze it.
    Emulator: I11, I13.
    """
    pfn = page_to_pfn(page)
    bug_on(cpu, page._refcount.read() != 0, "I11: a frozen page got references (values: pfn, refcount)", pfn,
           page._refcount.read())
    word = page_account(page)
    bug_on(cpu, word != account_cache(word) * CACHE, "I11: somebody used a frozen page (values: pfn, account)", pfn, word)
    bug_on(cpu, page._mapcount.read() != -1, "I11: a frozen page was mapped (values: pfn, mapcount)", pfn,
           page._mapcount.read())
    head = mem_map[pfn & ~(HPAGE_PMD_NR - 1)]
    if head != page and PageHead(head):
        check_piece(cpu, page, head)


@inline
def check_piece(cpu: Cpu, page: Page, head: Page):
    """I13: whoever gets a reference of this piece may lock it, put it, ask where it is mapped, or whether it is dirty. The head
    keeps what it hands on: it is locked and frozen, nobody else can change these flags."""
    pfn = page_to_pfn(page)
    flags = page.flags.read()
    bug_on(cpu, PageTail(page) != 0, "I13: a tail is about to get references (values: pfn, compound_head)", pfn,
           page.compound_head)
    bug_on(cpu, flags & (1 << PG_locked) == 0 or flags & (1 << PG_head) != 0
           or (flags ^ head.flags.read()) & TAIL_FLAGS != 0,
           "I13: visible without its final flags (values: pfn, flags)", pfn, flags)
    bug_on(cpu, page.mapping != head.mapping, "I13: visible without its final mapping (values: pfn, mapping)", pfn,
           page.mapping)
    bug_on(cpu, page.index != head.index + pfn - page_to_pfn(head),
           "I13: visible without its final index (values: pfn, index)", pfn, page.index)


@kernel
def check_double_map(cpu: Cpu, head: Page):
    """I20: DoubleMap of an anonymous page means that a pmd maps it.

    Sound: the pmd that the caller sees keeps compound_mapcount at 0 or more, whatever the others do.

    Context: the pmd ptl of a pmd that maps the page.
    Emulator: I20.
    """
    bug_on(cpu, head.mapping & PAGE_MAPPING_ANON != 0 and PageDoubleMap(head)
           and tail_page(head, 1).compound_mapcount.read() < 0,
           "I20: DoubleMap of a page that no pmd maps (value: pfn)", page_to_pfn(head), 0)


@kernel
def check_anon_rmap_move(cpu: Cpu, page: Page, vma: Vma):
    """I24: an anon page gets another anon_vma only while it is locked, and only one of its family.

    Sound: the page lock is this CPU's, and anon_vmas with a vma keep their root.

    Context: page lock held, the ptl of the one mapping, mmap_sem.
    Emulator: I24, its half about page.mapping.
    """
    head = compound_head(page)
    bug_on(cpu, TestFlag(head, PG_locked) == 0 or head.lock_owner != cpu.id + 1,
           "I24: mapping changes without the page lock (values: pfn, owner)", page_to_pfn(head), head.lock_owner)
    bug_on(cpu, head.mapping & PAGE_MAPPING_ANON == 0
           or anon_vmas[head.mapping >> MAPPING_SHIFT].root != anon_vmas[vma.anon_vma].root,
           "I24: mapping changes to another family's anon_vma (values: pfn, anon_vma)", page_to_pfn(head), vma.anon_vma)


# -- lists ------------------------------------------------------------------------------------------------------------


@kernel
def check_split_queue(cpu: Cpu):
    """I17 for the queue and this CPU's private list.

    Sound: pages enter and leave under split_queue_lock, before they are split or freed.

    Context: split_queue_lock held.
    Emulator: I17.
    """
    pfn = pgdat.split_queue_head
    for _ in range(LOOK_AT):
        if pfn != NIL:
            check_queued(cpu, mem_map[pfn])
            pfn = link_pfn(tail_page(mem_map[pfn], 2).deferred_next)
    if split_lists[cpu.id].head != NIL:
        check_queued(cpu, mem_map[split_lists[cpu.id].head])


@kernel
def check_queued(cpu: Cpu, head: Page):
    """I17: what is on the deferred split queue is a huge page, and linked.

    Sound: as check_split_queue().

    Context: split_queue_lock held.
    Emulator: I17.
    """
    bug_on(cpu, not PageHead(head) or tail_page(head, 1).compound_order != HPAGE_PMD_ORDER,
           "I17: queued for deferred split and no huge page (values: pfn, flags)", page_to_pfn(head), head.flags.read())
    node = tail_page(head, 2)
    bug_on(cpu, node.deferred_next == 0 or node.deferred_prev == 0,
           "I17: on the deferred split queue without a link (values: pfn, next)", page_to_pfn(head), node.deferred_next)


@kernel
def check_lru_lists(cpu: Cpu):
    """I18: the newest and the oldest pages of each list have PG_lru and are linked once.

    Sound: pages enter and leave, and PG_lru changes, under lru_lock.

    Context: lru_lock held.
    Emulator: I18.
    """
    for number in range(NR_LRU_LISTS):
        before = NIL
        pfn = pgdat.lru[number].head
        for _ in range(LOOK_AT):
            if pfn != NIL:
                check_on_lru(cpu, pfn, mem_map[pfn].lru_prev, before)
                before = pfn
                pfn = mem_map[pfn].lru_next
        before = NIL
        pfn = pgdat.lru[number].tail
        for _ in range(LOOK_AT):
            if pfn != NIL:
                check_on_lru(cpu, pfn, mem_map[pfn].lru_next, before)
                before = pfn
                pfn = mem_map[pfn].lru_prev


@inline
def check_on_lru(cpu: Cpu, pfn: int, link: int, came_from: int):
    """One page of an LRU list, and its link back to where we came from."""
    page = mem_map[pfn]
    bug_on(cpu, page.flags.read() & (1 << PG_lru) == 0 or PageTail(page) != 0,
           "I18: on an LRU list without PG_lru, or a tail (values: pfn, flags)", pfn, page.flags.read())
    bug_on(cpu, link != came_from, "I18: an LRU list is not linked (values: pfn, its neighbour)", pfn, link)


@kernel
def check_isolated(cpu: Cpu, page: Page):
    """I18: an isolated page has no PG_lru and a reference.

    Sound: only who isolated it puts it back, and that is this CPU.

    Context: the page was just isolated by this CPU.
    Emulator: I18.
    """
    bug_on(cpu, page.flags.read() & (1 << PG_lru) != 0 or page._refcount.read() < 1,
           "I18: isolated with PG_lru, or without a reference (values: pfn, flags)", page_to_pfn(page), page.flags.read())


__all__ = ["check_anon_rmap_move", "check_double_map", "check_frozen", "check_isolated", "check_lru_lists",
           "check_nothing_maps", "check_page", "check_pinned", "check_queued", "check_split_queue", "check_tail", "check_thaw"]
