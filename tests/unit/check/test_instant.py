"""Each instant invariant broken by one word (or the fewest that stay consistent): at its place it speaks, by name.

`INVARIANT_CATCHES` has at least one case for each row of check/invariants.py: a function that breaks what the row guards
and passes the place. Everything runs as plain Python on the small machine of conftest.py, where bug() raises.
"""

from collections.abc import Callable
from typing import Any

import pytest

from concur_thp.arch.irq import cpu_park
from concur_thp.arch.linker import interpreted
from concur_thp.arch.points import Point
from concur_thp.arch.system import system
from concur_thp.check.instant import check_at
from concur_thp.errors import KernelBug
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE
from concur_thp.mm.mm_types import NIL, PAGE_TYPE_TABLE, Page, Vma, mem_map, mms, pgdat, vmas
from concur_thp.mm.page_account import MAP, PIN, account
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_flags import PG_double_map, PG_head, PG_locked, PG_lru, PG_mlocked, page_to_pfn
from concur_thp.mm.page_lock import trylock_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pgtable import _PAGE_MIGRATION, _PAGE_PRESENT, _PAGE_RW, mm_pmd
from concur_thp.mm.put_page import put_page
from concur_thp.mm.rmap import page_dup_rmap
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_mprotect
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.rwsem import down_read
from concur_thp.sync.spinlock import spin_lock, spin_lock_irq
from tests.unit.check.tables import HOLES, HUGE, PAGE, SMALL, THP, pmd_table_of, pte_table_of

Broken = Callable[[Any], object]
INVARIANT_CATCHES: dict[str, list[Broken]] = {}


def breaks(invariant: str) -> Callable[[Broken], Broken]:
    """The decorated function breaks this invariant and passes a place where it is asked."""
    def add(function: Broken) -> Broken:
        INVARIANT_CATCHES.setdefault(invariant, []).append(function)
        return function

    return add


def release(scene: Any, table: int) -> None:
    """What the holder of a table's lock sees when it gives it back."""
    spin_lock(scene.cpu, mem_map[table].ptl)
    check_at(scene.cpu, Point.SPIN_UNLOCK, mem_map[table].ptl)


def vma_of(scene: Any, addr: int) -> Vma:
    return Vma(int(vmas[vmas.index(find_vma(scene.mm, addr))]))


def pinned(scene: Any) -> None:
    check_at(scene.cpu, Point.GUP_PINNED, mem_map[scene.pfn(THP) + 3])


# -- pages ------------------------------------------------------------------------------------------------------------


@breaks("I1")
def tail_with_a_reference(scene):
    mem_map[scene.pfn(THP) + 5]._refcount.add(1)
    pinned(scene)


@breaks("I2")
def mapcount_of_a_tail_below(scene):
    mem_map[scene.pfn(THP) + 5]._mapcount.sub(3)
    pinned(scene)


@breaks("I2")
def compound_mapcount_below(scene):
    mem_map[scene.pfn(THP) + 1].compound_mapcount.store(-2)
    check_at(scene.other, Point.PUT_PAGE_ZERO, scene.page(THP))


@breaks("I3")
def mapping_before_its_reference(scene):
    scene.machine.listen_checks()
    page_dup_rmap(scene.cpu, scene.page(SMALL), 0)


@breaks("I3")
def reference_given_back_before_the_mapping(scene):
    scene.machine.listen_checks()
    put_page(scene.cpu, scene.page(THP))


@breaks("I3")
def pin_without_a_reference(scene):
    scene.machine.listen_checks()
    account(scene.cpu, scene.page(THP), PIN)


@breaks("I4")
def frozen_though_ptes_map_it(scene):
    scene.page(SMALL)._refcount.store(0)
    check_at(scene.cpu, Point.PAGE_FROZEN, scene.page(SMALL))


@breaks("I11")
def frozen_with_references(scene):
    check_at(scene.cpu, Point.PAGE_FROZEN, scene.page(SMALL))


@breaks("I11")
def reference_of_a_frozen_page(scene):
    page = fresh_page(scene)
    check_at(scene.cpu, Point.PAGE_THAW, page)


@breaks("I11")
def mapping_of_a_frozen_page(scene):
    page = fresh_page(scene)
    page._refcount.store(0)
    page._mapcount.store(0)
    check_at(scene.cpu, Point.PAGE_THAW, page)


@breaks("I12")
def tail_without_its_head(scene):
    mem_map[scene.pfn(THP) + 5].compound_head = 0
    pinned(scene)


@breaks("I13")
def piece_not_locked(scene):
    piece_of(scene).flags.and_(~(1 << PG_locked))
    check_at(scene.cpu, Point.PAGE_THAW, piece_of(scene))


@breaks("I13")
def piece_at_another_index(scene):
    piece_of(scene).index = 17
    check_at(scene.cpu, Point.PAGE_THAW, piece_of(scene))


