"""Batches: what is counted, when Python is asked, and where a batch goes on."""

import pytest

from concur_thp.sched.batch import PROGRESS, batch, state_is_good
from concur_thp.sched.snapshot import restore
from concur_thp.sched.state import Verdict, sched
from concur_thp.sched.words import Long
from tests.unit.sched.small import Do, Op, small_machine

UPDATE = [Do(Op.LOAD, 0), Do(Op.PUT, 0, 1)]
FAILS = [Do(Op.LOAD, 0), Do(Op.BUG_IF, 0, 1)]


@pytest.fixture
def small():
    with small_machine(2) as it:
        it.load(UPDATE, UPDATE)
        it.controlled.choose("random", 0)
        yield it


def judge(kind: int = 0) -> None:
    """Call the last end good."""
    state_is_good(batch.state, kind)
    restore(batch.granules)


def test_an_end_is_asked_about_once(small):
    asked = done = 0
    while done < 500:
        done += small.controlled.run(done, 500 - done)
        if not small.controlled.complete:
            judge()
            done, asked = done + 1, asked + 1
    assert batch.done == 500 and 2 <= asked == batch.states <= 6


def test_what_is_known_is_counted_by_its_kind(small):
    at = 0
    kinds = {}
    while at < 300:
        at += small.controlled.run(at, 300 - at)
        if not small.controlled.complete:
            kinds.setdefault(small.end()[1][0], len(kinds))
            judge(kinds[small.end()[1][0]])
            at += 1
    counts = [batch.ends[kind] for kind in range(8)]
    assert sum(counts) == 300 and counts[2:] == [0] * 6 and min(counts[:2]) > 20


def test_an_end_that_is_not_called_good_is_asked_about_again(small):
    small.controlled.run(7, 1)
    restore(batch.granules)
    assert small.controlled.run(7, 1) == 0 and not small.controlled.complete and batch.states == 0


def test_schedules_are_counted_once(small):
    small.controlled.choose("dfs", 1 << 30)
    before, at = batch.schedules, 0
    for _ in range(2):
        small.controlled.choose("dfs", 1 << 30)
        while not small.controlled.exhausted:
            at += small.controlled.run(at, 1000)
            if not small.controlled.complete:
                judge()
                at += 1
    assert at == batch.done == 40 and batch.schedules - before == 20


def test_a_run_that_fails_is_never_good(small):
    small.load(FAILS, [Do(Op.STORE, 0, 1)])
    seen = set()
    for seed in range(100):
        if small.controlled.run(seed, 1) == 0:
            seen.add(Verdict(sched.verdict))
            if sched.verdict == Verdict.FINISHED:
                state_is_good(batch.state, 0)
        else:
            assert sched.verdict == Verdict.FINISHED
        restore(batch.granules)
    assert seen == {Verdict.FINISHED, Verdict.BUG}


def test_whoever_watches_reads_which_run_is_under_way(small):
    small.controlled.run(41, 1)
    restore(batch.granules)
    small.controlled.run(42, 1)
    restore(batch.granules)
    assert [Long(int(PROGRESS) + 8 * i).value for i in range(2)] == [42, batch.done]
