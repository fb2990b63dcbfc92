"""Two CPU processes at the allocator, the page lock and the pools at once."""

import random
import time

import pytest
from multiprocess import get_context

from concur_thp.arch.bug import bug_on, describe_bug
from concur_thp.arch.builtins import cpu_relax
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.system import system
from concur_thp.machine import Machine
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, GFP_KERNEL, GFP_TRANSHUGE
from concur_thp.mm.memblock import free_blocks
from concur_thp.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_UNMOVABLE,
    POOL_VMA,
    Page,
    frames,
    mem_map,
    pools,
    vmas,
    zones,
)
from concur_thp.mm.page_alloc import __free_pages, alloc_pages
from concur_thp.mm.page_flags import tail_page
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.slab import kmem_cache_alloc, kmem_cache_free
from tests.processes import DEADLINE_SECONDS


def on_two_cpus(machine, work):
    """Run work(cpu) on CPU 0 and 1 at the same time, each in a process of its own."""
    started = frames[0].word[0]
    started.store(0)

    def run(cpu):
        started.add(1)
        while started.load() < 2:
            pass
        work(cpu)

    workers = [get_context("fork").Process(target=run, args=(machine.cpu(n),)) for n in range(2)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + DEADLINE_SECONDS
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    ends = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert not system.panicked.load(), describe_bug()
    assert ends == [0, 0]


def churn(cpu, order, rounds):
    """Allocate and free at random, owning up in every frame; all is given back at the end."""
    choose, owned = random.Random(cpu.id), []
    kinds = [(0, MIGRATE_MOVABLE, GFP_HIGHUSER_MOVABLE), (0, MIGRATE_UNMOVABLE, GFP_KERNEL),
             (1, MIGRATE_UNMOVABLE, GFP_KERNEL), (2, MIGRATE_MOVABLE, GFP_HIGHUSER_MOVABLE),
             (order, MIGRATE_MOVABLE, GFP_TRANSHUGE), (order + 1, MIGRATE_UNMOVABLE, GFP_KERNEL)]
    for _ in range(rounds):
        if choose.random() < 0.5 + 0.1 * choose.choice((-1, 1)):
            size, migratetype, gfp = choose.choices(kinds, (20, 20, 2, 2, 2, 1))[0]
            if page := alloc_pages(cpu, size, migratetype, gfp):
                pfn = mem_map.index(Page(page))
                for i in {0, (1 << size) - 1}:
                    assert frames[pfn + i].word[0].xchg(cpu.id + 1) == 0, "nobody else has it"
                owned.append((Page(page), pfn, size))
        elif owned:
            give_back(cpu, *owned.pop(choose.randrange(len(owned))))
    for row in owned:
        give_back(cpu, *row)
    drain_pcp(cpu)


def give_back(cpu, page, pfn, size):
    for i in {0, (1 << size) - 1}:
        assert frames[pfn + i].word[0].xchg(0) == cpu.id + 1
    __free_pages(cpu, page, size)


@pytest.mark.parametrize("order, memory, kernelcore", [(9, "64M", 0), (3, "1M", 0), (3, "1M", "512K")])
def test_after_two_cpus_all_frames_are_free_and_merged(order, memory, kernelcore):
    with Machine(memory=memory, order=order, kernelcore=kernelcore) as m:
        before = free_blocks()
        on_two_cpus(m, lambda cpu: churn(cpu, order, 20_000))
        assert free_blocks() == before
        assert sum(zones[n].nr_free_pages for n in range(3)) == m.config.frames - 1


@kernel
def count_under_page_lock(cpu: Cpu, head: Page, rounds: int):
    """Add to a word that only the page lock guards; lock through every subpage."""
    content = frames[mem_map.index(head)]
    for i in range(rounds):
        page = tail_page(head, i & 511)
        lock_page(cpu, page)
        seen = content.word[0].read()
        for _ in range(20):
            cpu_relax()
        content.word[0].write(seen + 1)
        unlock_page(cpu, page)


def test_the_page_lock_excludes():
    with Machine(memory="64M") as m:
        head = Page(alloc_pages(m.cpu(0), 9, MIGRATE_MOVABLE, GFP_TRANSHUGE))
        on_two_cpus(m, lambda cpu: count_under_page_lock(cpu, head, 100_000))
        assert frames[mem_map.index(head)].word[0].read() == 200_000


@kernel
def take_and_give(cpu: Cpu, rounds: int):
    """Take three structs and mark them, give them back in another order; the pool must be torn by nobody."""
    for i in range(rounds):
        a = kmem_cache_alloc(cpu, POOL_VMA)
        b = kmem_cache_alloc(cpu, POOL_VMA)
        c = kmem_cache_alloc(cpu, POOL_VMA)
        bug_on(cpu, a == 0 or b == 0 or c == 0, "the pool has lost a struct", a, b)
        bug_on(cpu, vmas[a].vm_start + vmas[b].vm_start + vmas[c].vm_start != 0, "it has an owner", a, b)
        vmas[a].vm_start = i + 1
        vmas[b].vm_start = i + 1
        vmas[c].vm_start = i + 1
        for turn in range(3):
            index = a if turn == 0 else c if turn == 1 else b
            bug_on(cpu, vmas[index].vm_start != i + 1, "somebody has it too", index, i)
            vmas[index].vm_start = 0
            kmem_cache_free(cpu, POOL_VMA, index)


def test_a_pool_gives_no_struct_to_two():
    with Machine(memory="1M", order=3, vmas=16) as m:
        on_two_cpus(m, lambda cpu: take_and_give(cpu, 200_000))
        assert pools[POOL_VMA].in_use.load() == 0
        assert sorted(kmem_cache_alloc(m.cpu(0), POOL_VMA) for _ in range(16)) == list(range(1, 17))
