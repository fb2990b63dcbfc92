"""Each run twice: what depends on anything but schedule and snapshot is found out, and what does not passes."""

import ctypes

import pytest

from concur_thp.arch import native
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel, redirect
from concur_thp.arch.shared import Word
from concur_thp.sched import runs
from concur_thp.sched.batch import batch
from concur_thp.sched.repeat import NOWHERE, first_steps, repeating
from concur_thp.sched.snapshot import restore
from concur_thp.sched.state import Verdict, sched, sched_steps
from concur_thp.sched.words import Long, poke
from stress.exploring.divergence import describe_repetition
from tests.unit.sched.small import Do, Op, run_small, small_machine, small_words

OUTSIDE = Word("test.repeat.outside")
"""Address of a word that no snapshot restores."""
WAITS = [Do(Op.LOCK, 1), Do(Op.LOAD, 0), Do(Op.PUT, 0, 1), Do(Op.UNLOCK, 1), Do(Op.POLL, 2), Do(Op.FLUSH), Do(Op.SLEEP, 3)]
WAKES = [*WAITS[:4], Do(Op.ADD, 2, 1), Do(Op.CACHE, 0), Do(Op.WAKE, 3, 1)]
MAY_SLEEP_ON = [Do(Op.SLEEP_ONCE, 3), Do(Op.LOAD, 0), Do(Op.BUG_IF, 0, 1)]


@kernel
def step_more(cpu: Cpu):
    """Every second time one point more. Emulator: a test."""
    outside = Long(int(OUTSIDE))
    if cpu.id == 1:
        poke(int(OUTSIDE), outside.value + 1)
        if outside.value & 1 == 0:
            small_words[3].count.store(9)
    run_small(cpu)


@kernel
def end_otherwise(cpu: Cpu):
    """The same points, and a word with what was counted elsewhere. Emulator: a test."""
    outside = Long(int(OUTSIDE))
    poke(int(OUTSIDE), outside.value + 1)
    small_words[3].count.store(outside.value)
    run_small(cpu)


@pytest.mark.parametrize("strategy, depth", [("random", 1), ("pct", 3), ("dfs", 2), ("dpor", 1)])
@pytest.mark.parametrize("programs", [(WAITS, WAKES), (MAY_SLEEP_ON, WAKES)])
@pytest.mark.timeout(600)
def test_what_depends_on_the_schedule_alone_repeats(strategy, depth, programs):
    """Locks, polling, interrupts, lost wake-ups, bug(): every end of every strategy; and nothing else changes by it."""
    build = native.TRACED if strategy == "dpor" else native.CHECKED
    with small_machine(2, build) as small:
        small.load(*programs)
        once = small.explore(strategy, depth, 600)
        small.repeats = True
        twice = small.explore(strategy, depth, 600)
        assert repeating.diverged == NOWHERE
        assert repeating.repeated == twice.schedules == once.schedules and twice.ends == once.ends


@pytest.fixture
def drifting():
    """small machine whose programs look at a word outside; the words of where it diverged."""
    word = ctypes.c_int64(0)
    with small_machine(2) as small:
        OUTSIDE.set(ctypes.addressof(word))
        native.link([step_more, end_otherwise], kind=native.CHECKED)
        small.load([Do(Op.STORE, 0, 1)], [Do(Op.STORE, 1, 1)])

        def run(body, repeats=True):
            redirect(runs.control_body, body)
            small.controlled.choose("pct", 2)
            if repeats:
                small.controlled.repeat()
            small.controlled.run(5, 1)
            machine = small.controlled.machine
            text = describe_repetition(machine.config, small.controlled.snapshot, machine.places) if repeats else ""
            restore(batch.granules)
            return text

        yield run


def test_a_point_more_is_named(drifting):
    text = drifting(step_more)
    at = repeating.diverged
    assert first_steps[at].site != sched_steps[at].site
    assert text.startswith(f"seed 5: diverged at step {at + 1}: recorded cpu 1 before `")
    assert text.endswith("now cpu 1 before `small_words[3].count.store(9)` of step_more")


def test_another_end_is_named_by_its_word(drifting):
    text = drifting(end_otherwise)
    assert repeating.diverged == repeating.points == sched.logged
    assert text == (f"seed 5: diverged at step {repeating.points + 1}: recorded an end with test_small_words 3 count = 0x2, "
                    "now with 0x4 there")


def test_nobody_notices_without_being_asked(drifting):
    """The case that makes the check worth having."""
    drifting(step_more, repeats=False)
    assert sched.verdict == Verdict.FINISHED and repeating.wanted == 0
