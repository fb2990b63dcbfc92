"""Page tables when their lock is released, huge pmds when they are set: what must be caught, what let pass."""



import pytest

from concur_thp.arch.points import Point
from concur_thp.check.instant import check_at
from concur_thp.errors import KernelBug
from concur_thp.mm.migrate import NEW_PAGE
from concur_thp.mm.mm_types import NIL, PAGE_TYPE_TABLE, mem_map
from concur_thp.mm.move_pages import move_page
from concur_thp.mm.page_flags import PG_head, PG_mlocked, TestFlag
from concur_thp.mm.pgtable import _PAGE_MIGRATION, pmd_trans_huge
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_madvise, sys_mlock, sys_mprotect, sys_mremap, sys_munmap
from concur_thp.mm.uaccess import user_load
from tests.unit.check.invariant_cases import DONTNEED, NEW, READ, RW, allows, breaks, cases_of, fork, release, split, vma_of
from tests.unit.check.tables import HUGE, PAGE, SMALL, THP, ZERO, pmd_table_of, pte_table_of

# -- caught ---------------------------------------------------------------------------------------------------------


@breaks("I5")
def huge_pmd_without_a_deposited_table(scene):
    mem_map[pmd_table_of(scene, THP)].pmd_huge_pte = NIL
    release(scene, pmd_table_of(scene, THP))


@breaks("I5")
def deposited_page_that_is_no_table(scene):
    mem_map[pmd_table_of(scene, THP)].pmd_huge_pte = scene.pfn(SMALL)
    release(scene, pmd_table_of(scene, THP))


@breaks("I6")
def huge_pmd_not_aligned(scene):
    scene.entry(THP).val.add(PAGE)
    release(scene, pmd_table_of(scene, THP))


@breaks("I6")
def huge_pmd_of_no_huge_page(scene):
    scene.page(THP).flags.and_(~(1 << PG_head))
    release(scene, pmd_table_of(scene, THP))


@breaks("I6")
def huge_pmd_of_a_page_without_references(scene):
    scene.page(THP)._refcount.store(0)
    release(scene, pmd_table_of(scene, THP))


@breaks("I6")
def huge_pmd_of_a_page_that_no_pmd_maps(scene):
    mem_map[scene.pfn(THP) + 1].compound_mapcount.store(-1)
    release(scene, pmd_table_of(scene, THP))


@breaks("I7")
def pte_of_no_frame(scene):
    scene.entry(SMALL).val.store(1 << 40 | 1)
    release(scene, pte_table_of(scene, SMALL))


@breaks("I7")
def pte_of_a_page_without_references(scene):
    scene.page(SMALL)._refcount.store(0)
    release(scene, pte_table_of(scene, SMALL))


@breaks("I7")
def pte_of_a_page_that_no_pte_maps(scene):
    scene.page(SMALL)._mapcount.store(-1)
    release(scene, pte_table_of(scene, SMALL))


@breaks("I7")
def pte_of_a_table(scene):
    scene.page(SMALL).page_type = PAGE_TYPE_TABLE
    release(scene, pte_table_of(scene, SMALL))


@breaks("I8")
def huge_pmd_beyond_its_vma(scene):
    vma = vma_of(scene, THP)
    vma.vm_end = THP + HUGE - PAGE
    scene.cpu.check_with = THP
    check_at(scene.cpu, Point.HUGE_PMD_SET, vma)


@breaks("I8")
def huge_page_at_another_index(scene):
    scene.page(THP).index = scene.page(THP).index + 8
    scene.cpu.check_with = THP
    check_at(scene.cpu, Point.HUGE_PMD_SET, vma_of(scene, THP))


@breaks("I10")
def migration_entry_of_an_unlocked_page(scene):
    scene.entry(SMALL).val.store(scene.pfn(SMALL) << 12 | _PAGE_MIGRATION)
    release(scene, pte_table_of(scene, SMALL))


@breaks("I10")
def huge_migration_entry_of_an_unlocked_page(scene):
    scene.entry(THP).val.store(scene.pfn(THP) << 12 | _PAGE_MIGRATION)
    release(scene, pmd_table_of(scene, THP))


@breaks("I21")
def mlocked_thp_mapped_by_ptes(scene):
    head = scene.page(THP)
    assert sys_mprotect(scene.cpu, THP, PAGE, 1) == 0
    head.flags.or_(1 << PG_mlocked)
    release(scene, pte_table_of(scene, THP))


# -- let pass -------------------------------------------------------------------------------------------------------


@allows("I5")
def zero_pages_and_migration_entries_have_tables_too(scene):
    lru_add_drain(scene.cpu)
    assert move_page(scene.cpu, scene.mm, THP, NEW_PAGE) == 0
    assert pmd_trans_huge(scene.entry(THP).val.load())
    assert sys_munmap(scene.cpu, ZERO, HUGE) == 0


@allows("I6")
def huge_zero_pmd_beside_others(scene):
    assert sys_mprotect(scene.cpu, THP, 4 * HUGE, READ) == 0
    assert sys_mprotect(scene.cpu, THP, 4 * HUGE, RW) == 0


@allows("I7")
def special_and_absent_ptes(scene):
    assert user_load(scene.cpu, SMALL + 5 * PAGE) == 0
    assert sys_madvise(scene.cpu, SMALL, PAGE, DONTNEED) == 0
    assert user_load(scene.cpu, SMALL) == 0


@allows("I8")
def moved_to_another_address(scene):
    assert sys_mremap(scene.cpu, THP, HUGE, HUGE, NEW) == NEW
    assert pmd_trans_huge(scene.entry(NEW).val.load())
    assert sys_mprotect(scene.cpu, NEW, HUGE, READ) == 0


@allows("I10")
def entries_while_the_page_is_locked(scene):
    fork(scene)
    lru_add_drain(scene.cpu)
    assert move_page(scene.cpu, scene.mm, THP, NEW_PAGE) == 0
    assert sys_mprotect(scene.cpu, THP, PAGE, READ) == 0
    assert split(scene, THP) == 0


@allows("I21")
def mlocked_by_its_only_pmd(scene):
    assert sys_mlock(scene.cpu, THP, 2 * HUGE) == 0
    assert TestFlag(scene.page(THP), PG_mlocked)
    assert sys_mprotect(scene.cpu, THP, PAGE, READ) == 0
    assert not TestFlag(scene.page(THP), PG_mlocked) and TestFlag(scene.page(THP + HUGE), PG_mlocked)
    scene.store(THP + PAGE)


@allows("I21")
def mlocked_small_page(scene):
    assert sys_mlock(scene.cpu, SMALL, 2 * PAGE) == 0
    scene.store(SMALL)


test_it_speaks, test_it_keeps_silent = cases_of(__name__)


def test_a_move_passes_the_place_of_i8(watched):
    watched.page(THP).index = watched.page(THP).index + 8
    with pytest.raises(KernelBug, match="^I8: huge page mapped at another place"):
        sys_mremap(watched.cpu, THP, HUGE, HUGE, NEW)
