"""release_pages() and the lock it takes for a batch."""

import pytest

from concur_thp.arch.cpu import cpus
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE
from concur_thp.mm.mm_types import Page, Slot, mm_globals, mms, pgdat, vma_slots
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.mm.put_page import SWAP_CLUSTER_MAX, release_pages, slot_at
from concur_thp.mm.swap import lru_add_drain, lru_cache_add
from concur_thp.sync.lock_classes import LRU_LOCK


@pytest.mark.parametrize("count", [1, SWAP_CLUSTER_MAX, SWAP_CLUSTER_MAX + 1, 10 * SWAP_CLUSTER_MAX])
def test_no_hold_of_lru_lock_is_longer_than_a_cluster(machine_factory, count):
    machine = machine_factory(cpus=1, memory="16M", order=3)
    cpu = machine.cpu(0)
    pages = [Page(alloc_page(cpu, GFP_HIGHUSER_MOVABLE)) for _ in range(count)]
    batch = Slot(int(vma_slots[0]))  # Room for pfns: mm 0 does not exist.
    assert mm_globals.max_map_count >= count and mms[0].mm_users.load() == 0
    for number, page in enumerate(pages):
        lru_cache_add(cpu, page)
        slot_at(batch, number).value = page_to_pfn(page)
    lru_add_drain(cpu)
    before = cpus[0].lock_stat[LRU_LOCK].acquisitions
    release_pages(cpu, batch, count)
    assert cpus[0].lock_stat[LRU_LOCK].acquisitions - before == -(-count // SWAP_CLUSTER_MAX)
    assert sum(pgdat.lru[number].size for number in range(5)) == 0
    assert all(page._refcount.load() == 0 for page in pages)


def test_a_page_that_has_another_reference_stays_where_it_is(machine_factory):
    machine = machine_factory(cpus=1, memory="16M", order=3)
    cpu = machine.cpu(0)
    page = Page(alloc_page(cpu, GFP_HIGHUSER_MOVABLE))
    lru_cache_add(cpu, page)
    batch = Slot(int(vma_slots[0]))
    batch.value = page_to_pfn(page)
    release_pages(cpu, batch, 1)  # The pagevec has one too.
    assert page._refcount.load() == 1
    lru_add_drain(cpu)
    assert page._refcount.load() == 0
