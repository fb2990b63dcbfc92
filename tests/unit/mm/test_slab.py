"""The pools of structs on one CPU."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.mm_types import POOL_ANON_VMA, POOL_FILE, POOL_MM, POOL_VMA, pools
from concur_thp.mm.slab import POOL_ARRAYS, kmem_cache_alloc, kmem_cache_free

MODES = pytest.mark.parametrize("mode", [nullcontext, interpreted], ids=["native", "interpreted"])


@MODES
def test_a_pool_gives_each_struct_once_and_then_none(mode):
    with Machine(memory="1M", order=3, mms=40, vmas=50) as m, mode():
        for pool in (POOL_MM, POOL_VMA, POOL_ANON_VMA):
            limit = POOL_ARRAYS[pool].count(m.config) - 1
            assert sorted(kmem_cache_alloc(m.cpu(0), pool) for _ in range(limit)) == list(range(1, limit + 1))
            assert kmem_cache_alloc(m.cpu(0), pool) == 0 and pools[pool].in_use.load() == limit
            for index in (7, 3, limit):
                kmem_cache_free(m.cpu(0), pool, index)
            assert [kmem_cache_alloc(m.cpu(0), pool) for _ in range(4)] == [limit, 3, 7, 0]


@MODES
def test_what_is_freed_before_the_end_comes_back_first(mode):
    with Machine(memory="1M", order=3) as m, mode():
        cpu = m.cpu(0)
        assert [kmem_cache_alloc(cpu, POOL_FILE) for _ in range(5)] == [1, 2, 3, 4, 5]
        kmem_cache_free(cpu, POOL_FILE, 2)
        kmem_cache_free(cpu, POOL_FILE, 4)
        assert [kmem_cache_alloc(cpu, POOL_FILE) for _ in range(3)] == [4, 2, 6]


@pytest.mark.parametrize("pool, index, text", [(9, 1, "no such pool"), (POOL_VMA, 0, "no such struct"),
                                               (POOL_VMA, 1, "more freed than handed out")])
def test_misplaced_frees_are_bugs(pool, index, text):
    with Machine(memory="1M", order=3) as m, interpreted(), pytest.raises(KernelBug, match=text):
        kmem_cache_free(m.cpu(0), pool, index)
