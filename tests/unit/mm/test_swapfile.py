"""Entries: taken, shared, given up; what a broken count is answered with."""

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from concur_thp.errors import KernelBug
from concur_thp.mm.errno import EEXIST, ENOENT
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, GFP_TRANSHUGE
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, Page
from concur_thp.mm.page_alloc import alloc_page, alloc_pages
from concur_thp.mm.page_flags import tail_page
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap_map import SWAP_HAS_CACHE, cluster_is_huge, cluster_of, swap_info, swap_map
from concur_thp.mm.swapfile import (
    __swap_entry_free,
    get_swap_page,
    put_swap_page,
    split_swap_cluster,
    swap_duplicate,
    swap_page_trans_huge_swapped,
    swapcache_prepare,
)
from concur_thp.mm.thp_sysfs import set_switch

N = HPAGE_PMD_NR


@pytest.fixture
def task(new_task, request):
    return new_task(swap="16M" if "order9" in request.node.name else "1M")


@pytest.fixture
def small(task):
    page = Page(int(alloc_page(task.cpu, GFP_HIGHUSER_MOVABLE)))
    yield page
    put_page(task.cpu, page)


@pytest.fixture
def huge(task):
    page = Page(int(alloc_pages(task.cpu, int(HPAGE_PMD_ORDER), MIGRATE_MOVABLE, GFP_TRANSHUGE)))
    tail_page(page, 2).deferred_next = 0
    tail_page(page, 2).deferred_prev = 0
    yield page
    put_page(task.cpu, page)


def in_use() -> int:
    return int(swap_info.inuse_pages)


def test_cache_and_ptes_hold_a_slot_each_for_itself(task, small):
    cpu = task.cpu
    entry = get_swap_page(cpu, small)
    assert entry > 0 and swap_map[entry].count == SWAP_HAS_CACHE and in_use() == 1
    swap_duplicate(cpu, entry)
    swap_duplicate(cpu, entry)
    put_swap_page(cpu, small, entry)
    assert swap_map[entry].count == 2
    assert __swap_entry_free(cpu, entry) == 1 and __swap_entry_free(cpu, entry) == 0 and in_use() == 0


def test_read_in_again(task, small):
    cpu = task.cpu
    entry = get_swap_page(cpu, small)
    assert swapcache_prepare(cpu, entry) == -EEXIST
    swap_duplicate(cpu, entry)
    put_swap_page(cpu, small, entry)
    assert swapcache_prepare(cpu, entry) == 0 and swapcache_prepare(cpu, entry) == -EEXIST
    assert __swap_entry_free(cpu, entry) == SWAP_HAS_CACHE
    put_swap_page(cpu, small, entry)
    assert swapcache_prepare(cpu, entry) == -ENOENT and in_use() == 0


def test_a_cluster_is_huge_until_the_cache_gives_it_up(task, huge):
    cpu = task.cpu
    first = get_swap_page(cpu, huge)
    assert first % int(N) == 0 and cluster_is_huge(cluster_of(first)) and in_use() == int(N)
    swap_duplicate(cpu, first + 2)
    assert all(swap_page_trans_huge_swapped(cpu, first + i) for i in (0, 2, int(N) - 1)), "any of a huge cluster"
    put_swap_page(cpu, huge, first)
    assert not cluster_is_huge(cluster_of(first)) and in_use() == 1
    assert not swap_page_trans_huge_swapped(cpu, first) and swap_page_trans_huge_swapped(cpu, first + 2)
    assert __swap_entry_free(cpu, first + 2) == 0 and in_use() == 0


def test_pieces_keep_their_slots(task, huge, small):
    cpu = task.cpu
    first = get_swap_page(cpu, huge)
    split_swap_cluster(cpu, first)
    assert not cluster_is_huge(cluster_of(first)) and in_use() == int(N)
    for i in range(int(N)):
        put_swap_page(cpu, small, first + i)
    assert in_use() == 0
    with interpreted(), pytest.raises(KernelBug, match="split_swap_cluster: not a huge cluster"):
        split_swap_cluster(cpu, first)


def test_the_switch_leaves_no_cluster_to_thps(task, huge, small):
    """C.4"""
    set_switch("swap_whole_thp", 0)
    assert get_swap_page(task.cpu, huge) == 0 and in_use() == 0
    entry = get_swap_page(task.cpu, small)
    assert entry
    put_swap_page(task.cpu, small, entry)


def test_no_device_no_slot(new_task):
    task = new_task()
    page = Page(int(alloc_page(task.cpu, GFP_HIGHUSER_MOVABLE)))
    assert get_swap_page(task.cpu, page) == 0
    put_page(task.cpu, page)


def bad_pte(cpu, page):
    swap_duplicate(cpu, 7)


def one_too_many(cpu, page):
    __swap_entry_free(cpu, get_swap_page(cpu, page))


def given_up_twice(cpu, page):
    entry = get_swap_page(cpu, page)
    swap_duplicate(cpu, entry)
    put_swap_page(cpu, page, entry)
    put_swap_page(cpu, page, entry)


@pytest.mark.parametrize("mistake, says", [
    (bad_pte, "swap: a bad or unused entry"), (one_too_many, "swap_free: no pte holds it"),
    (given_up_twice, "put_swap_page: not the cache's"),
], ids=lambda it: getattr(it, "__name__", ""))
def test_caught(task, mistake, says):
    page = Page(int(alloc_page(task.cpu, GFP_HIGHUSER_MOVABLE)))
    with interpreted(), pytest.raises(KernelBug, match=says):
        mistake(task.cpu, page)
