"""From the run that failed to the simplest that fails alike: fewer preemptions, fewer steps, fewer CPUs.

Three ways, each tried as long as it helps and there is time: look for a failure with fewer change points (at tens of
thousands of schedules a second that is quicker than thinking); let a CPU that was stopped go on; leave a step of a program
out.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from multiprocess import get_context

from concur_thp.rules.variant import Variant
from concur_thp.sched.state import Reason
from stress.exploring.cell import Cell
from stress.exploring.job import Failure, Job, Schedule
from stress.exploring.settle import settle
from stress.scenarios.registry import scenario_named

TRIES = 3000
"""Schedules for each attempt at a simpler failure."""
GRACE_SECONDS = 2.0
UNSHRINKABLE = ("crash", "hung")
"""Kinds that take the process with them."""


class Shrinker:
    """Shrinks failures of a job within a budget of seconds."""

    def __init__(self, job: Job, variant: Variant | None, seconds: float,
                 better: Callable[[Job, Failure], None] = lambda job, failure: None):
        self.job, self.variant, self.until, self.better = job, variant, time.monotonic() + seconds, better

    def shrink(self, failure: Failure) -> tuple[Job, Failure]:
        """The simplest failure of the same kind that was found, and the job that it is of."""
        if failure.kind in UNSHRINKABLE:
            return self.job, failure
        job, failure = self._fewer_changes(self.job, failure)
        if failure.kind != "outcome":  # What an outcome is depends on the whole program.
            job, failure = self._fewer_steps(job, failure)
        with self._cell(job) as cell:
            failure = self._fewer_preemptions(cell, failure)
        return job, failure

    def _cell(self, job: Job) -> Cell:
        cell = Cell(job)
        if self.variant is not None:
            self.variant.put()
            cell.on_close(self.variant.take)
        return cell

    def _search(self, job: Job, like: Failure) -> Failure | None:
        """A failure of the same kind in some schedules of the job."""
        if time.monotonic() > self.until:
            return None
        with self._cell(job) as cell:
            _, failure = cell.explore(0, TRIES, self.until, lambda tally: None)
        return failure if failure is not None and failure.kind == like.kind else None

    def _fewer_changes(self, job: Job, failure: Failure) -> tuple[Job, Failure]:
        for depth in range(1, max(job.depth, 2) + 1):
            if failure.preemptions < depth:
                break
            simpler = self._search(replace(job, strategy="pct", depth=depth), failure)
            if simpler is not None and simpler.preemptions < failure.preemptions:
                failure = simpler
                self.better(job, failure)
        return job, failure

    def _fewer_steps(self, job: Job, failure: Failure) -> tuple[Job, Failure]:
        """Leave out whole programs, then single steps."""
        programs = job.programs or scenario_named(job.scenario).cpus
        search = replace(job, strategy="pct", depth=max(2, failure.preemptions + 1))
        helped = True
        while helped and time.monotonic() < self.until:
            helped = False
            for fewer in _shorter(programs):
                simpler = self._search(replace(search, programs=fewer), failure)
                if simpler is not None:
                    programs, failure, helped = fewer, simpler, True
                    job = replace(job, programs=fewer)
                    self.better(job, failure)
                    break
        return job, failure

    def _fewer_preemptions(self, cell: Cell, failure: Failure) -> Failure:
        helped = True
        while helped and time.monotonic() < self.until:
            helped = False
            for plan in calmer(failure.schedule):
                simpler = cell.follow(plan, "guided")
                if simpler is not None and simpler.kind == failure.kind and size(simpler) < size(failure):
                    failure, helped = simpler, True
                    break
        return failure


def shrink_in_a_fork(job: Job, variant: Variant | None, failure: Failure, seconds: float) -> tuple[Job, Failure]:
    """Shrink where broken code can kill or hang nobody but the fork; what was found until then counts."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_shrink, args=(job, variant, failure, seconds, sender, os.getpid()), daemon=True)
    process.start()
    sender.close()
    best = job, failure
    deadline = time.monotonic() + seconds + GRACE_SECONDS
    try:
        while receiver.poll(max(deadline - time.monotonic(), 0)):
            best = receiver.recv()
    except (EOFError, OSError):
        pass  # It is through, or a broken run has taken it with it.
    process.kill()
    process.join()
    receiver.close()
    return best


def _shrink(job: Job, variant: Variant | None, failure: Failure, seconds: float, sender: Any, parent: int) -> None:
    """The life of the fork."""
    settle(parent)
    try:
        found = Shrinker(job, variant, seconds, lambda *better: sender.send(better)).shrink(failure)
        sender.send(found)
    finally:
        os._exit(0)


def size(failure: Failure) -> tuple[int, int, int]:
    return failure.preemptions, len(failure.schedule), sum(s.steps for s in failure.schedule)


def _shorter(programs: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The programs with one of them empty, or with one step less."""
    for number, text in enumerate(programs):
        if text:
            yield (*programs[:number], "", *programs[number + 1:])
    for number, text in enumerate(programs):
        steps = [step.strip() for step in text.replace("\n", ";").split(";") if step.strip()]
        for left_out in reversed(range(len(steps))):
            if len(steps) > 1:
                shorter = "; ".join(steps[:left_out] + steps[left_out + 1:])
                yield (*programs[:number], shorter, *programs[number + 1:])


def calmer(schedule: Schedule) -> Iterator[Schedule]:
    """The schedule with one preemption less: the CPU goes on until it stops by itself."""
    for at, stretch in enumerate(schedule[:-1]):
        if stretch.reason == Reason.PREEMPT:
            yield (*schedule[:at], stretch._replace(reason=int(Reason.BLOCK)), *schedule[at + 1:])
            yield (*schedule[:at], *schedule[at + 1:])


__all__ = ["Shrinker", "shrink_in_a_fork"]
