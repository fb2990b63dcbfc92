"""What moves when a page moves: mapping, index, cache slots, contents, flags. (Linux: mm/migrate.c)"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.mm.errno import EAGAIN
from concur_thp.mm.filemap import cache_slot, page_file_nr
from concur_thp.mm.highmem import copy_huge_page, copy_page
from concur_thp.mm.mm_types import CacheSlot, Page, files
from concur_thp.mm.page_account import CACHE, account
from concur_thp.mm.page_flags import (
    PageAnon,
    PageHead,
    PageSwapCache,
    PG_active,
    PG_dirty,
    PG_migrated,
    PG_referenced,
    PG_swapbacked,
    PG_swapcache,
    PG_unevictable,
    PG_uptodate,
    PG_workingset,
    PG_writeback,
    TestFlag,
    hpage_nr_pages,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.page_lock import assert_page_locked
from concur_thp.mm.page_ref import page_ref_add, page_ref_count, page_ref_freeze, page_ref_unfreeze
from concur_thp.mm.swap_state import swap_cache_slots, swapper_space
from concur_thp.sync.spinlock import spin_lock_irq, spin_unlock_irq

COPIED_FLAGS = 1 << PG_referenced | 1 << PG_uptodate | 1 << PG_workingset | 1 << PG_dirty
MOVED_FLAGS = 1 << PG_active | 1 << PG_unevictable
"""LRU state, which the old page must not have when it is freed."""


@kernel
def move_to_new_page(cpu: Cpu, new: Page, page: Page):
    """Make `new` what `page` was, if nobody can still come to the old one.

    Context: both locked; nothing maps the page. Takes i_pages.
    Return: 0; -EAGAIN: there are other references, nothing has changed.
    Linux: mm/migrate.c move_to_new_page, migrate_page
    """
    assert_page_locked(cpu, page)
    assert_page_locked(cpu, new)
    bug_on(cpu, TestFlag(page, PG_writeback), "migration of a page that is being written (value: pfn)",
           page_to_pfn(page), page.flags.read())
    result = migrate_page_move_mapping(cpu, new, page)
    if result != 0:
        return result
    if PageHead(page):  # 3.26.5
        copy_huge_page(new, page)
        new.flags.or_(1 << PG_migrated)
    else:
        copy_page(new, page)
    migrate_page_states(new, page)
    if not PageAnon(page):
        page.mapping = 0  # An anon page stays one until it is freed: zappers of its entries ask what it is.
    return 0


@kernel
def migrate_page_move_mapping(cpu: Cpu, new: Page, page: Page):
    """Give `new` the page's mapping and index, and its slots in the page cache or swap cache.

    Context: as move_to_new_page(); takes i_pages.
    Return: 0; -EAGAIN.
    Linux: mm/migrate.c migrate_page_move_mapping
    Differs: in the swap cache each subpage of a THP gets its own `private`.
    """
    if PageSwapCache(page):
        return move_swap_cache(cpu, new, page)
    if not PageAnon(page) and page.mapping != 0:
        return move_page_cache(cpu, new, page)
    # No freeze: all that others can get now is a reference by pfn, and they will find that nothing maps the page.
    if page_ref_count(page) != 1:
        return -EAGAIN  # X24: a pin, or somebody who waits for our lock.
    move_identity(new, page)
    return 0


@inline
def move_identity(new: Page, page: Page):
    """Nobody looks at `new` yet."""
    new.index = page.index
    new.mapping = page.mapping
    if TestFlag(page, PG_swapbacked):
        new.flags.or_(1 << PG_swapbacked)


@inline
def replace_slots(cpu: Cpu, new: Page, page: Page, first: CacheSlot):
    """Every slot of the page gets its counterpart, and the slots' references with it; i_pages held, page frozen."""
    nr = hpage_nr_pages(page)
    page_ref_add(new, nr)
    account(cpu, new, nr * CACHE)
    # Dirty while the references are frozen: nobody else can set it now, and then it would be lost.
    if page.flags.and_(~(1 << PG_dirty)) & (1 << PG_dirty):
        new.flags.or_(1 << PG_dirty)
    point(cpu, Point.MIGRATE_FROZEN)
    for i in range(nr):
        slot = CacheSlot(int(first) + 4 * i)
        bug_on(cpu, slot.value != page_to_pfn(page) + i + 1, "migration: not in its slot (values: pfn, slot's pfn + 1)",
               page_to_pfn(page) + i, slot.value)
        slot.value = page_to_pfn(new) + i + 1
    account(cpu, page, -nr * CACHE)
    page_ref_unfreeze(cpu, page, 1)  # All that is left is the isolation's.


@kernel
def move_page_cache(cpu: Cpu, new: Page, page: Page):
    """migrate_page_move_mapping() of a page that a file's slot has.

    Context: as it.
    Return: 0; -EAGAIN.
    Linux: mm/migrate.c migrate_page_move_mapping
    """
    i_pages = files[page_file_nr(page)].i_pages
    spin_lock_irq(cpu, i_pages)
    # 3.26.4: a lookup that finds the slot and the references frozen tries again, and then finds the new page.
    frozen = page_ref_freeze(page, 1 + hpage_nr_pages(page))
    if frozen:
        check_point(cpu, Point.PAGE_FROZEN, page)
        move_identity(new, page)
        replace_slots(cpu, new, page, cache_slot(page_file_nr(page), page.index))
    spin_unlock_irq(cpu, i_pages)
    return 0 if frozen else -EAGAIN


@kernel
def move_swap_cache(cpu: Cpu, new: Page, page: Page):
    """migrate_page_move_mapping() of an anon page in the swap cache.

    Context: as it.
    Return: 0; -EAGAIN.
    Linux: mm/migrate.c migrate_page_move_mapping
    """
    spin_lock_irq(cpu, swapper_space.i_pages)
    frozen = page_ref_freeze(page, 1 + hpage_nr_pages(page))
    if frozen:
        check_point(cpu, Point.PAGE_FROZEN, page)
        move_identity(new, page)
        for i in range(hpage_nr_pages(page)):
            tail_page(new, i).private = tail_page(page, i).private
        new.flags.or_(1 << PG_swapcache)
        replace_slots(cpu, new, page, swap_cache_slots[page.private])
    spin_unlock_irq(cpu, swapper_space.i_pages)
    return 0 if frozen else -EAGAIN


@kernel
def migrate_page_states(new: Page, page: Page):
    """Copy the flags; what only the LRU or the swap cache may see on one page is taken from the old one.

    Context: both locked, the content copied: PG_uptodate is set only now.
    Linux: mm/migrate.c migrate_page_states
    """
    flags = page.flags.and_(~(MOVED_FLAGS | 1 << PG_swapcache))
    new.flags.or_(flags & (COPIED_FLAGS | MOVED_FLAGS))
    if flags & (1 << PG_swapcache):
        for i in range(hpage_nr_pages(page)):
            tail_page(page, i).private = 0
