"""Pages on their way to the LRU lists: per-CPU batches, ageing marks. (Linux: mm/swap.c, mm/vmscan.c)

A page waits in a pagevec, which holds a reference, until 15 have come together or lru_add_drain() is called; then all
move under one hold of lru_lock. A compound page drains its pagevec at once, so a THP never waits in one (1.7).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.mm.flags import VM_LOCKED
from concur_thp.mm.lru import (
    LRU_ACTIVE,
    LRU_INACTIVE_FILE,
    LRU_UNEVICTABLE,
    add_page_to_lru_list,
    del_page_from_lru_list,
    isolate_lru_page,
    page_evictable,
    page_lru,
)
from concur_thp.mm.mm_types import PAGEVEC_SIZE, Page, Pagevec, Slot, Vma, mem_map, percpu, pgdat
from concur_thp.mm.page_flags import (
    PageAnon,
    PageHead,
    PageSwapCache,
    PageTail,
    PG_active,
    PG_lru,
    PG_mlocked,
    PG_referenced,
    PG_swapbacked,
    PG_unevictable,
    compound_head,
    hpage_nr_pages,
    page_to_pfn,
)
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.put_page import __put_page, free_transhuge_page, put_page, release_pages
from concur_thp.mm.vmstat import Stat, mod_stat
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq

PVEC_ADD, PVEC_ROTATE, PVEC_DEACTIVATE, PVEC_LAZYFREE, PVEC_ACTIVATE = range(5)
PAGES = Pagevec.FIELDS["pages"].offset


@inline
def pagevec_of(cpu: Cpu, kind: int) -> Pagevec:
    return percpu[cpu.id].pagevec[kind]


@inline
def pagevec_add(cpu: Cpu, kind: int, page: Page):
    """Let a head or small page wait, with a reference of its own; a full batch or a compound page moves at once."""
    get_page(cpu, page)
    pagevec_take(cpu, kind, page)


@inline
def pagevec_take(cpu: Cpu, kind: int, page: Page):
    """The same, with a reference of the caller's. With the last one gone meanwhile, a page that moves at once is freed."""
    pvec = pagevec_of(cpu, kind)
    nr = pvec.nr
    pvec.pages[nr] = page_to_pfn(page)
    pvec.nr = nr + 1
    if nr + 1 == PAGEVEC_SIZE or PageHead(page):
        pagevec_drain(cpu, kind)


@kernel
def pagevec_drain(cpu: Cpu, kind: int):
    """Move every page of one pagevec to where it belongs, then drop the pagevec's references.

    Context: takes lru_lock; its own CPU's pagevec only.
    Linux: mm/swap.c pagevec_lru_move_fn
    """
    pvec = pagevec_of(cpu, kind)
    nr = pvec.nr
    if nr == 0:
        return 0
    spin_lock_irq(cpu, pgdat.lru_lock)
    for i in range(nr):
        page = mem_map[pvec.pages[i]]
        if kind == PVEC_ADD:
            lru_add_fn(cpu, page)
        elif kind == PVEC_ACTIVATE:
            activate_fn(cpu, page)
        elif kind == PVEC_LAZYFREE:
            lazyfree_fn(cpu, page)
    spin_unlock_irq(cpu, pgdat.lru_lock)
    pvec.nr = 0
    release_pages(cpu, Slot(int(pvec) + PAGES), nr)
    return 0


@inline
def lru_add_fn(cpu: Cpu, page: Page):
    """Put a page on the list its flags call for; lru_lock held. (Linux: __pagevec_lru_add_fn)"""
    old = page.flags.or_(1 << PG_lru)
    bug_on(cpu, old & (1 << PG_lru) != 0, "adding a page that is on the LRU (value: pfn)", page_to_pfn(page), old)
    # The full barrier of or_() is between PG_lru and PG_mlocked: munlock on the other CPU clears PG_mlocked, then looks
    # at PG_lru. One of the two sees the other and the page does not stay unevictable.
    if page_evictable(page):
        if old & (1 << PG_unevictable):
            page.flags.and_(~(1 << PG_unevictable))
        add_page_to_lru_list(page, page_lru(old & ~(1 << PG_unevictable)))
    else:
        page.flags.and_(~(1 << PG_active))
        page.flags.or_(1 << PG_unevictable)
        add_page_to_lru_list(page, LRU_UNEVICTABLE)


@inline
def activate_fn(cpu: Cpu, page: Page):
    """From the inactive to the active list, if it still is on the former; lru_lock held. (Linux: __activate_page)"""
    flags = page.flags.read()
    if flags & (1 << PG_lru | 1 << PG_active | 1 << PG_unevictable) == 1 << PG_lru:
        number = page_lru(flags)
        del_page_from_lru_list(page, number)
        page.flags.or_(1 << PG_active)
        add_page_to_lru_list(page, number + LRU_ACTIVE)
        mod_stat(cpu, Stat.pgactivate, hpage_nr_pages(page))


@inline
def lazyfree_able(page: Page):
    """May MADV_FREE's mark be put on this page? Asked without the lock first, then under it."""
    flags = page.flags.read()
    want = 1 << PG_lru | 1 << PG_swapbacked
    return flags & (want | 1 << PG_unevictable) == want and PageAnon(page) != 0 and PageSwapCache(page) == 0


