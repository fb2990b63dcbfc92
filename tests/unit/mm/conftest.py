"""A task on CPU 0: an mm to map, load, store and fork in, audited when it ends."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from concur_thp.arch.irq import cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.arch.system import system
from concur_thp.check.audit import audit
from concur_thp.config import PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.flags import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
)
from concur_thp.mm.fork import dup_mm, mm_alloc, mmput, switch_to_mm
from concur_thp.mm.huge_zero import shrink_huge_zero_page
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.mm_types import Mm, Page, Vma, mem_map
from concur_thp.mm.mmap import vm_mmap
from concur_thp.mm.munmap import vm_munmap
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.pgtable import entry_pfn, mm_pmd, pmd_trans_huge, pte_offset
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.swap_state import drop_swap_cache
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.truncate import drop_caches
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vma_tree import find_vma

SMALLEST = {9: "64M", 3: "4M"}


class Task:
    """What a program does, in pages. Huge pages are off unless the test turns them on."""

    def __init__(self, machine: Machine):
        self.machine, self.cpu = machine, machine.cpu(0)
        cpu_resume(self.cpu)
        set_switch("enabled", "never")
        self.mm = Mm(int(mm_alloc(self.cpu)))
        self.mms = [self.mm]
        switch_to_mm(self.cpu, self.mm.id)

    def run_in(self, mm: Mm) -> None:
        """Go on as another task."""
        self.mm = mm
        switch_to_mm(self.cpu, mm.id)

    def mmap(self, addr: int, pages: int, *, prot: int = PROT_READ | PROT_WRITE, flags: int = MAP_PRIVATE,
             file: int = 0, pgoff: int = 0) -> int:
        flags |= MAP_FIXED | (0 if file else MAP_ANONYMOUS)
        got = vm_mmap(self.cpu, self.mm, addr, pages * PAGE_SIZE, prot, flags, file, pgoff)
        assert got == addr
        return got

    def munmap(self, addr: int, pages: int) -> int:
        return vm_munmap(self.cpu, self.mm, addr, pages * PAGE_SIZE)

    def dontneed(self, addr: int, pages: int) -> int:
        return do_madvise(self.cpu, self.mm, addr, pages * PAGE_SIZE, MADV_DONTNEED)

    def fork(self) -> Mm:
        child = Mm(int(dup_mm(self.cpu, self.mm)))
        assert child
        self.mms.append(child)
        return child

    def exit(self, mm: Mm) -> None:
        if mm == self.mm:
            switch_to_mm(self.cpu, 0)
        self.mms.remove(mm)
        mmput(self.cpu, mm)

    def store(self, addr: int, value: int) -> int:
        return user_store(self.cpu, addr, value)

    def load(self, addr: int) -> int:
        assert user_load(self.cpu, addr) == 0
        return int(self.cpu.scratch[0])

    def vma(self, addr: int) -> Vma:
        return Vma(int(find_vma(self.mm, addr)))

    def pmd(self, addr: int) -> int:
        pmd = mm_pmd(self.mm, addr)
        return int(pmd.val.load()) if pmd else 0

    def pte(self, addr: int) -> Any:
        """The entry: .val.load()."""
        value = self.pmd(addr)
        assert value and not pmd_trans_huge(value)
        return pte_offset(value, addr)

    def page(self, addr: int) -> Page:
        return Page(int(mem_map[entry_pfn(self.pte(addr).val.load())]))

    def finish(self) -> None:
        """Every law holds, and again when everything is gone."""
        lru_add_drain(self.cpu)
        assert audit(self.machine.config).violations == []
        for mm in list(self.mms):
            self.exit(mm)
        drop_swap_cache(self.cpu)
        drop_caches(self.cpu)
        lru_add_drain(self.cpu)
        shrink_huge_zero_page(self.cpu)
        drain_pcp(self.cpu)
        assert audit(self.machine.config, expect_empty=True).violations == []


@pytest.fixture(params=[(9, False), (3, False), (3, True)], ids=["order9", "order3", "interpreted"])
def new_task(request: pytest.FixtureRequest) -> Iterator[Callable[..., Task]]:
    """`new_task()` boots a machine and starts a task, finished and audited behind the test unless it panicked."""
    order, plain = request.param
    with ExitStack() as stack:

        def boot(**sizes: Any) -> Task:
            machine = stack.enter_context(Machine(**{"memory": SMALLEST[order], "order": order, "cpus": 1, **sizes}))
            if plain:
                stack.enter_context(interpreted())
            task = Task(machine)
            stack.callback(lambda: None if system.panicked.read() else task.finish())
            return task

        yield boot
