"""gup-fast on one CPU against whoever takes its page apart on another: collapse, splits, zap.

A pin that succeeds is a pin: its frame stays, and while nothing was discarded the frame is what the program has mapped,
so a word stored into it is the word that the program loads. One that comes too late fails or is given back.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from concur_thp.arch.bug import bug_on, panic_check
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.futex import sched_yield
from concur_thp.arch.irq import cpu_park, cpu_resume, ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.points import Point
from concur_thp.arch.random import random_below
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I64, Struct, atomic, field
from concur_thp.arch.system import system
from concur_thp.check.audit import audit
from concur_thp.check.pins import check_pin, declare_pin, unpin
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE, PAGE_SHIFT, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.collapse import collapse_huge_page
from concur_thp.mm.collapse_check import Scan
from concur_thp.mm.flags import (
    FOLL_SPLIT,
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
)
from concur_thp.mm.fork import mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.gup import follow_page
from concur_thp.mm.gup_fast import __get_user_pages_fast, get_user_pages_fast
from concur_thp.mm.huge_split_pmd import split_huge_pmd_address
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.mm_types import Mm, Page, Slot, frames, mem_map, mms
from concur_thp.mm.mmap import vm_mmap
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.pgtable import mm_pmd, pmd_trans_huge
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.rwsem import down_read, up_read
from tests.litmus.held import run_held
from tests.processes import run_all

ENOUGH = 100
"""Each outcome that a test waits for, so often."""
MOST = 1 << 40
"""Rounds: more than there is time for, so that the deadline of run_all() decides when it has waited too long."""


class Litmus(Struct, size=128):
    """What the two CPUs share."""

    mm = field(I64, "const", "the mm they run in")
    start = field(I64, "const", "a huge range in it")
    over = atomic(I64, "1 when the other CPU has seen enough")
    pins = atomic(I64, "pins that gup-fast took")
    misses = atomic(I64, "times it did not")
    done = atomic(I64, "collapses, or zaps, done")
    failed = atomic(I64, "collapses that met a page in use")
    huge_pins = atomic(I64, "pins of a part of a huge page")


litmus = SharedOne("litmus_gup", Litmus)
litmus_pages = SharedArray("litmus_gup_pages", Slot, lambda config: 8)


@inline
def litmus_mm() -> Mm:
    return mms[litmus.mm]


@kernel
def enter(cpu: Cpu):
    """Run in the litmus mm.

    Context: user mode. Emulator: a test.
    """
    cpu_resume(cpu)
    mmget(litmus_mm())
    switch_to_mm(cpu, litmus.mm)


@kernel
def leave(cpu: Cpu):
    """Context: user mode. Emulator: a test."""
    switch_to_mm(cpu, 0)
    mmput(cpu, litmus_mm())
    cpu_park(cpu)


@kernel
def hold(cpu: Cpu):
    """Keep what one has for a random while, serving requests.

    Context: user mode. Emulator: a test.
    """
    panic_check(cpu)
    for _ in range(random_below(cpu, 4)):
        ipi_poll(cpu)
        sched_yield()


@kernel
def pin_and_write(cpu: Cpu):
    """Pin a page, store into the frame, load as the program: the same word, whatever happens to the mapping meanwhile.

    Context: user mode. Emulator: a test.
    """
    enter(cpu)
    i = 0
    while not litmus.over.read():
        i += 1
        addr = litmus.start + (random_below(cpu, HPAGE_PMD_NR) << PAGE_SHIFT)
        if __get_user_pages_fast(cpu, addr, 1, 1, litmus_pages[0]) != 1:
            litmus.misses.add(1)
            bug_on(cpu, get_user_pages_fast(cpu, addr, 1, 1, litmus_pages[0]) != 1, "nothing to pin", addr, i)
        else:
            litmus.pins.add(1)
        pfn = litmus_pages[0].value
        declare_pin(cpu, 0, pfn)
        frames[pfn].word[0].store(i)
        hold(cpu)
        bug_on(cpu, user_load(cpu, addr) != 0 or cpu.scratch[0] != i,
               "the program does not load what was stored through the pin (values: loaded, stored)", cpu.scratch[0], i)
        bug_on(cpu, user_store(cpu, addr, -i) != 0 or frames[pfn].word[0].load() != -i,
               "the program's store is not in the pinned frame (values: pfn, in frame)", pfn,
               frames[pfn].word[0].load())
        unpin(cpu, 0)
        lru_add_drain(cpu)  # Else the slow half's mark_page_accessed() keeps references in a pagevec.
    leave(cpu)


@kernel
def collapse_and_break(cpu: Cpu, rounds: int, by_pmd: int):
    """Collapse the range and break it up again, over and over. `by_pmd`: the huge mapping first, then the page.

    Context: user mode. Emulator: a test.
    """
    enter(cpu)
    mm = litmus_mm()
    for _ in range(rounds):
        if litmus.done.read() >= ENOUGH and litmus.failed.read() >= ENOUGH and litmus.misses.read() >= ENOUGH:
            break
        lru_add_drain(cpu)
        down_read(cpu, mm.mmap_sem)
        result = collapse_huge_page(cpu, mm, litmus.start, HPAGE_PMD_NR)
        if result == Scan.SCAN_SUCCEED:
            litmus.done.add(1)
            hold(cpu)
            break_up(cpu, mm, by_pmd)
        else:
            litmus.failed.add(1)
            hold(cpu)
    litmus.over.store(1)
    leave(cpu)


@kernel
def break_up(cpu: Cpu, mm: Mm, by_pmd: int):
    """Small pages again; as often as it takes while the other CPU pins (R7).

    Context: user mode. Emulator: a test.
    """
    down_read(cpu, mm.mmap_sem)
    vma = find_vma(mm, litmus.start)
    if by_pmd:
        split_huge_pmd_address(cpu, vma, litmus.start, 0, Page(0))  # Whatever is pinned (R37).
    up_read(cpu, mm.mmap_sem)
    hold(cpu)
    broken = 0
    while broken <= 0:
        down_read(cpu, mm.mmap_sem)
        broken = follow_page(cpu, find_vma(mm, litmus.start), litmus.start, FOLL_SPLIT)
        up_read(cpu, mm.mmap_sem)
        if broken <= 0:
            litmus.huge_pins.add(1)
            hold(cpu)


@kernel
def pin_and_keep(cpu: Cpu):
    """Pin a page that is being zapped; what was pinned is not freed, so nobody clears it for another use.

    Context: user mode. Emulator: a test.
    """
    enter(cpu)
    i = 0
    while not litmus.over.read():
        i += 1
        addr = litmus.start + (random_below(cpu, HPAGE_PMD_NR) << PAGE_SHIFT)
        if __get_user_pages_fast(cpu, addr, 1, 1, litmus_pages[0]) != 1:
            litmus.misses.add(1)
            hold(cpu)
            continue
        litmus.pins.add(1)
        pfn = litmus_pages[0].value
        declare_pin(cpu, 0, pfn)
        frames[pfn].word[1].store(i)
        hold(cpu)
        check_pin(cpu, 0)
        bug_on(cpu, frames[pfn].word[1].load() != i, "a pinned frame went to somebody else (values: pfn, word)",
               pfn, frames[pfn].word[1].load())
        unpin(cpu, 0)
    leave(cpu)


@kernel
def zap_and_fill(cpu: Cpu, rounds: int):
    """Take the range away and fault it in again, from the frames that have just become free.

    Context: user mode. Emulator: a test.
    """
    enter(cpu)
    for _ in range(rounds):
        if litmus.pins.read() >= ENOUGH and litmus.misses.read() >= ENOUGH and litmus.done.read() >= ENOUGH:
            break
        for page in range(HPAGE_PMD_NR):
            bug_on(cpu, user_store(cpu, litmus.start + page * PAGE_SIZE, 1) != 0, "no memory", page, 0)
        hold(cpu)
        do_madvise(cpu, litmus_mm(), litmus.start, HPAGE_PMD_SIZE, MADV_DONTNEED)
        litmus.done.add(1)
    litmus.over.store(1)
    leave(cpu)


@pytest.fixture(params=[False, True], ids=["free", "chaos"])
def arena(request: pytest.FixtureRequest, quiet_arena: Machine) -> Machine:
    """A quiet_arena, with and without random delays."""
    if request.param:
        quiet_arena.listen_chaos(short=3, long=6)
    return quiet_arena


@pytest.fixture
def quiet_arena(machine_factory: Callable[..., Machine]) -> Iterator[Machine]:
    """A machine with one huge range, written page by page; audited when everybody has left."""
    machine = machine_factory(cpus=2, order=3, memory="4M")
    cpu = machine.cpu(0)
    cpu_resume(cpu)
    litmus.mm, litmus.start = Mm(int(mm_alloc(cpu))).id, 4 * int(HPAGE_PMD_SIZE)
    cpu_park(cpu)
    fill(machine, "never")
    yield machine
    if not system.panicked.load():
        finish(machine)


def fill(machine: Machine, enabled: str) -> None:
    """The range from scratch, mapped by a huge page or by small ones."""
    cpu = machine.cpu(0)
    set_switch("enabled", enabled)
    enter(cpu)
    fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    got = vm_mmap(cpu, litmus_mm(), litmus.start, int(HPAGE_PMD_SIZE), PROT_READ | PROT_WRITE, fixed, 0, 0)
    assert got == litmus.start
    for page in range(int(HPAGE_PMD_NR)):
        assert user_store(cpu, litmus.start + page * PAGE_SIZE, 1) == 0
    assert pmd_trans_huge(mm_pmd(litmus_mm(), litmus.start).val.load()) == (enabled == "always")
    lru_add_drain(cpu)
    leave(cpu)
    set_switch("enabled", "always")


def finish(machine: Machine) -> None:
    system.listen.store(0)
    for number in range(2):
        lru_add_drain(machine.cpu(number))
    assert audit(machine.config).violations == []
    cpu_resume(machine.cpu(0))
    mmput(machine.cpu(0), litmus_mm())
    for number in range(2):
        lru_add_drain(machine.cpu(number))
        drain_pcp(machine.cpu(number))
    assert audit(machine.config, expect_empty=True).violations == []


def seen(*names: str) -> dict[str, Any]:
    """The outcomes that did not come up."""
    return {name: getattr(litmus, name).load() for name in names if getattr(litmus, name).load() == 0}


@pytest.mark.parametrize("by_pmd", [0, 1], ids=["page", "pmd"])
def test_gup_fast_against_collapse_and_split(arena: Machine, by_pmd: int) -> None:
    """X14: a pin that collapse did not see would write into a page that is no longer mapped."""
    run_all(arena, pin_and_write, lambda cpu: collapse_and_break(cpu, MOST, by_pmd))
    assert not seen("pins", "misses", "done", "failed")


@pytest.mark.parametrize("enabled", ["never", "always"])
def test_gup_fast_against_zap(arena: Machine, enabled: str) -> None:
    """A frame is freed only when every pin of it is gone, small or huge."""
    fill(arena, enabled)
    set_switch("enabled", enabled)
    run_all(arena, pin_and_keep, lambda cpu: zap_and_fill(cpu, MOST))
    assert not seen("pins", "misses", "done")


def run_as_thread(body: Callable[[Cpu], int]) -> Callable[[Cpu], bool]:
    """A CPU's body: run as a thread of the litmus mm; `litmus.done` gets the result + 1."""

    def run(cpu: Cpu) -> bool:
        enter(cpu)
        litmus.done.store(body(cpu) + 1)
        litmus.over.store(1)
        leave(cpu)
        return True

    return run


