"""Declaring programs: what is refused, and in which mm they start. Running them: tests/stress/test_programs.py."""

import pytest

from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.errors import EmulatorError, Misuse
from concur_thp.program.declared import engine


@pytest.fixture
def machine(machine_factory):
    return machine_factory(order=3, memory="4M")


def test_programs_start_in_the_newest_mm_unless_told_otherwise(machine):
    first = machine.mm()
    machine.program(lambda cpu: None)
    machine.mm()
    machine.program(lambda cpu: None, mm=first, name="other")
    assert [(p.name, p.space) for p in machine.programs.every] == [("<lambda>", 0), ("other", 0)]


def test_a_decorated_function_stays_what_it_is(machine):
    @machine.program
    def one(cpu):
        return 1

    @machine.program(name="two")
    def other(cpu):
        return 2

    assert one(None) == 1 and other(None) == 2
    assert [(p.name, p.space) for p in machine.programs.every] == [("one", -1), ("two", -1)]


def test_regions_do_not_merge_and_begin_like_huge_pages(machine):
    mm = machine.mm()
    first, second = mm.mmap("36K"), mm.mmap("4K", huge=True)
    assert first % 32768 == second % 32768 == 0 and second >= first + 36864 + 4096
    mm.store(second, 3)
    assert mm.load(second) == 3


@pytest.mark.parametrize("wrong, said", [
    (lambda m: m.program(7), "a function of one argument"),
    (lambda m: [m.program(lambda cpu: None) for _ in range(3)], "3 programs on 2 CPUs"),
    (lambda m: m.run(), "there is no program"),
    (lambda m: [m.mm() for _ in range(9)], "at most 8 address spaces"),
    (lambda m: m.mm().mmap("3000"), "pass whole pages"),
])
def test_misuse_gets_one_line(machine, wrong, said):
    with pytest.raises(Misuse) as caught:
        wrong(machine)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_array_that_comes_too_late_is_refused(machine):
    class Late(Struct, size=8):
        word = field(I64, "owner", "anything")

    try:
        SharedArray("declared_late", Late, lambda config: 1)
        machine.program(lambda cpu: None)
        with pytest.raises(Misuse, match="'declared_late' was declared after"):
            machine.run()
    finally:
        del SharedArray.all["declared_late"]


def test_an_engine_that_is_not_there_is_our_own_fault():
    with pytest.raises(EmulatorError, match="install the package again"):
        engine("nonsense")
