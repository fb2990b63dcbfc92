"""Which scenarios come by a statement: found by playing each of them for a while in the traced build.

Best are those in which several CPUs come by in one run; among them those that do so most often.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from concur_thp.arch.checked import statement_hook
from concur_thp.arch.linker import SLOTS, redirect
from concur_thp.sched.passing import note_passing, open_passing, passed
from stress.exploring.cell import Cell
from stress.exploring.explorer import link_for
from stress.exploring.job import Job
from stress.scenarios.registry import SCENARIOS

LOOKS = (("random", 2, 40), ("pct", 3, 40), ("random", 4, 40))
"""Strategy, depth and runs that say where a scenario comes by."""


class Visit(NamedTuple):
    """A scenario that comes by a statement."""

    scenario: str
    shared: int
    """Runs in which several CPUs came by."""
    runs: int


def coverage(names: Iterable[str] = (), order: int = 3, tick: Callable[[str], None] | None = None) -> dict[int, list[Visit]]:
    """Number of a statement -> the scenarios that come by it, best first."""
    found: dict[int, list[Visit]] = {}
    for name in names or SCENARIOS:
        if tick:
            tick(f"where {name} comes by")
        for site, (shared, runs) in visits(Job(name, order=order, build="traced")).items():
            found.setdefault(site, []).append(Visit(name, shared, runs))
    for rows in found.values():
        rows.sort(key=lambda visit: (-visit.shared, -visit.runs, visit.scenario))
    return found


def visits(job: Job) -> dict[int, tuple[int, int]]:
    """Statement -> runs in which several CPUs came by, and runs that came by, of one scenario."""
    link_for(job)
    memory = open_passing()
    with Cell(job) as cell:
        kept = SLOTS[statement_hook.slot]
        redirect(statement_hook, note_passing)
        try:
            for strategy, depth, runs in LOOKS:
                cell.controlled.choose(strategy, depth)
                for seed in range(runs):
                    cell.controlled.run(seed, 1)
                    cell.controlled.restore()
        finally:
            SLOTS[statement_hook.slot] = kept
        found = passed()
    memory.close()
    return found


__all__ = ["Visit", "coverage", "visits"]
