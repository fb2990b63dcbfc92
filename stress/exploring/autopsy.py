"""A run that kills or hangs the process it runs in: what can be learned of it, from outside.

Broken code may follow a wild pointer or go round in a loop that touches nothing. The run is repeated in a fork of the cell; the
segment is shared, so the cell reads where the fork stood when it was ended.
"""

import os
import signal
import time
from dataclasses import dataclass

from concur_thp.arch.cpu import cpus
from concur_thp.sched.state import Reason, sched, sched_cpus
from stress.exploring.cell import Cell, where_is
from stress.exploring.job import Failure, Schedule, Stretch
from stress.exploring.patience import Patience
from stress.exploring.settle import settle

PATIENCE_SECONDS = 3.0
"""A run of a hundred thousand points takes milliseconds."""
FOREVER_SECONDS = 1e9


@dataclass(frozen=True)
class Repeat:
    """What is to be run again."""

    seed: int = 0
    longest: int = 0
    """sched.longest before the run: pct's change points depend on it."""
    runs: int = 1
    """More than one: the whole exploration up to this run, for strategies whose schedules do not come of a seed."""


def in_a_fork(cell: Cell, again: Repeat, patience: float = PATIENCE_SECONDS) -> Failure | None:
    """Run one seed (or the plan, for replay) in a fork; a Failure when that ends or hangs the fork, else None."""
    sched.longest = again.longest
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            settle(parent)
            _run(cell, again)
        finally:
            os._exit(0)
    status = _wait(cell, child, patience)
    failure = _failure(cell, status)
    cell.controlled.restore()
    return failure


def _run(cell: Cell, again: Repeat) -> None:
    if again.runs > 1:
        cell.explore(again.seed - again.runs + 1, again.runs, time.monotonic() + FOREVER_SECONDS, lambda tally: None)
    else:
        cell.controlled.run(again.seed, 1)
        if not cell.controlled.complete:
            cell.judge()  # What a run leaves behind may be as deadly.


def _wait(cell: Cell, child: int, patience: float) -> int | None:
    """The child's status; None when it began no new run in so much of its time, and was ended."""
    waits = Patience(child, patience)
    try:
        while not waits.over(cell.controlled.progress[:]):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                child = 0
                return status
            time.sleep(0.001)
        return None
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _failure(cell: Cell, status: int | None) -> Failure | None:
    if status is not None and not os.WIFSIGNALED(status):
        return None
    number = sched.current
    where = where_is(number)
    if status is None:
        kind, symptom = "hung", f"cpu {number} goes round and round in {where}"
    else:
        kind, symptom = "crash", f"{signal.Signals(os.WTERMSIG(status)).name} in {where} on cpu {number}"
    return Failure(kind, symptom, _schedule(cell), cpu=number, function=where)


def _schedule(cell: Cell) -> Schedule:
    """The stretches that were written down, and the one that was under way."""
    written = cell.schedule()
    if written and written[-1].reason == Reason.END:
        return written  # It died of what the run has left.
    number = sched.current
    passed = sched_cpus[number].granted - cpus[number].budget
    last = Stretch(number, int(Reason.END), sched_cpus[number].steps - sched_cpus[number].began + passed, cpus[number].site)
    return (*written, last)


__all__ = ["Repeat", "in_a_fork"]
