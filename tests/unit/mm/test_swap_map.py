"""Slots and clusters of the swap device against a model; the size that a device may have."""

import random

import pytest

from concur_thp.config import HPAGE_PMD_NR, PAGE_SIZE, MachineConfig
from concur_thp.errors import Misuse
from concur_thp.machine import Machine
from concur_thp.mm.errno import EEXIST, ENOENT
from concur_thp.mm.swap_map import (
    SWAP_HAS_CACHE,
    get_nr_swap_pages,
    scan_swap_map,
    swap_alloc_cluster,
    swap_clusters,
    swap_info,
    swap_map,
)
from concur_thp.mm.swapfile import (
    __swap_entry_free,
    split_swap_cluster,
    swap_duplicate,
    swap_page_trans_huge_swapped,
    swapcache_prepare,
)
from concur_thp.sync.spinlock import spin_lock, spin_unlock


def take(cpu, function) -> int:
    spin_lock(cpu, swap_info.lock)
    entry = int(function(cpu))
    spin_unlock(cpu, swap_info.lock)
    return entry


def pte_only(cpu, entry: int) -> None:
    """A pte holds the slot, the cache gives it up."""
    swap_duplicate(cpu, entry)
    swap_map[entry].count = swap_map[entry].count & ~SWAP_HAS_CACHE


@pytest.fixture(params=[9, 3])
def machine(request):
    memory, swap = "64M" if request.param == 9 else "4M", 8 * PAGE_SIZE << request.param
    with Machine(memory=memory, order=request.param, cpus=2, swap=swap) as m:
        yield m


def test_every_slot_but_the_header_is_handed_out_once(machine):
    cpus = machine.cpu(0), machine.cpu(1)
    total = machine.config.swap_slots
    assert get_nr_swap_pages() == total - 1
    got = [take(cpus[n % 2], scan_swap_map) for n in range(total - 1)]
    assert sorted(got) == list(range(1, total))
    assert take(cpus[0], scan_swap_map) == 0 == take(cpus[0], swap_alloc_cluster)
    assert get_nr_swap_pages() == 0


def test_a_cpu_takes_neighbouring_slots(machine):
    cpus = machine.cpu(0), machine.cpu(1)
    mine = [take(cpus[0], scan_swap_map) for _ in range(4)]
    other = take(cpus[1], scan_swap_map)
    assert mine == list(range(mine[0], mine[0] + 4))
    assert other >> machine.config.order != mine[0] >> machine.config.order


def test_a_thp_gets_a_wholly_free_cluster_or_nothing(machine):
    cpu, nr = machine.cpu(0), int(HPAGE_PMD_NR)
    entry = take(cpu, swap_alloc_cluster)
    assert entry % nr == 0 and entry > 0
    assert all(swap_map[entry + i].count == SWAP_HAS_CACHE for i in range(nr))
    for _ in range((machine.config.swap_slots // nr - 2) * nr - nr + 1):  # One slot of the last free cluster is taken.
        take(cpu, scan_swap_map)
    assert take(cpu, swap_alloc_cluster) == 0
    assert take(cpu, scan_swap_map) != 0


def test_an_empty_cluster_is_free_again(machine):
    cpu, nr = machine.cpu(0), int(HPAGE_PMD_NR)
    entries = [take(cpu, scan_swap_map) for _ in range(nr)]
    cluster = swap_clusters[entries[0] >> machine.config.order]
    assert cluster.count == nr
    for entry in entries:
        pte_only(cpu, entry)
        assert __swap_entry_free(cpu, entry) == 0
    assert cluster.count == 0 and cluster.flags != 0 and swap_info.inuse_pages == 0


def test_swapcache_prepare(machine):
    cpu = machine.cpu(0)
    entry = take(cpu, scan_swap_map)
    assert swapcache_prepare(cpu, entry) == -EEXIST
    pte_only(cpu, entry)
    assert swapcache_prepare(cpu, entry) == 0
    assert swap_map[entry].count == SWAP_HAS_CACHE | 1
    assert swapcache_prepare(cpu, entry + 1) == -ENOENT


def test_a_huge_cluster_is_swapped_while_any_slot_is(machine):
    cpu = machine.cpu(0)
    entry = take(cpu, swap_alloc_cluster)
    swap_duplicate(cpu, entry + 3)
    assert swap_page_trans_huge_swapped(cpu, entry) == 1
    split_swap_cluster(cpu, entry)
    assert swap_page_trans_huge_swapped(cpu, entry) == 0 and swap_page_trans_huge_swapped(cpu, entry + 3) == 1


@pytest.mark.parametrize("seed", range(3))
def test_random_takes_and_frees(seed):
    rng = random.Random(seed)
    with Machine(memory="4M", order=3, cpus=2, swap=16 * PAGE_SIZE << 3) as m:
        cpus, held = (m.cpu(0), m.cpu(1)), dict[int, int]()
        for _ in range(2000):
            if rng.random() < 0.55:
                entry = take(rng.choice(cpus), scan_swap_map)
                if entry:
                    assert entry not in held
                    pte_only(cpus[0], entry)
                    held[entry] = 1
            elif held:
                entry = rng.choice(list(held))
                if rng.random() < 0.3:
                    swap_duplicate(cpus[0], entry)
                    held[entry] += 1
                else:
                    held[entry] -= 1
                    assert __swap_entry_free(cpus[0], entry) == held[entry]
                    if not held[entry]:
                        del held[entry]
            assert swap_info.inuse_pages == len(held)
        used = [sum(entry >> 3 == cluster for entry in held) + (cluster == 0) for cluster in range(16)]
        assert [swap_clusters[n].count for n in range(16)] == used


def test_sizes_of_a_device():
    assert MachineConfig().swap_slots == 0
    assert MachineConfig(memory=64 << 20, swap=(9 << 20) + 5).swap_slots == 2048
    with pytest.raises(Misuse, match="--swap 4K: with --order 9 pass 8M to 1T, or 0"):
        MachineConfig(swap=4096)
