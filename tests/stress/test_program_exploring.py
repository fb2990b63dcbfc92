"""Programs in Python under control: CPUs are processes, schedules are the strategies', and the same as on stacks."""

import os
import signal
import time
from dataclasses import replace

import pytest

from concur_thp import Machine
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.errors import Misuse
from concur_thp.program.declared import ProgramFailure
from concur_thp.program.rows import run_program
from concur_thp.sched.state import Verdict, sched
from concur_thp.sync.lock_classes import FIRST_USER_CLASS
from concur_thp.sync.spinlock import SpinLock, spin_lock, spin_lock_init, spin_unlock
from stress.exploring.cell import Cell
from stress.exploring.explorer import link_for
from stress.exploring.job import Job
from stress.exploring.token import Token
from tests.stress.test_exploring import LOST_ZAP, ZAP_VS_SPLIT, explore, variant_named
from workers.processes import ControlledProcesses

test_locks = SharedArray("test_program_locks", SpinLock, lambda config: 2)


@kernel
def init_two(cpu: Cpu):
    """Two locks, free.

    Context: nobody uses them.
    Emulator: for these tests.
    """
    spin_lock_init(test_locks[0], FIRST_USER_CLASS)
    spin_lock_init(test_locks[1], FIRST_USER_CLASS + 1)


@kernel
def take_two(cpu: Cpu, first: int, second: int):
    """Take two locks in an order, and give them back.

    Context: nothing held.
    Emulator: for these tests.
    """
    spin_lock(cpu, test_locks[first])
    spin_lock(cpu, test_locks[second])
    spin_unlock(cpu, test_locks[second])
    spin_unlock(cpu, test_locks[first])


@pytest.fixture
def machine(machine_factory):
    machine: Machine = machine_factory(order=3, memory="4M")
    return machine


def zap_and_store(machine, expected):
    """A program whose word another one throws away; `expected`: what it may find."""
    region = machine.mm().mmap("32K", huge=True)

    @machine.program
    def writer(cpu):
        cpu.store(region, 7)
        assert cpu.load(region) in expected

    machine.program(lambda cpu: cpu.madvise(region, "32K", "DONTNEED"), name="zapper")
    return region


def test_the_design_document_s_example_explored(machine):
    region = machine.mm().mmap("64K", huge=True)

    @machine.program
    def writer(cpu):
        cpu.store(region, 7)
        cpu.madvise(region, "64K", "DONTNEED")
        assert cpu.load(region) == 0

    @machine.program
    def hinter(cpu):
        cpu.mprotect(region, "64K", "numa_hint")

    explored = machine.explore(strategy="pct", depth=2, schedules=1000).check()
    assert explored.verdict == "pass" and explored.schedules == 1000 and explored.distinct > 50 and explored.states > 1


@pytest.mark.parametrize("strategy", ["pct", "dfs"])
def test_a_race_is_found_shrunk_told_and_replayed(machine, strategy):
    region = zap_and_store(machine, (7,))
    explored = machine.explore(strategy=strategy, depth=2, schedules=3000, shrink_seconds=100)
    failure = explored.failure
    assert explored.verdict == "fail" and failure.kind == "raised" and failure.cpu == 0
    assert failure.symptom.startswith("writer: AssertionError: assert ") and failure.preemptions == 1
    assert "CPU0 writer" in failure.chart and "CPU1 zapper" in failure.chart and "zap_huge_pmd" in failure.chart
    with pytest.raises(ProgramFailure) as caught:
        explored.check()
    assert failure.token in str(caught.value) and "assert cpu.load(region) in expected" in str(caught.value)
    again = machine.explore(token=failure.token)
    assert (again.verdict, again.failure.symptom) == ("fail", failure.symptom)
    with machine.programs.acting() as cpu:
        cpu.enter(0)
        assert cpu.load(region) == 0, "the machine itself has seen nothing of all that"
        cpu.leave()


def test_what_is_allowed_passes_and_dfs_says_that_it_is_through(machine):
    zap_and_store(machine, (0, 7))
    explored = machine.explore(strategy="dfs", depth=1, schedules=100_000)
    assert explored.verdict == "pass" and explored.exhausted and explored.schedules == explored.distinct > 50


def test_a_token_of_other_programs_is_refused(machine):
    zap_and_store(machine, (7,))
    token = Token.parse(machine.explore(schedules=2000, shrink_seconds=0).failure.token)
    other = Token(replace(token.job, programs=("a", "b")), token.kind, token.symptom, token.code)
    with pytest.raises(Misuse, match="the token is of programs in Python \\(a, b, order 3\\)"):
        machine.explore(token=str(other))


def test_a_deadlock_of_one_s_own_locks(machine):
    init_two(machine.cpu(0))
    machine.program(lambda cpu: take_two(cpu, 0, 1), name="one")
    machine.program(lambda cpu: take_two(cpu, 1, 0), name="other")
    failure = machine.explore(strategy="random", schedules=5000).failure
    assert failure is not None and failure.kind in ("deadlock", "bug"), "lockdep or the thing itself"


def test_a_check_of_each_end(machine):
    region = machine.mm().mmap("32K")
    machine.program(lambda cpu: cpu.store(region, 1), name="one")
    machine.program(lambda cpu: cpu.store(region, 2), name="two")

    def check(cpu):
        cpu.enter(0)
        last = cpu.load(region)
        cpu.leave()
        assert last == 2, last

    failure = machine.explore(strategy="random", schedules=1000, check=check).failure
    assert failure is not None and failure.kind == "raised" and "check: AssertionError: 1" in failure.symptom


