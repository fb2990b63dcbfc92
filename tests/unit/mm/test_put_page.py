"""release_pages() and the lock it takes for a batch."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.cpu import cpus
from concur_thp.arch.linker import interpreted
from concur_thp.mm.deferred_split import deferred_split_huge_page, prep_transhuge_page
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, GFP_TRANSHUGE
from concur_thp.mm.memblock import free_blocks
from concur_thp.mm.mm_types import MIGRATE_MOVABLE, Page, Slot, mm_globals, mms, pgdat, vma_slots
from concur_thp.mm.page_alloc import alloc_page, alloc_pages
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.put_page import RELEASE_HEADS, SWAP_CLUSTER_MAX, put_page, release_pages, slot_at
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


@pytest.mark.parametrize("mode", [nullcontext, interpreted], ids=["native", "interpreted"])
def test_huge_pages_go_together_and_small_ones_among_them_too(machine_factory, mode):
    """One hold of lru_lock for RELEASE_HEADS huge pages; one of them is queued for deferred split, one is held."""
    machine = machine_factory(cpus=1, memory="16M", order=3)
    with mode():
        cpu, before = machine.cpu(0), free_blocks()
        heads = [Page(alloc_pages(cpu, 3, MIGRATE_MOVABLE, GFP_TRANSHUGE)) for _ in range(RELEASE_HEADS + 3)]
        small = [Page(alloc_page(cpu, GFP_HIGHUSER_MOVABLE)) for _ in range(5)]
        pages = [*heads[:4], *small[:2], *heads[4:], *small[2:]]
        batch = Slot(int(vma_slots[0]))
        for number, page in enumerate(pages):
            if page in heads:
                prep_transhuge_page(page)
            lru_cache_add(cpu, page)
            slot_at(batch, number).value = page_to_pfn(page)
        lru_add_drain(cpu)
        deferred_split_huge_page(cpu, heads[2])
        get_page(cpu, heads[3])
        taken = cpus[0].lock_stat[LRU_LOCK].acquisitions
        release_pages(cpu, batch, len(pages))
        assert cpus[0].lock_stat[LRU_LOCK].acquisitions - taken == 3  # Two of huge pages, one of small ones.
        assert pgdat.split_queue_len == 0
        assert [page._refcount.load() for page in pages] == [int(page == heads[3]) for page in pages]
        assert sum(pgdat.lru[number].size for number in range(5)) == 8
        put_page(cpu, heads[3])
        drain_pcp(cpu)
        assert free_blocks() == before


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
