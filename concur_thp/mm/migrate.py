"""Migration: a page goes to another frame, and everything that maps it follows. (Linux: mm/migrate.c)

    lock the page; keep its anon_vma
    migration entries in place of every mapping        who faults on one waits for the page lock
    nobody but us (and the cache) has a reference?     else a pin could write to the old frame: give up
    mapping, index, cache slots, contents, flags       move to the new page
    the entries map the new page

Pages come isolated, on a list, and leave it one by one; a huge page moves as it is, mapped by pmds, by ptes or both.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel, weak
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_ORDER
from concur_thp.mm.anon_vma import page_get_anon_vma, put_anon_vma
from concur_thp.mm.deferred_split import prep_transhuge_page
from concur_thp.mm.errno import EAGAIN, EBUSY, ENOMEM
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, GFP_TRANSHUGE
from concur_thp.mm.migrate_move import move_to_new_page
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, AnonVma, Page, pgdat
from concur_thp.mm.page_alloc import alloc_page, alloc_pages
from concur_thp.mm.page_flags import (
    ClearFlag,
    PageAnon,
    PageHead,
    PG_active,
    PG_unevictable,
    PG_writeback,
    TestFlag,
    hpage_nr_pages,
    page_to_pfn,
)
from concur_thp.mm.page_list import PageList, list_del, list_empty, list_first, list_next
from concur_thp.mm.page_lock import lock_page, trylock_page, unlock_page
from concur_thp.mm.page_ref import page_count
from concur_thp.mm.rmap import page_mapped
from concur_thp.mm.split_huge_page import split_huge_page_to_list
from concur_thp.mm.swap import put_page, putback_lru_page
from concur_thp.mm.try_to_unmap import (
    TTU_IGNORE_ACCESS,
    TTU_IGNORE_MLOCK,
    TTU_MIGRATION,
    remove_migration_ptes,
    try_to_unmap,
)
from concur_thp.mm.vmstat import Stat, count_vm_event, mod_stat

MIGRATE_ASYNC, MIGRATE_SYNC = 0, 1
"""May it wait for page locks? (Linux has more modes, which differ in what they wait for on a device.)"""
NEW_PAGE, NEW_SMALL_PAGE, NEW_PAGE_COMPACTION = 0, 1, 2
"""Where new pages come from (new_page_t): the allocator; the same for small pages only, so that huge ones are split, as
without thp_migration_supported(); what compaction's free scanner has found."""
PASSES = 10
FORCED_PASS = 3
"""From this pass on it waits for page locks."""
TTU_MIGRATE = TTU_MIGRATION | TTU_IGNORE_MLOCK | TTU_IGNORE_ACCESS


# -- new pages --------------------------------------------------------------------------------------------------------


@weak
def compaction_alloc(cpu: Cpu) -> Page:
    """A free page from compaction's own stock.

    Context: inside compact_zone().
    Return: the page, with a reference; NULL when the scanners have met.
    Linux: mm/compaction.c compaction_alloc
    """
    return Page(0)


@weak
def compaction_free(cpu: Cpu, page: Page):
    """Give a page of compaction_alloc() back.

    Context: as it.
    Linux: mm/compaction.c compaction_free
    """
    put_page(cpu, page)


@inline
def get_new_page(cpu: Cpu, page: Page, how: int) -> Page:
    """A page as large as `page`, with one reference; NULL when there is none. (Linux: alloc_new_node_page)"""
    if how == NEW_PAGE_COMPACTION:
        new = compaction_alloc(cpu)
    elif not PageHead(page):
        new = alloc_page(cpu, GFP_HIGHUSER_MOVABLE)
    elif how == NEW_SMALL_PAGE:
        new = Page(0)
    else:
        new = alloc_pages(cpu, HPAGE_PMD_ORDER, MIGRATE_MOVABLE, GFP_TRANSHUGE)
        if new:
            prep_transhuge_page(new)
    return new


@inline
def put_new_page(cpu: Cpu, new: Page, how: int):
    """The new page was not needed."""
    if how == NEW_PAGE_COMPACTION:
        compaction_free(cpu, new)
    else:
        put_page(cpu, new)


# -- one page ---------------------------------------------------------------------------------------------------------


@kernel
def __unmap_and_move(cpu: Cpu, page: Page, new: Page, force: int, mode: int):
    """Move one page with all its mappings to a fresh page of the same size.

    Context: no lock of rank page_lock or deeper held; the caller has isolated the page. Takes both page locks, the rmap
    lock and ptls. Sleeps.
    Return: 0: moved, and the reference of `new` given up; -EAGAIN: somebody else has it or uses it, nothing changed;
    -EBUSY: it is being written.
    Linux: mm/migrate.c __unmap_and_move
    Differs: never waits for writeback: whoever writes a page here has isolated it for as long.
    """
    if not trylock_page(cpu, page):  # 3.26.2
        if not force or mode == MIGRATE_ASYNC:
            return -EAGAIN
        lock_page(cpu, page)
    if TestFlag(page, PG_writeback):
        unlock_page(cpu, page)
        return -EBUSY
    # As long as nothing maps the page, nothing else keeps its anon_vma: the last vma may be unmapped meanwhile.
    anon_vma = AnonVma(0)
    if PageAnon(page):
        anon_vma = page_get_anon_vma(cpu, page)
    result = -EAGAIN
    if trylock_page(cpu, new):
        result = unmap_and_move_locked(cpu, page, new)
        unlock_page(cpu, new)
    if anon_vma:
        put_anon_vma(cpu, anon_vma)
    unlock_page(cpu, page)
    if result == 0:
        putback_lru_page(cpu, new)
    return result


