"""The chart of a run: a column for each CPU, in the way kernel developers draw races in commit messages.

    CPU0 advise 0 1h dontneed                   CPU1 split_pmd 3
    zap_pmd_range()
      if pmd_trans_huge(pmd)            <- pmd[0x200000] is huge 0x110
      /* stopped before: zap_huge_pmd(..) */
                                                __split_huge_pmd() > __split_huge_pmd_locked()
                                                  pmd_populate(..)        <- pmd[0x200000] huge 0x110 -> table 0x102

Kept are the statements at which CPUs met: the last access of one and the first of the next to the same word, and where the
code went behind a test. Too many of them: those that say least go first. Then what each CPU was about to do when it was
stopped, what it waited for and who had it, and where it was at the end.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import accumulate, groupby
from typing import NamedTuple

from concur_thp.sched.state import Verdict
from concur_thp.trace.story import OUTSIDE, Line, Story, Touch

MOST_LINES = 24
"""What fits into a commit message."""
WIDTHS = {1: 100, 2: 64, 3: 46}
LEAST_WIDTH = 36
SAME = 2
"""So often a statement may be shown; one that comes more often is shown once, with how often."""
LEAST_WEIGHT = 2.5
FEW = 4
"""Meetings fewer than this do not tell what happened; then what each CPU changed by itself does."""
ALONE = 0.4
ARROW = "<- "
OF_MM = r"\] of mm \d+"
NOISE = ((r"\bcpu, ", ""), (r"\(cpu\)", "()"), (r"\.(val\.)?(load|read)\(\)", ""), (r":$", ""))
"""What every kernel function of ours says and no kernel developer would write."""


class Mark(NamedTuple):
    """Something worth a row of the chart."""

    order: float
    """Accesses before it."""
    line: Line
    text: str
    weight: float
    note: str = ""
    times: int = 1


def chart(story: Story, titles: Mapping[int, str], ending: str = "", most: int = MOST_LINES) -> str:
    """Draw it. `titles`: what each CPU's program does; `ending`: what was found at the end."""
    cpus = sorted({line.cpu for line in story.lines} | {cpu for cpu, title in titles.items() if title})
    width = WIDTHS.get(len(cpus), LEAST_WIDTH)
    column = {cpu: number * (width + 2) for number, cpu in enumerate(cpus)}
    rows = ["  ".join(cut(f"CPU{cpu} {titles.get(cpu, '')}", width).ljust(width) for cpu in cpus).rstrip()]
    rows += [(" " * column[cpu] + text).rstrip() for cpu, text in _fitting(story, width, most)]
    if ending:
        rows += ["", *ending.splitlines()]
    return "\n".join(rows)


def cut(text: str, width: int) -> str:
    """The text, or its beginning."""
    return text if len(text) <= width else text[:max(width - 2, 0)] + ".."


def plain(text: str) -> str:
    """A statement as a kernel developer would write it."""
    for pattern, instead in NOISE:
        text = re.sub(pattern, instead, text)
    return text


