"""The checked build: points before what another CPU could notice, dirty marks for every write, the same results."""

import ctypes

import pytest

from concur_thp.arch import native
from concur_thp.arch.checked import DIRTY, GRANULE_SHIFT, MAP, NONE, level, site_id, sites
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.linker import Kernel, kernel, redirect
from concur_thp.arch.listen import FREE_BUDGET, sched_point
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I64, Struct, atomic, field
from concur_thp.machine import Machine
from stress.bench.kernels import host_store


class Box(Struct, size=64):
    """Something shared."""

    plain = field(I64, "box_lock", "guarded")
    count = atomic(I64, "atomic")
    mine = field(I64, "cpu", "its own CPU's")
    fixed = field(I64, "const", "never changes")


boxes = SharedArray("test_checked_boxes", Box, lambda c: 64)
asked: list[int] = []


@kernel
def touch(cpu: Cpu, number: int):
    """Emulator: two loads in one statement, a store, an atomic; what belongs to this CPU alone is no point."""
    box = boxes[number]
    box.mine = box.fixed + 1
    if box.plain + box.plain == 0:
        box.plain = 5
    return box.count.add(2)


@kernel
def note_site(cpu: Cpu):
    """Emulator: sched_point() that counts in a field of the box 0."""
    boxes[0].mine = boxes[0].mine + 1
    cpu.budget = 1


@pytest.fixture
def machine():
    with Machine(cpus=1, memory="1M", order=3, mms=4, vmas=64, build=native.CHECKED) as machine:
        native.link([touch, note_site], kind=native.CHECKED)
        yield machine


def test_points_stand_before_shared_accesses_only(machine):
    cpu = machine.cpu(0)
    cpu.budget = FREE_BUDGET
    touch(cpu, 1)
    assert FREE_BUDGET - cpu.budget == 3, "one for the loads of the `if`, one for the store, one for the atomic"
    touch(cpu, 1)
    assert FREE_BUDGET - cpu.budget == 5, "the store did not happen again"


def test_a_used_up_budget_asks_and_the_site_says_where(machine):
    cpu = machine.cpu(0)
    kept, cpu.budget, boxes[0].mine = native.SLOTS[sched_point.slot], 1, 0
    redirect(sched_point, note_site)
    try:
        touch(cpu, 2)
    finally:
        native.SLOTS[sched_point.slot] = kept
    assert boxes[0].mine == 3
    assert sites()[cpu.site].text == "return box.count.add(2)" and sites()[cpu.site].function == "touch"
    cpu.budget = 0


def test_every_write_marks_its_granule(machine):
    cpu = machine.cpu(0)
    granules = machine.size >> GRANULE_SHIFT
    ctypes.memset(int(MAP), 0, granules)
    touch(cpu, 40)
    marks = ctypes.string_at(int(MAP), granules)
    place = (int(boxes[40]) - machine.base) >> GRANULE_SHIFT
    assert marks[place] == 1 and marks[place + 2] == 0


def test_statements_have_numbers_of_their_own(machine):
    every = [(source.unique, node.lineno) for source in Kernel.every if level(source) for node in source.tree.body]
    numbers = [site_id(source, node) for source in Kernel.every if level(source) for node in source.tree.body]
    assert len(set(numbers)) == len(set(numbers) & sites().keys()) and len(every) > 1000
    where: dict[int, set[tuple[str, int]]] = {}
    for number, place in zip(numbers, every, strict=True):
        where.setdefault(number, set()).add(place)
    assert not [places for places in where.values() if len(places) > 1]


def test_the_checked_build_does_what_the_plain_one_does(machine):
    cpu = machine.cpu(0)
    boxes[3].plain = 0
    before = boxes[3].count.load()
    assert touch(cpu, 3) == before and boxes[3].plain == 5 and boxes[3].count.load() == before + 2
    assert cpus[0].id == 0


@pytest.mark.parametrize("options", [{}, {"native_code": False}])
def test_a_machine_of_any_build_has_a_dirty_map(options):
    """Interpreted machines link nothing, so what is linked may be checked; it marked what lay where the last map had been."""
    with Machine(memory="8M", order=3, build=native.CHECKED):
        pass
    with Machine(memory="4M", order=3, **options) as machine:
        assert int(DIRTY) + (machine.base >> GRANULE_SHIFT) == int(MAP)


def test_who_writes_outside_the_segment_marks_nothing():
    """The kernel's side of bench, linked checked by whoever came before, wrote its marks over the process's own heap."""
    assert level(host_store) == NONE and level(touch) > NONE
