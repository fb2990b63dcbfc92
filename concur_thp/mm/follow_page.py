"""From an address to the page that its entry maps, under the entry's lock. (Linux: mm/gup.c, mm/huge_memory.c)"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, check_point_with, point
from concur_thp.arch.points import Point
from concur_thp.config import HPAGE_PMD_NR, PAGE_SHIFT
from concur_thp.mm.errno import EBUSY, EFAULT
from concur_thp.mm.flags import (
    FOLL_COW,
    FOLL_DUMP,
    FOLL_FORCE,
    FOLL_GET,
    FOLL_MIGRATION,
    FOLL_MLOCK,
    FOLL_NUMA,
    FOLL_SPLIT,
    FOLL_TOUCH,
    FOLL_WRITE,
    VM_LOCKED,
)
from concur_thp.mm.huge_entry import is_huge_zero_pmd, vma_is_anonymous
from concur_thp.mm.huge_split_pmd import split_huge_pmd, split_if_unaware
from concur_thp.mm.mapcount import compound_mapcount, mapped_by_ptes
from concur_thp.mm.migration_entry import migration_entry_wait, pmd_migration_entry_wait
from concur_thp.mm.mlock import mlock_vma_page
from concur_thp.mm.mm_types import Entry, Page, Vma, mem_map, mms
from concur_thp.mm.page_flags import (
    PageAnon,
    PageCompound,
    PageDoubleMap,
    PageHead,
    PG_dirty,
    SetFlag,
    TestFlag,
    page_to_pfn,
    tail_page,
)
from concur_thp.mm.page_lock import lock_page, trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_PROTNONE,
    entry_pfn,
    is_migration_entry,
    is_pmd_migration_entry,
    mm_pmd,
    pmd_lockptr,
    pmd_none,
    pmd_present,
    pmd_table,
    pmd_trans_huge,
    pte_dirty,
    pte_lockptr,
    pte_none,
    pte_offset,
    pte_present,
    pte_write,
)
from concur_thp.mm.pgtable_generic import pmd_trans_unstable
from concur_thp.mm.pte import vm_normal_page
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import lru_add_drain, mark_page_accessed, put_page
from concur_thp.sync.spinlock import SpinLock, assert_spin_locked, spin_lock, spin_unlock


@inline
def no_page_table(vma: Vma, flags: int):
    """Nothing is mapped there: 0. For a dump of anonymous memory -EFAULT: a fault would only bring a page of zeroes."""
    return -EFAULT if flags & FOLL_DUMP and vma_is_anonymous(vma) else 0


@inline
def can_follow_write(entry: int, flags: int):
    """May a present entry be written through? FORCE may, once COW has been broken for it and the entry says dirty."""
    return pte_write(entry) or (flags & (FOLL_FORCE | FOLL_COW) == FOLL_FORCE | FOLL_COW and pte_dirty(entry))


@kernel
def follow_page_mask(cpu: Cpu, vma: Vma, addr: int, flags: int):
    """The page mapped at `addr`, head or tail as it comes.

    Context: mmap_sem held. Takes the pmd or pte ptl; sleeps with FOLL_SPLIT and FOLL_MIGRATION.
    Return: the page's address, and then cpu.scratch[0] has how many more pages the entry maps; 0 for no page; an error.
    Linux: mm/gup.c follow_page_mask, follow_pmd_mask
    """
    mm = mms[vma.vm_mm]
    point(cpu, Point.FOLLOW_PAGE)
    pmd = mm_pmd(mm, addr)
    if not pmd:
        return no_page_table(vma, flags)
    split_if_unaware(cpu, vma, pmd, addr)
    pmdval = pmd.val.load()  # 3.14.1: read once; DONTNEED and faults of other threads change it meanwhile
    while True:
        if pmd_none(pmdval):
            return no_page_table(vma, flags)
        if pmd_present(pmdval):
            break
        if flags & FOLL_MIGRATION == 0:  # 3.14.2
            return no_page_table(vma, flags)
        bug_on(cpu, not is_pmd_migration_entry(pmdval), "follow_page: what kind of pmd? (values: pmd, address)", pmdval,
               addr)
        pmd_migration_entry_wait(cpu, mm, pmd)
        pmdval = pmd.val.load()
    if pmd_trans_huge(pmdval):
        if flags & FOLL_NUMA and pmdval & _PAGE_PROTNONE:  # 3.14.3: the caller has to take a hinting fault
            return no_page_table(vma, flags)
        return follow_huge_pmd(cpu, vma, addr, pmd, flags)
    page = follow_page_pte(cpu, vma, addr, pmd, flags)
    cpu.scratch[0] = 0
    return page


@kernel
def follow_huge_pmd(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, flags: int):
    """The pmd looked huge: look again under its lock.

    Context: as follow_page_mask(); takes the pmd ptl.
    Return: as follow_page_mask().
    Linux: mm/gup.c follow_pmd_mask, from retry_locked on
    """
    ptl = pmd_lockptr(pmd)
    spin_lock(cpu, ptl)
    pmdval = pmd.val.load()  # 3.14.4
    while not pmd_none(pmdval) and not pmd_present(pmdval):
        spin_unlock(cpu, ptl)
        if flags & FOLL_MIGRATION == 0:
            return no_page_table(vma, flags)
        pmd_migration_entry_wait(cpu, mms[vma.vm_mm], pmd)
        spin_lock(cpu, ptl)
        pmdval = pmd.val.load()
    if pmd_none(pmdval):  # DONTNEED, with mmap_sem for read as we
        spin_unlock(cpu, ptl)
        return no_page_table(vma, flags)
    if not pmd_trans_huge(pmdval):  # split, by anybody
        spin_unlock(cpu, ptl)
        page = follow_page_pte(cpu, vma, addr, pmd, flags)
        cpu.scratch[0] = 0
        return page
    if flags & FOLL_SPLIT:
        return follow_split_pmd(cpu, vma, addr, pmd, flags, ptl)
    page = follow_trans_huge_pmd(cpu, vma, addr, pmd, flags)
    spin_unlock(cpu, ptl)
    cpu.scratch[0] = HPAGE_PMD_NR - 1
    return page


@kernel
def follow_split_pmd(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, flags: int, ptl: SpinLock):
    """The caller wants small pages only: split the huge page before anything of it is handed out (R9).

    Context: pmd ptl held and pmd huge; releases it. Sleeps.
    Return: as follow_page_mask(); the error of the split, -EBUSY when somebody else has a reference.
    Linux: mm/gup.c follow_pmd_mask, FOLL_SPLIT
    """
    pmdval = pmd.val.load()
    error = 0
    if is_huge_zero_pmd(pmdval):  # 3.14.5: shared by everybody, so only this mapping is split
        spin_unlock(cpu, ptl)
        split_huge_pmd(cpu, vma, pmd, addr)
        if pmd_trans_unstable(pmd):
            error = -EBUSY
    else:
        page = mem_map[entry_pfn(pmdval)]
        get_page(cpu, page)
        spin_unlock(cpu, ptl)
        error = split_referenced_page(cpu, page)
        if pmd_none(pmd.val.load()):  # a file's huge pmd just goes; or DONTNEED was here
            return no_page_table(vma, flags)
    if error != 0:
        return error
    page_or_error = follow_page_pte(cpu, vma, addr, pmd, flags)
    cpu.scratch[0] = 0
    return page_or_error


@inline
def split_referenced_page(cpu: Cpu, page: Page):
    """Split the huge page that we have a reference of, and drop that. The reference may be a tail's by then."""
    lock_page(cpu, page)
    error = split_huge_page(cpu, page)
    unlock_page(cpu, page)
    put_page(cpu, page)
    return error


