"""The story of a run that was stepped through in the traced build: which CPU ran which statement, in order, on what words.

A point stands before its statement. A CPU that was stopped at a point runs the statement when it goes on, so that is where
the statement stands here. Statements that touch a word which another CPU also touches, one of them writing, are what
the run is about; the others are the way there.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from concur_thp.arch.checked import KIND, Site, sites
from concur_thp.arch.linker import texts
from concur_thp.check.views import view
from concur_thp.config import MachineConfig
from concur_thp.sched.state import Reason, sched, sched_accesses, sched_log, sched_steps
from concur_thp.trace.places import place_name

NAMES = {number: name for name, number in KIND.items()}
READS = (KIND["load"], KIND["read"])
ATOMIC = 16
UNINTERESTING = ("cpus[", "rings[", "dep_classes[", "lockdep", "sched", "step_", "percpu[", "system", "arena")
"""Places that say nothing about the kernel: a CPU's own, and the test's."""


class Touch(NamedTuple):
    """One access."""

    address: int
    kind: str
    writes: bool
    atomic: bool


@dataclass
class Line:
    """A CPU ran a statement."""

    number: int
    cpu: int
    site: int
    where: Site
    function: str
    """Kernel function it was in; `where.function` may be an inline one."""
    row: int
    touches: list[Touch] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    """Names of the words that another CPU touches too, one of the two writing."""
    stretch: int = 0
    resumed: bool = False
    """It was about to run this when another CPU was let go on."""


@dataclass
class Story:
    """A whole run."""

    lines: list[Line]
    nr_cpus: int
    endings: list[tuple[int, str]]
    """Each stretch's CPU, and why it ended."""
    names: dict[int, str] = field(default_factory=dict)

    def conflicts(self) -> list[Line]:
        """The lines that touch what another CPU touches too."""
        return [line for line in self.lines if line.shared]


UNKNOWN = Site("?", "", 0, "?")


def read_story(config: MachineConfig) -> Story:
    """The story of the run that the scheduler has just stepped through in this process."""
    steps = view(sched_steps, max(sched.logged, 1))[:sched.logged]
    rows = [(int(c), int(s), int(f), int(r)) for c, s, f, r in zip(steps["cpu"], steps["site"], steps["func"], steps["row"],
                                                                  strict=True)]
    stretches = [(int(sched_log[i].cpu), int(sched_log[i].reason), int(sched_log[i].steps)) for i in range(sched.stretches)]
    lines = list(_in_order(rows, stretches))
    _give_touches(lines, rows)
    story = Story(lines, sched.nr, [(cpu, Reason(reason).name.lower()) for cpu, reason, _ in stretches])
    _find_shared(story, config)
    return story


def _in_order(rows: list[tuple[int, int, int, int]], stretches: list[tuple[int, int, int]]) -> Iterable[Line]:
    """Statements in the order in which they ran."""
    known, functions = sites(), texts()
    at = 0
    waiting: dict[int, int] = {}

    def line(number: int, stretch: int, resumed: bool) -> Line:
        cpu, site, func, row = rows[number]
        return Line(number, cpu, site, known.get(site, UNKNOWN), functions.get(func, "?"), row, [], [], stretch, resumed)

    for stretch, (cpu, reason, passed) in enumerate(stretches):
        if cpu in waiting:
            yield line(waiting.pop(cpu), stretch, True)
        last = min(at + passed, len(rows))
        for number in range(at, last):
            if number == last - 1 and reason == Reason.PREEMPT:
                waiting[cpu] = number
            else:
                yield line(number, stretch, False)
        at = last


def _give_touches(lines: list[Line], rows: list[tuple[int, int, int, int]]) -> None:
    """Each access belongs to the last point that its CPU had passed."""
    by_step = {line.number: line for line in lines}
    last: dict[int, int] = {}
    at = 0
    for number in range(sched.accesses):
        access = sched_accesses[number]
        while at < min(access.step, len(rows)):
            last[rows[at][0]] = at
            at += 1
        line = by_step.get(last.get(int(access.cpu), -1))
        if line is not None:
            kind = int(access.kind) % ATOMIC
            line.touches.append(Touch(int(access.address), NAMES[kind], kind not in READS, int(access.kind) >= ATOMIC))


def _find_shared(story: Story, config: MachineConfig) -> None:
    """Which words are touched by more than one CPU, and written by one of them?"""
    users: dict[int, set[int]] = {}
    writers: dict[int, set[int]] = {}
    for line in story.lines:
        for touch in line.touches:
            users.setdefault(touch.address, set()).add(line.cpu)
            if touch.writes:
                writers.setdefault(touch.address, set()).add(line.cpu)
    fought = {address for address, cpus in users.items() if len(cpus) > 1 and writers.get(address)}
    story.names = {address: place_name(config, address) for address in fought}
    story.names = {address: name for address, name in story.names.items() if not name.startswith(UNINTERESTING)}
    for line in story.lines:
        line.shared = list(dict.fromkeys(story.names[t.address] for t in line.touches if t.address in story.names))


__all__ = ["Line", "Story", "Touch", "read_story"]
