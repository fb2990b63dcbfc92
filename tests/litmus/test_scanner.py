"""A scanner of frames on one CPU against splits, faults and frees on another (R22, R34-R36, Appendix B 13)."""

import pytest

from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.arch.points import Point
from concur_thp.arch.system import system
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.fork import mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.mm_types import PAGE_TYPE_BUDDY, mem_map, mms
from concur_thp.mm.page_flags import tail_page
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import get_page, get_page_unless_zero, page_ref_count
from concur_thp.mm.pgtable import entry_pfn, mm_pmd, pmd_trans_huge
from concur_thp.mm.put_page import put_page
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_mmap
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vmstat import Stat, vmstat
from concur_thp.rules.edit import Replace
from concur_thp.rules.variant import broken
from concur_thp.sync.lock_classes import LRU_LOCK
from tests.litmus.held import run_held, run_held_until_bug, wants
from tests.processes import run_all, run_until_bug
from workers.scanner import scan_frame, scanner_turn

START = 64


class Thp:
    """A mm with one huge page."""

    def __init__(self, machine: Machine):
        self.machine, self.addr, cpu = machine, START * int(HPAGE_PMD_SIZE), machine.cpu(0)
        cpu_resume(cpu)
        self.mm = mms.index(mm_alloc(cpu))
        switch_to_mm(cpu, self.mm)
        self.map(cpu)
        pmd = mm_pmd(mms[self.mm], self.addr).val.load()
        assert pmd_trans_huge(pmd)
        self.head = mem_map[entry_pfn(pmd)]
        switch_to_mm(cpu, 0)
        cpu_park(cpu)

    def map(self, cpu: Cpu) -> None:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        assert sys_mmap(cpu, self.addr, int(HPAGE_PMD_SIZE), PROT_READ | PROT_WRITE, flags, 0, 0) == self.addr
        assert user_store(cpu, self.addr, 7) == 0

    def split(self, cpu: Cpu, i: int) -> bool:
        """By way of subpage i."""
        page = tail_page(self.head, i)
        cpu_resume(cpu)
        get_page(cpu, page)
        lock_page(cpu, page)
        done = split_huge_page(cpu, page)
        unlock_page(cpu, page)
        put_page(cpu, page)
        cpu_park(cpu)
        return bool(done == 0)

    def finish(self) -> None:
        cpu = self.machine.cpu(0)
        cpu_resume(cpu)
        switch_to_mm(cpu, self.mm)
        assert user_load(cpu, self.addr) == 0 and cpu.scratch[0] == 7
        switch_to_mm(cpu, 0)
        lru_add_drain(cpu)
        assert not audit(self.machine.config).violations
        mmput(cpu, mms[self.mm])
        cpu_park(cpu)


@pytest.fixture(params=[9, 3])
def thp(request):
    with Machine(memory="64M" if request.param == 9 else "4M", order=request.param, cpus=2) as machine:
        yield Thp(machine)


def test_a_frozen_page_gives_no_references(thp) -> None:
    """Neither the head nor any tail, however the scanner comes to it: and so the split succeeds."""
    def scan(cpu: Cpu) -> bool:
        frames = [tail_page(thp.head, i) for i in range(HPAGE_PMD_NR)]
        cpu_resume(cpu)
        found = sum(scan_frame(cpu, page) + get_page_unless_zero(page) for page in frames)
        cpu_park(cpu)
        return found == 0

    assert run_held(thp.machine, lambda cpu: thp.split(cpu, 3), Point.SPLIT_PAGE_FROZEN, scan, lambda: False) == [0, 0]
    assert vmstat()["thp_split_page"] == 1 and vmstat()["pfn_scan_missed"] == HPAGE_PMD_NR
    thp.finish()


