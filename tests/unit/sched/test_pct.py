"""PCT: no more changes than its depth allows, and bugs of a depth as often as its authors promise."""

import pytest

from concur_thp.sched.batch import batch
from concur_thp.sched.snapshot import restore
from concur_thp.sched.state import Reason, sched, sched_log
from tests.unit.sched.small import Do, Op, small_machine

LOST_UPDATE = ([Do(Op.LOAD, 0), Do(Op.PUT, 0, 1)],) * 2
"""Depth 2: one CPU is stopped once."""
TWICE = ([Do(Op.STORE, 0, 1), Do(Op.LOAD, 1), Do(Op.BUG_IF, 0, 5), Do(Op.STORE, 0, 0)],
         [Do(Op.LOAD, 0), Do(Op.PUT, 1, 4), Do(Op.STORE, 1, 0)])
"""Depth 3: CPU 1 has to come between the first two steps of CPU 0, and CPU 0 before the last one of CPU 1."""
RUNS = 2000


def count(small, depth: int, bad) -> tuple[int, int]:
    """How many of RUNS runs end badly, and the steps of the longest."""
    small.controlled.choose("pct", depth)
    sched.longest = 0
    found = 0
    for seed in range(RUNS):
        small.controlled.run(seed, 1)
        found += bad(*small.end())
        restore(batch.granules)
    return found, sched.longest


CASES = [(LOST_UPDATE, 2, lambda verdict, values: values[0] == 1), (TWICE, 3, lambda verdict, values: verdict == "BUG")]


@pytest.mark.parametrize("programs, depth, bad", CASES)
def test_a_bug_is_found_as_often_as_promised(programs, depth, bad):
    """1 / (n * k**(d-1)) is a lower bound: with fixed seeds at least that many, and with a smaller depth none."""
    with small_machine(2) as small:
        small.load(*programs)
        found, longest = count(small, depth, bad)
        assert found >= RUNS / (2 * longest ** (depth - 1)), (found, longest)
        assert count(small, depth - 1, bad)[0] == 0


def test_depth_one_is_whole_programs_in_each_order():
    with small_machine(3) as small:
        small.load(*[[Do(Op.STORE, 0, 1)] * 4] * 3)
        small.controlled.choose("pct", 1)
        orders = set()
        for seed in range(100):
            small.controlled.run(seed, 1)
            orders.add(tuple(sched_log[i].cpu for i in range(sched.stretches)))
            restore(batch.granules)
        assert len(orders) == 6 and all(len(order) == 3 for order in orders)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_no_more_preemptions_than_change_points(depth):
    with small_machine(2) as small:
        small.load([Do(Op.STORE, 0, 1)] * 10, [Do(Op.STORE, 1, 1)] * 10)
        small.controlled.choose("pct", depth)
        most = 0
        for seed in range(300):
            small.controlled.run(seed, 1)
            most = max(most, sum(1 for i in range(sched.stretches) if sched_log[i].reason == Reason.PREEMPT))
            restore(batch.granules)
        assert most == depth - 1


def test_who_polls_falls_behind_until_others_have_moved():
    """With the highest priority it would poll for ever."""
    with small_machine(2) as small:
        small.load([Do(Op.POLL, 0), Do(Op.LOAD, 1)], [Do(Op.STORE, 1, 5), Do(Op.ADD, 0, 1)])
        found = small.explore("pct", 2, 300)
        assert {(verdict, values[-2]) for verdict, values in found.ends} == {("FINISHED", 5)}
