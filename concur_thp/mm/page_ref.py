"""References to pages. (Linux: include/linux/page_ref.h, mm.h)

Only a head or a small page has a non-zero count. From 0 it rises only in the allocator, in page_ref_unfreeze() by whoever
froze it, and when a split hands references to the tails of a head it froze.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point
from concur_thp.arch.points import Point
from concur_thp.mm.mm_types import Page
from concur_thp.mm.page_account import REF, account, account_freeze, account_get, account_gone, account_set
from concur_thp.mm.page_flags import compound_head, page_to_pfn


@inline
def page_ref_count(page: Page):
    return page._refcount.read()


@inline
def page_count(page: Page):
    """References of the whole page."""
    return compound_head(page)._refcount.read()


@inline
def set_page_count(page: Page, count: int):
    """Only while nobody else can reach the page; from the store (release) on they can."""
    account_set(page, count)
    page._refcount.store(count)


@inline
def page_ref_add(page: Page, count: int):
    """More references, by somebody who has one."""
    page._refcount.add(count)
    account_get(page, count)


@inline
def page_ref_sub(cpu: Cpu, page: Page, count: int):
    """Give back `count` references and keep at least one; returns how many there were."""
    account(cpu, page, -count * REF)
    return page._refcount.sub(count)


@inline
def get_page(cpu: Cpu, page: Page):
    """One more reference, by somebody who has one (or a mapping under its ptl)."""
    head = compound_head(page)
    old = head._refcount.add(1)
    bug_on(cpu, old <= 0, "get_page: page has no reference (value: pfn)", page_to_pfn(page), old)
    account_get(head, 1)


@inline
def put_page_testzero(cpu: Cpu, head: Page):
    """Drop a reference of a head or small page; was it the last?"""
    account(cpu, head, -REF)
    old = head._refcount.sub(1)
    bug_on(cpu, old <= 0, "put_page: page has no reference (value: pfn)", page_to_pfn(head), old)
    if old == 1:
        account_gone(cpu, head)
    return old == 1


@kernel
def get_page_unless_zero(page: Page):
    """Take a reference on exactly this struct unless it has none. Returns 1 when taken.

    Context: any, nothing needed: the one way to a page that was found by its pfn (R34). Fails on every tail (R22).
    Linux: include/linux/mm.h get_page_unless_zero
    """
    seen = page._refcount.read()
    while seen > 0:
        now = page._refcount.cas(seen, seen + 1)
        if now == seen:
            account_get(page, 1)
            return 1
        seen = now
    return 0


@inline
def page_ref_freeze(page: Page, count: int):
    """From exactly `count` references to 0, or not at all. Full barrier."""
    frozen = page._refcount.cas(count, 0) == count
    if frozen:
        account_freeze(page, count)
    return frozen


@inline
def page_ref_unfreeze(cpu: Cpu, page: Page, count: int):
    """Give a frozen page its references (release): everything written before is seen by who gets one."""
    bug_on(cpu, page._refcount.read() != 0, "page_ref_unfreeze: not frozen (value: pfn)", page_to_pfn(page), count)
    check_point(cpu, Point.PAGE_THAW, page)
    account_get(page, count)
    page._refcount.store(count)