@kernel
def follow_trans_huge_pmd(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, flags: int):
    """The subpage that a huge pmd maps at `addr`.

    Context: pmd ptl held, pmd huge.
    Return: the subpage's address, 0 when the entry does not allow the use, -EFAULT.
    Linux: mm/huge_memory.c follow_trans_huge_pmd
    """
    assert_spin_locked(cpu, pmd_lockptr(pmd))
    pmdval = pmd.val.load()
    if flags & FOLL_WRITE and not can_follow_write(pmdval, flags):  # 3.14.6
        return 0
    if flags & FOLL_DUMP and is_huge_zero_pmd(pmdval):
        return -EFAULT
    if flags & FOLL_NUMA and pmdval & _PAGE_PROTNONE:
        return 0
    head = mem_map[entry_pfn(pmdval)]
    bug_on(cpu, not PageHead(head), "huge pmd of a page that is no head (values: pfn, pmd)", page_to_pfn(head), pmdval)
    if flags & FOLL_TOUCH:
        pmd.val.or_(_PAGE_ACCESSED | _PAGE_DIRTY if flags & FOLL_WRITE else _PAGE_ACCESSED)
    if flags & FOLL_MLOCK and vma.vm_flags & VM_LOCKED:
        mlock_huge_page(cpu, head)
    page = tail_page(head, (addr >> PAGE_SHIFT) & (HPAGE_PMD_NR - 1))  # R5
    if flags & FOLL_GET:
        get_page(cpu, page)
        check_point(cpu, Point.GUP_PINNED, page)
    return int(page)


