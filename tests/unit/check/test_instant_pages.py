"""Pages, frozen and thawed, pinned and isolated; lists; the shadow accounts: what must be caught, what let pass."""

from typing import Any

from concur_thp.arch.points import Point
from concur_thp.check.instant import check_at
from concur_thp.check.pins import declare_pin, unpin
from concur_thp.mm.compaction import compact_node
from concur_thp.mm.deferred_split_drain import deferred_split_scan
from concur_thp.mm.errno import EBUSY
from concur_thp.mm.gup_fast import get_user_pages_fast
from concur_thp.mm.lru import LRU_ACTIVE_ANON
from concur_thp.mm.migrate import NEW_PAGE
from concur_thp.mm.mm_types import Page, mem_map, pgdat
from concur_thp.mm.move_pages import move_page
from concur_thp.mm.page_account import MAP, PIN, account
from concur_thp.mm.page_flags import PageDoubleMap, PageHead, PG_dirty, PG_double_map, PG_head, PG_locked, PG_lru
from concur_thp.mm.page_lock import trylock_page
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.put_page import put_page
from concur_thp.mm.rmap import page_dup_rmap
from concur_thp.mm.split_huge_page_tail import TAIL_FLAGS
from concur_thp.mm.swap import isolate_lru_page, lru_add_drain, putback_lru_page
from concur_thp.mm.syscall import sys_mprotect, sys_munmap
from concur_thp.mm.vmscan import shrink_active_list
from concur_thp.sync.spinlock import spin_lock_irq
from tests.unit.check.invariant_cases import (
    READ,
    allows,
    breaks,
    cases_of,
    child_exits,
    fork,
    fresh_page,
    pinned,
    release,
    split,
    vma_of,
)
from tests.unit.check.tables import FILE, HOLES, HUGE, PAGE, SMALL, THP, pmd_table_of


def look_at_pinned(scene):
    """As get_user_pages() does with a tail."""
    check_at(scene.cpu, Point.GUP_PINNED, mem_map[scene.pfn(THP) + 3])


# -- caught ---------------------------------------------------------------------------------------------------------


@breaks("I1")
def tail_with_a_reference(scene):
    mem_map[scene.pfn(THP) + 5]._refcount.add(1)
    look_at_pinned(scene)


@breaks("I2")
def mapcount_of_a_tail_below(scene):
    mem_map[scene.pfn(THP) + 5]._mapcount.sub(3)
    look_at_pinned(scene)


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
    look_at_pinned(scene)


@breaks("I13")
def piece_not_locked(scene):
    piece_of(scene).flags.and_(~(1 << PG_locked))
    check_at(scene.cpu, Point.PAGE_THAW, piece_of(scene))


@breaks("I13")
def piece_that_has_forgotten_that_it_is_dirty(scene):
    piece_of(scene)
    scene.page(THP).flags.or_(1 << PG_dirty)
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
def oldest_page_without_a_link(scene):
    """The end from which reclaim takes pages."""
    lru_add_drain(scene.cpu)
    spin_lock_irq(scene.cpu, pgdat.lru_lock)
    mem_map[pgdat.lru[LRU_ACTIVE_ANON].tail].lru_next = scene.pfn(SMALL)
    check_at(scene.cpu, Point.SPIN_UNLOCK, pgdat.lru_lock)


@breaks("I18")
def isolated_and_on_a_list(scene):
    lru_add_drain(scene.cpu)
    check_at(scene.cpu, Point.LRU_ISOLATED, scene.page(SMALL))


@breaks("I18")
def tail_on_the_lru(scene):
    mem_map[scene.pfn(THP) + 5].flags.or_(1 << PG_lru)
    look_at_pinned(scene)


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


def piece_of(scene: Any) -> Page:
    """Subpage 5 of the THP, as a split leaves it just before it gets references; made at the first call."""
    head, piece = scene.page(THP), mem_map[scene.pfn(THP) + 5]
    if piece.compound_head:
        piece.compound_head = 0
        head.flags.or_(1 << PG_locked)
        piece.flags.write(head.flags.read() & TAIL_FLAGS)
        piece.mapping, piece.index = head.mapping, head.index + 5
    return Page(int(piece))


# -- let pass -------------------------------------------------------------------------------------------------------


