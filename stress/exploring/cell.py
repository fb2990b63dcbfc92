"""A cell: one process with a machine of its own that runs schedule after schedule of a job.

Every run's end is checked. Most ends have been seen before: a state that was audited, looked at and cleared away once need not
be again (sched/snapshot.py numbers states). Only what is new comes to Python.
"""

import re
import time
from collections.abc import Callable, Iterator

import numpy as np

from concur_thp.arch import native
from concur_thp.arch.checked import access_hook
from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.arch.linker import kernel, redirect, texts
from concur_thp.arch.system import system
from concur_thp.check.audit import audit
from concur_thp.check.broken_rule import RACE, explain_bug
from concur_thp.check.dump import report_text
from concur_thp.check.lock_names import describe_wait, wait_cycle
from concur_thp.check.views import view
from concur_thp.config import MachineConfig
from concur_thp.errors import EmulatorError, Misuse
from concur_thp.machine import Machine
from concur_thp.program.rows import CHECK, SETUP, run_program, run_rows
from concur_thp.program.step import parse_program
from concur_thp.sched.batch import FULL, MAX_KINDS, TABLE, batch, good_states, seen_schedules, state_is_good
from concur_thp.sched.races import races, watch_access
from concur_thp.sched.repeat import NOWHERE, repeating
from concur_thp.sched.snapshot import SEGMENT
from concur_thp.sched.state import MAX_STRETCHES, Status, Verdict, sched, sched_cpus, sched_log, sched_plan
from concur_thp.trace.places import place_name
from stress.exploring.divergence import describe_repetition, describe_replay
from stress.exploring.job import KINDS, Failure, Job, Known, Schedule, Stretch, Tally
from stress.scenarios.arena import arena, arena_clear, arena_empty
from stress.scenarios.play import Rounds, machine_config, prepare
from stress.scenarios.registry import scenario_named
from workers.controlled import Controlled

SLICE = 4096
"""Runs between two looks at the clock."""


