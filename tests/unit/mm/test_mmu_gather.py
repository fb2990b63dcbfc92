"""mmu_gather: nothing is freed before the flush, and a parallel gather widens it."""

from contextlib import nullcontext
from typing import Any

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import interpreted
from concur_thp.arch.tlb import tlb_contexts, tlb_fill_small, tlb_lookup
from concur_thp.arch.tlbflush import switch_mm
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, GFP_TRANSHUGE
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, Mm, Page, mms, pgdat, zones
from concur_thp.mm.mmu_gather import (
    FULL_MM_END,
    MMU_GATHER_PAGES,
    mmu_gathers,
    tlb_finish_mmu,
    tlb_flush_mmu,
    tlb_gather_mmu,
    tlb_record,
    tlb_remove_page,
    tlb_remove_table,
)
from concur_thp.mm.page_alloc import alloc_page, alloc_pages
from concur_thp.mm.page_flags import page_to_pfn, tail_page
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.pgtable_alloc import pgd_alloc, pte_alloc_one
from concur_thp.mm.swap import lru_add_drain, lru_cache_add
from concur_thp.mm.vmstat import vmstat
from concur_thp.sync.lock_classes import PTE_PTL
from concur_thp.sync.spinlock import spin_lock, spin_lock_init

FAR = 0x400000
MODES = pytest.mark.parametrize("plain", [False, True], ids=["native", "interpreted"])


def running(machine: Any) -> tuple[Cpu, Mm]:
    """CPU 0 in mm 1, with translations of pages 0 to 7 and of one far away."""
    cpu, mm = machine.cpu(), mms[1]
    mm.id = 1
    switch_mm(cpu, 1)
    for page in range(8):
        tlb_fill_small(cpu, page << 12, 1)
    tlb_fill_small(cpu, FAR + 0x1F000, 1)
    return cpu, mm


def cached(cpu: Cpu) -> list[int]:
    return [page for page in range(8) if tlb_lookup(cpu, page << 12)]


def free_pages(cpu: Cpu) -> int:
    drain_pcp(cpu)
    return sum(zones[n].nr_free_pages for n in range(pgdat.nr_zones))


@MODES
def test_flush_then_free(plain: bool) -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu, mm = running(machine)
        before = free_pages(cpu)
        page = Page(alloc_page(cpu, GFP_HIGHUSER_MOVABLE))
        tlb_gather_mmu(cpu, mm, 0, 0x8000)
        assert mm.tlb_flush_pending.read() == 1
        tlb_record(cpu, 0x2000, 0x1000)
        tlb_remove_page(cpu, page)
        assert cached(cpu) == list(range(8)) and page_ref_count(page) == 1
        tlb_finish_mmu(cpu)
        assert cached(cpu) == [0, 1, 3, 4, 5, 6, 7] and tlb_lookup(cpu, FAR + 0x1F000)
        assert free_pages(cpu) == before
        assert mm.tlb_flush_pending.read() == 0 and mmu_gathers[0].mm == 0


@MODES
def test_nothing_taken_down_needs_no_flush_unless_somebody_else_is_at_it(plain: bool) -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu, mm = running(machine)
        tlb_gather_mmu(cpu, mm, 0x1000, 0x3000)
        tlb_finish_mmu(cpu)
        assert cached(cpu) == list(range(8)) and tlb_contexts[1].generation.read() == 0
        tlb_gather_mmu(cpu, mm, 0x1000, 0x3000)
        mm.tlb_flush_pending.add(1)  # another CPU took entries down and has not flushed yet
        tlb_finish_mmu(cpu)
        assert cached(cpu) == [0, 3, 4, 5, 6, 7]
        assert mm.tlb_flush_pending.read() == 1


@MODES
def test_a_whole_mm_is_flushed_as_a_whole(plain: bool) -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu, mm = running(machine)
        tlb_gather_mmu(cpu, mm, 0, FULL_MM_END)
        tlb_record(cpu, 0x2000, 0x1000)
        tlb_finish_mmu(cpu)
        assert cached(cpu) == [] and not tlb_lookup(cpu, FAR + 0x1F000)


def test_a_full_gather_is_released_early() -> None:
    with Machine(memory="64M", order=9, cpus=1) as machine:
        cpu, mm = running(machine)
        before = free_pages(cpu)
        pages = [Page(alloc_page(cpu, GFP_HIGHUSER_MOVABLE)) for _ in range(MMU_GATHER_PAGES + 5)]
        for page in pages:
            lru_cache_add(cpu, page)
        lru_add_drain(cpu)
        tlb_gather_mmu(cpu, mm, 0, 0x8000)
        for number, page in enumerate(pages):
            tlb_record(cpu, (number % 8) << 12, 0x1000)
            tlb_remove_page(cpu, page)
            assert bool(cached(cpu)) == (number < MMU_GATHER_PAGES - 1)
        assert {page_ref_count(page) for page in pages[MMU_GATHER_PAGES:]} == {1}
        assert free_pages(cpu) == before - 5
        tlb_finish_mmu(cpu)
        assert free_pages(cpu) == before
        assert pgdat.lru[0].size + pgdat.lru[2].size == 0


@pytest.mark.parametrize("order", [9, 3])
def test_huge_zero_and_subpages(order: int) -> None:
    """Subpages of a THP drop its head's references; the huge zero page has none to drop."""
    with Machine(memory="64M", order=order, cpus=1) as machine:
        cpu, mm = running(machine)
        head, zero = (Page(alloc_pages(cpu, order, MIGRATE_MOVABLE, GFP_TRANSHUGE)) for _ in range(2))
        before = free_pages(cpu)
        pgdat.huge_zero_page.write(page_to_pfn(zero))
        lru_cache_add(cpu, head)
        tlb_gather_mmu(cpu, mm, 0, 0x8000)
        for i in (1, 2, 3):
            get_page(cpu, head)
            tlb_remove_page(cpu, tail_page(head, i))
        tlb_remove_page(cpu, zero)
        tlb_flush_mmu(cpu)
        assert page_ref_count(head) == 1 and page_ref_count(zero) == 1
        tlb_remove_page(cpu, head)
        tlb_finish_mmu(cpu)
        assert free_pages(cpu) == before + (1 << order)


@MODES
def test_tables_wait_for_a_flush_too(plain: bool) -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu, mm = running(machine)
        pgd_alloc(cpu, mm)
        table = pte_alloc_one(cpu, mm)
        tlb_gather_mmu(cpu, mm, 0, 0x8000)
        tlb_remove_table(cpu, table)
        assert vmstat()["NR_PAGETABLE"] == 2
        tlb_finish_mmu(cpu)
        assert vmstat()["NR_PAGETABLE"] == 1 and tlb_contexts[1].generation.read() == 1


@pytest.mark.parametrize("what", ["two gathers", "under a ptl"])
def test_refused(what: str) -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted():
        cpu, mm = running(machine)
        if what == "two gathers":
            tlb_gather_mmu(cpu, mm, 0, 0x1000)
        else:
            spin_lock_init(pgdat.split_queue_lock, PTE_PTL)
            spin_lock(cpu, pgdat.split_queue_lock)
        with pytest.raises(KernelBug):
            tlb_gather_mmu(cpu, mm, 0, 0x1000)
