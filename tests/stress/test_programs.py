"""Programs in Python, run freely: each CPU is a process; what they return, raise and break is told."""

import os
import signal

import pytest

from concur_thp import Machine
from concur_thp.arch.bug import bug
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.program.declared import ProgramFailure
from workers.programs import symptom_of


@kernel
def broken_rule(cpu: Cpu):
    """Says that a rule is broken.

    Context: any.
    Emulator: for these tests.
    """
    bug(cpu, "a rule of the test", 1, 2)


@pytest.fixture
def machine(machine_factory):
    machine: Machine = machine_factory(order=3, memory="4M")
    return machine


def test_the_design_document_s_example_runs(machine):
    region = machine.mm().mmap("2M", huge=True)

    @machine.program
    def writer(cpu):
        cpu.store(region, 7)
        cpu.madvise(region, "2M", "DONTNEED")
        assert cpu.load(region) == 0
        return "done"

    @machine.program
    def hinter(cpu):
        cpu.mprotect(region, "2M", "numa_hint")

    for _ in range(3):
        assert machine.run().check().results == {"writer": "done", "hinter": None}


def test_an_exception_without_words_speaks_through_its_statement():
    try:
        raise AssertionError
    except AssertionError as error:
        assert symptom_of(error) == "AssertionError: raise AssertionError"
    assert symptom_of(ValueError("one\ntwo")) == "ValueError: one" and symptom_of(KeyError()) == "KeyError"


def test_closures_lambdas_and_two_of_one_name(machine):
    mm = machine.mm()
    region = mm.mmap("32K")
    for number in range(2):
        machine.program(lambda cpu, number=number: (cpu.store(region + 512 * number, number + 1), os.getpid())[1])
    ran = machine.run().check()
    assert sorted(ran.results) == ["<lambda>-0", "<lambda>-1"]
    assert len({os.getpid(), *ran.results.values()}) == 3, "each in a process of its own"
    assert [mm.load(region + 512 * n) for n in range(2)] == [1, 2]


def test_an_assertion_is_told_with_its_line(machine):
    @machine.program
    def wrong(cpu):
        assert cpu.number == 5, "not the fifth"

    ran = machine.run()
    assert (ran.verdict, ran.kind) == ("fail", "raised") and "not the fifth" in ran.symptom
    with pytest.raises(ProgramFailure, match="assert cpu.number == 5"):
        ran.check()


def test_a_broken_rule_is_told(machine):
    machine.program(lambda cpu: broken_rule(cpu), name="breaker")
    machine.program(lambda cpu: None)
    ran = machine.run()
    assert (ran.verdict, ran.kind) == ("fail", "bug") and "a rule of the test" in ran.symptom


def test_who_is_killed_is_told(machine):
    machine.program(lambda cpu: os.kill(os.getpid(), signal.SIGKILL), name="victim")
    ran = machine.run()
    assert (ran.verdict, ran.kind) == ("inconclusive", "killed") and "victim" in ran.symptom


def test_who_does_not_end_is_told(machine, monkeypatch):
    monkeypatch.setattr("workers.launch.GRACE_SECONDS", 0.5)
    machine.program(lambda cpu: signal.pause(), name="sleeper")
    ran = machine.run(seconds=0.2)
    assert ran.verdict != "pass" and "sleeper" in ran.symptom
