"""Mapcounts: every formula against a model that knows the mappings, in random order and in the spec's ledgers."""

import random
from contextlib import nullcontext

import pytest

from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.linker import interpreted
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGE_SHIFT, PAGE_SIZE
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.anon_vma import anon_vma_prepare
from concur_thp.mm.anon_vma_ref import page_anon_vma
from concur_thp.mm.deferred_split import prep_transhuge_page, split_queued
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, GFP_TRANSHUGE_LIGHT
from concur_thp.mm.fork import mm_alloc
from concur_thp.mm.mm_types import MAPPING_SHIFT, MIGRATE_MOVABLE, Mm, Page, Vma, anon_vmas
from concur_thp.mm.page_alloc import alloc_pages
from concur_thp.mm.page_flags import (
    PageDoubleMap,
    PG_mlocked,
    SetFlag,
    TestClearPageDoubleMap,
    TestFlag,
    TestSetPageDoubleMap,
    tail_page,
)
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.rmap import (
    page_add_anon_rmap,
    page_add_file_rmap,
    page_add_new_anon_rmap,
    page_dup_rmap,
    page_mapcount,
    page_mapped,
    page_move_anon_rmap,
    page_remove_rmap,
    total_mapcount,
)
from concur_thp.mm.swap_reuse import page_trans_huge_map_swapcount, reuse_swap_page
from concur_thp.mm.vma_adjust import vm_area_alloc
from concur_thp.mm.vma_tree import vma_link
from concur_thp.mm.vmstat import Stat, mod_stat, vmstat
from concur_thp.sync.rwsem import down_read, up_read

MODES = pytest.mark.parametrize(("order", "plain"), [(9, False), (3, False), (3, True)])


def machine(order: int) -> Machine:
    return Machine(memory="64M" if order == 9 else "2M", order=order)


def new_vma(cpu: Cpu) -> Vma:
    mm = Mm(mm_alloc(cpu))
    vma = Vma(vm_area_alloc(cpu, mm))
    vma.vm_start = 4 * HPAGE_PMD_NR * PAGE_SIZE
    vma.vm_end = 8 * HPAGE_PMD_NR * PAGE_SIZE
    vma.vm_pgoff = vma.vm_start >> PAGE_SHIFT
    vma_link(cpu, mm, vma)
    down_read(cpu, mm.mmap_sem)
    assert anon_vma_prepare(cpu, vma) == 0
    up_read(cpu, mm.mmap_sem)
    return vma


def new_huge(cpu: Cpu) -> Page:
    head = Page(alloc_pages(cpu, HPAGE_PMD_ORDER, MIGRATE_MOVABLE, GFP_TRANSHUGE_LIGHT))
    prep_transhuge_page(head)
    return head


def new_small(cpu: Cpu) -> Page:
    return Page(alloc_pages(cpu, 0, MIGRATE_MOVABLE, GFP_HIGHUSER_MOVABLE))


class Mapped:
    """What maps a THP: how many pmds, and how many ptes each subpage."""

    def __init__(self, head: Page, anon: bool):
        self.head, self.anon = head, anon
        self.pmds, self.ptes = 0, [0] * int(HPAGE_PMD_NR)

    def check(self) -> None:
        head = self.head
        double = int(PageDoubleMap(head))
        assert total_mapcount(head) == self.pmds + sum(self.ptes)
        assert page_mapped(head) == page_mapped(tail_page(head, 3)) == (self.pmds + sum(self.ptes) > 0)
        for i in (0, 1, 2, HPAGE_PMD_NR - 1):
            page = tail_page(head, i)
            assert page_mapcount(page) == self.pmds + self.ptes[i]
            assert page._mapcount.read() == self.ptes[i] - 1 + (double if self.anon else self.pmds)  # Q5
        if self.anon:
            assert page_trans_huge_map_swapcount(cpus[0], head) == self.pmds + max(self.ptes)
            assert not double or self.pmds

    def mapped_pages(self) -> int:
        """What NR_ANON_MAPPED or NR_FILE_MAPPED has for it (Q16)."""
        return int(HPAGE_PMD_NR) if self.pmds else sum(n > 0 for n in self.ptes)


def split_anon(cpu: Cpu, model: Mapped) -> None:
    """The counting of __split_huge_pmd_locked (3.16.C), for a pmd of the page."""
    head = model.head
    for i in range(HPAGE_PMD_NR):
        tail_page(head, i)._mapcount.add(1)
    if model.pmds > 1 and not TestSetPageDoubleMap(head):
        for i in range(HPAGE_PMD_NR):
            tail_page(head, i)._mapcount.add(1)
    if tail_page(head, 1).compound_mapcount.sub(1) == 0:
        mod_stat(cpu, Stat.NR_ANON_THPS, -1)
        if TestClearPageDoubleMap(head):
            for i in range(HPAGE_PMD_NR):
                tail_page(head, i)._mapcount.sub(1)
    model.pmds -= 1
    model.ptes = [n + 1 for n in model.ptes]


