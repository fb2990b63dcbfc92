"""What was seen on both sides, fact by fact: compared, or passed over for a reason that stands in DIFFERENCES."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stress.compare.differences import DIFFERENCES, IN_BLOCK, IN_PROGRAM, Difference
from stress.compare.doubts import Doubts, Place
from stress.compare.mappings import in_block
from stress.compare.observed import UNKNOWN, Look, Run, Seen
from stress.compare.situation import Situation
from stress.compare.steps import BLOCKS, Program

COUNTER_KINDS = {"F": "thp_fault_alloc", "S": "thp_split_pmd", "P": "thp_split_page", "D": "thp_deferred_split_page",
                 "failed": "thp_split_page_failed"}
LOOK_KINDS = {"AnonHugePages": "anon_huge", "Rss": "rss", "Shared": "shared", "Private": "private", "places": "places",
              "data": "data", "mappings": "mappings"}
KINDS = ("result", *LOOK_KINDS, *COUNTER_KINDS)
LETTERS = {"A": ("AnonHugePages", "Rss", "places"), "X": ("data", "result", "mappings"),
           **{name: (name,) for name in COUNTER_KINDS}, "M": ("Shared", "Private")}
"""Column "cmp" of the table in semantics 6; M, Shared and Private, is ours."""


@dataclass(frozen=True)
class Fact:
    """One thing that can be seen after one step."""

    step: int
    kind: str
    task: int | None
    emulator: Any
    kernel: Any
    block: int | None = None
    """Of the whole arena when None."""

    def __str__(self) -> str:
        whose = "" if self.task is None else f" of task {self.task}" + ("" if self.block is None else f" in block {self.block}")
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
    doubts = Doubts()
    for index in range(min(len(program), len(emulator), len(kernel))):
        step, ours, theirs = program[index], emulator[index], kernel[index]
        touched = doubts.touched(step)
        here, behind = _hold(Situation(program, index, emulator, kernel, doubts), touched)
        doubts.follow(step, ours.result >= 0 and theirs.result >= 0)
        for row, places in behind:
            doubts.add(places, row.skips, row.id)
        in_step = doubts.of_all(touched) | here
        for fact in _of_step(index, ours, theirs):
            _count(verdict, fact, kinds, in_step)
        for task in sorted({*ours.looks, *theirs.looks}):
            for fact, doubted in _of_task(index, task, ours.looks.get(task), theirs.looks.get(task), doubts):
                _count(verdict, fact, kinds, doubted | here)
        if verdict.differ:
            break
    return verdict


def _hold(situation: Situation, touched: list[Place]) -> tuple[dict[str, str], list[tuple[Difference, list[Place]]]]:
    """What the rows take out of this step alone; what lasts is noted where it lasts, or has to be behind the step."""
    doubts, here = situation.doubts, dict[str, str]()
    behind: list[tuple[Difference, list[Place]]] = []
    for row in DIFFERENCES:
        if not row.holds(situation):
            continue
        if row.lasts == IN_BLOCK:
            places = (row.where(situation) if row.where else []) or touched
            if row.behind:
                behind.append((row, places))
            else:
                doubts.add(places, row.skips, row.id)
        elif row.lasts == IN_PROGRAM:
            doubts.program = {kind: row.id for kind in row.skips} | doubts.program
        else:
            here |= {kind: row.id for kind in row.skips}
    return here, behind


def _count(verdict: Verdict, fact: Fact, kinds: frozenset[str], doubted: dict[str, str]) -> None:
    if fact.kind not in kinds:
        verdict.skipped[fact.kind, "row"] += 1
    elif fact.kind in doubted:
        verdict.skipped[fact.kind, doubted[fact.kind]] += 1
    else:
        verdict.compared[fact.kind] += 1
        if fact.emulator != fact.kernel:
            verdict.differ.append(fact)


def _of_step(index: int, emulator: Seen, kernel: Seen) -> Iterator[Fact]:
    yield Fact(index, "result", None, emulator.result, kernel.result)
    for kind, name in COUNTER_KINDS.items():
        mine_, theirs_ = emulator.counter(name), kernel.counter(name)
        if kind == "failed":  # drop_caches goes round as long as any shrinker frees something, and tries again each time
            mine_, theirs_ = min(mine_, 1), min(theirs_, 1)
        yield Fact(index, kind, None, mine_, theirs_)


def _of_task(index: int, task: int, mine: Look | None, theirs: Look | None,
             doubts: Doubts) -> Iterator[tuple[Fact, dict[str, str]]]:
    """Facts of the whole arena, as smaps has them; by block where a block is in doubt. With what is doubted of each."""
    by_block = [doubts.of((task, block)) for block in range(BLOCKS)]
    for kind, name in LOOK_KINDS.items():
        whole = Fact(index, kind, task, getattr(mine, name, None), getattr(theirs, name, None))
        reason = next((doubted[kind] for doubted in by_block if kind in doubted), None)
        if reason is None or kind in doubts.program or not (mine and theirs and mine.blocks and theirs.blocks):
            yield whole, {} if reason is None else {kind: reason}
            continue
        for block, (ours, other) in enumerate(zip(mine.blocks, theirs.blocks, strict=True)):
            if kind == "mappings":
                parts = in_block(mine.mappings, block), in_block(theirs.mappings, block)
                yield Fact(index, kind, task, *parts, block), by_block[block]
            elif ours.rss or other.rss or ours.places != other.places:
                doubted = {kind: reason} if getattr(other, name) == UNKNOWN else by_block[block]
                yield Fact(index, kind, task, getattr(ours, name), getattr(other, name), block), doubted


def least(runs: list[Run]) -> Run:
    """The latest of several runs, with the least changes of counters: others can only add to them."""
    merged = []
    for index, seen in enumerate(runs[-1]):
        counters = tuple(min(column) for column in zip(*(run[index].counters for run in runs), strict=True))
        merged.append(seen._replace(counters=counters))
    return merged
