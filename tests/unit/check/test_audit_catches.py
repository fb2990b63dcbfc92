"""Every law of the audit, broken by one word (or the fewest that stay consistent): exactly that law speaks."""

import random
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from concur_thp.check.audit import LAWS, audit
from concur_thp.check.views import raw
from concur_thp.config import MAX_ORDER
from concur_thp.mm.buddy import free_area
from concur_thp.mm.deferred_split import undefer_split_huge_page
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, VM_WRITE
from concur_thp.mm.memory_failure import memory_failure
from concur_thp.mm.mm_types import (
    MM_ANONPAGES,
    MM_SWAPENTS,
    NIL,
    PAGE_TYPE_NONE,
    POOL_VMA,
    Page,
    anon_vmas,
    avcs,
    files,
    mem_map,
    mms,
    percpu,
    pgdat,
    pools,
    tables,
    vmas,
    zones,
)
from concur_thp.mm.page_account import MAP, page_accounts
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_flags import PG_double_map, PG_locked, PG_lru, PG_mlocked, PG_reserved
from concur_thp.mm.pgtable import _PAGE_DIRTY, _PAGE_MIGRATION, _PAGE_RW, _PAGE_SWAP, mm_pmd
from concur_thp.mm.swap import lru_add_drain, put_page
from concur_thp.mm.syscall import sys_mlock, sys_mprotect
from concur_thp.mm.tlb_batch import set_tlb_ubc_flush_pending
from concur_thp.mm.truncate import drop_caches
from concur_thp.mm.vma_tree import find_vma
from concur_thp.mm.vmstat import Stat

PAGE, HUGE = 0x1000, 0x8000
THP, HOLES, ZERO, SMALL, FILE, SHARED = 0x80000, 0x90000, 0x98000, 0x101000, 0x180000, 0x1C0000
"""Addresses of the scene in conftest.py."""

Corruption = Callable[[Any], Any]
CASES: dict[str, tuple[str, Corruption]] = {}


def breaks(law: str) -> Callable[[Corruption], Corruption]:
    """The decorated function breaks this law and no other."""
    def add(function: Corruption) -> Corruption:
        CASES[function.__name__] = (law, function)
        return function

    return add


def vma_of(scene: Any, addr: int) -> Any:
    return vmas[vmas.index(find_vma(scene.mm, addr))]


