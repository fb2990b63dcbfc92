"""From the run that failed to one with fewer preemptions that fails alike. Programs in Python are left as they are."""

import time

from stress.exploring.job import Failure
from stress.exploring.shrink import calmer, size
from stress.programs.cell import ProgramCell

TRIES = 1000
"""Schedules for each attempt with fewer change points."""


def shrink(cell: ProgramCell, failure: Failure, until: float) -> Failure:
    """The calmest failure of the same kind that is found by `until`."""
    kind = failure.kind
    if kind in ("crash", "hung"):
        return failure
    for depth in range(1, failure.preemptions + 1):
        cell.controlled.choose("pct", depth)
        _, simpler = cell.explore(0, TRIES, until, lambda tally: None)
        if simpler is not None and simpler.kind == kind and size(simpler) < size(failure):
            failure = simpler
        if failure.preemptions < depth:
            break
    helped = True
    while helped and time.monotonic() < until:
        helped = False
        for plan in calmer(failure.schedule):
            if time.monotonic() > until:
                break
            simpler = cell.follow(plan, "guided")
            if simpler is not None and simpler.kind == kind and size(simpler) < size(failure):
                failure, helped = simpler, True
                break
    return failure


__all__ = ["shrink"]