@inline
def unmap_and_move_locked(cpu: Cpu, page: Page, new: Page):
    """3.26.3 to 6, both pages locked. Returns 0 or -EAGAIN."""
    was_mapped = page.mapping != 0 and page_mapped(page)
    if was_mapped:
        try_to_unmap(cpu, page, TTU_MIGRATE)
    point(cpu, Point.MIGRATE_UNMAPPED)
    result = -EAGAIN
    if not page_mapped(page):  # A walk that passed by a zapper leaves its mapping (K3).
        result = move_to_new_page(cpu, new, page)
    point(cpu, Point.MIGRATE_MOVED)
    if was_mapped:
        remove_migration_ptes(cpu, page, new if result == 0 else page, 0)
        point(cpu, Point.MIGRATE_REMAPPED)
    trace(cpu, Tracepoint.migrate_page, page_to_pfn(page), page_to_pfn(new), result)
    return result


@kernel
def unmap_and_move(cpu: Cpu, page: Page, pages: PageList, how: int, force: int, mode: int):
    """Move one page of a list; off the list it goes unless another try is worth while.

    Context: as __unmap_and_move(); `pages` is the caller's own.
    Return: 0: moved, or freed by its users; -EAGAIN; -EBUSY: given back to the LRU; -ENOMEM: no new page.
    Linux: mm/migrate.c unmap_and_move
    """
    nr = hpage_nr_pages(page)
    new = get_new_page(cpu, page, how)  # 3.26.1
    if not new:
        return -ENOMEM
    bug_on(cpu, hpage_nr_pages(new) != nr, "migration to a page of another size (values: pfn, new pfn)",
           page_to_pfn(page), page_to_pfn(new))
    freed = page_count(page) == 1
    result = 0
    if freed:
        # Nobody maps or caches it: as good as free, though the shrinker may still hold it for a moment.
        ClearFlag(page, PG_active)
        ClearFlag(page, PG_unevictable)
    else:
        result = __unmap_and_move(cpu, page, new, force, mode)
        count_migration(cpu, nr, result)
    if result != 0 or freed:
        put_new_page(cpu, new, how)
    if result == -EAGAIN:
        return result
    list_del(pages, page)
    pgdat.isolated.sub(nr)
    if result == 0:
        put_page(cpu, page)
    else:
        putback_lru_page(cpu, page)
    return result


@inline
def count_migration(cpu: Cpu, nr: int, result: int):
    """The counters of later kernels: each try to move a THP."""
    if nr != 1:
        count_vm_event(cpu, Stat.thp_migration_success if result == 0 else Stat.thp_migration_fail)


# -- a list -----------------------------------------------------------------------------------------------------------


@kernel
def migrate_pages(cpu: Cpu, pages: PageList, how: int, mode: int):
    """Migrate every page of a list. What could not be moved stays on it; putback_movable_pages() is for those.

    Context: no lock of rank page_lock or deeper held. The pages are isolated and counted in `pgdat.isolated`. Sleeps.
    Return: 0 when the list is empty now; the number of pages left or given back; -ENOMEM, which ends it at once.
    Linux: mm/migrate.c migrate_pages
    """
    moved = 0
    failed = 0
    retry = 1
    passes = 0
    result = 0
    while passes < PASSES and retry != 0 and result != -ENOMEM:
        retry = 0
        page = first_of(pages)
        while page and result != -ENOMEM:
            following = list_next(page)  # A page that is done with leaves the list.
            result = unmap_and_move(cpu, page, pages, how, passes >= FORCED_PASS, mode)
            if result == -ENOMEM and PageHead(page) and split_for_migration(cpu, page, pages):
                result = 0
                continue  # With the head at once; the other pieces stand at the end of the list.
            moved += result == 0
            retry += result == -EAGAIN
            failed += result not in (0, -EAGAIN)
            page = following
        passes += 1
    failed += retry
    mod_stat(cpu, Stat.pgmigrate_success, moved)
    mod_stat(cpu, Stat.pgmigrate_fail, failed)
    return -ENOMEM if result == -ENOMEM else failed


@inline
def first_of(pages: PageList) -> Page:
    return Page(0) if list_empty(pages) else list_first(pages)


@kernel
def split_for_migration(cpu: Cpu, page: Page, pages: PageList):
    """There is no huge page to move this one to: split it, small ones may be found.

    Context: as migrate_pages(); the page stands on the list, which gets the pieces too.
    Return: 1 when split.
    Linux: mm/migrate.c migrate_pages, its case -ENOMEM
    """
    lock_page(cpu, page)
    result = split_huge_page_to_list(cpu, page, pages)
    unlock_page(cpu, page)
    if result == 0:
        count_vm_event(cpu, Stat.thp_migration_split)
    return result == 0


@kernel
def putback_movable_pages(cpu: Cpu, pages: PageList):
    """Give the pages of a list back to the LRU.

    Context: the caller has isolated them and counted them in `pgdat.isolated`.
    Linux: mm/migrate.c putback_movable_pages
    """
    page = first_of(pages)
    while page:
        list_del(pages, page)
        pgdat.isolated.sub(hpage_nr_pages(page))
        putback_lru_page(cpu, page)
        page = first_of(pages)
