"""Blocks in which both sides differ on purpose from some step on: only they are passed over, everything else goes on.

A difference follows the pages: into a child, to where mremap takes them. So a block has groups, which fork hands on and a
move unites, and what is doubted is a group. A block that was unmapped as a whole, with its table, begins anew.
"""

from itertools import count

from stress.compare.steps import BLOCK, BLOCKS, Step

Place = tuple[int, int]
"""A task's number and one of its blocks."""
EVERYWHERE = ("exit", "fork")
"""Steps that may touch every block of their task."""
NOWHERE = ("unpin", "thp_disable")


def blocks_of(first: int, end: int) -> range:
    """Blocks that pages first..end - 1 lie in."""
    return range(first // BLOCK, -(-end // BLOCK)) if end > first else range(0)


def whole_blocks(first: int, end: int) -> range:
    """Blocks that lie in pages first..end - 1 as a whole."""
    return range(-(-first // BLOCK), end // BLOCK)


class Doubts:
    """Of one program, while its steps are gone through."""

    def __init__(self) -> None:
        self._numbers = count()
        self._groups: dict[Place, set[int]] = {}
        self._why: dict[int, dict[str, str]] = {}
        self.program: dict[str, str] = {}
        """Kinds of facts that say nothing any more in the whole program, and the difference's id."""
        for block in range(BLOCKS):
            self._anew((0, block))

    def _anew(self, place: Place) -> None:
        self._groups[place] = {next(self._numbers)}

    def of(self, place: Place) -> dict[str, str]:
        """Kinds of facts that say nothing in this block, and why."""
        found = dict(self.program)
        for group in self._groups.get(place, ()):
            found = self._why.get(group, {}) | found
        return found

    def of_all(self, places: list[Place]) -> dict[str, str]:
        """The same of several blocks together."""
        found = dict(self.program)
        for place in places:
            found = self.of(place) | found
        return found

    def add(self, places: list[Place], kinds: tuple[str, ...], reason: str) -> None:
        """From now on `kinds` say nothing in these blocks, nor where their pages are or go."""
        for place in places:
            for group in self._groups.get(place, ()):
                self._why[group] = {kind: reason for kind in kinds} | self._why.get(group, {})

    def touched(self, step: Step) -> list[Place]:
        """Blocks that a step may change anything in."""
        if step.op in NOWHERE:
            return []
        if step.op == "drop_caches":
            return list(self._groups)
        if step.op in EVERYWHERE:
            return [(step.task, block) for block in range(BLOCKS)]
        blocks = set(blocks_of(step.page, step.end))
        if step.op == "mremap":
            blocks |= set(blocks_of(step.arg, step.arg + step.arg2))
        return [(step.task, block) for block in sorted(blocks)]

    def follow(self, step: Step, done: bool) -> None:
        """Where pages have gone in a step. `done`: both sides say that it was."""
        if step.op == "fork":
            for block in range(BLOCKS):
                self._groups[step.arg, block] = set(self._groups[step.task, block])
        elif step.op == "exit":
            for block in range(BLOCKS):
                self._groups.pop((step.task, block), None)
        elif step.op in ("munmap", "mmap") and done:
            for block in whole_blocks(step.page, step.end):
                self._anew((step.task, block))
        elif step.op == "mremap" and step.arg != step.page:
            self._move(step, done)

    def _move(self, step: Step, done: bool) -> None:
        moved: set[int] = set()
        for block in blocks_of(step.page, step.end):
            moved |= self._groups[step.task, block]
        to_end = step.arg + step.arg2
        if done:
            for block in [*whole_blocks(step.page, step.end), *whole_blocks(step.arg, to_end)]:
                self._anew((step.task, block))
        for block in blocks_of(step.arg, to_end):
            self._groups[step.task, block] |= moved
