"""Out of memory in the middle of fork, mremap and mmap: an error comes back, and everything is as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from concur_thp.arch.irq import cpu_resume
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.errno import EAGAIN, ENOMEM
from concur_thp.mm.flags import (
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
)
from concur_thp.mm.fork import dup_mm, exec_mmap, exit_mm, mmput
from concur_thp.mm.mm_types import POOL_FILE, POOL_VMA, Mm, Page, mem_map, mm_globals, mms, percpu, pools, zones
from concur_thp.mm.page_alloc import __free_pages, alloc_page
from concur_thp.mm.slab import kmem_cache_alloc, kmem_cache_free
from concur_thp.mm.syscall import sys_madvise, sys_mmap, sys_mprotect, sys_mremap, sys_munmap
from concur_thp.mm.uaccess import user_load, user_store

BASE = 1 << 22
free_pages = __free_pages
FLAGS = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS


class Task:
    def __init__(self, machine: Machine):
        self.config, self.cpu = machine.config, machine.cpu(0)
        self.pins: dict[int, int] = {}
        for n in range(3):
            zones[n].watermark[0] = 0
        cpu_resume(self.cpu)
        assert exec_mmap(self.cpu, 1 << 20) == 0

    @property
    def mm(self) -> Any:
        return mms[percpu[0].mm]

    @contextmanager
    def memory_left(self, pages: int) -> Iterator[None]:
        """All but so many free pages are somebody else's."""
        taken: list[int] = []
        for gfp in (GFP_HIGHUSER_MOVABLE, GFP_KERNEL):
            while page := int(alloc_page(self.cpu, gfp)):
                taken.append(page)
        for _ in range(pages):
            free_pages(self.cpu, Page(taken.pop()), 0)
        self.pins = {mem_map.index(page): 1 for page in taken}
        try:
            yield
        finally:
            self.pins = {}
            for page in taken:
                free_pages(self.cpu, Page(page), 0)

    def map(self, addr: int, length: int) -> None:
        assert sys_mmap(self.cpu, addr, length, 3, FLAGS, 0, 0) == addr

    def fill(self, addr: int, length: int) -> None:
        for at in range(addr, addr + length, PAGE_SIZE):
            assert user_store(self.cpu, at, at) == 0

    def holds(self, addr: int, length: int, origin: int) -> None:
        for k in range(0, length, PAGE_SIZE):
            assert user_load(self.cpu, addr + k) == 0
            assert self.cpu.scratch[0] == origin + k

    def check(self) -> None:
        result = audit(self.config, pins=self.pins)
        assert not result.violations, result.violations


def in_use() -> list[int]:
    return [pools[k].in_use.read() for k in range(4)]


def test_fork() -> None:
    with Machine(memory="4M", order=3, cpus=1) as machine:
        task = Task(machine)
        huge = int(HPAGE_PMD_SIZE)
        task.map(BASE, 3 * huge)
        task.fill(BASE, 3 * huge)
        assert sys_munmap(task.cpu, BASE + PAGE_SIZE, PAGE_SIZE) == 0
        task.map(BASE + (1 << 21), PAGE_SIZE)
        task.fill(BASE + (1 << 21), PAGE_SIZE)
        before, failed = in_use(), 0
        for pages in range(20):
            with task.memory_left(pages):
                child = Mm(dup_mm(task.cpu, task.mm))
                task.check()
                if child:
                    mmput(task.cpu, child)
                    break
                failed += 1
                assert in_use() == before
        assert failed >= 5
        task.fill(BASE + PAGE_SIZE * 2, huge)
        task.holds(BASE + PAGE_SIZE * 2, 2 * huge, BASE + PAGE_SIZE * 2)
        task.check()


@pytest.mark.parametrize("left", range(6))
def test_fork_without_vmas(left: int) -> None:
    with Machine(memory="4M", order=3, cpus=1, vmas=40) as machine:
        task = Task(machine)
        for k in range(0, 10, 2):
            task.map(BASE + k * PAGE_SIZE, PAGE_SIZE)
            task.fill(BASE + k * PAGE_SIZE, PAGE_SIZE)
        before = in_use()
        hogged = list(iter(lambda: kmem_cache_alloc(task.cpu, POOL_VMA), 0))
        for _ in range(left):
            kmem_cache_free(task.cpu, POOL_VMA, hogged.pop())
        child = Mm(dup_mm(task.cpu, task.mm))
        assert bool(child) == (left == 5)
        if child:
            mmput(task.cpu, child)
        for number in hogged:
            kmem_cache_free(task.cpu, POOL_VMA, number)
        assert in_use() == before
        task.check()


