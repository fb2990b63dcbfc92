"""Threads of one address space, each on a CPU of its own, that change neighbouring vmas while the others run in them.

The arena is cut into blocks whose borders are not those of huge pages; block i belongs to CPU i % CPUS, which alone
maps, protects, moves and writes there, so it always knows what it must read, while huge pages, tables and vmas are
shared with the others. One more CPU is khugepaged.
"""

import os
import random
import time
from typing import Any

import pytest
from multiprocess import get_context

from concur_thp.arch.bug import describe_bug
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.listen import LISTEN_CHAOS
from concur_thp.arch.system import system
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_NR, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.flags import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
)
from concur_thp.mm.fork import dup_mm, exec_mmap, exit_mm, mmget, mmput, switch_to_mm
from concur_thp.mm.khugepaged import khugepaged_do_scan
from concur_thp.mm.mm_types import Mm, mms, percpu, pools
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_madvise, sys_mmap, sys_mprotect, sys_mremap, sys_munmap
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vmstat import vmstat
from tests.processes import DEADLINE_SECONDS

CPUS = 2
SEED = 0
BASE = 1 << 24
RW = PROT_READ | PROT_WRITE
FIXED = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS


class Thread:
    """One CPU's blocks: page -> value, None where nothing is mapped."""

    def __init__(self, cpu: Any, block: int, blocks: int):
        self.cpu, self.block, self.dice = cpu, block, random.Random(SEED + cpu.id)
        self.mine = range(cpu.id, blocks, CPUS)
        self.pages: dict[int, int] = {}
        self.value = cpu.id << 40

    def addr(self, page: int) -> int:
        return BASE + page * PAGE_SIZE

    def some(self) -> tuple[int, int]:
        """A run of pages in a block of ours."""
        first = self.dice.choice(self.mine) * self.block
        if self.dice.random() < 0.5:
            return first, self.block
        start = self.dice.randrange(self.block)
        return first + start, self.dice.randint(1, self.block - start)

    def step(self) -> None:
        self.dice.choice((self.access, self.access, self.access, self.mmap, self.munmap, self.protect, self.advise,
                          self.move, self.fork))()

    def access(self) -> None:
        start, count = self.some()
        for page in range(start, start + count):
            if page not in self.pages:
                assert user_load(self.cpu, self.addr(page)) == -14
                continue
            assert user_load(self.cpu, self.addr(page)) == 0
            assert self.cpu.scratch[0] == self.pages[page], hex(page)
            self.value += 1
            assert user_store(self.cpu, self.addr(page), self.value) == 0
            self.pages[page] = self.value

    def mmap(self) -> None:
        page, count = self.some()
        assert sys_mmap(self.cpu, self.addr(page), count * PAGE_SIZE, RW, FIXED, 0, 0) == self.addr(page)
        self.pages.update(dict.fromkeys(range(page, page + count), 0))

    def munmap(self) -> None:
        start, count = self.some()
        assert sys_munmap(self.cpu, self.addr(start), count * PAGE_SIZE) == 0
        for page in range(start, start + count):
            self.pages.pop(page, None)

    def protect(self) -> None:
        page, count = self.some()
        if all(p in self.pages for p in range(page, page + count)):
            assert sys_mprotect(self.cpu, self.addr(page), count * PAGE_SIZE, PROT_READ) == 0
            assert user_store(self.cpu, self.addr(page), 1) == -14
            assert user_load(self.cpu, self.addr(page)) == 0 and self.cpu.scratch[0] == self.pages[page]
            assert sys_mprotect(self.cpu, self.addr(page), count * PAGE_SIZE, RW) == 0

    def advise(self) -> None:
        start, count = self.some()
        advice = self.dice.choice((MADV_DONTNEED, MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE))
        result = sys_madvise(self.cpu, self.addr(start), count * PAGE_SIZE, advice)
        assert result == (0 if all(p in self.pages for p in range(start, start + count)) else -12)
        if advice == MADV_DONTNEED:
            for page in range(start, start + count):
                if page in self.pages:
                    self.pages[page] = 0

    def move(self) -> None:
        page, count = self.some()
        target, room = self.some()
        count = min(count, room)
        if page // self.block == target // self.block or any(p not in self.pages for p in range(page, page + count)):
            return
        size = count * PAGE_SIZE
        result = sys_mremap(self.cpu, self.addr(page), size, size, self.addr(target))
        for k in range(count):
            self.pages.pop(target + k, None)  # unmapped, also when the source turned out to be several vmas
        if result > 0:
            for k in range(count):
                self.pages[target + k] = self.pages.pop(page + k)

    def fork(self) -> None:
        """A child looks at our pages as they were, and goes."""
        if self.dice.random() < 0.7:
            return
        mother = percpu[self.cpu.id].mm
        child = Mm(dup_mm(self.cpu, mms[mother]))
        if not child:
            return
        before = dict(self.pages)
        self.access()
        switch_to_mm(self.cpu, child.id)
        for page, value in before.items():
            assert user_load(self.cpu, self.addr(page)) == 0 and self.cpu.scratch[0] == value, hex(page)
            assert user_store(self.cpu, self.addr(page), 1) == 0
        switch_to_mm(self.cpu, mother)
        mmput(self.cpu, child)


