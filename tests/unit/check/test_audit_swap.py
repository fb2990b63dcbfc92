"""Q10 and the swap side of Q4, Q9, Q12, Q16: what the audit says of a device and a swap cache that do not add up."""

from collections.abc import Callable

import pytest

from concur_thp.machine import Machine
from concur_thp.mm.lru import del_page_from_lru_list, isolate_lru_page, page_lru
from concur_thp.mm.mm_types import MM_SWAPENTS, Page, mem_map, pgdat
from concur_thp.mm.page_flags import PG_active, PG_lru, PG_swapcache, PG_writeback
from concur_thp.mm.page_list import LIST_PAGES, list_add, page_list
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.pgtable import _PAGE_ACCESSED
from concur_thp.mm.shrink_page_list import shrink_page_list
from concur_thp.mm.swap import lru_add_drain, putback_lru_page
from concur_thp.mm.swap_map import CLUSTER_FLAG_HUGE, SWAP_HAS_CACHE, cluster_of, swap_info, swap_map
from concur_thp.mm.swap_state import add_to_swap, swap_cache_slots, swapper_space
from concur_thp.mm.uaccess import user_load
from tests.unit.check.conftest import PAGE, SMALL, THP, Scene


def swap_out(scene: Scene, addr: int) -> int:
    """Reclaim a small page; returns its slot."""
    lru_add_drain(scene.cpu)
    scene.entry(addr).val.and_(~_PAGE_ACCESSED)
    page = scene.page(addr)
    assert isolate_lru_page(scene.cpu, page)
    page.flags.and_(~(1 << PG_active))
    list_add(page_list(scene.cpu, LIST_PAGES), page)
    assert shrink_page_list(scene.cpu, page_list(scene.cpu, LIST_PAGES)) == 1
    return scene.pfn(addr)


def huge_in_cache(scene: Scene) -> Page:
    """A mapped THP that has a cluster of the device."""
    page = scene.page(THP)
    lock_page(scene.cpu, page)
    assert isolate_lru_page(scene.cpu, page) and add_to_swap(scene.cpu, page)
    unlock_page(scene.cpu, page)
    putback_lru_page(scene.cpu, page)
    return page


@pytest.fixture
def swapped():
    """SMALL is on the device only, SMALL + 1 page in the swap cache and mapped, the first THP in the swap cache."""
    with Machine(memory="4M", order=3, cpus=2, swap="1M") as machine:
        scene = Scene(machine)
        swap_out(scene, SMALL)
        swap_out(scene, SMALL + PAGE)
        assert user_load(scene.cpu, SMALL + PAGE) == 0
        huge_in_cache(scene)
        lru_add_drain(scene.cpu)
        assert scene.laws() == set()
        yield scene


BREAKS: list[tuple[str, Callable[[Scene], object]]] = []


def breaks(law: str):
    def register(function):
        BREAKS.append((law, function))
        return function

    return register


@breaks("Q10")
def count_too_high(scene):
    slot = swap_map[scene.pfn(SMALL)]
    slot.count = slot.count + 1


@breaks("Q10")
def has_cache_without_a_page(scene):
    slot = swap_map[scene.pfn(SMALL)]
    slot.count = slot.count | SWAP_HAS_CACHE


@breaks("Q10")
def cached_slot_that_is_free(scene):
    swap_map[scene.page(SMALL + PAGE).private].count = 0


@breaks("Q10")
def inuse_pages_off(scene):
    swap_info.inuse_pages = swap_info.inuse_pages - 1


@breaks("Q10")
def wrong_private(scene):
    scene.page(SMALL + PAGE).private = 3


@breaks("Q10")
def flag_lost(scene):
    scene.page(SMALL + PAGE).flags.and_(~(1 << PG_swapcache))


@breaks("Q10")
def flag_without_a_slot(scene):
    scene.page(SMALL + 2 * PAGE).flags.or_(1 << PG_swapcache)


@breaks("Q10")
def left_under_writeback(scene):
    scene.page(SMALL + PAGE).flags.or_(1 << PG_writeback)


@breaks("Q10")
def huge_flag_lost(scene):
    cluster = cluster_of(scene.page(THP).private)
    cluster.flags = cluster.flags & ~CLUSTER_FLAG_HUGE


@breaks("Q10")
def huge_flag_of_an_ordinary_cluster(scene):
    cluster_of(scene.pfn(SMALL)).flags = CLUSTER_FLAG_HUGE


@breaks("Q10")
def cluster_count_off(scene):
    cluster = cluster_of(scene.pfn(SMALL))
    cluster.count = cluster.count + 1


@breaks("Q10")
def nrpages_off(scene):
    swapper_space.nrpages = swapper_space.nrpages + 1


@breaks("Q10")
def swap_entry_of_no_slot(scene):
    entry = scene.entry(SMALL)
    entry.val.store(entry.val.read() | 1 << 40)


@breaks("Q9")
def swapents_off(scene):
    scene.mm.rss[MM_SWAPENTS].add(1)


@breaks("Q4")
def reference_of_the_cache_lost(scene):
    scene.page(SMALL + PAGE)._refcount.add(-1)


@breaks("Q4")
def references_of_a_thp_lost(scene):
    scene.page(THP)._refcount.add(-7)


@breaks("Q16")
def slot_dropped(scene):
    swap_cache_slots[scene.page(SMALL + PAGE).private].value = 0


@breaks("Q12")
def cached_page_off_the_lru(scene):
    page = scene.page(SMALL + PAGE)
    number = page_lru(page.flags.read())
    del_page_from_lru_list(page, number)
    page.flags.and_(~(1 << PG_lru))
    assert mem_map[pgdat.lru[number].head] != page


@pytest.mark.parametrize(("law", "corrupt"), BREAKS, ids=[function.__name__ for _, function in BREAKS])
def test_the_audit_sees(swapped, law, corrupt):
    corrupt(swapped)
    assert law in swapped.laws()