@kernel
def mlock_huge_page(cpu: Cpu, head: Page):
    """mlock a huge page that is mapped by this one huge pmd, and by no pte (3.24); else leave it to the split.

    Context: pmd ptl held, so no waiting for the page lock.
    Linux: mm/huge_memory.c follow_trans_huge_pmd, FOLL_MLOCK
    Differs: counts ptes; PG_double_map is missing after a migration (K10), and a pte-mapped THP would be mlocked (I21).
    """
    if (PageAnon(head) and compound_mapcount(head) != 1) or PageDoubleMap(head) or head.mapping == 0:
        return
    if not trylock_page(cpu, head):
        return
    lru_add_drain(cpu)  # A page in a pagevec cannot be isolated.
    if head.mapping != 0 and not PageDoubleMap(head) and not mapped_by_ptes(head):
        mlock_vma_page(cpu, head)
    unlock_page(cpu, head)


@kernel
def follow_page_pte(cpu: Cpu, vma: Vma, addr: int, pmd: Entry, flags: int):
    """The page that a pte maps at `addr`.

    Context: mmap_sem held, so a table stays a table. Takes the pte ptl; sleeps as follow_page_mask().
    Return: the page's address, 0 for no page, or an error.
    Linux: mm/gup.c follow_page_pte
    """
    while True:
        pmdval = pmd.val.load()
        if not pmd_table(pmdval):  # none, or huge again, since the caller looked
            return no_page_table(vma, flags)
        check_point_with(cpu, Point.TABLE_SEEN, pmd, vma)
        ptl = pte_lockptr(pmdval)
        spin_lock(cpu, ptl)
        pte = pte_offset(pmdval, addr).val.load()
        page = follow_pte_locked(vma, pte, flags)
        if page <= 0:
            spin_unlock(cpu, ptl)
            if pte_present(pte) or flags & FOLL_MIGRATION == 0 or not is_migration_entry(pte):
                return no_page_table(vma, flags) if pte_none(pte) else page
            migration_entry_wait(cpu, mms[vma.vm_mm], pmd, addr)
        elif flags & FOLL_SPLIT and PageCompound(Page(page)):
            get_page(cpu, Page(page))
            spin_unlock(cpu, ptl)
            error = split_referenced_page(cpu, Page(page))
            if error != 0:
                return error
        else:
            use_pte_page(cpu, vma, pte, Page(page), flags)
            spin_unlock(cpu, ptl)
            return page


@inline
def follow_pte_locked(vma: Vma, pte: int, flags: int):
    """The page of a pte if this use is allowed: its address, 0 for no page, -EFAULT."""
    if not pte_present(pte) or (flags & FOLL_NUMA and pte & _PAGE_PROTNONE):
        return 0
    if flags & FOLL_WRITE and not can_follow_write(pte, flags):
        return 0
    page = vm_normal_page(pte)
    if not page:  # the zero page: not worth dumping, else good for any reader
        return -EFAULT if flags & FOLL_DUMP else int(mem_map[entry_pfn(pte)])
    return int(page)


@inline
def use_pte_page(cpu: Cpu, vma: Vma, pte: int, page: Page, flags: int):
    """Take the reference and leave the marks that the flags ask for; pte ptl held."""
    if flags & FOLL_GET:
        get_page(cpu, page)
        check_point(cpu, Point.GUP_PINNED, page)
    if flags & FOLL_TOUCH:
        if flags & FOLL_WRITE and not pte_dirty(pte) and not TestFlag(page, PG_dirty):
            SetFlag(page, PG_dirty)  # set_page_dirty
        mark_page_accessed(cpu, page)
    # A THP mapped by ptes is never mlocked (I21).
    if flags & FOLL_MLOCK and vma.vm_flags & VM_LOCKED and not PageCompound(page) and page.mapping != 0:
        mlock_small_page(cpu, page)


@inline
def mlock_small_page(cpu: Cpu, page: Page):
    """mlock a small page if its lock is free; pte ptl held."""
    if trylock_page(cpu, page):
        lru_add_drain(cpu)
        mlock_vma_page(cpu, page)
        unlock_page(cpu, page)


__all__ = ["follow_page_mask", "follow_page_pte"]
