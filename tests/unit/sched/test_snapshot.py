"""Snapshots: every byte comes back, and equal states have equal numbers."""

import ctypes

import pytest

from concur_thp.arch.cpu import Cpu, cpus
from concur_thp.errors import EmulatorError
from concur_thp.sched.batch import batch
from concur_thp.sched.snapshot import GRANULE, SEGMENT, Snapshot, restore, state_number
from concur_thp.sched.state import sched
from tests.unit.sched.small import Do, Op, small_machine, small_words

BUSY = [Do(Op.LOCK, 1), Do(Op.LOAD, 0), Do(Op.PUT, 0, 1), Do(Op.UNLOCK, 1), Do(Op.CACHE, 0), Do(Op.FLUSH),
        Do(Op.FETCH_ADD, 2, 3)]
STORES = [Do(Op.STORE, 0, 1), Do(Op.STORE, 0, 0)]


@pytest.fixture
def small():
    with small_machine(2) as it:
        yield it


def memory(small) -> bytes:
    """The segment, as far as a snapshot covers it; without the budgets of CPUs, which are the scheduler's."""
    for number in range(small.nr):
        cpus[number].budget = 0
    return ctypes.string_at(int(SEGMENT), small.controlled.snapshot.size)


def changed(before: bytes, after: bytes) -> list[str]:
    """Where they differ."""
    return [hex(at) for at in range(0, len(after), GRANULE) if after[at:at + GRANULE] != before[at:at + GRANULE]]


def run(small, seed: int, strategy: str = "random") -> int:
    """One run; the number of the state that it ended in."""
    small.controlled.choose(strategy, 2)
    small.controlled.run(seed, 1)
    return state_number(batch.granules)


def test_every_byte_comes_back(small):
    small.load(BUSY, BUSY)
    run(small, 0)
    restore(batch.granules)
    before = memory(small)
    for seed in range(8):
        run(small, seed)
        assert memory(small) != before
        restore(batch.granules)
        after = memory(small)
        assert after == before, changed(before, after)


def test_what_a_run_left_in_the_middle_comes_back_too(small):
    """A bug() with a lock held, a deadlock, a livelock: stacks are given up, locks are restored."""
    for program in ([Do(Op.LOCK, 1), Do(Op.LOAD, 0), Do(Op.BUG_IF, 0, 0)], [Do(Op.LOCK, 1), Do(Op.SLEEP, 0)],
                    [Do(Op.LOCK, 1), Do(Op.SPIN, 0)]):
        small.load(program, BUSY)
        before = memory(small)
        run(small, 3)
        restore(batch.granules)
        assert memory(small) == before


def test_restore_all_takes_back_what_python_wrote(small):
    small.load(BUSY, BUSY)
    before = memory(small)
    run(small, 1)
    small_words[3].plain = 77  # No mark in the dirty map.
    small.controlled.restore()
    assert memory(small) == before


def test_nothing_of_the_scheduler_is_in_a_snapshot(small):
    places = small.controlled.machine.places
    size = small.controlled.snapshot.size
    assert all(offset >= size for name, (offset, _) in places.items() if name.startswith("sched"))
    assert all(offset + bytes_ <= size for name, (offset, bytes_) in places.items() if name in ("mem_map", "tables", "cpus"))


def test_equal_ends_have_equal_numbers_and_others_have_not(small):
    """Two lost updates end with 1 or 2; who came first does not matter."""
    update = [Do(Op.LOAD, 0), Do(Op.PUT, 0, 1)]
    small.load(update, update)
    numbers: dict[tuple, set[int]] = {}
    for seed in range(200):
        number = run(small, seed)
        numbers.setdefault(small.end(), set()).add(number)
        restore(batch.granules)
    assert len(numbers) >= 3 and all(len(found) == 1 for found in numbers.values())
    assert len(set().union(*numbers.values())) == len(numbers)


def test_what_was_written_and_is_as_before_does_not_count(small):
    small.load([], [])
    nothing = run(small, 1)
    restore(batch.granules)
    small.load(STORES, STORES)
    assert run(small, 1) == nothing


def test_a_cpus_locks_and_translations_are_part_of_the_state(small):
    small.load([], [])
    nothing = run(small, 1)
    small_words[0].plain = 0
    for field, value in (("irq_off", 1), ("held_mask", 4), ("page_locks", 2)):
        kept = getattr(cpus[1], field)
        setattr(cpus[1], field, value)
        assert state_number(batch.granules) != nothing, field
        setattr(cpus[1], field, kept)
    cpus[1].ops = 99  # Says only how a state came about.
    assert state_number(batch.granules) == nothing and sched.nr == 2 and Cpu.SIZE % GRANULE % 64 == 0


def test_a_segment_that_no_dirty_map_fits_is_refused(small):
    machine = small.controlled.machine
    with pytest.raises(EmulatorError, match="not aligned"):
        Snapshot(machine.base + 8, machine.size, machine.places)