@inline
def lazyfree_fn(cpu: Cpu, page: Page):
    """To the inactive file list, where reclaim drops a clean page instead of swapping it. (Linux: lru_lazyfree_fn)"""
    if lazyfree_able(page):
        del_page_from_lru_list(page, page_lru(page.flags.read()))
        page.flags.and_(~(1 << PG_active | 1 << PG_referenced | 1 << PG_swapbacked))
        add_page_to_lru_list(page, LRU_INACTIVE_FILE)
        mod_stat(cpu, Stat.pglazyfree, hpage_nr_pages(page))


@kernel
def lru_cache_add(cpu: Cpu, page: Page):
    """Put a new page on its way to the LRU.

    Context: may be called under a ptl; may take lru_lock.
    Linux: mm/swap.c lru_cache_add
    """
    check_not_on_lru(cpu, page)
    pagevec_add(cpu, PVEC_ADD, page)


@inline
def check_not_on_lru(cpu: Cpu, page: Page):
    bug_on(cpu, PageTail(page) != 0 or page.flags.read() & (1 << PG_lru) != 0,
           "lru_cache_add: a tail, or on the LRU already (value: pfn)", page_to_pfn(page), page.flags.read())


@kernel
def lru_cache_add_active_or_unevictable(cpu: Cpu, page: Page, vma: Vma):
    """A new anon page of this vma: active, or mlocked when the vma is.

    Context: pmd or pte ptl held.
    Linux: mm/swap.c lru_cache_add_active_or_unevictable
    """
    if vma.vm_flags & VM_LOCKED == 0:
        page.flags.or_(1 << PG_active)
    elif page.flags.or_(1 << PG_mlocked) & (1 << PG_mlocked) == 0:
        mod_stat(cpu, Stat.NR_MLOCK, hpage_nr_pages(page))
    lru_cache_add(cpu, page)


@kernel
def lru_add_drain(cpu: Cpu):
    """Empty this CPU's pagevecs, so that they hold no references.

    Context: no lru_lock held.
    Linux: mm/swap.c lru_add_drain
    """
    pagevec_drain(cpu, PVEC_ADD)
    pagevec_drain(cpu, PVEC_LAZYFREE)
    pagevec_drain(cpu, PVEC_ACTIVATE)


@kernel
def putback_lru_page(cpu: Cpu, page: Page):
    """Give an isolated page back to the LRU, and with it the isolation's reference.

    Context: the isolator; no lock needed.
    Linux: mm/vmscan.c putback_lru_page
    Differs: the reference becomes the pagevec's, which takes none of its own.
    """
    check_not_on_lru(cpu, page)
    pagevec_take(cpu, PVEC_ADD, page)


@kernel
def mark_page_accessed(cpu: Cpu, page: Page):
    """Note a use: inactive, unreferenced -> referenced -> active.

    Context: the caller has a reference or a mapping under its ptl.
    Linux: mm/swap.c mark_page_accessed
    """
    head = compound_head(page)
    flags = head.flags.read()
    if flags & (1 << PG_referenced) == 0:
        head.flags.or_(1 << PG_referenced)
    elif flags & (1 << PG_active | 1 << PG_unevictable) == 0:
        if flags & (1 << PG_lru):
            pagevec_add(cpu, PVEC_ACTIVATE, head)
        else:
            lru_cache_activate_page(cpu, head)
        head.flags.and_(~(1 << PG_referenced))


@inline
def lru_cache_activate_page(cpu: Cpu, page: Page):
    """A page that still waits in this CPU's pagevec becomes active there. (Linux: __lru_cache_activate_page)"""
    pvec = pagevec_of(cpu, PVEC_ADD)
    for i in range(pvec.nr):
        # Only in our own: another CPU may just be moving its pages, and would miscount them.
        if pvec.pages[i] == page_to_pfn(page):
            page.flags.or_(1 << PG_active)


@kernel
def activate_page(cpu: Cpu, page: Page):
    """A page was used for certain: to the active list, if it is on the inactive one.

    Context: the caller has a reference or a mapping under its ptl; may take lru_lock.
    Linux: mm/swap.c activate_page
    """
    head = compound_head(page)
    if head.flags.read() & (1 << PG_lru | 1 << PG_active | 1 << PG_unevictable) == 1 << PG_lru:
        pagevec_add(cpu, PVEC_ACTIVATE, head)


@kernel
def mark_page_lazyfree(cpu: Cpu, page: Page):
    """MADV_FREE on a clean anon page: on its way to the inactive file list.

    Context: pmd or pte ptl held, page mapped by it; head or small page.
    Linux: mm/swap.c mark_page_lazyfree
    """
    if lazyfree_able(page):
        pagevec_add(cpu, PVEC_LAZYFREE, page)


__all__ = [
    "__put_page", "activate_page", "free_transhuge_page", "isolate_lru_page", "lru_add_drain", "lru_cache_add",
    "lru_cache_add_active_or_unevictable", "mark_page_accessed", "mark_page_lazyfree", "put_page", "putback_lru_page",
    "release_pages",
]
