"""The page lock: PG_locked of the head, one lock for the whole compound page. (Linux: linux/pagemap.h)

It fixes `mapping` and `index` of an anon page and keeps split, migration and reuse away. Whoever waits has a
reference: a split needs an exact count, so the head cannot change under a waiter.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.mm.mm_types import Page
from concur_thp.mm.page_flags import PG_locked, PG_waiters, TestFlag, compound_head, page_to_pfn
from concur_thp.sync.bit_lock import FlagWord, bit_lock, bit_trylock, bit_unlock, bit_wait
from concur_thp.sync.lock_classes import PAGE_LOCK

assert Page.FIELDS["flags"].offset == 0, "the page is its own FlagWord"


@inline
def PageLocked(page: Page):
    """Does anybody hold the page lock?"""
    return TestFlag(page, PG_locked)


@inline
def assert_page_locked(cpu: Cpu, page: Page):
    """This CPU holds the page lock."""
    owner = compound_head(page).lock_owner
    bug_on(cpu, owner != cpu.id + 1, "page not locked by this CPU (values: pfn, owner + 1)",
           page_to_pfn(page), owner)


@kernel
def lock_page(cpu: Cpu, page: Page):
    """Take the page lock, sleeping while another has it.

    Context: may sleep; the caller has a reference. A second page lock only by trylock_page().
    Linux: include/linux/pagemap.h lock_page
    """
    point(cpu, Point.LOCK_PAGE)
    head = compound_head(page)
    bit_lock(cpu, FlagWord(int(head)), PG_locked, PG_waiters, PAGE_LOCK)
    head.lock_owner = cpu.id + 1


@kernel
def trylock_page(cpu: Cpu, page: Page):
    """Take the page lock if it is free.

    Context: any order of locks.
    Return: 1 when taken.
    Linux: include/linux/pagemap.h trylock_page
    """
    point(cpu, Point.LOCK_PAGE)
    head = compound_head(page)
    if not bit_trylock(cpu, FlagWord(int(head)), PG_locked, PAGE_LOCK):
        return 0
    head.lock_owner = cpu.id + 1
    return 1


@kernel
def wait_on_page_locked(cpu: Cpu, page: Page):
    """Wait until nobody holds the page lock; somebody may take it at once again.

    Context: may sleep; the caller has a reference.
    Linux: include/linux/pagemap.h wait_on_page_locked
    """
    bit_wait(cpu, FlagWord(int(compound_head(page))), PG_locked, PG_waiters)


@kernel
def unlock_page(cpu: Cpu, page: Page):
    """Release the page lock and wake who waits for it.

    Context: the CPU that took it.
    Linux: mm/filemap.c unlock_page
    """
    head = compound_head(page)
    bug_on(cpu, head.lock_owner != cpu.id + 1, "unlock_page: not locked by this CPU (values: pfn, owner + 1)",
           page_to_pfn(head), head.lock_owner)
    head.lock_owner = 0
    bit_unlock(cpu, FlagWord(int(head)), PG_locked, PG_waiters, PAGE_LOCK)
    point(cpu, Point.UNLOCK_PAGE)
