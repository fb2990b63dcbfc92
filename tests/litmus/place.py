"""A place in an mm for two CPUs to meet in, and what must be true of it when they have parted."""

from collections.abc import Iterator
from contextlib import contextmanager

from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.points import Point
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.mm_types import Mm, Page, mem_map, mms
from concur_thp.mm.mmap import vm_mmap
from concur_thp.mm.munmap import vm_munmap
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.pgtable import entry_pfn, mm_pmd, pmd_trans_huge, pte_offset
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.swap_state import drop_swap_cache
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load, user_store
from tests.processes import run_all

LOOKS = 8
"""Looks in a row, 2 ms apart, that find a CPU at the same place: it waits there."""


class Place:
    """One block of an mm that both CPUs run in, huge or small, its pages numbered."""

    def __init__(self, machine: Machine, huge: bool):
        self.machine, self.cpu = machine, machine.cpu(0)
        self.words: dict[int, int] = {}
        """What a page has, if not its number."""
        self.frame = 0
        """A frame that it had at first."""
        self.start, self.n = 64 * int(HPAGE_PMD_SIZE), int(HPAGE_PMD_NR)
        self.mm = Mm(int(mm_alloc(self.cpu)))
        set_switch("enabled", "always" if huge else "never")
        with self.on(self.cpu):
            assert vm_mmap(self.cpu, self.mm, self.start, int(HPAGE_PMD_SIZE), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0, 0) == self.start
            for i in range(self.n):
                assert user_store(self.cpu, self.at(i), 100 + i) == 0
            assert bool(pmd_trans_huge(self.pmd())) == huge

    @contextmanager
    def on(self, cpu: Cpu) -> Iterator[None]:
        """`cpu` runs in the mm."""
        cpu_resume(cpu)
        mmget(mms[self.mm.id])
        switch_to_mm(cpu, self.mm.id)
        yield
        lru_add_drain(cpu)
        switch_to_mm(cpu, 0)
        mmput(cpu, self.mm)
        cpu_park(cpu)

    def at(self, i: int) -> int:
        return self.start + i * PAGE_SIZE

    def word(self, i: int) -> int:
        return self.words.get(i, 100 + i)

    def pmd(self) -> int:
        return int(mm_pmd(self.mm, self.start).val.load())

    def pfn(self, i: int) -> int:
        pmd = self.pmd()
        if pmd_trans_huge(pmd):
            return int(entry_pfn(pmd)) + i
        return int(entry_pfn(pte_offset(pmd, self.at(i)).val.load()))

    def page(self, i: int) -> Page:
        return Page(int(mem_map[self.pfn(i)]))

    def finish(self) -> None:
        """The data is there, every law holds, and all is free when it is gone."""
        run_all(self.machine, self.look)
        assert audit(self.machine.config).violations == []
        run_all(self.machine, self.leave)
        assert audit(self.machine.config, expect_empty=True).violations == []

    def look(self, cpu: Cpu) -> bool:
        with self.on(cpu):
            return all(user_load(cpu, self.at(i)) == 0 and cpu.scratch[0] == self.word(i) for i in range(self.n))

    def leave(self, cpu: Cpu) -> bool:
        with self.on(cpu):
            assert vm_munmap(cpu, self.mm, self.start, int(HPAGE_PMD_SIZE)) == 0
        cpu_resume(cpu)
        mmput(cpu, self.mm)
        for number in range(2):
            lru_add_drain(self.machine.cpu(number))
        drop_swap_cache(cpu)
        for number in range(2):
            lru_add_drain(self.machine.cpu(number))
            drain_pcp(self.machine.cpu(number))
        return True


@contextmanager
def place(order: int, memory: str, huge: bool, swap: str = "0") -> Iterator[Place]:
    with Machine(memory=memory, order=order, cpus=2, swap=swap) as machine:
        found = Place(machine, huge)
        yield found
        found.finish()


class Waiting:
    """Does CPU 1 wait, for a lock, an ack, or another's next step? It has passed no point for a while.

    A CPU that gets no processor for so long looks the same; then the other goes on early, and the pair meets less closely.
    """

    def __init__(self) -> None:
        self.last, self.looks = (0, 0), 0

    def __call__(self) -> bool:
        cpu = cpus[1]
        where = (cpu.acquiring, cpu.point)
        # A piece of a page under way has no reference to wait with: who faults on it naps and tries again.
        same = where == self.last or Point.MIGRATION_ENTRY_WAIT in (cpu.point, self.last[1])
        self.looks = self.looks + 1 if same else 0
        self.last = where
        return self.looks >= LOOKS
