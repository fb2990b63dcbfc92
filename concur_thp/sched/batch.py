"""Many controlled runs in a row, natively: run, look whether the end is known to be good, restore, next.

What a state that was never seen before is worth is for the caller to say (an audit takes milliseconds): run_batch()
returns with the machine as the run left it. States found good are remembered, and so are schedules, to count how many
were different.
"""

from concur_thp.arch.builtins import lsr, wrap_mul
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.shared import SharedArray, SharedOne, Word
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.sched.control import after
from concur_thp.sched.repeat import repeat_run, repeating
from concur_thp.sched.runs import run_once
from concur_thp.sched.snapshot import MULTIPLY, restore, state_number
from concur_thp.sched.state import Verdict, sched, sched_log
from concur_thp.sched.words import poke

TABLE = 1 << 20
"""Places for numbers of states, and of schedules; a power of two."""
FULL = TABLE * 3 // 4
MAX_KINDS = 64
PROGRESS = Word("sched.progress")
"""Address of three words outside of the segment: seed and number of the run under way, and sched.longest before it, from which
pct draws. Whoever watches this process reads them when it has died."""
PROGRESS_BYTES = 24


class Batch(Struct, align=64):
    """Where a batch stands."""

    seed = field(I64, "owner", "seed of the run under way or just done")
    done = field(I64, "owner", "runs done since the batch object was made, but for those that were cut short")
    cut = field(I64, "owner", "runs that the strategy ended because it knows how they go on")
    unjudged = field(I64, "owner", "1 when the last run ended in a way not known to be good")
    steps = field(I64, "owner", "steps of all of them")
    state = field(I64, "owner", "number of the state the last run ended in")
    states = field(I64, "owner", "states known to be good")
    schedules = field(I64, "owner", "different schedules seen")
    granules = field(I64, "const", "256-byte pieces of the segment")
    ends = field(I64, "owner", "runs by the kind of the state they ended in, see state_is_good()", count=MAX_KINDS)


class Number(Struct, size=16):
    """A place of a hash table; 0 is empty."""

    value = field(I64, "owner", "the number")
    kind = field(I64, "owner", "of a state: which of batch.ends it counts for")


batch = SharedOne("sched_batch", Batch)
good_states = SharedArray("sched_good", Number, lambda c: TABLE if c.controlled else 1)
seen_schedules = SharedArray("sched_seen", Number, lambda c: TABLE if c.controlled else 1)


@inline
def place_of(table_is_states: int, number: int):
    """Where the number is, or the empty place where it belongs."""
    at = number & (TABLE - 1)
    if table_is_states:
        while good_states[at].value != 0 and good_states[at].value != number:
            at = (at + 1) & (TABLE - 1)
    else:
        while seen_schedules[at].value != 0 and seen_schedules[at].value != number:
            at = (at + 1) & (TABLE - 1)
    return at


@inline
def schedule_number():
    """The number of the schedule that was just run. Why a stretch ended is part of it: a CPU that polls before the next point
    has done more than one that was stopped behind the last."""
    a = 1
    for i in range(sched.stretches):
        row = sched_log[i]
        a = wrap_mul(a ^ (row.steps << 8 | row.reason << 5 | row.cpu), MULTIPLY)
        a = a ^ lsr(a, 29)
    return a | 1


@kernel
@quiet
def note_schedule():
    """Count the schedule if it is new.

    Context: after a run.
    Emulator: "distinct" of a report.
    """
    number = schedule_number()
    at = place_of(0, number)
    if seen_schedules[at].value == 0 and batch.schedules < FULL:
        seen_schedules[at].value = number
        batch.schedules = batch.schedules + 1


@kernel
@quiet
def state_is_good(number: int, kind: int):
    """Remember a state that was checked, and count the run that ended in it.

    Context: between runs.
    Emulator: what the audit says, kept.
    """
    at = place_of(1, number)
    batch.ends[kind] = batch.ends[kind] + 1
    if good_states[at].value == 0 and batch.states < FULL:
        good_states[at].value = number
        good_states[at].kind = kind
        batch.states = batch.states + 1


@kernel
@quiet
def run_batch(seed: int, count: int):
    """Run with seeds seed .. seed + count - 1.

    Context: the machine is as the snapshot.
    Return: runs done that need nothing more. With batch.unjudged the next one ended in a way not known to be good; the
    machine is as that run left it, and the caller restores it.
    Emulator: the inner loop of exploration.
    """
    batch.unjudged = 0
    for i in range(count):
        if sched.exhausted != 0:
            return i
        batch.seed = seed + i
        poke(int(PROGRESS), seed + i)
        poke(int(PROGRESS) + 8, batch.done + 1)
        poke(int(PROGRESS) + 16, sched.longest)
        verdict = run_once(seed + i)
        after()
        batch.steps = batch.steps + sched.steps
        if verdict == Verdict.CUT:
            batch.cut = batch.cut + 1
            restore(batch.granules)
            continue
        batch.done = batch.done + 1
        note_schedule()
        if repeating.wanted != 0:
            verdict = repeat_run(seed + i, verdict, batch.granules)
        if verdict != Verdict.FINISHED:
            batch.unjudged = 1
            return i
        number = state_number(batch.granules) | 1
        batch.state = number
        state = good_states[place_of(1, number)]
        if state.value != number:
            batch.unjudged = 1
            return i
        batch.ends[state.kind] = batch.ends[state.kind] + 1
        restore(batch.granules)
    return count


__all__ = ["PROGRESS", "PROGRESS_BYTES", "batch", "run_batch", "state_is_good"]