def _fitting(story: Story, width: int, most: int) -> list[tuple[int, str]]:
    """As many marks as there are rows for, the weightiest."""
    marks = sorted(_of_one_mm(list(_together(marks_of(story)))), key=lambda mark: -mark.weight)
    keep = min(len(marks), most)
    while True:
        rows = list(_rows(sorted(marks[:keep], key=lambda mark: mark.order), width))
        if len(rows) <= most or keep <= 2:
            return rows
        keep -= max(1, (len(rows) - most) // 2)


def marks_of(story: Story) -> list[Mark]:
    """Everything that could be shown, in no order."""
    meetings = list(_meetings(story))
    return [*meetings, *_edges(story), *_last(story), *(_alone(story) if len(meetings) < FEW else ())]


def _together(marks: list[Mark]) -> Iterator[Mark]:
    """A loop that does the same to one entry after another is one mark."""
    groups: dict[tuple[object, ...], list[Mark]] = {}
    for mark in sorted(marks, key=lambda mark: mark.order):
        key = (mark.line.cpu, mark.line.where, mark.line.row) if mark.note else (mark.order,)
        groups.setdefault(key, []).append(mark)
    for same in groups.values():
        if len(same) <= SAME:
            yield from same
        else:
            yield same[0]._replace(weight=max(mark.weight for mark in same), times=len(same))


def _of_one_mm(marks: list[Mark]) -> list[Mark]:
    """Which mm an entry belongs to is said only when entries of several are shown."""
    if len({name for mark in marks for name in re.findall(OF_MM, mark.note)}) != 1:
        return marks
    return [mark._replace(note=re.sub(OF_MM, "]", mark.note)) for mark in marks]


def _meetings(story: Story) -> Iterator[Mark]:
    """Statements at which a CPU met another's access, and where a test led to."""
    often: dict[str, int] = {}
    for line in story.lines:
        for touch in line.decisive:
            often[touch.name.text] = often.get(touch.name.text, 0) + 1
    for line in story.lines:
        for _, group in groupby(line.decisive, key=lambda touch: touch.stretch):
            touches = sorted(_folded(list(group)), key=lambda touch: -_worth(touch, often))
            worth = _worth(touches[0], often)
            if worth < LEAST_WEIGHT:
                continue
            notes = [touch.text for touch in touches if _worth(touch, often) > worth / 2][:2]
            yield Mark(touches[0].number, line, line.where.text, worth, "; ".join(notes))
            if (taken := _taken(story, line)) is not None:
                yield Mark(touches[0].number + 0.1, taken, taken.where.text, worth - 1)


def _alone(story: Story) -> Iterator[Mark]:
    """Statements that changed what matters, though no other CPU saw it."""
    for line in story.lines:
        changes = [t for t in line.touches if t.changes and not t.decisive and t.name.weight >= LEAST_WEIGHT]
        if changes:
            best = max(changes, key=lambda touch: touch.name.weight)
            yield Mark(best.number, line, line.where.text, best.name.weight * ALONE, best.text)


def _taken(story: Story, line: Line) -> Line | None:
    """The statement behind a test, when it is one that leaves: return, break, continue."""
    if not line.where.text.startswith(("if ", "while ", "elif ")):
        return None
    following = next((other for other in story.lines[line.number + 1:] if other.cpu == line.cpu), None)
    leaves = following is not None and following.where.text.startswith(("return", "break", "continue", "goto"))
    return following if leaves and following is not None and following.function == line.function else None


def _folded(touches: list[Touch]) -> list[Touch]:
    """Of several touches of one word by one statement the one that tells the most: a change, else the first."""
    best: dict[str, Touch] = {}
    for touch in touches:
        had = best.get(touch.name.text)
        if had is None or (touch.changes and not had.changes):
            best[touch.name.text] = touch
    return list(best.values())


def _worth(touch: Touch, often: Mapping[str, int]) -> float:
    return touch.name.weight * (1.5 if touch.changes else 1.0) / max(1.0, (often[touch.name.text] - 2) / 4)


def _edges(story: Story) -> Iterator[Mark]:
    """Where CPUs were stopped; what they waited for, who took that before and gave it back behind."""
    last: dict[int, Line] = {}
    said: dict[int, Line] = {}
    lines = iter(story.lines)
    line = next(lines, None)
    ends = _ends(story)
    for number, stop in enumerate(story.stops[:-1]):
        while line is not None and line.stretch <= number:
            last[line.cpu] = line
            line = next(lines, None)
        here = last.get(stop.cpu)
        until = max(ends[number], here.begins - 1 if here else -1)
        if here is None or stop.cpu == story.stops[number + 1].cpu or stop.where.function == OUTSIDE:
            continue
        if stop.reason == "preempt":
            if said.get(stop.cpu) is here:
                continue  # It has only served interrupts since.
            said[stop.cpu] = here
            yield Mark(until + 0.5, here, f"/* stopped before: {plain(here.where.text)} */", 20.0)
        elif stop.reason == "block":
            wanted = _awaited(here, number)
            yield Mark(until + 0.5, here, here.where.text, 19.0, f"waits for {wanted.name.text if wanted else 'another CPU'}")
            if wanted is not None:
                yield from _owners(story, wanted, stop.cpu)
        elif stop.reason == "yield":
            yield Mark(until + 0.5, here, here.where.text, LEAST_WEIGHT, "polls")


def _ends(story: Story) -> list[int]:
    """The last access before the end of each stretch."""
    ends = [-1] * len(story.stops)
    for line in story.lines:
        for touch in line.touches:
            if touch.stretch < len(ends):
                ends[touch.stretch] = max(ends[touch.stretch], touch.number)
    return list(accumulate(ends, max))


def _awaited(line: Line, stretch: int) -> Touch | None:
    """The lock that a CPU went to sleep on: what it touched last."""
    mine = [touch for touch in line.touches if touch.stretch <= stretch and touch.name.kind in ("lock", "flags")]
    return mine[-1] if mine else None


def _owners(story: Story, wanted: Touch, waiter: int) -> Iterator[Mark]:
    """Who had the lock: where it was taken last, and where it was given back."""
    others = [(touch, line) for line in story.lines if line.cpu != waiter for touch in line.touches
              if touch.address == wanted.address and touch.changes]
    before = [pair for pair in others if pair[0].number < wanted.number]
    behind = [pair for pair in others if pair[0].number > wanted.number]
    for touch, line in (*before[-1:], *behind[:1]):
        done = "takes" if touch.number < wanted.number else "gives back"
        yield Mark(touch.number, line, line.where.text, 9.0, f"{done} {touch.name.text}")


def _last(story: Story) -> Iterator[Mark]:
    """Where each CPU stood when the run could not go on."""
    if story.verdict == Verdict.FINISHED:
        return
    end = max((touch.number for line in story.lines for touch in line.touches), default=0) + 1.0
    stopped = story.stops[-1].cpu if story.stops else -1
    mine = [line for line in story.lines if line.cpu == stopped]
    if mine:
        yield Mark(end, mine[-1], mine[-1].where.text, 18.0, "here")


def _rows(marks: list[Mark], width: int) -> Iterator[tuple[int, str]]:
    """What stands in the columns."""
    function: dict[int, tuple[int, str]] = {}
    for mark in marks:
        line = mark.line
        if function.get(line.cpu) != (line.row, line.function):
            function[line.cpu] = (line.row, line.function)
            path = [f"{name}()" for name in (*line.callers[-1:], line.function)]
            while len(" > ".join(path)) > width and len(path) > 1:
                path = path[1:]
            yield line.cpu, " > ".join(path)
        yield from ((line.cpu, row) for row in _row(mark, width))


def _row(mark: Mark, width: int) -> list[str]:
    """The statement, and what it did: beside it, or below."""
    text = f"  {plain(mark.text)}"
    if not mark.note:
        return [cut(text, width)]
    note = f"{ARROW}{mark.note}{f' ({mark.times} times)' if mark.times > 1 else ''}"
    if len(text) + len(note) + 2 > width:
        text = re.sub(r"(\w)\([^()]*(\(.*\))?.*\)", r"\1(..)", text, count=1)
    if len(text) + len(note) + 2 > width:
        return [cut(text, width), cut(f"      {note}", width)]
    return [f"{text}  {note}"]


__all__ = ["MOST_LINES", "chart", "cut", "marks_of", "plain"]