def in_parallel(machine: Machine, *jobs: Any) -> None:
    """Each job on a CPU and in a process of its own; the last one, khugepaged, goes on until the others are done."""

    def run(number: int, job: Any) -> None:
        cpu = machine.cpu(number)
        cpu_resume(cpu)
        job(cpu)
        cpu_park(cpu)

    workers = [get_context("fork").Process(target=run, args=pair) for pair in enumerate(jobs)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + DEADLINE_SECONDS
    for worker in workers[:-1]:
        worker.join(max(0.0, deadline - time.monotonic()))
    system.stop.store(1)
    workers[-1].join(max(0.0, deadline - time.monotonic()))
    ends = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert not system.panicked.load(), describe_bug()
    assert ends == [0] * len(jobs)


@pytest.mark.parametrize("chaos", [False, True])
@pytest.mark.parametrize(("order", "memory", "steps"), [(3, "32M", 600), (9, "256M", 300)])
def test_threads(order: int, memory: str, steps: int, chaos: bool) -> None:
    with Machine(memory=memory, order=order, cpus=CPUS + 1) as machine:
        cpu = machine.cpu(0)
        cpu_resume(cpu)
        assert exec_mmap(cpu, BASE // 2) == 0
        mm = mms[percpu[0].mm]
        for _ in range(1, CPUS):
            mmget(mm)
        switch_to_mm(cpu, 0)
        cpu_park(cpu)
        block = int(HPAGE_PMD_NR) * 11 // 4
        threads = [Thread(machine.cpu(n), block, 12) for n in range(CPUS)]

        def work(cpu: Any) -> None:
            switch_to_mm(cpu, mm.id)
            for _ in range(steps):
                threads[cpu.id].step()

        def scan(cpu: Any) -> None:
            while not system.stop.load():
                khugepaged_do_scan(cpu, 64)
                os.sched_yield()

        if chaos:
            system.chaos_short, system.chaos_long = 3, 7
            system.listen.store(LISTEN_CHAOS)
        in_parallel(machine, *[work] * CPUS, scan)
        result = audit(machine.config)
        assert not result.violations, result.violations
        for n in range(CPUS):
            cpu_resume(machine.cpu(n))
            exit_mm(machine.cpu(n))
            lru_add_drain(machine.cpu(n))
            cpu_park(machine.cpu(n))
        scanner = machine.cpu(CPUS)
        khugepaged_do_scan(scanner, 64)
        lru_add_drain(scanner)
        result = audit(machine.config, expect_empty=True)
        assert not result.violations, result.violations
        assert [pools[k].in_use.read() for k in range(5)] == [0] * 5
        assert vmstat()["thp_split_pmd"] > 0