@MODES
def test_an_anon_thp_in_random_order(order: int, plain: bool) -> None:
    dice = random.Random(7)
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        vma = new_vma(cpu)
        for _ in range(6):
            head = new_huge(cpu)
            model = Mapped(head, anon=True)
            page_add_new_anon_rmap(cpu, head, vma, vma.vm_start, 1)
            model.pmds = 1
            while model.pmds or any(model.ptes):
                choice = dice.randrange(4)
                some = [i for i, n in enumerate(model.ptes) if n]
                if choice == 0 and model.pmds and model.pmds + max(model.ptes) < 5:
                    page_dup_rmap(cpu, head, 1)
                    model.pmds += 1
                elif choice == 1 and model.pmds:
                    split_anon(cpu, model)
                elif choice == 2 and some:
                    for i in dice.sample(some, dice.randrange(1, len(some) + 1)):
                        page_remove_rmap(cpu, tail_page(head, i), 0)
                        model.ptes[i] -= 1
                        if not model.pmds and not model.ptes[i]:
                            assert split_queued(head)  # a hole that nobody maps any more (R38)
                elif choice == 3 and model.pmds:
                    page_remove_rmap(cpu, head, 1)
                    model.pmds -= 1
                model.check()
                stats = vmstat()
                assert stats["NR_ANON_MAPPED"] == model.mapped_pages()
                assert stats["NR_ANON_THPS"] == (model.pmds > 0)
            assert split_queued(head)  # K6


@MODES
def test_a_file_thp_in_random_order(order: int, plain: bool) -> None:
    dice = random.Random(8)
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        head = new_huge(cpu)
        head.mapping = 1 << MAPPING_SHIFT
        lock_page(cpu, head)
        model = Mapped(head, anon=False)
        for _ in range(80):
            i = dice.randrange(HPAGE_PMD_NR)
            choice = dice.randrange(4)
            if choice == 0:
                page_add_file_rmap(cpu, head, 1)
                model.pmds += 1
            elif choice == 1:
                page_add_file_rmap(cpu, tail_page(head, i), 0)
                model.ptes[i] += 1
                assert PageDoubleMap(head)
            elif choice == 2 and model.ptes[i]:
                page_remove_rmap(cpu, tail_page(head, i), 0)
                model.ptes[i] -= 1
            elif choice == 3 and model.pmds:
                page_remove_rmap(cpu, head, 1)
                model.pmds -= 1
            model.check()
            stats = vmstat()
            assert stats["NR_FILE_MAPPED"] == model.mapped_pages()
            assert stats["NR_SHMEM_PMDMAPPED"] == (model.pmds > 0)
            assert not split_queued(head)
        unlock_page(cpu, head)


