"""A difference as a person reads it: the program, and both sides' state step by step."""

from collections.abc import Iterator
from typing import Any

from stress.compare.facts import COUNTER_KINDS, Verdict
from stress.compare.observed import BLOCK_KINDS, Look, Run, Seen
from stress.compare.steps import ARENA_PAGES, WORDS

PAGES_SHOWN = 4
ROW = 8 * WORDS


def describe(verdict: Verdict, emulator: Run, kernel: Run) -> str:
    """The whole text."""
    lines = [f"  {fact}" for fact in verdict.differ]
    if verdict.broken:
        lines.append(f"  {verdict.broken}")
    wrong = {fact.step for fact in verdict.differ}
    for index, step in enumerate(verdict.program):
        lines.append(f"  {'>' if index in wrong else ' '} {index:2} {step}")
        for name, run in (("emulator", emulator), ("kernel  ", kernel)):
            if index < len(run):
                lines += [f"         {name} {line}" for line in _state(run[index])]
        if index in wrong and index < min(len(emulator), len(kernel)):
            lines += [f"         {line}" for line in _pages(emulator[index], kernel[index])]
    lines.append("  " + ", ".join(f"{short} {name}" for short, name in COUNTER_KINDS.items()) + "; blocks: "
                 + ", ".join(f"{letter} {meaning}" for letter, meaning in BLOCK_KINDS.items()))
    program = "; ".join(str(step) for step in verdict.program)
    lines.append(f"  again: concur-thp compare --program '{program}'")
    return "\n".join(lines)


def _state(seen: Seen) -> Iterator[str]:
    moved = [f"{short}+{number}" for short, name in COUNTER_KINDS.items() if (number := seen.counter(name))]
    yield "  ".join([f"returns {seen.result}", *moved])
    for task, look in sorted(seen.looks.items()):
        blocks = f"  blocks {seen.blocks[task]}" if task in seen.blocks else ""
        yield (f"  task {task}: AnonHugePages {look.anon_huge} Rss {look.rss} Shared {look.shared} Private {look.private}"
               f" kB, {look.present} pages there{blocks}")


def _pages(mine: Seen, theirs: Seen) -> Iterator[str]:
    """Which pages differ, and in what."""
    for task in sorted({*mine.looks} & {*theirs.looks}):
        places = _differing(mine.looks[task], theirs.looks[task], 0, 1)
        words = _differing(mine.looks[task], theirs.looks[task], 1, ROW)
        if places:
            yield f"task {task}: there on one side only: pages {_some(places)}"
        for page in words[:PAGES_SHOWN]:
            ours, other = (_words(look, page) for look in (mine.looks[task], theirs.looks[task]))
            yield f"task {task}, page {page}: emulator {ours}, kernel {other}"


def _differing(mine: Look, theirs: Look, which: int, size: int) -> list[int]:
    ours, other = mine.detail[which], theirs.detail[which]
    return [page for page in range(ARENA_PAGES) if ours[page * size :][:size] != other[page * size :][:size]]


def _some(pages: list[int]) -> str:
    return ", ".join(map(str, pages[:PAGES_SHOWN])) + (f" ... {len(pages)} in all" if len(pages) > PAGES_SHOWN else "")


def _words(look: Look, page: int) -> str:
    data = look.detail[1][page * ROW : (page + 1) * ROW]
    return "[" + " ".join(f"{int.from_bytes(data[i : i + 8], 'little'):x}" for i in range(0, ROW, 8)) + "]"


def facts_of(verdict: Verdict) -> list[dict[str, Any]]:
    """For JSON."""
    return [{"step": fact.step, "fact": COUNTER_KINDS.get(fact.kind, fact.kind), "task": fact.task,
             "emulator": fact.emulator, "kernel": fact.kernel} for fact in verdict.differ]


