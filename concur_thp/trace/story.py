"""The story of a run that was stepped through in the traced build: which CPU ran which statement, in order, on what words.

A line is a statement of a kernel function; what inline functions and locks do for it belongs to it. A line that was
under way when its CPU was stopped goes on later: the stretch of a touch says when, not that of its line.
"""

import functools
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from concur_thp.arch.checked import KIND, Site, sites
from concur_thp.arch.linker import Source, texts
from concur_thp.arch.trace import RING_EVENTS
from concur_thp.check.events import Record, ring_events
from concur_thp.check.views import view
from concur_thp.config import MachineConfig
from concur_thp.sched.accesses import value_at
from concur_thp.sched.state import Reason, Verdict, sched, sched_accesses, sched_log, sched_statements
from concur_thp.trace.places import LOCK_BITS, Name, Namer, change_text

NAMES = {number: name for name, number in KIND.items()}
READS = (KIND["load"], KIND["read"])
ATOMIC = 16
OUTSIDE = "user code"
UNKNOWN = Site(OUTSIDE, "", 0, "")
MOST_ACCESSES = 40_000
"""A run that goes round in circles has told its story by then."""


@dataclass
class Touch:
    """One access."""

    number: int
    address: int
    width: int
    kind: str
    writes: bool
    site: int
    stretch: int
    before: int
    after: int | None = None
    """What was written, None for reads."""
    name: Name = Name("", 0, "number")
    decisive: bool = False
    """Another CPU's access of the same word comes before or after it, one of the two a write."""

    @property
    def changes(self) -> bool:
        """Did it leave another value than it found?"""
        return self.after is not None and self.after != self.before

    @property
    def text(self) -> str:
        """What it did."""
        whole = self.name.text.partition(",")[0]
        return change_text(self.name, self.before, self.after) if self.width <= 8 else f"{whole} {self.width} bytes"


@dataclass
class Line:
    """A CPU ran a statement."""

    number: int
    cpu: int
    stretch: int
    where: Site
    function: str
    """The kernel function that it was compiled into."""
    row: int
    callers: tuple[str, ...] = ()
    """Kernel functions that it is called by, outermost first."""
    touches: list[Touch] = field(default_factory=list)
    begins: int = 0
    """Accesses before it."""
    events: list[Record] = field(default_factory=list)
    """Tracepoints that it passed."""

    @property
    def decisive(self) -> list[Touch]:
        """Its touches that matter to another CPU."""
        return [touch for touch in self.touches if touch.decisive]


@dataclass
class Stop:
    """Why a stretch of a CPU ended, and before which statement."""

    cpu: int
    reason: str
    where: Site
    steps: int


@dataclass
class Story:
    """A whole run."""

    lines: list[Line]
    nr_cpus: int
    stops: list[Stop]
    """One for each stretch."""
    namer: Namer
    verdict: Verdict = Verdict.FINISHED
    steps: dict[int, str] = field(default_factory=dict)
    """Rows of the programs, as text."""

    def conflicts(self) -> list[Line]:
        """The lines that touch what another CPU touches too."""
        return [line for line in self.lines if line.decisive]


def read_story(config: MachineConfig, namer: Namer | None = None, steps: dict[int, str] | None = None,
               edited: dict[int, Site] | None = None) -> Story:
    """The story of the run that the scheduler has just stepped through. `edited`: statements that are not in the source."""
    known = {**sites(), **(edited or {})}
    stops = [Stop(row.cpu, Reason(row.reason).name.lower(), known.get(row.site, UNKNOWN), row.steps)
             for row in (sched_log[i] for i in range(sched.stretches))]
    namer = namer or Namer(config)
    touches = _touches()
    _values(touches)
    namer.learn((t.address, t.after) for _, t in touches if t.after is not None and t.width == 8)
    with suppress(Exception):  # Broken code may have left anything; names are then what they were before.
        namer.look()
    for _, touch in touches:
        touch.name = namer.name(touch.address)
    _mark(config, touches)
    return Story(_lines(touches, known), sched.nr, stops, namer, Verdict(sched.verdict), steps or {})


def _touches() -> list[tuple[int, Touch]]:
    """Every access, with its CPU, in order."""
    rows = view(sched_accesses, max(sched.accesses, 1))[:min(sched.accesses, MOST_ACCESSES)]
    columns = [rows[name].tolist() for name in ("cpu", "address", "width", "kind", "site", "stretch", "value")]
    return [(cpu, Touch(number, address, width, NAMES[kind % ATOMIC], kind % ATOMIC not in READS, site, stretch, value))
            for number, (cpu, address, width, kind, site, stretch, value) in enumerate(zip(*columns, strict=True))]