@breaks("I13")
def piece_without_its_mapping(scene):
    piece_of(scene).mapping = 0
    check_at(scene.cpu, Point.PAGE_THAW, piece_of(scene))


@breaks("I13")
def piece_still_a_tail(scene):
    piece_of(scene)
    mem_map[scene.pfn(THP) + 5].compound_head = scene.pfn(THP) << 1 | 1
    check_at(scene.cpu, Point.PAGE_THAW, mem_map[scene.pfn(THP) + 5])


@breaks("I17")
def queued_small_page(scene):
    spin_lock_irq(scene.cpu, pgdat.split_queue_lock)
    scene.page(HOLES).flags.and_(~(1 << PG_head))
    check_at(scene.cpu, Point.SPIN_UNLOCK, pgdat.split_queue_lock)


@breaks("I18")
def on_a_list_without_the_flag(scene):
    lru_add_drain(scene.cpu)
    spin_lock_irq(scene.cpu, pgdat.lru_lock)
    scene.page(SMALL + 3 * PAGE).flags.and_(~(1 << PG_lru))
    check_at(scene.cpu, Point.SPIN_UNLOCK, pgdat.lru_lock)


@breaks("I18")
def isolated_and_on_a_list(scene):
    lru_add_drain(scene.cpu)
    check_at(scene.cpu, Point.LRU_ISOLATED, scene.page(SMALL))


@breaks("I18")
def tail_on_the_lru(scene):
    mem_map[scene.pfn(THP) + 5].flags.or_(1 << PG_lru)
    pinned(scene)


@breaks("I20")
def double_map_of_a_page_that_only_this_pmd_maps(scene):
    mem_map[scene.pfn(THP) + 1].flags.or_(1 << PG_double_map)
    mem_map[scene.pfn(THP) + 1].compound_mapcount.store(-1)
    release(scene, pmd_table_of(scene, THP))


@breaks("I20")
def double_map_of_a_frozen_page(scene):
    head = scene.page(THP)
    head._refcount.store(0)
    mem_map[scene.pfn(THP) + 1].compound_mapcount.store(-1)
    mem_map[scene.pfn(THP) + 1].flags.or_(1 << PG_double_map)
    check_at(scene.cpu, Point.PAGE_FROZEN, head)


@breaks("I24")
def mapping_moved_without_the_page_lock(scene):
    scene.cpu.check_with = int(vma_of(scene, SMALL))
    check_at(scene.cpu, Point.ANON_RMAP_MOVED, scene.page(SMALL))


@breaks("I24")
def mapping_moved_to_another_family(scene):
    page = scene.page(SMALL)
    assert trylock_page(scene.cpu, page)
    page.mapping = vma_of(scene, FILE_PRIVATE).anon_vma << 2 | 1
    scene.cpu.check_with = int(vma_of(scene, SMALL))
    check_at(scene.cpu, Point.ANON_RMAP_MOVED, page)


@breaks("I25")
def reference_written_past_the_helpers(scene):
    scene.machine.listen_checks()
    page = fresh_page(scene)
    get_page(scene.cpu, page)
    page._refcount.sub(1)
    put_page(scene.cpu, page)


@breaks("I25")
def reference_given_back_for_another_page(scene):
    scene.machine.listen_checks()
    page, other = fresh_page(scene), fresh_page(scene)
    other._refcount.add(1)
    put_page(scene.cpu, other)
    put_page(scene.cpu, page)
    put_page(scene.cpu, other)


@breaks("I25")
def frozen_while_somebody_had_a_reference(scene):
    scene.machine.listen_checks()
    page = fresh_page(scene)
    page._refcount.store(0)
    check_at(scene.cpu, Point.PAGE_FROZEN, page)


@breaks("I25")
def mapping_counted_off_twice(scene):
    scene.machine.listen_checks()
    account(scene.cpu, scene.page(SMALL), -MAP)
    account(scene.cpu, scene.page(SMALL), -MAP)


FILE_PRIVATE = 48 * HUGE + PAGE


def fresh_page(scene: Any) -> Page:
    return Page(int(alloc_page(scene.cpu, GFP_HIGHUSER_MOVABLE)))


def piece_of(scene: Any) -> Page:
    """Subpage 5 of the THP, as a split leaves it just before it gets references; made at the first call."""
    head, piece = scene.page(THP), mem_map[scene.pfn(THP) + 5]
    if piece.compound_head:
        piece.compound_head = 0
        piece.flags.write(1 << PG_locked)
        piece.mapping, piece.index = head.mapping, head.index + 5
    return Page(int(piece))


# -- tables -----------------------------------------------------------------------------------------------------------


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


# -- translations -----------------------------------------------------------------------------------------------------