def test_a_reference_before_the_freeze_makes_the_split_fail_and_stays_with_the_head(thp) -> None:
    def scan(cpu: Cpu) -> bool:
        cpu_resume(cpu)
        got = get_page_unless_zero(thp.head)
        cpu_park(cpu)
        return got == 1

    statuses = run_held(thp.machine, lambda cpu: thp.split(cpu, 3), Point.SPLIT_PAGE_UNMAPPED, scan, lambda: False)
    assert statuses == [1, 0] and vmstat()["thp_split_page_failed"] == 1
    assert page_ref_count(thp.head) == HPAGE_PMD_NR + 1, "a pte each, and the scanner's"
    put_page(thp.machine.cpu(1), thp.head)
    thp.finish()


def test_scans_and_splits_together(thp) -> None:
    """Many rounds at full speed, until each CPU has had its share of them; the scanner's own checks and the audit judge."""
    rounds, scanned = 60, (int(Stat.pfn_scan_got), int(Stat.pfn_scan_missed))

    def split_and_fault(cpu: Cpu) -> None:
        mmget(mms[thp.mm])
        done = split = 0
        while done < rounds or split == 0 or not all(cpus[1].vmstat[event] for event in scanned):
            done += 1
            cpu_resume(cpu)
            switch_to_mm(cpu, thp.mm)
            thp.map(cpu)  # Over the old one, whose table goes too: the next page is huge again.
            thp.head = mem_map[entry_pfn(mm_pmd(mms[thp.mm], thp.addr).val.load())]
            switch_to_mm(cpu, 0)
            split += thp.split(cpu, 5)
        mmput(cpu, mms[thp.mm])
        cpu.ops = 1

    def scan(cpu: Cpu) -> None:
        while cpus[0].ops == 0 and not system.panicked.load():
            scanner_turn(cpu)

    run_all(thp.machine, split_and_fault, scan)
    thp.finish()


def test_references_of_interpreted_and_native_code_add_up(thp) -> None:
    """CPU 0's are taken and put by Python code, as in split() above: of its read and its write no other CPU comes between."""
    def get_and_put(cpu: Cpu) -> None:
        for _ in range(5000):
            get_page(cpu, thp.head)
            put_page(cpu, thp.head)
        cpu.ops = 1

    def scan(cpu: Cpu) -> None:
        while cpus[0].ops == 0 and not system.panicked.load():
            cpu_resume(cpu)
            scan_frame(cpu, thp.head)
            cpu_park(cpu)

    run_all(thp.machine, get_and_put, scan)
    assert page_ref_count(thp.head) == 1
    thp.finish()


def test_a_tail_with_a_reference_is_seen(thp) -> None:
    """R22 broken: a tail that keeps one."""
    tail_page(thp.head, 3)._refcount.add(1)

    def scan(cpu: Cpu) -> None:
        cpu_resume(cpu)
        scan_frame(cpu, tail_page(thp.head, 3))

    assert "R22: a tail gave a reference" in run_until_bug(thp.machine, scan, 1)


def test_a_tail_of_another_head_is_seen(thp) -> None:
    """I12 broken."""
    tail_page(thp.head, 3).compound_head = 0

    def scan(cpu: Cpu) -> None:
        cpu_resume(cpu)
        scan_frame(cpu, thp.head)

    assert "I12" in run_until_bug(thp.machine, scan, 1)


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
def test_a_scanner_that_takes_references_without_asking_is_seen(thp, frozen: bool) -> None:
    """R34 broken: get_page() brings a free page back to life, and makes the freeze of a split a lie."""
    free = next(pfn for pfn in range(thp.machine.config.frames) if mem_map[pfn].page_type == PAGE_TYPE_BUDDY)

    def scan(cpu: Cpu) -> None:
        cpu_resume(cpu)
        scan_frame(cpu, thp.head if frozen else mem_map[free])
        cpu_park(cpu)

    with broken((Replace("scan_frame", "if not get_page_unless_zero(head)", "head._refcount.add(1)"),), "scanner_get_page"):
        if frozen:
            # To put its reference back it needs lru_lock, which the split holds.
            assert run_held_until_bug(thp.machine, lambda cpu: thp.split(cpu, 3), Point.SPLIT_PAGE_FROZEN, scan,
                                      wants(LRU_LOCK))
        else:
            assert "R34: a page with a reference is free" in run_until_bug(thp.machine, scan, 1)
