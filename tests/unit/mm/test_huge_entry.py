"""Values of huge entries, and how hard a fault tries for a huge page (3.34)."""

import pytest

from concur_thp.config import HPAGE_PMD_NR, PMD_SIZE
from concur_thp.mm.flags import (
    __GFP_DIRECT_RECLAIM,
    __GFP_KSWAPD_RECLAIM,
    __GFP_NORETRY,
    MADV_HUGEPAGE,
    PROT_READ,
)
from concur_thp.mm.huge_entry import (
    alloc_hugepage_direct_gfpmask,
    is_huge_zero_pmd,
    maybe_mkwrite,
    mk_huge_pmd,
    new_anon_pmd,
    pmd_modify,
    savedwrite,
)
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.mm_types import mem_map
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_HUGE,
    _PAGE_MIGRATION,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    entry_pfn,
    mk_entry,
)
from concur_thp.mm.thp_sysfs import set_switch

A = int(PMD_SIZE)
N = HPAGE_PMD_NR
DIRECT, WAKE, GIVE_UP_EARLY = int(__GFP_DIRECT_RECLAIM), int(__GFP_KSWAPD_RECLAIM), int(__GFP_NORETRY)
EFFORT = {  # defrag: madvised, not madvised
    "always": (DIRECT, DIRECT | GIVE_UP_EARLY),
    "defer": (WAKE, WAKE),
    "defer+madvise": (DIRECT, WAKE),
    "madvise": (DIRECT, 0),
    "never": (0, 0),
}


@pytest.mark.parametrize("defrag", EFFORT)
def test_effort_by_defrag_and_advice(new_task, defrag: str) -> None:
    task = new_task()
    set_switch("defrag", defrag)
    task.mmap(A, N)
    effort = DIRECT | WAKE | GIVE_UP_EARLY
    plain = int(alloc_hugepage_direct_gfpmask(task.vma(A))) & effort
    assert do_madvise(task.cpu, task.mm, A, N * 4096, MADV_HUGEPAGE) == 0
    assert (int(alloc_hugepage_direct_gfpmask(task.vma(A))) & effort, plain) == EFFORT[defrag]


def test_what_a_vma_may_write_a_fresh_entry_may(new_task) -> None:
    task = new_task()
    task.mmap(A, N)
    task.mmap(3 * A, N, prot=PROT_READ)
    page = mem_map[N]
    touched = mk_huge_pmd(page, task.vma(A))
    assert touched == mk_entry(N, _PAGE_PRESENT | _PAGE_HUGE | _PAGE_ACCESSED), "read-only until a write shows whose it is"
    assert new_anon_pmd(page, task.vma(A)) == touched | _PAGE_RW | _PAGE_DIRTY
    assert new_anon_pmd(page, task.vma(3 * A)) == touched | _PAGE_DIRTY
    assert maybe_mkwrite(touched, task.vma(3 * A)) == touched


def test_other_rights_leave_the_rest(new_task) -> None:
    new_task()
    kept = _PAGE_HUGE | _PAGE_ACCESSED | _PAGE_DIRTY
    writable = mk_entry(N, kept | _PAGE_PRESENT | _PAGE_RW)
    hinted = pmd_modify(writable, _PAGE_PROTNONE) | savedwrite(writable, 1)
    assert hinted == mk_entry(N, kept | _PAGE_PROTNONE | _PAGE_RW)
    assert pmd_modify(hinted, _PAGE_PRESENT) | savedwrite(hinted, 1) == writable
    assert pmd_modify(writable, _PAGE_PROTNONE) | savedwrite(writable, 0) == mk_entry(N, kept | _PAGE_PROTNONE)
    assert savedwrite(writable & ~_PAGE_RW, 1) == 0


def test_the_zero_page_is_told_from_a_migration_entry_of_its_frame(new_task) -> None:
    task = new_task()
    set_switch("enabled", "always")
    task.mmap(A, N)
    assert task.load(A) == 0
    pmd = task.pmd(A)
    assert is_huge_zero_pmd(pmd)
    assert not is_huge_zero_pmd(mk_entry(entry_pfn(pmd), _PAGE_MIGRATION)) and not is_huge_zero_pmd(0)
