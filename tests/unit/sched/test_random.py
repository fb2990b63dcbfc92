"""A random walk: its seed says all, everybody has his chance, and a depth makes long stretches."""

from collections import Counter

from concur_thp.sched.batch import batch
from concur_thp.sched.snapshot import restore
from concur_thp.sched.state import sched, sched_log
from tests.unit.sched.small import Do, Op, small_machine

LONG = [Do(Op.STORE, 0, 1)] * 15


def walks(small, depth: int, seeds: range) -> list[list[tuple[int, int]]]:
    """The stretches of the runs with these seeds."""
    small.controlled.choose("random", depth)
    found = []
    for seed in seeds:
        small.controlled.run(seed, 1)
        found.append([(sched_log[i].cpu, sched_log[i].steps) for i in range(sched.stretches)])
        restore(batch.granules)
    return found


def test_a_seed_is_a_walk():
    with small_machine(2) as small:
        small.load(LONG, LONG)
        first = walks(small, 0, range(50))
        assert first == walks(small, 0, range(50))
        assert len({tuple(walk) for walk in first}) > 45


def test_each_cpu_is_as_likely_at_each_point():
    with small_machine(3) as small:
        small.load(LONG, LONG, LONG)
        begins = Counter(walk[0][0] for walk in walks(small, 0, range(600)))
        assert all(150 < begins[cpu] < 250 for cpu in range(3)), begins
        # Of three one goes on with 1/3: 30 of 48 turns change hands.
        stretches = sum(map(len, walks(small, 0, range(100)))) / 100
        assert 20 < stretches < 34


def test_a_depth_makes_stretches_longer():
    with small_machine(2) as small:
        small.load(LONG, LONG)
        counts = [sum(map(len, walks(small, depth, range(100)))) for depth in (0, 2, 4)]
        assert counts[0] > 2 * counts[1] > 2 * counts[2]


def test_whoever_polls_is_not_waited_for_and_whoever_sleeps_is_woken():
    with small_machine(2) as small:
        small.load([Do(Op.POLL, 0), Do(Op.WAKE, 1, 1)], [*LONG[:8], Do(Op.ADD, 0, 1), Do(Op.SLEEP, 1)])
        found = small.explore("random", 1, 300)
        assert {verdict for verdict, _ in found.ends} == {"FINISHED"} and found.schedules == 300


def test_it_finds_every_end_that_dfs_finds():
    update = [Do(Op.LOAD, 0), Do(Op.PUT, 0, 1)]
    with small_machine(3) as small:
        small.load(update, update, update)
        assert small.explore("random", 0, 2000).ends == small.explore("dfs").ends
