"""Pools of structs: mms, vmas, anon_vmas and their like. (Linux: mm/slub.c, SLAB_TYPESAFE_BY_RCU)

A pool is a lock-free stack over its struct array. The links are `free_next`, the first word of each pooled
struct, and are relative: 0 means "the one behind me", so a pool needs no filling at boot and what was never
used is never resident. A stale index still leads to a struct of the same kind, free or reused.
"""

from typing import Any

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.mm.mm_types import (
    POOL_ANON_VMA,
    POOL_AVC,
    POOL_FILE,
    POOL_MM,
    POOL_VMA,
    Slot,
    anon_vmas,
    avcs,
    files,
    mms,
    pools,
    vmas,
)

POOL_ARRAYS: dict[int, SharedArray] = {
    POOL_MM: mms, POOL_VMA: vmas, POOL_ANON_VMA: anon_vmas, POOL_AVC: avcs, POOL_FILE: files,
}
INDEX = 0xFFFFFFFF
"""The part of `top` that is an index; the change count is above it."""
ONE_CHANGE = 1 << 32

assert all(a.struct.FIELDS["free_next"].offset == 0 for a in POOL_ARRAYS.values()), "free_link() says so"


class PoolPlace(Struct, size=16):
    """Where the structs of a pool are; the distance is the same in every process."""

    offset = field(I64, "const", "bytes from the array `pools` to the pool's array")
    stride = field(I64, "const", "bytes from one struct to the next")


pool_places = SharedArray("pool_places", PoolPlace, lambda config: len(POOL_ARRAYS))


def init_pools(config: Any) -> None:
    """Boot: everything is free, index 1 first."""
    for number, array in POOL_ARRAYS.items():
        pool_places[number].offset = int(array.base) - int(pools.base)
        pool_places[number].stride = array.stride
        pools[number].limit = array.count(config) - 1
        pools[number].top.store(1 if array.count(config) > 1 else 0)
        pools[number].in_use.store(0)


@inline
def free_link(pool: int, index: int) -> Slot:
    """The link word of struct `index`."""
    place = pool_places[pool]
    return Slot(int(pools[0]) + place.offset + index * place.stride)


@kernel
def kmem_cache_alloc(cpu: Cpu, pool: int):
    """Take a struct from a pool; its fields are what its last user left.

    Context: any; takes no lock.
    Return: its index, 0 when the pool is empty.
    Linux: mm/slub.c kmem_cache_alloc
    Differs: one lock-free list for all CPUs, a fixed number of structs.
    """
    bug_on(cpu, pool < POOL_MM or pool > POOL_FILE, "kmem_cache_alloc: no such pool", pool, 0)
    cache = pools[pool]
    seen = cache.top.load()
    while True:
        index = seen & INDEX
        if index == 0:
            return 0
        # Another CPU may take this struct right now and even put it back: the link read here is stale then,
        # but the change count has moved on and the swap fails.
        following = index + 1 + free_link(pool, index).value
        if following > cache.limit:
            following = 0
        now = cache.top.cas(seen, (seen & ~INDEX) + ONE_CHANGE + following)
        if now == seen:
            break
        seen = now
    bug_on(cpu, index > cache.limit, "kmem_cache_alloc: the free list leaves the pool", pool, index)
    cache.in_use.add(1)
    return index


@kernel
def kmem_cache_free(cpu: Cpu, pool: int, index: int):
    """Give a struct back.

    Context: any; takes no lock. Nobody reaches the struct any more but readers who check what they find.
    Linux: mm/slub.c kmem_cache_free
    """
    bug_on(cpu, pool < POOL_MM or pool > POOL_FILE, "kmem_cache_free: no such pool", pool, index)
    cache = pools[pool]
    bug_on(cpu, index < 1 or index > cache.limit, "kmem_cache_free: no such struct (values: pool, index)",
           pool, index)
    left = cache.in_use.sub(1)
    bug_on(cpu, left <= 0, "kmem_cache_free: more freed than handed out (values: pool, index)", pool, index)
    link = free_link(pool, index)
    seen = cache.top.load()
    while True:
        link.value = (seen & INDEX) - index - 1
        now = cache.top.cas(seen, (seen & ~INDEX) + ONE_CHANGE + index)
        if now == seen:
            return 0
        seen = now