@breaks("I14")
def one_address_small_and_huge(scene):
    scene.cpu.tlb_small[5].tag = (THP >> 12) + 1 + 5
    check_at(scene.cpu, Point.USER, 0)


@breaks("I15")
def freed_frame_in_a_tlb(scene):
    page = fresh_page(scene)
    slot = scene.cpu.tlb_small[3]
    slot.tag, slot.entry = 0x1234, page_to_pfn(page) << 12 | 1
    check_at(scene.other, Point.PUT_PAGE_ZERO, page)


@breaks("I16")
def write_bit_taken_without_a_flush(scene):
    scene.entry(SMALL + PAGE).val.and_(~_PAGE_RW)
    check_at(scene.cpu, Point.USER, 0)


@breaks("I16")
def huge_pmd_absent_without_a_flush(scene):
    scene.entry(THP).val.and_(~_PAGE_PRESENT)
    check_at(scene.cpu, Point.USER, 0)


@breaks("I16")
def other_frame_without_a_flush(scene):
    scene.entry(SMALL + PAGE).val.add(PAGE)
    check_at(scene.cpu, Point.USER, 0)


# -- windows ----------------------------------------------------------------------------------------------------------


def see_table(scene: Any, addr: int) -> None:
    down_read(scene.cpu, scene.mm.mmap_sem)
    scene.cpu.check_with = int(vma_of(scene, addr))
    check_at(scene.cpu, Point.TABLE_SEEN, mm_pmd(scene.mm, addr))


@breaks("I9")
def table_gone_under_mmap_sem(scene):
    see_table(scene, SMALL)
    mm_pmd(scene.mm, SMALL).val.store(0)
    check_at(scene.cpu, Point.UP_READ, scene.mm.mmap_sem)


@breaks("I9")
def other_table_under_mmap_sem(scene):
    see_table(scene, SMALL)
    mm_pmd(scene.mm, SMALL).val.add(PAGE)
    check_at(scene.cpu, Point.UP_READ, scene.mm.mmap_sem)


@breaks("I24")
def other_anon_vma_under_mmap_sem(scene):
    see_table(scene, SMALL)
    vma = vma_of(scene, SMALL)
    vma.anon_vma = vma.anon_vma + 1
    check_at(scene.cpu, Point.UP_READ, scene.mm.mmap_sem)


@breaks("I19")
def pmd_that_the_split_left(scene):
    check_at(scene.cpu, Point.SPLIT_PAGE_UNMAPPED, scene.page(THP))


@breaks("I19")
def pte_that_the_split_left(scene):
    check_at(scene.cpu, Point.SPLIT_PAGE_UNMAPPED, scene.page(HOLES))


def detached(scene: Any) -> int:
    """As collapse_pmd() leaves it for a moment: mmap_sem write, the pmd none, the table known to us alone."""
    table = pte_table_of(scene, SMALL)
    scene.mm.mmap_sem.writer = scene.cpu.id + 1
    mm_pmd(scene.mm, SMALL).val.store(0)
    scene.cpu.check_with = table
    return table


@breaks("I22")
def pmd_filled_while_detached(scene):
    detached(scene)
    mm_pmd(scene.mm, SMALL).val.store(scene.pfn(THP) << 12 | 1)
    check_at(scene.cpu, Point.COLLAPSE_ISOLATED, mm_pmd(scene.mm, SMALL))


@breaks("I22")
def walker_in_a_detached_table(scene):
    spin_lock(scene.other, mem_map[detached(scene)].ptl)
    check_at(scene.cpu, Point.COLLAPSE_COPIED, mm_pmd(scene.mm, SMALL))


@breaks("I22")
def collapse_without_mmap_sem(scene):
    detached(scene)
    scene.mm.mmap_sem.writer = 0
    check_at(scene.cpu, Point.COLLAPSE_ISOLATED, mm_pmd(scene.mm, SMALL))


@breaks("I22")
def detached_page_in_a_tlb(scene):
    detached(scene)
    for _ in range(64):  # It looks at some pages of the table only.
        check_at(scene.cpu, Point.COLLAPSE_ISOLATED, mm_pmd(scene.mm, SMALL))


@breaks("I23")
def khugepaged_in_a_dying_mm(scene):
    child = scene.fork()
    cpu_park(scene.other)
    check_at(scene.other, Point.EXIT_MMAP, mms[child.id])
    check_at(scene.cpu, Point.SCAN_PMD, mms[child.id])


@pytest.mark.parametrize("invariant, case", [(i, case) for i, cases in INVARIANT_CATCHES.items() for case in cases],
                         ids=lambda it: it if isinstance(it, str) else it.__name__)
def test_it_speaks(scene, invariant, case):
    with interpreted(), pytest.raises(KernelBug, match=f"^{invariant}: "):
        case(scene)
    assert system.panicked.read()
