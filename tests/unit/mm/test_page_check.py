"""What a page must look like at the allocator's door; which of its faults is named."""

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE
from concur_thp.mm.mm_types import PAGE_TYPE_TABLE, Page
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_check import check_new_page, free_page_check
from concur_thp.mm.page_flags import PG_dirty, PG_locked, PG_lru, PG_mlocked, PG_referenced, PG_uptodate, PG_writeback


@pytest.fixture
def machine():
    with Machine(memory="4M", order=3, cpus=1) as machine:
        yield machine


@pytest.fixture
def cpu(machine):
    return machine.cpu(0)


@pytest.fixture
def page(cpu):
    """Allocated, its reference gone: on its way to be freed."""
    page = Page(int(alloc_page(cpu, GFP_HIGHUSER_MOVABLE)))
    page._refcount.store(0)
    with interpreted():
        yield page


def flags(*bits: int) -> int:
    return sum(1 << bit for bit in bits)


def test_flags_of_use_go_with_it(cpu, page):
    page.flags.store(flags(PG_uptodate, PG_referenced, PG_dirty))
    free_page_check(cpu, page)
    assert page.flags.load() == 0
    check_new_page(cpu, page)


@pytest.mark.parametrize("name, value, says", [
    ("flags", flags(PG_locked), "flags set"), ("flags", flags(PG_lru), "flags set"), ("flags", flags(PG_mlocked), "flags set"),
    ("flags", flags(PG_writeback), "flags set"), ("_mapcount", 0, "still mapped"), ("_refcount", 1, "still has references"),
    ("_refcount", -1, "still has references"),
])
def test_caught_on_its_way_in(cpu, page, name, value, says):
    getattr(page, name).store(value)
    with pytest.raises(KernelBug, match=f"bad page: {says}"):
        free_page_check(cpu, page)


@pytest.mark.parametrize("name, value, says", [
    ("compound_head", 65 << 1 | 1, "a tail without its head"), ("mapping", 5, "still has a mapping"),
    ("page_type", PAGE_TYPE_TABLE, "free already, or a table"),
])
def test_fields(cpu, page, name, value, says):
    setattr(page, name, value)
    with pytest.raises(KernelBug, match=f"bad page: {says}"):
        free_page_check(cpu, page)


def test_a_new_page_has_no_flags_at_all(cpu, page):
    page.flags.store(flags(PG_uptodate))
    with pytest.raises(KernelBug, match="bad page: flags set"):
        check_new_page(cpu, page)
