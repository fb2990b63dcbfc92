"""A run that kills or hangs the process it runs in: what can be learned of it, from outside.

Broken code may follow a wild pointer or go round in a loop that touches nothing. The run is repeated in a fork of the cell; the
segment is shared, so the cell reads where the fork stood when it was ended.
"""

import os
import signal
import time

from concur_thp.arch.cpu import cpus
from concur_thp.sched.state import Reason, sched, sched_cpus
from stress.exploring.cell import Cell, where_is
from stress.exploring.job import Failure, Schedule, Stretch

PATIENCE_SECONDS = 3.0
"""A run of a hundred thousand points takes milliseconds."""


def in_a_fork(cell: Cell, seed: int, patience: float = PATIENCE_SECONDS) -> Failure | None:
    """Run one seed (or the plan, for replay) in a fork; a Failure when that ends or hangs the fork, else None."""
    child = os.fork()
    if child == 0:
        try:
            cell.controlled.run(seed, 1)
        finally:
            os._exit(0)
    deadline = time.monotonic() + patience
    status = None
    while status is None and time.monotonic() < deadline:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = code
        else:
            time.sleep(0.001)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    failure = _failure(cell, status)
    cell.controlled.restore()
    return failure


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
    number = sched.current
    passed = sched_cpus[number].granted - cpus[number].budget
    last = Stretch(number, int(Reason.END), sched_cpus[number].steps - sched_cpus[number].began + passed, cpus[number].site)
    return (*cell.schedule(), last)


__all__ = ["in_a_fork"]
