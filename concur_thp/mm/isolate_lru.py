"""Pages taken off the LRU in batches, and given back. (Linux: mm/vmscan.c)

An isolated page has no PG_lru, stands on a private list and holds a reference of its isolator (I18).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.mm.buddy import zone_nr
from concur_thp.mm.lru import add_page_to_lru_list, del_page_from_lru_list, page_evictable, page_lru
from concur_thp.mm.mm_types import mem_map, pgdat
from concur_thp.mm.page_alloc import free_the_page
from concur_thp.mm.page_flags import PageHead, PageTail, PG_active, PG_lru, hpage_nr_pages, page_to_pfn
from concur_thp.mm.page_list import LIST_FREE, PageList, list_add, list_pop, page_list
from concur_thp.mm.page_ref import get_page_unless_zero, put_page_testzero
from concur_thp.mm.swap import free_transhuge_page, putback_lru_page
from concur_thp.sync.spinlock import assert_spin_locked, spin_lock_irq, spin_unlock_irq


@kernel
def isolate_lru_pages(cpu: Cpu, number: int, nr_to_scan: int, zone_limit: int, pages: PageList):
    """Take pages off the old end of one LRU list, but none of zone `zone_limit` and above; 0: of any zone.

    Context: lru_lock held.
    Return: pages taken, a huge one counted as HPAGE_PMD_NR; they are in pgdat.isolated too.
    Linux: mm/vmscan.c isolate_lru_pages
    Differs: a huge page counts as HPAGE_PMD_NR scanned, not as one. Takes the newest of them for the first of `pages`.
    """
    assert_spin_locked(cpu, pgdat.lru_lock)
    lru = pgdat.lru[number]
    taken = 0
    scanned = 0
    left = lru.size
    while scanned < nr_to_scan and left > 0:
        page = mem_map[lru.tail]
        nr = hpage_nr_pages(page)
        left -= nr
        bug_on(cpu, PageTail(page) or page.flags.read() & (1 << PG_lru) == 0,
               "isolate_lru_pages: a tail, or without PG_lru (values: pfn, list)", page_to_pfn(page), number)
        del_page_from_lru_list(page, number)
        if zone_limit != 0 and zone_nr(page_to_pfn(page)) >= zone_limit:
            add_page_to_lru_list(page, number)  # Not what is looked for: to the young end, out of the way.
            continue
        scanned += nr
        # Never get_page(): its last reference may just have been dropped, and whoever did that waits for lru_lock (R34).
        if get_page_unless_zero(page):
            page.flags.and_(~(1 << PG_lru))
            check_point(cpu, Point.LRU_ISOLATED, page)
            list_add(pages, page)
            taken += nr
        else:
            add_page_to_lru_list(page, number)
    pgdat.isolated.add(taken)
    return taken


@kernel
def move_pages_to_lru(cpu: Cpu, pages: PageList):
    """Give isolated pages back, each to the list its flags call for, and drop the isolator's references.

    Context: no lock; takes lru_lock. The last reference may be among them.
    Linux: mm/vmscan.c putback_inactive_pages, move_active_pages_to_lru
    Differs: looks at PG_mlocked behind PG_lru, as __pagevec_lru_add_fn does. v4.20 looks before; a page mlocked in between
    stays on an evictable list until reclaim meets it again.
    """
    free = page_list(cpu, LIST_FREE)
    spin_lock_irq(cpu, pgdat.lru_lock)
    page = list_pop(pages)
    while page:
        # PG_lru before the look at PG_mlocked, as mlock sets PG_mlocked before it looks at PG_lru: one sees the other.
        flags = page.flags.or_(1 << PG_lru)
        point(cpu, Point.LRU_PUTBACK)
        if not page_evictable(page):
            page.flags.and_(~(1 << PG_lru))
            spin_unlock_irq(cpu, pgdat.lru_lock)
            putback_lru_page(cpu, page)
            spin_lock_irq(cpu, pgdat.lru_lock)
        else:
            add_page_to_lru_list(page, page_lru(flags))
            if put_page_testzero(cpu, page):
                del_page_from_lru_list(page, page_lru(flags))
                page.flags.and_(~(1 << PG_lru | 1 << PG_active))
                list_add(free, page)
        page = list_pop(pages)
    spin_unlock_irq(cpu, pgdat.lru_lock)
    free_unref_pages(cpu, free)


@kernel
def free_unref_pages(cpu: Cpu, pages: PageList):
    """Free a list of pages whose references are gone and that are on no LRU list.

    Context: no lock; takes split_queue_lock, zone.lock.
    Linux: mm/page_alloc.c free_unref_page_list
    """
    page = list_pop(pages)
    while page:
        check_point(cpu, Point.PUT_PAGE_ZERO, page)
        if PageHead(page):
            free_transhuge_page(cpu, page)
        else:
            free_the_page(cpu, page, 0)
        page = list_pop(pages)


__all__ = ["free_unref_pages", "isolate_lru_pages", "move_pages_to_lru"]
