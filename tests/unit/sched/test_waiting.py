"""Who can go on, who never will, and what a schedule holds: waiting under the scheduler of controlled runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from concur_thp.arch import native
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.futex import sched_yield
from concur_thp.arch.irq import local_irq_disable
from concur_thp.arch.linker import Kernel, kernel
from concur_thp.arch.shared import SharedOne
from concur_thp.arch.struct import I64, Struct, atomic
from concur_thp.machine import Machine
from concur_thp.sched import state
from concur_thp.sched.batch import batch
from concur_thp.sched.state import Reason, Verdict, sched, sched_log, sched_plan
from workers.controlled import Controlled


class WaitingWords(Struct, size=64):
    flag = atomic(I64, "what is polled")
    seen = atomic(I64, "what was found")
    noise = atomic(I64, "steps that mean nothing")


waiting_words = SharedOne("test_waiting", WaitingWords)


@kernel
def wait_with_irqs_off(cpu: Cpu):
    """CPU 0 polls with irqs off, and passes no point, while a request of CPU 1 waits. Emulator: a test."""
    if cpu.id == 0:
        local_irq_disable(cpu)
        while cpu.irq_off != 0:
            sched_yield()
    else:
        cpus[0].ipi_bits.or_(2)


@kernel
def poll_for_a_moment(cpu: Cpu):
    """CPU 0 polls for a flag that CPU 1 raises and lowers again. Emulator: a test."""
    if cpu.id == 0:
        tries = 0
        while waiting_words.flag.load() == 0 and tries < 3:
            tries += 1
            sched_yield()
        waiting_words.seen.store(waiting_words.flag.load())
    else:
        waiting_words.noise.add(1)
        waiting_words.noise.add(1)
        waiting_words.flag.store(1)
        waiting_words.noise.add(1)
        waiting_words.noise.add(1)
        waiting_words.flag.store(0)


@kernel
def never_end(cpu: Cpu):
    """Emulator: a test."""
    while waiting_words.flag.load() == 0:
        waiting_words.noise.add(1)


@kernel
def never_end_alone(cpu: Cpu):
    """Emulator: a test."""
    never_end(cpu)


@contextmanager
def runs_of(body: Kernel) -> Iterator[Controlled]:
    sizes = {"cpus": 2, "memory": "1M", "order": 3, "mms": 4, "vmas": 64, "controlled": True}
    with Machine(build=native.CHECKED, **sizes):
        native.link([wait_with_irqs_off, poll_for_a_moment, never_end, never_end_alone], kind=native.CHECKED)
        controlled = Controlled(Machine.booted, 2, body)
        controlled.keep()
        yield controlled


@pytest.mark.parametrize("strategy", ["random", "pct", "dfs"])
def test_a_request_that_irqs_off_keep_from_being_served_makes_nobody_able(strategy):
    """The scheduler let CPU 0 go on again and again, since a request waited, and never found that nothing moved."""
    with runs_of(wait_with_irqs_off) as controlled:
        controlled.choose(strategy, 2)
        for seed in range(20):
            controlled.run(seed, 1)
            assert Verdict(sched.verdict) == Verdict.DEADLOCK
            controlled.restore()


def test_dfs_lets_a_cpu_that_polls_look_after_each_step():
    """It used to look at every sixteenth step of the others only: what was there for a moment was never seen."""
    with runs_of(poll_for_a_moment) as controlled:
        controlled.choose("dfs", 2)
        seen, runs = set(), 0
        while not controlled.exhausted:
            controlled.run(runs, 1)
            seen.add(waiting_words.seen.load())
            controlled.restore()
            runs += 1
        assert seen == {0, 1} and runs > 5


def test_a_schedule_too_long_to_be_written_down_is_endless_and_replays():
    """Stretches beyond the log were left out, and the token diverged."""
    with runs_of(never_end) as controlled:
        sched.bound = 10_000_000
        controlled.choose("random")
        controlled.run(1, 1)
        assert Verdict(sched.verdict) == Verdict.LIVELOCK and sched.steps < sched.bound
        rows = [(r.cpu, r.reason, r.steps, r.site) for r in (sched_log[i] for i in range(sched.stretches))]
        assert rows[-1][1] == Reason.END and len(rows) <= state.MAX_STRETCHES
        steps = sched.steps
        controlled.restore()
        controlled.choose("replay")
        for number, values in enumerate(rows):
            row = sched_plan[number]
            row.cpu, row.reason, row.steps, row.site = values
        sched.expected = len(rows)
        controlled.run(0, 1)
        assert Verdict(sched.verdict) == Verdict.LIVELOCK and sched.steps == steps
        controlled.restore()


def test_a_plan_without_a_beginning_diverges():
    """There is no CPU's stack to leave yet: the process used to die."""
    with runs_of(poll_for_a_moment) as controlled:
        controlled.choose("replay")
        assert controlled.run(0, 1) == 0 and not controlled.complete
        assert Verdict(sched.verdict) == Verdict.DIVERGED and sched.diverged == 0
        controlled.restore()


def test_what_runs_alone_ends_too():
    with runs_of(poll_for_a_moment) as controlled:
        assert controlled.alone(never_end_alone) == Verdict.LIVELOCK
        controlled.restore()


def test_a_seed_means_the_same_whatever_ran_before():
    """But for pct's length of a run, which is handed on."""
    with runs_of(poll_for_a_moment) as controlled:
        controlled.choose("random")
        controlled.run(5, 1)
        first = [(sched_log[i].cpu, sched_log[i].steps) for i in range(sched.stretches)]
        controlled.restore()
        for seed in range(6):
            controlled.run(seed, 1)
            last = [(sched_log[i].cpu, sched_log[i].steps) for i in range(sched.stretches)]
            controlled.restore()
        assert last == first and batch.done == 7


def test_pct_keeps_to_its_change_points():
    """A depth beyond them used to be written over what stands behind."""
    with runs_of(poll_for_a_moment) as controlled:
        controlled.choose("pct", 99)
        before = sched.exhausted, sched.spent, sched.at, sched.expected, sched.diverged
        controlled.run(1, 1)
        assert (sched.exhausted, sched.spent, sched.at, sched.expected, sched.diverged) == before[:4] + (-1,)
        assert sched.depth == state.MAX_CHANGES
        controlled.restore()