def _values(touches: list[tuple[int, Touch]]) -> None:
    """What was written is what the next access finds, or what is there at the end."""
    following: dict[int, int] = {}
    for _, touch in reversed(touches):
        if touch.width > 8:
            for address in range(touch.address, touch.address + touch.width, 8):
                following.pop(address, None)
            continue
        if touch.writes:
            found = following.get(touch.address)
            touch.after = value_at(touch.address, touch.width) if found is None else found
        following[touch.address] = touch.before


def _mark(config: MachineConfig, touches: list[tuple[int, Touch]]) -> None:
    """The last access of one CPU and the first of the next to the same word are decisive, if one of them writes."""
    last: dict[int, tuple[int, Touch]] = {}
    wrote: dict[int, tuple[int, Touch]] = {}
    for cpu, touch in touches:
        for key in _keys(config, touch):
            for before in (last.get(key), wrote.get(key)):
                meet = before is not None and before[0] != cpu and (before[1].writes or touch.writes)
                if before is not None and meet and touch.name.weight:
                    touch.decisive = before[1].decisive = True
            last[key] = (cpu, touch)
            if touch.writes and touch.after != touch.before:
                wrote[key] = (cpu, touch)


def _keys(config: MachineConfig, touch: Touch) -> Iterable[int]:
    """The words that an access touches. PG_locked changes too often to say anything: that is what lock lines are for."""
    if touch.name.kind == "flags" and touch.after is not None and (touch.before ^ touch.after) & ~LOCK_BITS == 0:
        return ()
    return range(touch.address, touch.address + max(touch.width, 1), 8)


@functools.cache
def _calls() -> dict[str, set[str]]:
    """Kernel and inline function -> those that it names."""
    found: dict[str, set[str]] = {}
    for source in Source.every:
        code = source.function.__code__
        things = [source.namespace.get(name) for name in (*code.co_names, *code.co_freevars)]
        found.setdefault(source.name, set()).update(thing.name for thing in things if isinstance(thing, Source))
    return found


@functools.cache
def reached(function: str) -> frozenset[str]:
    """Every function that this one comes to, through whatever it calls."""
    calls, found, more = _calls(), {function}, [function]
    while more:
        new = calls.get(more.pop(), set()) - found
        found |= new
        more += new
    return frozenset(found)


def _lines(touches: list[tuple[int, Touch]], known: dict[int, Site]) -> list[Line]:
    """Statements of kernel functions in the order in which they began, with what they touched."""
    functions = texts()
    rows = view(sched_statements, max(sched.statements, 1))[:sched.statements]
    columns = [rows[name].tolist() for name in ("cpu", "stretch", "site", "func", "row", "accesses", "events")]
    lines: list[Line] = []
    rings: dict[int, list[int]] = {}
    stacks: dict[int, list[Line]] = {cpu: [] for cpu in range(sched.nr)}
    at = 0

    def give(until: int) -> None:
        nonlocal at
        for cpu, touch in touches[at:until]:
            if stacks[cpu]:
                stacks[cpu][-1].touches.append(touch)
        at = until

    for cpu, stretch, site, func, row, accesses, events in zip(*columns, strict=True):
        if accesses > len(touches):
            break
        give(accesses)
        where, function, stack = known.get(site, UNKNOWN), functions.get(func, "?"), stacks[cpu]
        names = [line.function for line in stack]
        if row != (stack[-1].row if stack else row):
            stack.clear()
            names = []
        while stack and function not in names and function not in reached(stack[-1].function):
            stack.pop()  # It has returned: nothing that it calls comes to this.
        if function in names:
            del stack[names.index(function) + 1:]
            if where.function != function:
                continue  # An inline function at work for the statement that is under way.
            stack.pop()
        line = Line(len(lines), cpu, stretch, where, function, row, tuple(one.function for one in stack), begins=accesses)
        rings.setdefault(cpu, []).append(events)
        lines.append(line)
        stack.append(line)
    give(len(touches))
    _give_events(lines, rings)
    return lines


def _give_events(lines: list[Line], rings: dict[int, list[int]]) -> None:
    """The tracepoints of each CPU, to the statements during which they came."""
    for cpu, starts in rings.items():
        mine = [line for line in lines if line.cpu == cpu]
        for event in ring_events(cpu, RING_EVENTS):
            at = bisect_right(starts, event.number) - 1
            if at >= 0:
                mine[at].events.append(event)


__all__ = ["OUTSIDE", "Line", "Stop", "Story", "Touch", "read_story"]
