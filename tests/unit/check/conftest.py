"""A small machine in which something has happened: what the tests of check/ corrupt and audit."""

from typing import Any

import pytest

from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.arch.listen import check_hook
from concur_thp.arch.points import Point
from concur_thp.check import instant
from concur_thp.check.audit import audit
from concur_thp.machine import Machine
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.fork import dup_mm, exec_mmap, exit_mm, switch_to_mm
from concur_thp.mm.mm_types import Mm, mem_map, mms, percpu
from concur_thp.mm.pgtable import entry_pfn, mm_pmd, pmd_table, pte_offset
from concur_thp.mm.syscall import sys_madvise, sys_mmap
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load, user_store

PAGE = 4096
HUGE = PAGE << 3
ANON, PRIVATE_FILE, SHARED_FILE = 0x32, 0x12, 0x11
DONTNEED = 4
THP = 16 * HUGE
"""Four huge pages, the first three written whole, the third then with holes."""
HOLES = THP + 2 * HUGE
ZERO = THP + 3 * HUGE
"""Read only: the huge zero page."""
SMALL = 32 * HUGE + PAGE
"""Small pages, not aligned to huge ones: 0-3 written, 4 read, the rest untouched."""
FILE = 48 * HUGE
"""A private mapping of a file: page 0 read, page 1 written."""
SHARED = 56 * HUGE
"""The same file shared: page 2 written."""


class Scene:
    """CPU 0 runs in `mm`, whose memory is as the addresses above say; CPU 1 runs nowhere, until `fork()`."""

    def __init__(self, machine: Machine):
        self.machine, self.config = machine, machine.config
        self.cpu, self.other = machine.cpu(0), machine.cpu(1)
        cpu_resume(self.cpu)
        cpu_resume(self.other)
        set_switch("enabled", "always")
        assert exec_mmap(self.cpu, 4 * HUGE) == 0
        self.mm: Mm = mms[percpu[0].mm]
        self.file = file_alloc(self.cpu, 16, 7)
        for addr, length, flags, file in ((THP, 4 * HUGE, ANON, 0), (SMALL, 6 * PAGE, ANON, 0),
                                          (FILE, 8 * PAGE, PRIVATE_FILE, self.file),
                                          (SHARED, 8 * PAGE, SHARED_FILE, self.file)):
            assert sys_mmap(self.cpu, addr, length, 3, flags, file, 0) == addr
        self.store(THP, THP + HUGE, HOLES, *(SMALL + n * PAGE for n in range(4)), FILE + PAGE, SHARED + 2 * PAGE)
        assert sys_madvise(self.cpu, HOLES + PAGE, 2 * PAGE, DONTNEED) == 0
        for addr in (ZERO, SMALL + 4 * PAGE, FILE):
            assert user_load(self.cpu, addr) == 0

    def store(self, *addresses: int) -> None:
        for addr in addresses:
            assert user_store(self.cpu, addr, addr) == 0

    def fork(self) -> Mm:
        """A child of `mm`, in which CPU 1 runs."""
        child = Mm(int(dup_mm(self.cpu, self.mm)))
        assert child
        switch_to_mm(self.other, child.id)
        return child

    def entry(self, addr: int, mm: Mm | None = None) -> Any:
        """The entry that maps `addr`: a huge pmd or a pte."""
        pmd = mm_pmd(mm or self.mm, addr)
        value = pmd.val.read()
        return pte_offset(value, addr) if pmd_table(value) else pmd

    def pfn(self, addr: int, mm: Mm | None = None) -> int:
        return entry_pfn(self.entry(addr, mm).val.read())

    def page(self, addr: int, mm: Mm | None = None) -> Any:
        return mem_map[self.pfn(addr, mm)]

    def laws(self, **options: Any) -> set[str]:
        """The laws that an audit finds broken."""
        return audit(self.config, **options).laws()

    def exit(self) -> None:
        """Everybody leaves."""
        for cpu in (self.cpu, self.other):
            if percpu[cpu.id].mm:
                exit_mm(cpu)


@pytest.fixture
def scene():
    with Machine(memory="4M", order=3, cpus=2) as machine:
        yield Scene(machine)


@pytest.fixture
def watched(scene, monkeypatch):
    """The scene with every check at every place; `scene.passed` has the places."""
    scene.passed = set()

    def hook(cpu, where, subject):
        scene.passed.add(Point(where))
        instant.check_sampled.function(cpu, where, subject)

    with interpreted():
        scene.machine.listen_checks(every=1)
        monkeypatch.setattr(check_hook, "function", hook)
        cpu_park(scene.other)
        yield scene
