"""The swap device's slots: who uses each, and which clusters are free. (Linux: include/linux/swap.h, mm/swapfile.c)

A slot's word counts the swap ptes that hold it, and SWAP_HAS_CACHE says that a page of the swap cache does too. A cluster is
as many slots as a huge page has pages; a wholly free one can take a THP in one piece and is then flagged huge until the
page leaves the cache or is split. Everything here needs si.lock, but for reads that are hints.
"""

from typing import Any

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I32, I64, Struct, embed, field
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_ORDER, NR_CPUS
from concur_thp.sync.lock_classes import SWAP_LOCK
from concur_thp.sync.spinlock import SpinLock, assert_spin_locked, spin_lock_init

SWAP_HAS_CACHE = 1 << 30
SWAP_COUNT = SWAP_HAS_CACHE - 1
"""The ptes' part of a slot's word. (Linux counts to 62 and goes on in continuation pages.)"""
CLUSTER_FLAG_FREE, CLUSTER_FLAG_HUGE = 1, 4


class SwapInfo(Struct, size=128):
    """struct swap_info_struct: the device."""

    lock = embed(SpinLock, "si.lock: swap_map and clusters")
    max = field(I64, "const", "slots, the header included; 0 when there is no device")
    pages = field(I64, "const", "slots that can be used")
    inuse_pages = field(I64, "swap_lock|racy", "slots in use")
    free_clusters_head = field(I32, "swap_lock", "first wholly free cluster, 0 when there is none")
    free_clusters_tail = field(I32, "swap_lock", "last")
    cluster_next = field(I64, "swap_lock", "where the next search of a device without free clusters begins")


class SwapSlot(Struct, size=4, align=4):
    """One byte of swap_map, as a word."""

    count = field(I32, "swap_lock", "swap ptes that hold the slot | SWAP_HAS_CACHE; 0 when free")


class SwapCluster(Struct, size=16):
    """struct swap_cluster_info."""

    count = field(I32, "swap_lock", "slots in use")
    flags = field(I32, "swap_lock", "CLUSTER_FLAG_*")
    next = field(I32, "swap_lock", "next free cluster, or 0")


class PercpuCluster(Struct, size=64):
    """struct percpu_cluster: where a CPU takes its slots, so that what it swaps out together lies together."""

    index = field(I32, "swap_lock", "the cluster, 0 for none")
    next = field(I64, "swap_lock", "the slot to look at next")


swap_info = SharedOne("swap_info", SwapInfo)
swap_map = SharedArray("swap_map", SwapSlot, lambda c: max(c.swap_slots, 1))
swap_clusters = SharedArray("swap_clusters", SwapCluster, lambda c: (c.swap_slots >> c.order) + 1)
percpu_clusters = SharedArray("percpu_clusters", PercpuCluster, lambda c: NR_CPUS)


def init_swap_map(config: Any) -> None:
    """Boot: every slot free but the header, so every cluster but the first."""
    spin_lock_init(swap_info.lock, SWAP_LOCK)
    clusters = config.swap_slots >> config.order
    swap_info.max = config.swap_slots
    swap_info.pages = max(config.swap_slots - 1, 0)
    swap_info.cluster_next = 1
    if clusters == 0:
        return
    swap_map[0].count = SWAP_HAS_CACHE  # SWAP_MAP_BAD: nobody ever frees it.
    swap_clusters[0].count = 1
    for index in range(1, clusters):
        swap_clusters[index].flags = CLUSTER_FLAG_FREE
        swap_clusters[index].next = index + 1 if index + 1 < clusters else 0
    swap_info.free_clusters_head, swap_info.free_clusters_tail = 1, clusters - 1


@inline
def cluster_of(entry: int) -> SwapCluster:
    return swap_clusters[entry >> HPAGE_PMD_ORDER]


@inline
def cluster_start(entry: int):
    """The first slot of an entry's cluster."""
    return entry & ~(HPAGE_PMD_NR - 1)


@inline
def cluster_is_huge(cluster: SwapCluster):
    return cluster.flags & CLUSTER_FLAG_HUGE != 0


@inline
def swap_count(entry: int):
    """Swap ptes that hold a slot."""
    return swap_map[entry].count & SWAP_COUNT


