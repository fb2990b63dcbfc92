"""Keeps tasks of one mm in recorded order where it matters, with as few WAIT rows as that takes.

A touch must come after the change that made it legal, a change after the touches of what it takes away, and
two changes of the same place in their order. A task that has waited for a row knows all that row's task knew
then (a vector clock), and waits for nothing it knows. Recorded order is total, so the waits have no cycle.
"""

from bisect import bisect_right
from dataclasses import dataclass, field

from concur_thp.ops import ROW_WORDS, Op
from stress.recordings.calls import PAGE_SIZE, page_down


class Program:
    """The rows of one task while they are written. `knows` maps tasks to their last row surely finished."""

    def __init__(self, index: int, sequence: list[tuple[int, int]]) -> None:
        self.index = index
        self.rows: list[tuple[int, ...]] = []
        self.regions: list[int] = []
        self.knows: dict[int, int] = {}
        self.vfork: Program | None = None
        self.released_at: int | None = None
        self._sequence = sequence
        self._history: list[tuple[int, dict[int, int]]] = []

    def append(self, op: Op, *args: int, line: int, region: int = -1) -> tuple[int, ...]:
        row = (int(op), *args, *[0] * (ROW_WORDS - 2 - len(args)), line)
        self._sequence.append((self.index, len(self.rows)))
        self.rows.append(row)
        self.regions.append(region)
        return row

    def starts_after(self, parent: "Program") -> None:
        """This task is started by the parent's last row."""
        self.knows = {**parent.knows, parent.index: len(parent.rows) - 1}
        self._history.append((0, self.knows))

    def leaves_mm(self) -> None:
        """The next row is the EXEC or EXIT that lets the parent of a vfork go on, if it is the first."""
        if self.released_at is None:
            self.released_at = len(self.rows)

    def wait_for(self, other: "Program", row: int, line: int) -> None:
        if other is self or self.knows.get(other.index, -1) >= row:
            return
        self.append(Op.WAIT, other.index, row, line=line)
        at = bisect_right(other._history, row, key=lambda entry: entry[0]) - 1
        learnt = {**(other._history[at][1] if at >= 0 else {}), other.index: row}
        merged = dict(self.knows)
        for index, known in learnt.items():
            merged[index] = max(merged.get(index, -1), known)
        self.knows = merged
        self._history.append((len(self.rows) - 1, merged))

    def wait_for_vfork(self, line: int) -> None:
        """The parent of a vfork stands still until the child has left its mm."""
        child, self.vfork = self.vfork, None
        if child:
            row = len(child.rows) - 1 if child.released_at is None else child.released_at
            self.wait_for(child, row, line)


Span = tuple[int, int]


@dataclass(frozen=True)
class Change:
    """Row `row` of `program` changed `spans`. Breaks are absolute: all brk rows are about one place."""

    program: Program
    row: int
    spans: tuple[Span, ...]
    brk: bool

    def concerns(self, spans: tuple[Span, ...], brk: bool) -> bool:
        return (brk and self.brk) or any(a < d and c < b for a, b in self.spans for c, d in spans)

    def known_to(self, program: Program) -> bool:
        return program is self.program or program.knows.get(self.program.index, -1) >= self.row


@dataclass
class Member:
    """What one task did to the mm, and which changes of others it may not have seen."""

    program: Program
    touched: dict[int, int] = field(default_factory=dict)
    forked: int = -1
    unseen: list[Change] = field(default_factory=list)

    def last_use(self, start: int, end: int) -> int:
        """The last row of this task that used [start, end); -1 if none did."""
        touched = self.touched
        if (end - start) // PAGE_SIZE < len(touched):
            rows = (touched[p] for p in range(start, end, PAGE_SIZE) if p in touched)
        else:
            rows = (row for p, row in touched.items() if start <= p < end)
        return max(rows, default=-1)


class MmOrder:
    """The order inside one mm. Costs nothing until a second task joins it."""

    def __init__(self) -> None:
        self._members: dict[int, Member] = {}
        self._changes: list[Change] = []

    def join(self, program: Program) -> None:
        unseen = [c for c in self._changes if not c.known_to(program)]
        self._members[program.index] = Member(program, unseen=unseen)

    def before_touch(self, program: Program, address: int, line: int) -> None:
        member = self._members[program.index]
        if member.unseen:
            self._see(member, ((address, address + 1),), False, line)
        member.touched[page_down(address)] = len(program.rows)

    def before_change(
        self, program: Program, spans: tuple[Span, ...], line: int, brk: bool, creates: bool
    ) -> None:
        """Call before the row of the change is appended, and `changed` after it."""
        member = self._members[program.index]
        self._see(member, spans, brk, line)
        for other in self._members.values():
            if other is not member:
                used = [] if creates else [other.last_use(start, end) for start, end in spans]
                row = max([other.forked, *used])
                program.wait_for(other.program, row, line)

    def changed(self, program: Program, spans: tuple[Span, ...], brk: bool) -> None:
        """The last row of `program` was a change."""
        change = Change(program, len(program.rows) - 1, spans, brk)
        self._changes.append(change)
        for other in self._members.values():
            if other.program is not program:
                other.unseen.append(change)

    def before_fork(self, program: Program, line: int) -> None:
        """A fork copies every mapping: it comes after all changes so far and before all later ones."""
        member = self._members[program.index]
        for change in member.unseen:
            program.wait_for(change.program, change.row, line)
        member.unseen.clear()
        member.forked = len(program.rows)

    def _see(self, member: Member, spans: tuple[Span, ...], brk: bool, line: int) -> None:
        needed = [c for c in member.unseen if c.concerns(spans, brk)]
        for change in reversed(needed):
            member.program.wait_for(change.program, change.row, line)
        if needed:
            member.unseen = [c for c in member.unseen if not c.known_to(member.program)]