def test_a_program_that_dies_is_a_finding(machine):
    machine.program(lambda cpu: os.kill(os.getpid(), signal.SIGSEGV), name="victim")
    failure = machine.explore(schedules=5).failure
    assert failure.kind == "crash" and failure.symptom.startswith("victim: was ended by SIGSEGV")


@pytest.mark.slow
def test_a_program_that_waits_elsewhere_is_a_finding(machine):
    machine.program(lambda cpu: signal.pause(), name="sleeper")
    failure = machine.explore(schedules=5).failure
    assert failure.kind == "hung" and "does not come back" in failure.symptom


@pytest.mark.parametrize("options, said", [
    ({"strategy": "ptc"}, "did you mean pct"),
    ({"strategy": "replay"}, "no strategy 'replay'"),
    ({"depth": 0}, "depth 0: pass a number from 1"),
    ({"schedules": 0}, "schedules 0"),
    ({"token": "thp1-???"}, "the token is damaged"),
])
def test_misuse_gets_one_line(machine, options, said):
    machine.program(lambda cpu: None)
    with pytest.raises(Misuse) as caught:
        machine.explore(**options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_explore_without_programs(machine):
    with pytest.raises(Misuse, match="there is no program"):
        machine.explore()


# Each schedule twice, and strategies that programs in Python cannot have


@pytest.mark.parametrize("strategy", ["pct", "random", "dfs"])
def test_programs_that_depend_on_the_machine_only_repeat(machine, strategy):
    zap_and_store(machine, (0, 7))
    explored = machine.explore(strategy=strategy, depth=2, schedules=200, check_determinism=True).check()
    assert explored.schedules >= 200


def test_a_failure_is_found_as_ever_when_runs_are_repeated(machine):
    zap_and_store(machine, (7,))
    options = {"depth": 2, "schedules": 3000, "cells": 1, "shrink_seconds": 100}
    twice, once = (machine.explore(check_determinism=yes, **options).failure for yes in (True, False))
    assert twice.kind == "raised" and (twice.runs, twice.token) == (once.runs, once.token)


def test_a_program_that_remembers_does_not_repeat(machine):
    region = machine.mm().mmap("32K", huge=True)
    runs = []

    @machine.program
    def remembers(cpu):
        runs.append(1)
        cpu.store(region, len(runs))

    assert machine.explore(schedules=50).verdict == "pass"
    explored = machine.explore(schedules=50, check_determinism=True)
    assert explored.verdict == "inconclusive" and explored.failure.kind == "diverged" and explored.failure.token == ""
    assert "a schedule that does not repeat" in explored.failure.symptom and "a program may depend" in explored.failure.symptom
    with pytest.raises(ProgramFailure, match="does not repeat"):
        explored.check()


def test_dpor_would_prove_what_it_has_not_seen(machine):
    """Here nobody tells it of accesses: it was through after one schedule, and said that this was all of them."""
    zap_and_store(machine, (7,))
    with pytest.raises(Misuse, match="dpor"):
        machine.explore(strategy="dpor")


# The same on stacks and on processes


def on_processes(cell):
    """Run this cell's step programs by processes from now on."""
    processes = ControlledProcesses(cell.machine, [run_program] * cell.nr)
    cell.controlled = processes
    cell.on_close(processes.close)
    processes.keep()


def test_a_token_found_on_stacks_replays_on_processes():
    variant = variant_named(LOST_ZAP)
    _, failure = explore(ZAP_VS_SPLIT, 3000, variant)
    with Cell(ZAP_VS_SPLIT) as cell:
        variant.put()
        cell.on_close(variant.take)
        on_stacks = cell.follow(failure.schedule)
        on_processes(cell)
        there = cell.follow(failure.schedule)
        assert (there.kind, there.symptom, there.schedule) == (on_stacks.kind, on_stacks.symptom, on_stacks.schedule)


@pytest.mark.parametrize("strategy", ["random", "pct", "dfs"])
def test_every_seed_is_the_same_schedule_on_stacks_and_processes(strategy):
    job = Job("dontneed_vs_split_pmd", strategy=strategy, seed=7)
    link_for(job)
    seen = []
    with Cell(job) as cell:
        for change in (lambda cell: None, on_processes):
            change(cell)
            cell.controlled.choose(strategy, 2)
            sched.longest = 0
            runs = []
            for seed in range(12):
                cell.controlled.run(seed, 1)
                assert sched.verdict == Verdict.FINISHED
                runs.append((cell.schedule(), sched.steps))
                cell.controlled.restore()
            seen.append(runs)
    assert seen[0] == seen[1]


def test_processes_that_were_killed_are_forked_anew():
    link_for(ZAP_VS_SPLIT)
    with Cell(ZAP_VS_SPLIT) as cell:
        on_processes(cell)
        cell.controlled.run(1, 1)
        first = list(cell.controlled.pids)
        cell.controlled.restore()
        os.kill(first[0], signal.SIGKILL)
        deadline = time.monotonic() + 200
        while sched.verdict != Verdict.CRASHED and time.monotonic() < deadline:
            cell.controlled.run(1, 1)
            cell.controlled.restore()
        assert sched.verdict == Verdict.CRASHED and cell.controlled.died == [(0, -signal.SIGKILL)]
        cell.controlled.run(1, 1)
        assert sched.verdict == Verdict.FINISHED and not set(first) & set(cell.controlled.pids)
