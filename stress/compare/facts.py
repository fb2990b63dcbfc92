"""What was seen on both sides, fact by fact: compared, or passed over for a reason that stands in DIFFERENCES."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stress.compare.differences import DIFFERENCES, Situation
from stress.compare.observed import Look, Run, Seen
from stress.compare.steps import Program

COUNTER_KINDS = {"F": "thp_fault_alloc", "S": "thp_split_pmd", "P": "thp_split_page", "D": "thp_deferred_split_page",
                 "failed": "thp_split_page_failed"}
LOOK_KINDS = {"AnonHugePages": "anon_huge", "Rss": "rss", "Shared": "shared", "Private": "private", "places": "places",
              "data": "data"}
KINDS = ("result", *LOOK_KINDS, *COUNTER_KINDS)
LETTERS = {"A": ("AnonHugePages", "Rss", "places"), "X": ("data", "result"), **{name: (name,) for name in COUNTER_KINDS},
           "M": ("Shared", "Private")}
"""Column "cmp" of the table in semantics 6; M, Shared and Private, is ours."""


@dataclass(frozen=True)
class Fact:
    """One thing that can be seen after one step."""

    step: int
    kind: str
    task: int | None
    emulator: Any
    kernel: Any

    def __str__(self) -> str:
        whose = "" if self.task is None else f" of task {self.task}"
        name = COUNTER_KINDS.get(self.kind, self.kind)
        return f"step {self.step}: {name}{whose}: emulator {self.emulator}, kernel {self.kernel}"


@dataclass
class Verdict:
    """What became of one program."""

    program: Program
    differ: list[Fact] = field(default_factory=list)
    broken: str = ""
    """A side that did not get through: a broken rule of the emulator, an audit, a task that died."""
    compared: Counter[str] = field(default_factory=Counter)
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and the reason's id."""
    stopped: str = ""
    """The difference behind which nothing is compared any more."""

    @property
    def agree(self) -> bool:
        return not self.differ and not self.broken


def compare(program: Program, emulator: Run, kernel: Run, kinds: frozenset[str] = frozenset(KINDS)) -> Verdict:
    """Every fact of `kinds`, step by step, but for what DIFFERENCES takes out. Ends with the first step that differs."""
    verdict = Verdict(program)
    lasting: dict[str, str] = {}
    for index in range(min(len(program), len(emulator), len(kernel))):
        here = dict(lasting)
        for row in DIFFERENCES:
            if row.holds(Situation(program, index, emulator, kernel)):
                taken = {kind: row.id for kind in row.skips}
                here = taken | here
                if row.lasts:
                    lasting = taken | lasting
        for fact in _facts(index, emulator[index], kernel[index]):
            if fact.kind not in kinds:
                verdict.skipped[fact.kind, "row"] += 1
            elif fact.kind in here:
                verdict.skipped[fact.kind, here[fact.kind]] += 1
            else:
                verdict.compared[fact.kind] += 1
                if fact.emulator != fact.kernel:
                    verdict.differ.append(fact)
        if verdict.differ:
            break
    return verdict


def _facts(index: int, emulator: Seen, kernel: Seen) -> Iterator[Fact]:
    yield Fact(index, "result", None, emulator.result, kernel.result)
    for kind, name in COUNTER_KINDS.items():
        mine_, theirs_ = emulator.counter(name), kernel.counter(name)
        if kind == "failed":  # drop_caches goes round as long as any shrinker frees something, and tries again each time
            mine_, theirs_ = min(mine_, 1), min(theirs_, 1)
        yield Fact(index, kind, None, mine_, theirs_)
    for task in sorted({*emulator.looks, *kernel.looks}):
        mine: Look | None = emulator.looks.get(task)
        theirs: Look | None = kernel.looks.get(task)
        for kind, name in LOOK_KINDS.items():
            yield Fact(index, kind, task, getattr(mine, name, None), getattr(theirs, name, None))


def least(runs: list[Run]) -> Run:
    """The latest of several runs, with the least changes of counters: others can only add to them."""
    merged = []
    for index, seen in enumerate(runs[-1]):
        counters = tuple(min(column) for column in zip(*(run[index].counters for run in runs), strict=True))
        merged.append(seen._replace(counters=counters))
    return merged
