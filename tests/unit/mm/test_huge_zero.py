"""The huge zero page: made once, one reference for each mm, freed by the shrinker only."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.flags import GFP_TRANSHUGE, MMF_HUGE_ZERO_PAGE
from concur_thp.mm.huge_zero import (
    get_huge_zero_page,
    is_huge_zero_pfn,
    mm_get_huge_zero_page,
    mm_put_huge_zero_page,
    put_huge_zero_page,
    shrink_huge_zero_page,
)
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, NIL, Page, frames, mms, pgdat, zones
from concur_thp.mm.page_alloc import alloc_pages
from concur_thp.mm.page_flags import page_to_pfn, tail_page
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.put_page import put_page
from concur_thp.mm.vmstat import vmstat


def free_pages() -> int:
    return sum(zones[n].nr_free_pages for n in range(pgdat.nr_zones))


@pytest.mark.parametrize(("order", "plain"), [(9, False), (3, False), (3, True)])
def test_life(order: int, plain: bool) -> None:
    with Machine(memory="64M", order=order, cpus=1) as machine, interpreted() if plain else nullcontext():
        cpu, n = machine.cpu(), 1 << order
        before = free_pages()
        for pfn in range(n):
            frames[pfn].word[0].write(7)
        assert not is_huge_zero_pfn(NIL + 1) and shrink_huge_zero_page(cpu) == 0
        page = Page(mm_get_huge_zero_page(cpu, mms[1]))
        pfn = page_to_pfn(page)
        assert is_huge_zero_pfn(pfn) and not is_huge_zero_pfn(pfn + 1)
        assert {frames[pfn + i].word[k].read() for i in range(n) for k in range(8)} == {0}
        assert mm_get_huge_zero_page(cpu, mms[1]) == page
        assert mm_get_huge_zero_page(cpu, mms[2]) == page
        assert pgdat.huge_zero_refcount.read() == 3
        assert mms[1].flags.read() == 1 << MMF_HUGE_ZERO_PAGE
        assert page_ref_count(page) == 1
        assert free_pages() == before - n
        counters = vmstat()
        assert (counters["thp_zero_page_alloc"], counters["NR_KERNEL_PAGES"]) == (1, n)
        for mm in (mms[1], mms[1], mms[3], mms[2]):
            assert shrink_huge_zero_page(cpu) == 0
            mm_put_huge_zero_page(cpu, mm)
        assert pgdat.huge_zero_refcount.read() == 1
        assert shrink_huge_zero_page(cpu) == n
        assert (pgdat.huge_zero_page.read(), pgdat.huge_zero_refcount.read()) == (NIL, 0)
        assert free_pages() == before
        assert vmstat()["NR_KERNEL_PAGES"] == 0
        assert get_huge_zero_page(cpu)
        assert pgdat.huge_zero_refcount.read() == 2
        assert vmstat()["thp_zero_page_alloc"] == 2


def test_without_memory() -> None:
    with Machine(memory="1M", order=3, cpus=1) as machine:
        cpu = machine.cpu()
        while alloc_pages(cpu, 3, MIGRATE_MOVABLE, GFP_TRANSHUGE):
            pass
        assert not mm_get_huge_zero_page(cpu, mms[1])
        assert vmstat()["thp_zero_page_alloc_failed"] == 1
        assert (mms[1].flags.read(), pgdat.huge_zero_refcount.read()) == (0, 0)


def test_a_pin_outlives_the_shrinker() -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine:
        cpu = machine.cpu()
        before = free_pages()
        page = Page(mm_get_huge_zero_page(cpu, mms[1]))
        get_page(cpu, tail_page(page, 2))
        mm_put_huge_zero_page(cpu, mms[1])
        assert shrink_huge_zero_page(cpu) == 8
        assert free_pages() == before - 8
        put_page(cpu, tail_page(page, 2))
        assert free_pages() == before


def test_the_shrinkers_reference_is_not_an_mms() -> None:
    with Machine(memory="16M", order=3, cpus=1) as machine, interpreted():
        cpu = machine.cpu()
        get_huge_zero_page(cpu)
        put_huge_zero_page(cpu)
        with pytest.raises(KernelBug, match="shrinker"):
            put_huge_zero_page(cpu)
