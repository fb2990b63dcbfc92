"""Depth first: as many schedules as arithmetic says, each once, and the end is noticed."""

from math import comb, factorial, prod

import pytest

from concur_thp.sched.batch import batch
from concur_thp.sched.snapshot import restore
from concur_thp.sched.state import Verdict, sched, sched_cpus
from tests.unit.sched.small import Do, Op, small_machine

WITHOUT_BOUND = 1 << 30
STORE = Do(Op.STORE, 0, 1)


def points(small) -> list[int]:
    """How many points each CPU passes."""
    small.controlled.choose("pct", 1)
    small.controlled.run(1, 1)
    found = [sched_cpus[number].steps for number in range(small.nr)]
    restore(batch.granules)
    return found


def orders(passed: list[int]) -> int:
    """Orders of the pieces between points, each CPU's own in its order: a multinomial coefficient."""
    pieces = [steps + 1 for steps in passed]
    return factorial(sum(pieces)) // prod(map(factorial, pieces))


@pytest.mark.parametrize("lengths", [(0, 0), (1, 1), (3, 2), (4, 4), (0, 0, 0), (1, 1, 1), (2, 0, 1)])
def test_every_order_once(lengths):
    with small_machine(len(lengths)) as small:
        small.load(*([STORE] * length for length in lengths))
        assert points(small) == list(lengths), "a store is a point, and nothing else in these programs is"
        distinct = batch.schedules
        found = small.explore("dfs", WITHOUT_BOUND)
        assert found.proved and found.schedules == orders(list(lengths))
        assert batch.schedules - distinct >= found.schedules - 1, "no schedule comes twice"


@pytest.mark.parametrize("a, b", [(1, 1), (3, 2), (5, 4)])
def test_a_bound_of_preemptions_is_kept(a, b):
    """Without one: whole programs in each order. With one: either is stopped at one of its points, or none is."""
    with small_machine(2) as small:
        small.load([STORE] * a, [STORE] * b)
        assert small.explore("dfs", 0).schedules == 2
        assert small.explore("dfs", 1).schedules == 2 + a + b
        # Two: either one twice, or each once, the second only where the first is not through.
        two = comb(a, 2) + comb(b, 2) + 2 * a * b
        assert small.explore("dfs", 2).schedules == 2 + a + b + two - (comb(a, 2) + comb(b, 2))


@pytest.mark.parametrize("preemptions", [1, WITHOUT_BOUND])
def test_whoever_flushes_goes_on_before_the_next_step_of_the_cpu_that_answered(preemptions):
    """CPU 1 has read a word and writes it back stale, behind all of CPU 0: it used to step on as it served the interrupt."""
    with small_machine(2) as small:
        small.load([Do(Op.STORE, 0, 1), Do(Op.FLUSH), Do(Op.STORE, 1, 5)], [Do(Op.LOAD, 0), Do(Op.PUT, 1)])
        found = small.explore("dfs", preemptions)
        assert found.proved and {words[:2] for _, words in found.ends} == {(1, 0), (1, 1), (1, 5)}


def test_who_waits_is_followed_by_others_for_nothing():
    """A lock that is taken costs no preemption; the bound is about CPUs that could have gone on."""
    with small_machine(2) as small:
        small.load([Do(Op.SLEEP, 0), STORE], [STORE, Do(Op.WAKE, 0, 1)])
        found = small.explore("dfs", 0)
        assert found.proved and found.schedules == 2 and {verdict for verdict, _ in found.ends} == {"FINISHED"}


def test_a_lost_update_needs_one_preemption():
    update = [Do(Op.LOAD, 0), Do(Op.PUT, 0, 1)]
    with small_machine(2) as small:
        small.load(update, update)
        assert {values[0] for _, values in small.explore("dfs", 0).ends} == {2}
        assert {values[0] for _, values in small.explore("dfs", 1).ends} == {1, 2}


def test_a_path_begins_anew_with_each_choice_of_the_strategy():
    with small_machine(2) as small:
        small.load([STORE], [STORE])
        assert small.explore("dfs", 1).schedules == small.explore("dfs", 1).schedules == 4
        assert sched.exhausted == 1 and Verdict(sched.verdict) == Verdict.FINISHED
