"""Migration entries: what stands in a table while a page is split or migrated. (Linux: linux/swapops.h, mm/migrate.c)

An entry names a page that is locked for as long as the entry exists (I10). It owns no reference and no mapcount; it is
still counted in rss. Whoever faults on it waits for the page lock and then tries the access again.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import nap
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.mm.mm_types import Entry, Mm, Page, mem_map
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.mm.page_lock import PageLocked, wait_on_page_locked
from concur_thp.mm.page_ref import get_page_unless_zero
from concur_thp.mm.pgtable import (
    _PAGE_MIGRATION,
    _PAGE_RW,
    entry_pfn,
    is_migration_entry,
    is_pmd_migration_entry,
    mk_entry,
    pmd_lockptr,
    pte_lockptr,
    pte_offset,
)
from concur_thp.mm.swap import put_page
from concur_thp.sync.spinlock import SpinLock, spin_lock, spin_unlock


@inline
def make_migration_entry(page: Page, write: int):
    """The entry of a locked page; `write` when the entry it stands for could be written through."""
    return mk_entry(page_to_pfn(page), _PAGE_MIGRATION | (_PAGE_RW if write else 0))


@inline
def migration_entry_to_page(entry: int) -> Page:
    """The page of an entry, small or huge; a subpage while a THP is being split."""
    return mem_map[entry_pfn(entry)]


@inline
def assert_migrating(cpu: Cpu, entry: int):
    """The page of an entry is locked; the entry's ptl held (I10)."""
    bug_on(cpu, not PageLocked(mem_map[entry_pfn(entry)]), "migration entry of an unlocked page (values: pfn, entry)",
           entry_pfn(entry), entry)


@inline
def is_write_migration_entry(entry: int):
    return entry & (_PAGE_MIGRATION | _PAGE_RW) == _PAGE_MIGRATION | _PAGE_RW


@inline
def make_migration_entry_read(entry: int):
    return entry & ~_PAGE_RW


@kernel
def migration_entry_wait(cpu: Cpu, mm: Mm, pmd: Entry, addr: int):
    """A fault met a migration entry in a pte: wait until its page is unlocked.

    Context: mmap_sem held, the pmd is a table; takes the pte ptl. Sleeps.
    Linux: mm/migrate.c migration_entry_wait
    """
    table = pmd.val.load()
    ptl = pte_lockptr(table)
    spin_lock(cpu, ptl)
    entry = pte_offset(table, addr).val.load()
    wait_for_migration(cpu, entry, is_migration_entry(entry), ptl)


@kernel
def pmd_migration_entry_wait(cpu: Cpu, mm: Mm, pmd: Entry):
    """A fault met a migration entry in a pmd: wait until its page is unlocked.

    Context: mmap_sem held; takes the pmd ptl. Sleeps.
    Linux: mm/migrate.c pmd_migration_entry_wait
    """
    ptl = pmd_lockptr(pmd)
    spin_lock(cpu, ptl)
    entry = pmd.val.load()
    wait_for_migration(cpu, entry, is_pmd_migration_entry(entry), ptl)


@kernel
def wait_for_migration(cpu: Cpu, entry: int, migrating: int, ptl: SpinLock):
    """Release the ptl, and if the entry is a migration entry wait for the lock of its page.

    Context: the entry's ptl held, released here. Sleeps.
    Linux: mm/migrate.c __migration_entry_wait
    Differs: who cannot wait sleeps a moment before it faults again. A migration of a THP mapped by ptes may take many
    milliseconds here, and all the time its tails cannot be waited for.
    """
    if not migrating:
        spin_unlock(cpu, ptl)  # Restored already: the access will succeed, or fault on what is there now.
        return 0
    assert_migrating(cpu, entry)
    page = migration_entry_to_page(entry)
    # Never get_page(): a tail has no count of its own and a frozen head has 0, which must stay 0 (X23). There is
    # nothing to sleep on then; the fault comes again until the splitter has given the piece its own count.
    taken = get_page_unless_zero(page)
    spin_unlock(cpu, ptl)
    point(cpu, Point.MIGRATION_ENTRY_WAIT)
    if taken:
        wait_on_page_locked(cpu, page)
        put_page(cpu, page)
    else:
        cpu_park(cpu)
        nap()
        cpu_resume(cpu)
    return 0


__all__ = [
    "assert_migrating", "is_write_migration_entry", "make_migration_entry", "make_migration_entry_read",
    "migration_entry_to_page", "migration_entry_wait", "pmd_migration_entry_wait",
]
