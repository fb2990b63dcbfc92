"""Page flags and compound pages. (Linux: include/linux/page-flags.h, mm.h)

Flags of a compound page live on its head: the accessors go through compound_head(). `index`, `mapping` and the list
links read raw from a tail are garbage (R6).
"""

from concur_thp.arch.builtins import smp_wmb
from concur_thp.arch.linker import inline
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.mm.mm_types import MAPPING_SHIFT, PAGE_MAPPING_ANON, Page, mem_map

PG_locked = 0
PG_waiters = 1
PG_referenced = 2
PG_uptodate = 3
PG_dirty = 4
PG_lru = 5
PG_active = 6
PG_workingset = 7
PG_writeback = 8
PG_head = 9
PG_swapcache = 10
PG_reclaim = 11
PG_swapbacked = 12
PG_unevictable = 13
PG_mlocked = 14
PG_hwpoison = 15
PG_double_map = 16
"""In tail 1 of a THP."""
PG_reserved = 17
PG_migrated = 18
"""On the head of a migration target: it may have holes without being queued for a split (K15)."""

FLAG_NAMES = {value: name[3:] for name, value in list(globals().items()) if name.startswith("PG_")}

PAGE_FLAGS_CHECK_AT_FREE = (
    1 << PG_locked | 1 << PG_lru | 1 << PG_active | 1 << PG_unevictable | 1 << PG_mlocked | 1 << PG_writeback
    | 1 << PG_hwpoison
)
"""None of these may be set on a page that goes back to the allocator."""


@inline
def page_to_pfn(page: Page):
    return mem_map.index(page)


@inline
def PageTail(page: Page):
    return page.compound_head & 1


@inline
def compound_head(page: Page) -> Page:
    """The head of a compound page; a small page is its own."""
    head = page.compound_head
    return mem_map[head >> 1] if head & 1 else page


@inline
def PageHead(page: Page):
    return (page.flags.read() >> PG_head) & 1


@inline
def PageCompound(page: Page):
    return PageHead(page) or PageTail(page)


@inline
def PageTransHuge(page: Page):
    """Is this the head of a huge page? (Only huge pages are compound here.)"""
    return PageHead(page)


@inline
def TestFlag(page: Page, flag: int):
    return (compound_head(page).flags.read() >> flag) & 1


@inline
def SetFlag(page: Page, flag: int):
    compound_head(page).flags.or_(1 << flag)


@inline
def ClearFlag(page: Page, flag: int):
    compound_head(page).flags.and_(~(1 << flag))


@inline
def TestClearFlag(page: Page, flag: int):
    return (compound_head(page).flags.and_(~(1 << flag)) >> flag) & 1


@inline
def __SetPageUptodate(page: Page):
    """The content of a page that nobody else can reach yet is complete."""
    smp_wmb()  # the content before the bit, and so before any entry that maps it
    page.flags.write(page.flags.read() | 1 << PG_uptodate)


@inline
def tail_page(head: Page, i: int) -> Page:
    """The i-th subpage of a compound page."""
    return Page(int(head) + i * 64)


@inline
def PageDoubleMap(head: Page):
    return (tail_page(head, 1).flags.read() >> PG_double_map) & 1


@inline
def TestSetPageDoubleMap(head: Page):
    return (tail_page(head, 1).flags.or_(1 << PG_double_map) >> PG_double_map) & 1


@inline
def TestClearPageDoubleMap(head: Page):
    return (tail_page(head, 1).flags.and_(~(1 << PG_double_map)) >> PG_double_map) & 1


@inline
def PageAnon(page: Page):
    return compound_head(page).mapping & PAGE_MAPPING_ANON


@inline
def PageSwapCache(page: Page):
    flags = compound_head(page).flags.read()
    return (flags >> PG_swapcache) & (flags >> PG_swapbacked) & 1


@inline
def page_anon_vma_nr(page: Page):
    """The anon_vma's number in `mapping` of an anon page."""
    return compound_head(page).mapping >> MAPPING_SHIFT


@inline
def PageHWPoison(page: Page):
    """Is this very frame broken? Of each subpage by itself."""
    return (page.flags.read() >> PG_hwpoison) & 1


@inline
def hpage_nr_pages(page: Page):
    return HPAGE_PMD_NR if PageTransHuge(page) else 1