@kernel
def pin_until_over(cpu: Cpu):
    """Pin a page, count it, keep it until the other CPU is through.

    Context: user mode. Emulator: a test.
    """
    enter(cpu)
    addr = litmus.start + 3 * PAGE_SIZE
    got = __get_user_pages_fast(cpu, addr, 1, 1, litmus_pages[0])
    litmus.pins.add(got)
    while not litmus.over.read():
        ipi_poll(cpu)
        panic_check(cpu)
        sched_yield()
    if got:
        put_page(cpu, mem_map[litmus_pages[0].value])
    leave(cpu)


def collapse(cpu: Cpu) -> int:
    down_read(cpu, litmus_mm().mmap_sem)
    return int(collapse_huge_page(cpu, litmus_mm(), litmus.start, int(HPAGE_PMD_NR)))


def split_pmd(cpu: Cpu) -> int:
    down_read(cpu, litmus_mm().mmap_sem)
    split_huge_pmd_address(cpu, find_vma(litmus_mm(), litmus.start), litmus.start, 0, Page(0))
    up_read(cpu, litmus_mm().mmap_sem)
    return 0


def zap(cpu: Cpu) -> int:
    return int(do_madvise(cpu, litmus_mm(), litmus.start, int(HPAGE_PMD_SIZE), MADV_DONTNEED))


