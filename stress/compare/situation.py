"""Where a program is: what the rows of DIFFERENCES look at."""

from collections.abc import Iterator
from typing import NamedTuple

from stress.compare.doubts import Doubts, Place, whole_blocks
from stress.compare.observed import Run, Seen
from stress.compare.steps import BLOCKS, Program, Step


class Situation(NamedTuple):
    """Where a program is."""

    program: Program
    at: int
    emulator: Run
    kernel: Run
    doubts: Doubts
    """As they were before the step."""

    @property
    def step(self) -> Step:
        return self.program[self.at]

    @property
    def ours(self) -> Seen:
        return self.emulator[self.at]

    @property
    def theirs(self) -> Seen:
        return self.kernel[self.at]

    @property
    def before(self) -> str:
        """The blocks of the task before its step."""
        return self.emulator[self.at - 1].blocks.get(self.step.task, "." * BLOCKS) if self.at else "." * BLOCKS

    def whole_blocks(self) -> Iterator[int]:
        """Blocks that lie in the step's range as a whole."""
        return iter(whole_blocks(self.step.page, self.step.end))

    def changed(self, was: str, now: str) -> list[Place]:
        """Blocks of all tasks whose letter was one of `was` before the step and is one of `now` behind it."""
        previous = self.emulator[self.at - 1].blocks if self.at else {}
        return [(task, block) for task, blocks in self.ours.blocks.items() if task in previous
                for block, pair in enumerate(zip(previous[task], blocks, strict=True)) if pair[0] in was and pair[1] in now]