def tlb_entry(scene: Any, addr: int) -> Any:
    cpu = scene.cpu
    for table, tag in ((cpu.tlb_small, addr // PAGE + 1), (cpu.tlb_huge, addr // HUGE * 8 + 1)):
        for n in range(128 if table.field.name == "tlb_small" else 32):
            if table[n].tag == tag:
                return table[n]
    raise AssertionError("not cached")


@breaks("Q1")
def table_page_that_is_also_reserved(scene):
    mem_map[scene.mm.pgd].flags.or_(1 << PG_reserved)


@breaks("Q1")
def page_lost_from_a_pcp_list(scene):
    put_page(scene.cpu, Page(int(alloc_page(scene.cpu, GFP_HIGHUSER_MOVABLE))))
    lists = percpu[0].pcp
    pcp = next(lists[n] for n in range(9) if lists[n].count > 0)
    page = mem_map[pcp.head]
    pcp.head, pcp.count, page.page_type = page.lru_next, pcp.count - 1, PAGE_TYPE_NONE


@breaks("Q2")
def zone_counts_one_page_too_many(scene):
    zones[0].nr_free_pages = zones[0].nr_free_pages + 1


@breaks("Q2")
def free_block_of_another_cpu_than_its_list(scene):
    mem_map[largest_free_block()[0]].free_cpu = 2


@breaks("Q2")
def free_lists_that_nobody_knows_of(scene):
    zones[largest_free_block()[1][0]].holders[1] = 0


@breaks("Q2")
def free_page_with_a_mapping(scene):
    mem_map[largest_free_block()[0] + 1].mapping = 5


@breaks("Q2")
def free_buddies_that_did_not_merge(scene):
    pfn, area = largest_free_block()
    half = pfn + (1 << (area[1] - 1))
    lower, upper = (free_area(zones[area[0]], mem_map[pfn].free_cpu, area[1] - n) for n in (1, 0))
    upper.head[1], upper.nr_free = mem_map[pfn].lru_next, upper.nr_free - 1
    mem_map[upper.head[1]].lru_prev = NIL
    for block, after in ((pfn, half), (half, lower.head[1])):
        page = mem_map[block]
        page.private, page.page_type, page._free_type, page.lru_next = area[1] - 1, 1, 1, after
        page.free_cpu = mem_map[pfn].free_cpu
    lower.head[1], lower.nr_free = pfn, lower.nr_free + 2


def largest_free_block() -> tuple[int, tuple[int, int]]:
    """The first movable block of the largest order: its frame, and (zone, order)."""
    order = int(MAX_ORDER) - 1
    for zone in range(3):
        for number in range(3):
            pfn = free_area(zones[zone], number, order).head[1]
            if pfn != NIL and mem_map[pfn].lru_next != NIL:
                return pfn, (zone, order)
    raise AssertionError("no large block is free")


@breaks("Q3")
def tail_with_a_reference(scene):
    mem_map[scene.pfn(THP) + 3]._refcount.add(1)


@breaks("Q3")
def tail_of_another_head(scene):
    mem_map[scene.pfn(THP) + 3].compound_head = scene.pfn(THP + HUGE) << 1 | 1


@breaks("Q4")
def reference_leaked_on_a_thp(scene):
    scene.page(THP)._refcount.add(1)


@breaks("Q4")
def reference_lost_on_a_small_page(scene):
    scene.page(FILE)._refcount.sub(1)


@breaks("Q4")
def broken_frame_that_lost_its_reference(scene):
    lru_add_drain(scene.cpu)
    page = scene.page(SMALL)
    assert memory_failure(scene.cpu, page) == 0
    page._refcount.add(1)


@breaks("Q5")
def subpage_counted_twice(scene):
    scene.page(HOLES)._mapcount.add(1)


@breaks("Q5")
def compound_mapcount_too_high(scene):
    mem_map[scene.pfn(THP) + 1].compound_mapcount.add(1)


@breaks("Q5")
def double_map_without_its_offset(scene):
    mem_map[scene.pfn(THP) + 1].flags.or_(1 << PG_double_map)


@breaks("Q6")
def page_with_another_index(scene):
    scene.page(SMALL).index = scene.page(SMALL).index + 1


@breaks("Q6")
def page_of_another_family(scene):
    scene.page(SMALL).mapping = scene.page(THP).mapping


@breaks("Q6")
def cached_page_that_says_another_slot(scene):
    pages = (mem_map[pfn] for pfn in range(scene.config.frames))
    cached = next(page for page in pages if page.mapping == scene.file << 2 and page.index == 1)
    cached.index = 9


@breaks("Q7")
def migration_entry_left(scene):
    scene.entry(SMALL + 5 * PAGE).val.store(scene.pfn(SMALL) << 12 | _PAGE_MIGRATION)


@breaks("Q8")
def table_counted_twice(scene):
    scene.mm.nr_ptes.add(1)


@breaks("Q8")
def deposited_table_with_an_entry(scene):
    pmd_table = mem_map[(int(mm_pmd(scene.mm, THP)) - int(tables.base)) // tables.stride]
    tables[pmd_table.pmd_huge_pte].val.store(0x1000)


@breaks("Q9")
def rss_off_by_one(scene):
    scene.mm.rss[MM_ANONPAGES].add(-1)


@breaks("Q10")
def swap_entry_without_swap(scene):
    scene.entry(SMALL + 5 * PAGE).val.store(7 << 12 | _PAGE_SWAP)
    mms[1].rss[MM_SWAPENTS].add(1)  # Counted all right: it is the slot that is not there.


@breaks("Q11")
def split_queue_length_off(scene):
    pgdat.split_queue_len = pgdat.split_queue_len + 1


@breaks("Q11")
def thp_with_holes_not_queued(scene):
    undefer_split_huge_page(scene.cpu, scene.page(HOLES))


@breaks("Q11")
def queued_page_that_does_not_lead_back(scene):
    node = mem_map[scene.pfn(HOLES) + 2]
    node.deferred_prev = node.deferred_prev + 5


@breaks("Q12")
def page_on_a_list_without_its_flag(scene):
    scene.page(THP).flags.and_(~(1 << PG_lru))


@breaks("Q12")
def lru_size_off(scene):
    pgdat.lru[1].size = pgdat.lru[1].size + 8


@breaks("Q13")
def huge_zero_reference_leaked(scene):
    pgdat.huge_zero_refcount.add(1)


@breaks("Q14")
def mm_reference_leaked(scene):
    scene.mm.mm_count.add(1)


@breaks("Q14")
def khugepaged_slot_without_its_mark(scene):
    scene.mm.flags.and_(~(1 << 16))


@breaks("Q14")
def flush_still_pending(scene):
    scene.mm.tlb_flush_pending.add(1)


@breaks("Q15")
def flush_that_reclaim_owes(scene):
    """Even if it happens that no CPU has a translation that is void."""
    set_tlb_ubc_flush_pending(scene.cpu, scene.mm, 0)


@breaks("Q15")
def translation_of_another_frame(scene):
    cached = tlb_entry(scene, SMALL + 3 * PAGE)
    cached.entry = cached.entry + PAGE


@breaks("Q15")
def translation_that_writes_where_the_entry_does_not(scene):
    scene.entry(SMALL + 3 * PAGE).val.and_(~_PAGE_RW)


@breaks("Q15")
def dirty_bit_lost_behind_a_translation(scene):
    scene.entry(THP).val.and_(~_PAGE_DIRTY)


@breaks("Q16")
def anon_mapped_off(scene):
    scene.cpu.vmstat[int(Stat.NR_ANON_MAPPED)] = scene.cpu.vmstat[int(Stat.NR_ANON_MAPPED)] + 1


@breaks("Q16")
def page_left_isolated(scene):
    pgdat.isolated.add(1)


@breaks("Q16")
def kernel_page_counted_twice(scene):
    scene.cpu.vmstat[Stat.NR_KERNEL_PAGES] = scene.cpu.vmstat[Stat.NR_KERNEL_PAGES] + 8


@breaks("Q17")
def anon_vma_refcount_off(scene):
    anon_vmas[vma_of(scene, THP).anon_vma].refcount.add(1)


@breaks("Q17")
def anon_vma_degree_off(scene):
    anon_vma = anon_vmas[vma_of(scene, THP).anon_vma]
    anon_vma.degree = anon_vma.degree + 1


@breaks("Q17")
def chain_of_another_vma(scene):
    chain = avcs[vma_of(scene, FILE).avc_head]
    chain.same_vma = vma_of(scene, THP).avc_head


@breaks("Q17")
def vma_leaked(scene):
    pools[POOL_VMA].in_use.add(1)


@breaks("Q18")
def page_lock_held(scene):
    scene.page(THP).flags.or_(1 << PG_locked)


@breaks("Q18")
def table_lock_held(scene):
    mem_map[scene.mm.pgd].ptl.word.store(1)


@breaks("Q18")
def file_lock_held(scene):
    files[scene.file].i_pages.word.store(1)


@breaks("Q18")
def mmap_sem_held(scene):
    scene.mm.mmap_sem.count.store(1)


@breaks("Q18")
def irqs_off(scene):
    scene.cpu.irq_off = 1


@breaks("I8")
def entries_behind_their_vma(scene):
    vma = vma_of(scene, SMALL)
    vma.vm_end = vma.vm_end - 2 * PAGE


@breaks("I8")
def writable_entry_in_a_read_only_vma(scene):
    vma = vma_of(scene, SMALL)
    vma.vm_flags = vma.vm_flags & ~VM_WRITE


@breaks("I8")
def vma_of_another_mm(scene):
    vma_of(scene, SMALL).vm_mm = 2


@breaks("COW")
def both_may_write_after_fork(scene):
    scene.fork()
    scene.entry(SMALL).val.or_(_PAGE_RW)


@breaks("COW")
def both_may_write_a_huge_page(scene):
    scene.fork()
    scene.entry(THP).val.or_(_PAGE_RW)


@breaks("I21")
def marked_page_of_a_vma_that_is_not_mlocked(scene):
    scene.page(SMALL).flags.or_(1 << PG_mlocked)
    scene.cpu.vmstat[int(Stat.NR_MLOCK)] = 1


@breaks("I21")
def marked_thp_that_a_pte_maps(scene):
    assert sys_mlock(scene.cpu, THP, HUGE) == 0
    assert sys_mprotect(scene.cpu, THP, PAGE, 1) == 0
    scene.page(THP).flags.or_(1 << PG_mlocked)
    scene.cpu.vmstat[int(Stat.NR_MLOCK)] = 8


@breaks("locked_vm")
def locked_vm_off(scene):
    assert sys_mlock(scene.cpu, SMALL, PAGE) == 0
    scene.mm.locked_vm = 2


@breaks("I25")
def mapping_that_the_accounts_do_not_know(scene):
    scene.machine.listen_checks()
    page_accounts[scene.pfn(SMALL)].word.sub(MAP)


@pytest.mark.parametrize("name", CASES)
def test_exactly_the_broken_law_speaks(scene, name):
    law, corrupt = CASES[name]
    corrupt(scene)
    result = audit(scene.config)
    assert result.laws() == {law}, [str(violation) for violation in result.violations]


def test_every_law_has_a_case_that_it_catches():
    elsewhere = {"Q19", "Q20"}
    assert {law.id for law in LAWS} == {law for law, _ in CASES.values()} | elsewhere


def test_page_nobody_frees_is_a_leak_on_an_empty_machine(scene):
    page = alloc_page(scene.cpu, GFP_HIGHUSER_MOVABLE)
    scene.exit()
    drop_caches(scene.cpu)
    lru_add_drain(scene.cpu)
    pins = {mem_map.index(Page(int(page))): 1}
    assert scene.laws(pins=pins) == set()
    assert scene.laws(pins=pins, expect_empty=True) == {"Q20"}


def test_what_the_data_oracle_finds_is_a_violation(scene, monkeypatch):
    oracle = SimpleNamespace(audit_data=lambda config: ["mm 1: 7, not 8"])
    monkeypatch.setitem(sys.modules, "concur_thp.check.oracle", oracle)
    result = audit(scene.config)
    assert [str(violation) for violation in result.violations] == ["Q19: mm 1: 7, not 8"]


def test_violations_of_one_law_are_spelled_out_twenty_times_at_most(scene):
    for pfn in range(100, 150):
        mem_map[pfn].mapping = 5
    found = audit(scene.config).violations
    assert len(found) == 21 and "more" in found[-1].what


@pytest.mark.parametrize("field", ["flags", "mapping", "index", "compound_head", "lru_next", "_refcount", "private"])
def test_audit_survives_garbage_everywhere(scene, field):
    for pfn in range(scene.config.frames):
        page, row = mem_map[pfn], Page.FIELDS[field]
        if row.is_atomic:
            getattr(page, field).store(-0x123456789 ^ (pfn << 20))
        else:
            setattr(page, field, (0x7FFFFFF1 ^ pfn) & ((1 << (8 * row.width - 1)) - 1))
    assert not audit(scene.config).clean


@pytest.mark.parametrize("seed", range(8))
def test_audit_survives_garbage_in_mms_vmas_and_anon_vmas(scene, seed):
    rng = random.Random(seed)
    for array, count in ((mms, 3), (vmas, 12), (anon_vmas, 6), (avcs, 12), (files, 3), (zones, 3), (percpu, 2)):
        memory = raw(int(array.base), array.stride * count).view("i4")
        for _ in range(len(memory) // (1 + seed)):
            memory[rng.randrange(len(memory))] = rng.choice((rng.randrange(-(1 << 31), 1 << 31), rng.randrange(100)))
    assert not audit(scene.config).clean