def waits_for_cpu0() -> bool:
    """CPU 1 has taken its entry down and sent its request: CPU 0 has its irqs off."""
    return bool(cpus[1].point == Point.TLB_FLUSH and cpus[0].ipi_bits.load() == 2)


POINTS = pytest.mark.parametrize("where", [Point.GUP_FAST_READ, Point.GUP_FAST_GOT], ids=["read", "got"])


@POINTS
def test_collapse_waits_for_gup_fast_and_sees_its_pin(quiet_arena: Machine, where: Point) -> None:
    """X14: the pte is unchanged, so the pin stands; the collapse finds it and puts the table back."""
    fill(quiet_arena, "never")
    assert run_held(quiet_arena, pin_until_over, where, run_as_thread(collapse), waits_for_cpu0) == [0, 0]
    assert litmus.pins.load() == 1 and litmus.done.load() == Scan.SCAN_FAIL + 1


@POINTS
@pytest.mark.parametrize(("change", "enabled"), [(split_pmd, "always"), (zap, "always"), (zap, "never")],
                         ids=["split", "zap huge", "zap small"])
def test_gup_fast_gives_back_what_changed(quiet_arena: Machine, where: Point, change: Any, enabled: str) -> None:
    """The entry is down, and its page not yet freed: the flush waits. gup-fast looks again and has no pin."""
    fill(quiet_arena, enabled)
    assert run_held(quiet_arena, pin_until_over, where, run_as_thread(change), waits_for_cpu0) == [0, 0]
    assert litmus.pins.load() == 0 and litmus.done.load() == 1
