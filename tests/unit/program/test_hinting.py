"""NUMA hints: entries lose their rights, vmas do not."""

import pytest

from concur_thp.arch.cpu import cpus
from concur_thp.check.audit import audit
from concur_thp.mm.mm_types import mms, percpu
from concur_thp.mm.pgtable import _PAGE_PRESENT, _PAGE_PROTNONE, mm_pmd, pte_offset, pte_write
from concur_thp.program.hinting import change_prot_numa


@pytest.fixture
def inside(machine_factory):
    machine = machine_factory(order=3, memory="4M")
    mm = machine.mm()
    region = mm.mmap("64K")
    with mm.inside() as cpu:
        yield cpu, region, machine


def test_huge_and_small_entries_and_holes(inside):
    cpu, at, machine = inside
    cpu.store(at, 1)
    cpu.madvise(at + 32768, "32K", "nohuge")
    cpu.store(at + 32768, 2)
    assert cpu.step("hint 0 2h") == (9, 0), "a huge page of eight and one small page"
    mm = mms[percpu[0].mm]
    huge = mm_pmd(mm, at).val.load()
    small = pte_offset(mm_pmd(mm, at + 32768).val.load(), at + 32768).val.load()
    for entry in (huge, small):
        assert entry & (_PAGE_PROTNONE | _PAGE_PRESENT) == _PAGE_PROTNONE
    assert not audit(machine.config).violations
    assert (cpu.load(at), cpu.load(at + 32768)) == (1, 2)


def test_the_next_access_gets_all_rights_back(inside):
    """Or a copy on write on another CPU takes an entry that was written through meanwhile for one that was not."""
    cpu, at, machine = inside
    cpu.store(at, 1)
    cpu.madvise(at + 32768, "32K", "nohuge")
    cpu.store(at + 32768, 2)
    mm = mms[percpu[0].mm]

    def entries():
        return mm_pmd(mm, at).val.load(), pte_offset(mm_pmd(mm, at + 32768).val.load(), at + 32768).val.load()

    before = entries()
    assert all(pte_write(entry) for entry in before)
    assert cpu.step("hint 0 2h") == (9, 0)
    assert (cpu.load(at), cpu.load(at + 32768)) == (1, 2)
    assert entries() == before
    assert cpu.step("hint 0 2h") == (9, 0)
    cpu.mprotect(at, "64K", "ro")
    assert not any(pte_write(entry) for entry in entries()), "mprotect() takes what the hint has left"
    assert not audit(machine.config).violations


def test_memory_without_rights_and_no_mm(inside):
    cpu, at, _ = inside
    cpu.store(at, 1)
    cpu.mprotect(at, "64K", "none")
    assert cpu.step("hint 0 2h")[0] == 0
    assert change_prot_numa(cpus[0], at + 1, 4096) == -22
    cpu.leave()
    assert cpu.step("hint 0 2h")[0] == -3
    cpu.enter(0)