@inline
def free_cluster_add(index: int):
    """A cluster has no slot in use any more."""
    cluster = swap_clusters[index]
    cluster.flags = CLUSTER_FLAG_FREE
    cluster.next = 0
    if swap_info.free_clusters_head == 0:
        swap_info.free_clusters_head = index
    else:
        swap_clusters[swap_info.free_clusters_tail].next = index
    swap_info.free_clusters_tail = index


@inline
def free_cluster_pop():
    """Take a wholly free cluster off its list; 0 when there is none."""
    index = swap_info.free_clusters_head
    if index != 0:
        cluster = swap_clusters[index]
        swap_info.free_clusters_head = cluster.next
        cluster.flags = 0
    return index


@inline
def take_slot(cpu: Cpu, entry: int):
    """A free slot goes to the swap cache."""
    cluster = cluster_of(entry)
    bug_on(cpu, cluster.flags != 0, "swap: a slot of a free or huge cluster is handed out (values: slot, flags)", entry,
           cluster.flags)
    swap_map[entry].count = SWAP_HAS_CACHE
    cluster.count = cluster.count + 1
    swap_info.inuse_pages = swap_info.inuse_pages + 1


@kernel
def free_slot(cpu: Cpu, entry: int):
    """Nobody holds a slot any more.

    Context: si.lock held.
    Linux: mm/swapfile.c swap_range_free, dec_cluster_info_page
    """
    assert_spin_locked(cpu, swap_info.lock)
    cluster = cluster_of(entry)
    bug_on(cpu, swap_map[entry].count != 0 or cluster.count <= 0, "swap: freeing a slot that is held (values: slot, count)",
           entry, swap_map[entry].count)
    cluster.count = cluster.count - 1
    swap_info.inuse_pages = swap_info.inuse_pages - 1
    if cluster.count == 0:
        bug_on(cpu, cluster_is_huge(cluster), "swap: an empty cluster is still huge (value: slot)", entry, 0)
        free_cluster_add(entry >> HPAGE_PMD_ORDER)


@inline
def percpu_slot(cpu: Cpu):
    """The next free slot of this CPU's cluster, of a new one when it is full; 0 when no cluster is free."""
    mine = percpu_clusters[cpu.id]
    found = 0
    while found == 0:
        index = mine.index
        if index != 0 and swap_clusters[index].flags == 0:
            entry = mine.next
            end = (index + 1) << HPAGE_PMD_ORDER
            while entry < end and swap_map[entry].count != 0:
                entry += 1
            mine.next = entry + 1
            if entry < end:
                found = entry
        if found == 0:
            # Full, or given back and perhaps somebody else's by now.
            mine.index = free_cluster_pop()
            mine.next = mine.index << HPAGE_PMD_ORDER
            if mine.index == 0:
                break
    return found


@kernel
def scan_swap_map(cpu: Cpu):
    """Take one free slot for the swap cache.

    Context: si.lock held.
    Return: the slot, 0 when all are in use.
    Linux: mm/swapfile.c scan_swap_map_slots
    Differs: one device, no slot cache for each CPU, no reclaim of slots that only the cache holds.
    """
    assert_spin_locked(cpu, swap_info.lock)
    if swap_info.inuse_pages >= swap_info.pages:
        return 0
    entry = percpu_slot(cpu)
    if entry == 0:
        # No cluster is free, so a slot that is free is in one that is neither free nor huge.
        entry = swap_info.cluster_next
        while swap_map[entry].count != 0:
            entry = entry + 1 if entry + 1 < swap_info.max else 1
        swap_info.cluster_next = entry
    take_slot(cpu, entry)
    return entry


@kernel
def swap_alloc_cluster(cpu: Cpu):
    """Take a wholly free cluster for a THP: every slot goes to the swap cache.

    Context: si.lock held.
    Return: its first slot, 0 when there is none.
    Linux: mm/swapfile.c swap_alloc_cluster
    """
    assert_spin_locked(cpu, swap_info.lock)
    index = free_cluster_pop()
    if index == 0:
        return 0
    first = index << HPAGE_PMD_ORDER
    for i in range(HPAGE_PMD_NR):
        take_slot(cpu, first + i)
    swap_clusters[index].flags = CLUSTER_FLAG_HUGE
    return first


@inline
def get_nr_swap_pages():
    """Free slots. A hint without si.lock."""
    return swap_info.pages - swap_info.inuse_pages


@inline
def vm_swap_full():
    """Is the device more than half full? Then slots are given up as soon as their page is back in memory."""
    return get_nr_swap_pages() * 2 < swap_info.pages
