"""Each run twice: whatever strategy chose its schedule, the schedule alone must bring it about again, point by point.

A token holds nothing but the schedule. So behind each run the machine is restored, the stretches that were written down are
replayed, and the second run has to pass the same points and end in the same state. If it does not, something that belongs to
the machine is not in the snapshot, or something in the process (a clock, an address, a counter) has a say in what a CPU does.
That is our own fault and nobody's finding.

A run that the strategy cut short (dpor) is the beginning of one that was not; it is not repeated.
"""

from concur_thp.arch.builtins import copy_bytes
from concur_thp.arch.checked import GRANULE_SHIFT, MAP
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.shared import SharedArray, SharedOne, Word
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.sched.control import NOBODY
from concur_thp.sched.replay import replay_pick, replay_prepare
from concur_thp.sched.runs import run_once
from concur_thp.sched.snapshot import GRANULE, SEGMENT, restore, state_number
from concur_thp.sched.state import (
    MAX_STEPS_LOGGED,
    MAX_STRETCHES,
    Step,
    Stretch,
    Verdict,
    sched,
    sched_log,
    sched_plan,
    sched_steps,
)
from concur_thp.sched.words import Byte, Long

FIRST_END = Word("repeat.first_end")
"""Address of a copy of the segment: the granules that the first run wrote are as it left them."""
FIRST_MAP = Word("repeat.first_map")
"""Address of its dirty map."""
NOWHERE = -1


class Repeating(Struct, align=64):
    """The first run, and where the second went another way."""

    wanted = field(I32, "const", "1 when each run is repeated, 2 when only those that finish")
    second = field(I32, "owner", "1 while a run is the repetition")
    verdict = field(I32, "owner", "Verdict of the first")
    points = field(I64, "owner", "points of the first, as far as they were written down")
    steps = field(I64, "owner", "all of its points")
    state = field(I64, "owner", "number of the state it ended in")
    repeated = field(I64, "owner", "runs that were repeated")
    diverged = field(I64, "owner", "first point that is another now; behind the last one: the end is; -1 when all is alike")


repeating = SharedOne("sched_repeating", Repeating)
first_steps = SharedArray("sched_first_steps", Step, lambda c: MAX_STEPS_LOGGED if c.controlled else 1)
kept_plan = SharedArray("sched_kept_plan", Stretch, lambda c: MAX_STRETCHES if c.controlled else 1)
"""What dfs keeps in sched_plan while a repetition needs it."""


@kernel
@quiet
def first_prepare(seed: int):
    """prepare() of the strategy.

    Context: as prepare().
    Emulator: redirected to the strategy's own.
    """


@kernel
@quiet
def first_pick(cpu: int, reason: int):
    """pick() of the strategy.

    Context: as pick().
    Return: as pick().
    Emulator: redirected to the strategy's own.
    """
    return NOBODY


@kernel
@quiet
def either_prepare(seed: int):
    """prepare() while runs are repeated.

    Context: as prepare().
    Emulator: the strategy's, or replay's.
    """
    if repeating.second != 0:
        replay_prepare(seed)
    else:
        first_prepare(seed)


@kernel
@quiet
def either_pick(cpu: int, reason: int):
    """pick() while runs are repeated.

    Context: as pick().
    Emulator: the strategy's, or replay's.
    """
    if repeating.second != 0:
        return replay_pick(cpu, reason)
    return first_pick(cpu, reason)


@kernel
@quiet
def repeat_run(seed: int, verdict: int, granules: int):
    """Run the schedule of the run that has just ended again, from the same state, and compare.

    Context: behind after(); the machine is as the first run left it.
    Return: the second run's Verdict; the machine is as that left it. DIVERGED with repeating.diverged when it went another way.
    Emulator: `explore --check-determinism`.
    """
    if repeating.wanted == 2 and verdict != Verdict.FINISHED:
        return verdict
    keep_first(verdict, granules)
    expected = sched.expected
    copy_bytes(int(kept_plan[0]), int(sched_plan[0]), expected * Stretch.SIZE)
    copy_bytes(int(sched_plan[0]), int(sched_log[0]), sched.stretches * Stretch.SIZE)
    sched.expected = sched.stretches
    restore(granules)
    repeating.second = 1
    again = run_once(seed)
    repeating.second = 0
    copy_bytes(int(sched_plan[0]), int(kept_plan[0]), expected * Stretch.SIZE)
    sched.expected = expected
    repeating.repeated = repeating.repeated + 1
    repeating.diverged = first_difference(again, granules)
    if repeating.diverged != NOWHERE:
        return int(Verdict.DIVERGED)
    return again


@inline
def keep_first(verdict: int, granules: int):
    """Remember the run that has just ended."""
    repeating.verdict = verdict
    repeating.points = sched.logged
    repeating.steps = sched.steps
    repeating.state = state_number(granules)
    copy_bytes(int(first_steps[0]), int(sched_steps[0]), sched.logged * Step.SIZE)
    copy_bytes(int(FIRST_MAP), int(MAP), granules)
    for w in range((granules + 7) >> 3):
        if Long(int(MAP) + 8 * w).value != 0:
            for i in range(8 * w, 8 * w + 8):
                if Byte(int(MAP) + i).value != 0:
                    copy_bytes(int(FIRST_END) + (i << GRANULE_SHIFT), int(SEGMENT) + (i << GRANULE_SHIFT), GRANULE)


@inline
def first_difference(verdict: int, granules: int):
    """Number of the first point that is another in the second run; points + 1 when only the end is; NOWHERE."""
    common = min(repeating.points, sched.logged)
    for i in range(common):
        was = first_steps[i]
        now = sched_steps[i]
        if was.site != now.site or was.cpu != now.cpu or was.func != now.func or was.row != now.row:
            return i
    if repeating.points != sched.logged:
        return common
    if verdict != repeating.verdict or sched.steps != repeating.steps or state_number(granules) != repeating.state:
        return common
    return NOWHERE


__all__ = ["FIRST_END", "FIRST_MAP", "NOWHERE", "either_pick", "either_prepare", "first_pick", "first_prepare", "first_steps",
           "repeat_run", "repeating"]