@allows("I1")
def pins_of_tails_stand_on_the_head(scene):
    assert get_user_pages_fast(scene.cpu, THP + 5 * PAGE, 2, 1, pinned[0]) == 2
    assert page_ref_count(scene.page(THP)) == 3
    for i in range(2):
        put_page(scene.cpu, mem_map[pinned[i].value])


@allows("I2")
def mapcounts_with_the_double_map_offset(scene):
    fork(scene)
    assert sys_mprotect(scene.cpu, THP, PAGE, READ) == 0
    assert PageDoubleMap(scene.page(THP))
    assert get_user_pages_fast(scene.cpu, THP + 5 * PAGE, 1, 0, pinned[0]) == 1
    put_page(scene.cpu, mem_map[pinned[0].value])
    assert sys_munmap(scene.cpu, THP, HUGE) == 0
    child_exits(scene)


@allows("I3")
def references_outlive_mappings(scene):
    assert get_user_pages_fast(scene.cpu, THP, 1, 1, pinned[0]) == 1
    declare_pin(scene.cpu, 0, pinned[0].value)
    assert sys_munmap(scene.cpu, THP, HUGE) == 0
    unpin(scene.cpu, 0)


@allows("I3")
def a_frozen_page_still_in_its_slot(scene):
    assert move_page(scene.cpu, scene.mm, FILE, NEW_PAGE) == 0


@allows("I4")
def mapcounts_and_references_apart(scene):
    page = scene.page(THP)
    get_page(scene.cpu, page)
    assert split(scene, THP) == -EBUSY
    put_page(scene.cpu, page)
    assert split(scene, THP) == 0


@allows("I11")
def frozen_and_thawed_again(scene):
    lru_add_drain(scene.cpu)
    assert move_page(scene.cpu, scene.mm, FILE, NEW_PAGE) == 0


@allows("I12")
def pieces_are_heads_of_their_own(scene):
    assert split(scene, THP + 3 * PAGE) == 0
    assert get_user_pages_fast(scene.cpu, THP + 5 * PAGE, 1, 1, pinned[0]) == 1
    assert not PageHead(mem_map[pinned[0].value])
    put_page(scene.cpu, mem_map[pinned[0].value])


@allows("I13")
def pieces_that_nothing_maps(scene):
    assert split(scene, HOLES) == 0


@allows("I17")
def pages_on_a_private_list(scene):
    page = scene.page(HOLES)
    get_page(scene.cpu, page)
    deferred_split_scan(scene.cpu, 4)
    put_page(scene.cpu, page)
    assert deferred_split_scan(scene.cpu, 4) == 1


@allows("I18")
def isolated_and_put_back(scene):
    lru_add_drain(scene.cpu)
    assert isolate_lru_page(scene.cpu, scene.page(THP))
    putback_lru_page(scene.cpu, scene.page(THP))
    lru_add_drain(scene.cpu)


@allows("I18")
def isolated_by_reclaim_and_kept(scene):
    """Used, so they go back; nobody else has them meanwhile."""
    lru_add_drain(scene.cpu)
    assert shrink_active_list(scene.cpu, 32, LRU_ACTIVE_ANON) == 0
    assert Point.LRU_ISOLATED in scene.passed


@allows("I18")
def isolated_by_compaction_and_moved(scene):
    lru_add_drain(scene.cpu)
    compact_node(scene.cpu)
    assert Point.LRU_ISOLATED in scene.passed


@allows("I20")
def double_map_while_the_child_maps_it_whole(scene):
    fork(scene)
    assert sys_mprotect(scene.cpu, THP, PAGE, READ) == 0
    scene.store(HOLES)
    assert PageDoubleMap(scene.page(THP))
    child_exits(scene)
    assert not PageDoubleMap(scene.page(THP))


@allows("I24")
def the_last_of_the_family_moves_the_page(scene):
    fork(scene)
    child_exits(scene)
    scene.store(SMALL)
    assert Point.ANON_RMAP_MOVED in scene.passed


@allows("I25")
def a_split_hands_references_out(scene):
    assert split(scene, THP) == 0
    assert sys_munmap(scene.cpu, THP, 4 * HUGE) == 0
    assert sys_munmap(scene.cpu, SMALL, 6 * PAGE) == 0


test_it_speaks, test_it_keeps_silent = cases_of(__name__)