class Cell:
    """The machine of one job, ready to run. Use as a context manager."""

    def __init__(self, job: Job, progress: native.Progress | None = None):
        self.job = job
        scenario = scenario_named(job.scenario)
        self.nr = max(job.cpus, len(job.programs) or len(scenario.cpus))
        config = machine_config(scenario, job.order, self.nr, job.seed, controlled=True)
        self.machine = Machine(config, build=job.build, progress=progress)
        self.rounds: Rounds = prepare(scenario, self.nr, self._programs())
        cpu = self.machine.cpu(0)
        run_rows(cpu, SETUP)
        self.controlled = Controlled(self.machine, self.nr, run_program)
        self.controlled.choose(job.strategy, job.depth)
        sched.bound = job.bound
        races.wanted = int(job.races)
        if job.races:
            redirect(access_hook, watch_access)
        if job.checks:
            self.machine.listen_checks(job.checks)
        if job.repeat:
            self.controlled.repeat()
        self.before = {kind: self._stat(kind) for kind in self.rounds.stats}
        self.controlled.keep()
        self.outcomes: list[str] = []
        self.last: Schedule = ()
        self._closing: list[Callable[[], None]] = []

    def on_close(self, what: Callable[[], None]) -> None:
        """Do this when the cell is closed."""
        self._closing.append(what)

    def _programs(self) -> dict[int, tuple] | None:
        if not self.job.programs:
            return None
        named = {number: parse_program(text) for number, text in enumerate(self.job.programs)}
        if self.job.setup is not None:
            named[SETUP] = parse_program(self.job.setup)
        return named

    def _stat(self, kind: int) -> int:
        return sum(cpus[number].vmstat[kind] for number in range(self.nr))

    def __enter__(self) -> "Cell":
        return self

    def __exit__(self, *error: object) -> None:
        for what in self._closing:
            what()
        self.machine.close()

    def explore(self, first: int, schedules: int, deadline: float,
                tick: Callable[[Tally], None]) -> tuple[Tally, Failure | None]:
        """Run seeds from `first` on until there is a failure, `schedules` are done, or the deadline has passed."""
        began = time.monotonic()
        tally = Tally()
        at = first
        failure = None
        while at < first + schedules and time.monotonic() < deadline and not self.controlled.exhausted:
            ran = self.controlled.run(at, min(SLICE, first + schedules - at))
            at += ran
            if not self.controlled.complete:
                failure = self._same_again() or self.judge(full=batch.seed % self.job.audits == 0)
                at += 1
                self.controlled.restore()
            tally.exhausted = self.controlled.proved
            self._count(tally, began)
            tick(tally)
            if failure is not None:
                failure.seconds, failure.runs = time.monotonic() - began, tally.schedules
                break
        return tally, failure

    def _same_again(self) -> Failure | None:
        """Did the last run's schedule bring the same about a second time, if it had to? If not, that is our own fault."""
        if repeating.wanted and repeating.diverged != NOWHERE:
            raise EmulatorError(f"{self.job.scenario}, {self.job.strategy}, a schedule that does not repeat: "
                                + describe_repetition(self.machine.config, self.controlled.snapshot, self.machine.places))
        return None

    def _count(self, tally: Tally, began: float) -> None:
        tally.schedules, tally.distinct, tally.cut = batch.done, batch.schedules, batch.cut
        tally.full = FULL in (batch.schedules, batch.states)
        tally.steps, tally.states, tally.seconds = batch.steps, batch.states, time.monotonic() - began
        tally.outcomes = {name: batch.ends[number] for number, name in enumerate(self.outcomes[:MAX_KINDS])}

    def known(self) -> Known:
        """The schedules and the ends that were met."""
        schedules, states = (view(table, TABLE)["value"] for table in (seen_schedules, good_states))
        return Known(*(np.sort(numbers[numbers != 0]) for numbers in (schedules, states)))

    def judge(self, full: bool = True) -> Failure | None:
        """What the run that has just ended in a way never seen before is worth; not `full`: by its outcome alone. The machine
        is not restored here."""
        verdict = Verdict(sched.verdict)
        failure = Failure("", "", self.schedule(), batch.seed, state=batch.state, diverged=sched.diverged)
        if verdict != Verdict.FINISHED:
            return self._stopped(failure, verdict)
        for kind, symptoms in self._laws(full):
            if kind == "stopped":
                return self._stopped(failure, Verdict(sched.verdict))
            if symptoms:
                failure.kind, failure.symptom = kind, "; ".join(symptoms[:4])
                failure.report = report_text(self.machine.config, what=failure.symptom)
                return failure
        return None

    def _stopped(self, failure: Failure, verdict: Verdict) -> Failure:
        """The machine did not come to rest."""
        raced = verdict == Verdict.BUG and texts().get(system.bug_text, "").startswith(RACE)
        failure.kind = "race" if raced else KINDS[verdict]
        failure.symptom = describe_end(self.machine.config, verdict)
        failure.cpu = system.bug_cpu if verdict == Verdict.BUG else sched.current
        failure.function = where_is(failure.cpu)
        failure.report = report_text(self.machine.config, what=failure.symptom)
        return failure

    def _laws(self, full: bool = True) -> Iterator[tuple[str, list[str]]]:
        """Everything that is asked of a state at rest: the audit, the outcome, and that nothing is left afterwards."""
        if full:
            yield "audit", [str(v) for v in audit(self.machine.config).violations]
        for kind, before in self.before.items():
            arena.delta[kind] = self._stat(kind) - before
        if self.controlled.alone(run_check) != Verdict.FINISHED:
            yield "stopped", []
        outcome = self.rounds.outcome() if not self.job.programs else "any"
        yield "outcome", [] if outcome else [f"no outcome of the scenario: {self.rounds.seen()}"]
        if not full:
            return  # And so it is not known to be good.
        for clear in (arena_clear, arena_empty):
            if self.controlled.alone(clear) != Verdict.FINISHED:
                yield "stopped", []
        yield "leak", [str(v) for v in audit(self.machine.config, expect_empty=True).violations]
        if outcome not in self.outcomes:
            self.outcomes.append(str(outcome))
        state_is_good(batch.state, min(self.outcomes.index(str(outcome)), MAX_KINDS - 1))

    def schedule(self) -> Schedule:
        """The stretches of the last run."""
        rows = (sched_log[i] for i in range(sched.stretches))
        return tuple(Stretch(row.cpu, row.reason, row.steps, row.site) for row in rows)

    def plan(self, schedule: Schedule) -> None:
        """What strategies replay and guided follow."""
        if len(schedule) > MAX_STRETCHES or any(not 0 <= s.cpu < self.nr or s.steps < 0 for s in schedule):
            raise Misuse(f"the schedule is none of {self.nr} CPUs: the token is damaged, or of another version")
        for number, stretch in enumerate(schedule):
            row = sched_plan[number]
            row.cpu, row.reason, row.steps, row.site = stretch
        sched.expected = len(schedule)

    def follow(self, schedule: Schedule, strategy: str = "replay") -> Failure | None:
        """Run one schedule; None when it ends well. The machine is restored."""
        self.controlled.choose(strategy, self.job.depth)
        self.plan(schedule)
        self.controlled.run(0, 1)
        self.last = self.schedule()
        failure = None if self.controlled.complete else self.judge()
        self.controlled.restore()
        return failure



@kernel
def run_check(cpu: Cpu) -> None:
    """The scenario's look at what the run has left.

    Context: as run_rows().
    Emulator: part of a cell's judgement.
    """
    run_rows(cpu, CHECK)


def describe_end(config: MachineConfig, verdict: Verdict) -> str:
    """Why the run did not finish."""
    if verdict == Verdict.BUG:
        return named(config, _race(config) + explain_bug())
    waits = "; ".join(describe_wait(config, n) for n in range(sched.nr) if sched_cpus[n].status != Status.DONE)
    if verdict == Verdict.DEADLOCK:
        cycle = " -> ".join(f"cpu {n}" for n in wait_cycle(config))
        return f"nobody can go on{f' ({cycle})' if cycle else ''}: {waits}"
    if verdict == Verdict.LIVELOCK:
        return f"no end in sight after {min(sched.steps, sched.bound)} points: {waits}"
    return describe_replay(config)


def _race(config: MachineConfig) -> str:
    """Which field a race was about."""
    return f"{place_name(config, races.address)}: " if texts().get(system.bug_text, "").startswith(RACE) else ""


def named(config: MachineConfig, text: str) -> str:
    """A text in which addresses of the segment are names: the same in every process."""

    def name(match: re.Match[str]) -> str:
        address = int(match[0], 16)
        return place_name(config, address) if 0 <= address - int(SEGMENT) < system.segment_bytes else match[0]

    return re.sub(r"0x[0-9a-f]{9,16}", name, text)


def where_is(number: int) -> str:
    """The kernel function a CPU is in."""
    return texts().get(cpus[number].func, "user code") if number >= 0 else ""


__all__ = ["Cell", "describe_end", "where_is"]