@pytest.mark.parametrize(("target", "fails"), [
    ((1 << 21) + PAGE_SIZE, 5),  # a PMD table and four tables of ptes
    (1 << 21, 1),  # a PMD table, then huge pmds
    ((1 << 21) - (8 << 12), 1),  # one huge pmd moves in its PMD table, the next would need another
])
def test_mremap_is_undone(target: int, fails: int) -> None:
    """Some table on the way cannot be allocated: what has moved moves back."""
    with Machine(memory="4M", order=3, cpus=1) as machine:
        task = Task(machine)
        target += BASE
        length = 3 * int(HPAGE_PMD_SIZE)
        task.map(BASE, length)
        task.fill(BASE, length)
        results = []
        for pages in range(8):
            with task.memory_left(pages):
                results.append(sys_mremap(task.cpu, BASE, length, length, target))
                task.check()
            if results[-1] == target:
                break
            task.holds(BASE, length, BASE)
            task.check()
        assert results[:-1] == [-ENOMEM] * (len(results) - 1)
        assert results[-1] == target and len(results) == fails + 1
        task.holds(target, length, BASE)
        task.check()


def test_the_limit_of_vmas() -> None:
    with Machine(memory="4M", order=3, cpus=1, max_map_count=10) as machine:
        task = Task(machine)
        results = [sys_mmap(task.cpu, BASE + 4 * k * PAGE_SIZE, 3 * PAGE_SIZE, 3, FLAGS, 0, 0) for k in range(12)]
        assert [r for r in results if r < 0] == [-ENOMEM] * 4 and task.mm.map_count == 8
        assert sys_munmap(task.cpu, BASE + PAGE_SIZE, PAGE_SIZE) == -ENOMEM, "a hole makes two of one"
        assert sys_mprotect(task.cpu, BASE + PAGE_SIZE, PAGE_SIZE, 1) == -ENOMEM
        assert sys_munmap(task.cpu, BASE + PAGE_SIZE, 4 * PAGE_SIZE) == 0, "both ends are cut, the count stays"
        assert task.mm.map_count == 8
        task.check()
        exit_mm(task.cpu)
        assert in_use() == [0] * 4


@contextmanager
def no_vmas(task: Task) -> Iterator[None]:
    """Every vma struct is somebody else's."""
    hogged = list(iter(lambda: kmem_cache_alloc(task.cpu, POOL_VMA), 0))
    yield
    for number in hogged:
        kmem_cache_free(task.cpu, POOL_VMA, number)


def test_shared_memory_without_vmas() -> None:
    """Its file was made first, and no vma's end was its own."""
    with Machine(memory="4M", order=3, cpus=1, vmas=40) as machine:
        task = Task(machine)
        before = pools[POOL_FILE].in_use.read()
        with no_vmas(task):
            assert sys_mmap(task.cpu, BASE, PAGE_SIZE, 3, MAP_FIXED | MAP_SHARED | MAP_ANONYMOUS, 0, 0) == -ENOMEM
        assert pools[POOL_FILE].in_use.read() == before
        task.check()


def test_shared_memory_that_no_file_is_long_enough_for() -> None:
    with Machine(memory="4M", order=3, cpus=1) as machine:
        task = Task(machine)
        before = in_use()
        length = (mm_globals.file_pages + 1) * PAGE_SIZE
        assert sys_mmap(task.cpu, BASE, length, 3, MAP_FIXED | MAP_SHARED | MAP_ANONYMOUS, 0, 0) == -ENOMEM
        assert in_use() == before
        task.check()


@pytest.mark.parametrize("page", [0, 1, 3])
def test_advice_without_vmas(page: int) -> None:
    """madvise says -EAGAIN when memory is short, and keeps -ENOMEM for holes and for max_map_count."""
    with Machine(memory="4M", order=3, cpus=1, vmas=40) as machine:
        task = Task(machine)
        task.map(BASE, 4 * PAGE_SIZE)
        with no_vmas(task):
            assert sys_madvise(task.cpu, BASE + page * PAGE_SIZE, PAGE_SIZE, MADV_HUGEPAGE) == -EAGAIN
        assert task.mm.map_count == 1
        assert sys_madvise(task.cpu, BASE + page * PAGE_SIZE, PAGE_SIZE, MADV_HUGEPAGE) == 0
        task.check()


def test_advice_at_the_limit_of_vmas() -> None:
    with Machine(memory="4M", order=3, cpus=1, max_map_count=3) as machine:
        task = Task(machine)
        task.map(BASE, 4 * PAGE_SIZE)
        assert sys_madvise(task.cpu, BASE, PAGE_SIZE, MADV_HUGEPAGE) == -ENOMEM
        task.check()