@MODES
def test_ledger_a1_parent_and_child_split_and_zap_the_same_subpage(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        vma = new_vma(cpu)
        head = new_huge(cpu)
        model = Mapped(head, anon=True)

        def row() -> tuple[int, ...]:
            pmds = tail_page(head, 1).compound_mapcount.read()
            return pmds, int(PageDoubleMap(head)), *(tail_page(head, i)._mapcount.read() for i in (1, 2))

        page_add_new_anon_rmap(cpu, head, vma, vma.vm_start, 1)
        model.pmds = 1
        assert row() == (0, 0, -1, -1)
        page_dup_rmap(cpu, head, 1)
        model.pmds = 2
        assert row() == (1, 0, -1, -1)
        split_anon(cpu, model)
        assert row() == (0, 1, 1, 1)
        page_remove_rmap(cpu, tail_page(head, 2), 0)
        model.ptes[2] -= 1
        assert row() == (0, 1, 1, 0) and not split_queued(head)
        split_anon(cpu, model)
        assert row() == (-1, 0, 1, 0) and not split_queued(head)
        page_remove_rmap(cpu, tail_page(head, 2), 0)
        model.ptes[2] -= 1
        assert row() == (-1, 0, 1, -1) and split_queued(head)
        model.check()


@MODES
def test_ledger_a2_the_last_pmd_goes_and_takes_the_offset_along(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        vma = new_vma(cpu)
        head = new_huge(cpu)
        model = Mapped(head, anon=True)
        page_add_new_anon_rmap(cpu, head, vma, vma.vm_start, 1)
        page_dup_rmap(cpu, head, 1)
        model.pmds = 2
        split_anon(cpu, model)
        page_remove_rmap(cpu, tail_page(head, 2), 0)
        page_remove_rmap(cpu, head, 1)
        assert [tail_page(head, i)._mapcount.read() for i in (1, 2)] == [0, -1]
        assert not PageDoubleMap(head) and split_queued(head)
        assert vmstat()["NR_ANON_MAPPED"] == HPAGE_PMD_NR - 1


@MODES
def test_a_small_page_and_where_it_belongs(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        vma = new_vma(cpu)
        page = new_small(cpu)
        page_add_new_anon_rmap(cpu, page, vma, vma.vm_start + 2 * PAGE_SIZE, 0)
        assert page_mapcount(page) == total_mapcount(page) == page_trans_huge_map_swapcount(cpu, page) == 1
        assert anon_vmas.index(page_anon_vma(page)) == vma.anon_vma and page.index == vma.vm_pgoff + 2
        lock_page(cpu, page)
        assert reuse_swap_page(cpu, page) == 1 and cpu.scratch[0] == 1
        page_dup_rmap(cpu, page, 0)
        assert reuse_swap_page(cpu, page) == 0 and cpu.scratch[0] == 2
        page_add_anon_rmap(cpu, page, vma, vma.vm_start + 2 * PAGE_SIZE, 0, 0)
        assert page_mapcount(page) == 3
        page.mapping = 0
        page_move_anon_rmap(page, vma)
        assert anon_vmas.index(page_anon_vma(page)) == vma.anon_vma
        unlock_page(cpu, page)
        for left in (2, 1, 0):
            page_remove_rmap(cpu, page, 0)
            assert page_mapcount(page) == left and page_mapped(page) == (left > 0)
        assert vmstat()["NR_ANON_MAPPED"] == 0
        assert page_anon_vma(page), "mapping stays until the page is freed"


@MODES
def test_reuse_looks_at_the_subpage_mapped_most_and_tells_the_total(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        vma = new_vma(cpu)
        head = new_huge(cpu)
        model = Mapped(head, anon=True)
        page_add_new_anon_rmap(cpu, head, vma, vma.vm_start, 1)
        model.pmds = 1
        lock_page(cpu, head)
        assert reuse_swap_page(cpu, tail_page(head, 3)) == 1 and cpu.scratch[0] == 1
        split_anon(cpu, model)
        assert reuse_swap_page(cpu, tail_page(head, 3)) == 1 and cpu.scratch[0] == HPAGE_PMD_NR
        page_dup_rmap(cpu, tail_page(head, 2), 0)
        assert reuse_swap_page(cpu, tail_page(head, 3)) == 0 and cpu.scratch[0] == HPAGE_PMD_NR + 1
        unlock_page(cpu, head)


@MODES
def test_the_last_mapping_takes_mlocked_along(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        vma = new_vma(cpu)
        head = new_huge(cpu)
        page_add_new_anon_rmap(cpu, head, vma, vma.vm_start, 1)
        SetFlag(head, PG_mlocked)
        mod_stat(cpu, Stat.NR_MLOCK, HPAGE_PMD_NR)
        page_dup_rmap(cpu, head, 1)
        page_remove_rmap(cpu, head, 1)
        assert TestFlag(head, PG_mlocked)
        page_remove_rmap(cpu, head, 1)
        assert not TestFlag(head, PG_mlocked) and vmstat()["NR_MLOCK"] == 0


def test_one_unmap_too_many_is_a_bug() -> None:
    with machine(3) as m, interpreted():
        cpu = m.cpu(0)
        vma = new_vma(cpu)
        page = new_small(cpu)
        page_add_new_anon_rmap(cpu, page, vma, vma.vm_start, 0)
        page_remove_rmap(cpu, page, 0)
        with pytest.raises(KernelBug, match="mapcount below -1"):
            page_remove_rmap(cpu, page, 0)


@pytest.mark.parametrize("locked", [False, True])
def test_adding_needs_the_page_lock_and_the_right_place(locked: bool) -> None:
    with machine(3) as m, interpreted():
        cpu = m.cpu(0)
        vma = new_vma(cpu)
        page = new_small(cpu)
        page_add_new_anon_rmap(cpu, page, vma, vma.vm_start, 0)
        if locked:
            lock_page(cpu, page)
        with pytest.raises(KernelBug, match="another index" if locked else "not locked"):
            page_add_anon_rmap(cpu, page, vma, vma.vm_start + PAGE_SIZE, 0, 0)
