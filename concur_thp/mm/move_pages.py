"""Who asks for a migration: a program by address, who wants a frame emptied. (Linux: mm/migrate.c, memory_hotplug.c)

move_page() moves a huge page whole. move_small_page() is a caller as they were before that was possible: it knows small
pages only, and lets FOLL_SPLIT take care of the rest (R9, R10). migrate_pfn() comes from the frame.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.mm.errno import EBUSY, EFAULT, ENOENT
from concur_thp.mm.flags import FOLL_DUMP, FOLL_GET, FOLL_SPLIT
from concur_thp.mm.gup import follow_page
from concur_thp.mm.migrate import MIGRATE_SYNC, migrate_pages, putback_movable_pages
from concur_thp.mm.mm_types import Mm, Page, pgdat
from concur_thp.mm.page_flags import PageCompound, PG_lru, compound_head, hpage_nr_pages, page_to_pfn
from concur_thp.mm.page_list import LIST_MIGRATE, PageList, list_add_tail, page_list
from concur_thp.mm.page_ref import get_page_unless_zero
from concur_thp.mm.swap import isolate_lru_page, lru_add_drain, put_page
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.rwsem import down_read, up_read


@inline
def isolate_movable(cpu: Cpu, head: Page, pages: PageList):
    """Take a head or small page, of which the caller has a reference, off the LRU onto a list. 0 or -EBUSY."""
    result = -EBUSY
    if isolate_lru_page(cpu, head):
        pgdat.isolated.add(hpage_nr_pages(head))
        list_add_tail(pages, head)
        result = 0
    return result


@kernel
def add_page_for_migration(cpu: Cpu, mm: Mm, addr: int, follflags: int, pages: PageList):
    """Isolate the page at an address.

    Context: takes mmap_sem read.
    Return: 0; -EFAULT: no vma, or nothing of an anonymous one; -ENOENT: a migration entry, or nothing of a file's;
    -EBUSY: on no LRU list, or a split failed.
    Linux: mm/migrate.c add_page_for_migration
    Differs: one node, so no page is where it should be already; pages that others map too are moved for all.
    """
    down_read(cpu, mm.mmap_sem)
    vma = find_vma(mm, addr)
    result = -EFAULT
    if vma and addr >= vma.vm_start:
        # FOLL_DUMP: not for the zero pages.
        result = follow_page(cpu, vma, addr, FOLL_GET | FOLL_DUMP | follflags)
        if result == 0:
            result = -ENOENT
        elif result > 0:
            page = Page(result)
            bug_on(cpu, follflags & FOLL_SPLIT != 0 and PageCompound(page),
                   "FOLL_SPLIT gave a compound page (values: pfn, address)", page_to_pfn(page), addr)
            result = isolate_movable(cpu, compound_head(page), pages)
            put_page(cpu, page)  # The isolation has one of its own, or it came to nothing.
    up_read(cpu, mm.mmap_sem)
    return result


@inline
def migrate_isolated(cpu: Cpu, pages: PageList, how: int):
    """Migrate what is on the list, give back what cannot be. (Linux: do_move_pages_to_node)"""
    result = migrate_pages(cpu, pages, how, MIGRATE_SYNC)
    if result != 0:
        putback_movable_pages(cpu, pages)
    return -EBUSY if result > 0 else result


@kernel
def do_move_page(cpu: Cpu, mm: Mm, addr: int, follflags: int, how: int):
    """Move the page at an address to another frame.

    Context: no lock held. Takes mmap_sem read, then without it page locks, rmap locks. Sleeps.
    Return: 0, -EFAULT, -ENOENT, -EBUSY, -ENOMEM.
    Linux: mm/migrate.c do_pages_move
    Differs: one page. Drains this CPU's pagevecs, not all: a page that waits in another's is busy.
    """
    pages = page_list(cpu, LIST_MIGRATE)
    lru_add_drain(cpu)  # migrate_prep()
    result = add_page_for_migration(cpu, mm, addr, follflags, pages)
    return migrate_isolated(cpu, pages, how) if result == 0 else result


@inline
def move_page(cpu: Cpu, mm: Mm, addr: int, how: int):
    """Move the page at an address, a huge one whole if `how` lets it."""
    return do_move_page(cpu, mm, addr, 0, how)


@inline
def move_small_page(cpu: Cpu, mm: Mm, addr: int, how: int):
    """Move the small page at an address, a huge one is split first."""
    return do_move_page(cpu, mm, addr, FOLL_SPLIT, how)


@kernel
def migrate_pfn(cpu: Cpu, page: Page, how: int):
    """Move what a frame belongs to somewhere else.

    Context: no lock held, and no reference: the frame may be anything. Sleeps.
    Return: 0; -EBUSY: it is no page that could be moved, or not now; -ENOMEM.
    Linux: mm/memory_hotplug.c do_migrate_range
    """
    pages = page_list(cpu, LIST_MIGRATE)
    head = compound_head(page)
    point(cpu, Point.MIGRATE_PFN_HEAD)
    if not (head.flags.read() >> PG_lru) & 1 or not get_page_unless_zero(head):  # R34
        return -EBUSY
    result = -EBUSY
    if compound_head(page) == head:  # Else the huge page was split or freed before we had our reference.
        result = isolate_movable(cpu, head, pages)
    put_page(cpu, head)
    return migrate_isolated(cpu, pages, how) if result == 0 else result


__all__ = ["do_move_page", "migrate_pfn", "move_page", "move_small_page"]
