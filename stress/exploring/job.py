"""What is to be explored, and what is found: plain data that travels between processes."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from concur_thp.sched.state import Reason, Verdict


class Stretch(NamedTuple):
    """A CPU moved for some points and stopped before a statement, for a reason."""

    cpu: int
    reason: int
    steps: int
    site: int


Schedule = tuple[Stretch, ...]
PROGRAMS = "programs in Python"
"""Stands for a scenario in the jobs and tokens of programs that are Python functions."""


@dataclass(frozen=True)
class Job:
    """One exploration, as every cell gets it."""

    scenario: str
    order: int = 3
    cpus: int = 0
    """CPUs; more than the scenario has are bystanders. 0: the scenario's."""
    strategy: str = "pct"
    depth: int = 3
    seed: int = 1
    variant: str = ""
    """Rule variant that is put in place of the real code; empty: the real code."""
    programs: tuple[str, ...] = ()
    """Programs in place of the scenario's own, by CPU (shrinking)."""
    setup: str | None = None
    bound: int = 1_000_000
    """Points after which a run is a livelock."""
    checks: int = 0
    """Instant invariants: 0 none, 1 at every place, n at one in n."""
    audits: int = 1
    """Of ends never seen before one in so many is audited; of the others only the outcome is looked at."""
    build: str = "checked"
    races: bool = False
    """Watch plain fields for races by happens-before; needs the traced build."""
    repeat: bool = False
    """Run each schedule twice; it must bring about the same."""
    plan: Schedule = ()
    """For strategies replay and guided."""


@dataclass
class Failure:
    """A run that broke a rule: how, in which schedule, and where each CPU stood."""

    kind: str
    """bug, race, audit, leak, outcome, deadlock, livelock, crash, hung, diverged, or raised (by a program in Python)."""
    symptom: str
    schedule: Schedule = ()
    seed: int = 0
    cpu: int = -1
    function: str = ""
    state: int = 0
    report: str = ""
    seconds: float = 0.0
    runs: int = 0
    diverged: int = -1

    @property
    def preemptions(self) -> int:
        """CPUs that were stopped though they could have gone on."""
        return sum(1 for stretch in self.schedule[:-1] if stretch.reason == Reason.PREEMPT)


class Known(NamedTuple):
    """The numbers of schedules and of ends that a cell has met, sorted; int64."""

    schedules: NDArray[np.int64]
    states: NDArray[np.int64]

    def united(self, other: "Known") -> "Known":
        """Both cells' numbers."""
        return Known(merged(self.schedules, other.schedules), merged(self.states, other.states))


def merged(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two sorted arrays as one, without what is in both. (np.union1d() sorts anew, or hashes: half a second for a million.)"""
    both = np.concatenate((one, other))
    both.sort(kind="stable")  # Merges runs that are in order.
    first = np.ones(len(both), bool)
    np.not_equal(both[1:], both[:-1], out=first[1:])
    return both[first]


@dataclass
class Tally:
    """What cells count; sums over all of them."""

    schedules: int = 0
    distinct: int = 0
    """Schedules that were not the same, in any cell; of cells that go on: in each."""
    full: bool = False
    """There were more than a cell remembers: at least so many."""
    cut: int = 0
    """Runs that a strategy ended because it knew how they go on; not among the schedules."""
    steps: int = 0
    states: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    audits: int = 0
    exhausted: bool = False
    known: Known | None = None
    """Of a cell that is done."""

    def add(self, other: "Tally") -> None:
        """Take another cell's numbers in."""
        for name in ("schedules", "distinct", "cut", "steps", "states", "audits"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds = max(self.seconds, other.seconds)
        self.exhausted = self.exhausted or other.exhausted
        for name, count in other.outcomes.items():
            self.outcomes[name] = self.outcomes.get(name, 0) + count
        self.full = self.full or other.full
        if other.known is not None:
            self.known = other.known if self.known is None else self.known.united(other.known)

    def settle(self) -> None:
        """All cells are done: what two of them have met counts once."""
        if self.known is not None:
            self.distinct, self.states = len(self.known.schedules), len(self.known.states)


KINDS = {Verdict.BUG: "bug", Verdict.DEADLOCK: "deadlock", Verdict.LIVELOCK: "livelock", Verdict.DIVERGED: "diverged",
         Verdict.CRASHED: "crash", Verdict.HUNG: "hung", Verdict.RAISED: "raised"}
"""Failure.kind of a verdict that speaks for itself."""

__all__: list[Any] = ["KINDS", "Failure", "Job", "Known", "Schedule", "Stretch", "Tally"]
