"""dpor sees every end that dfs sees, in fewer schedules; what it must not miss is seeded."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from concur_thp.arch import native
from concur_thp.sched.batch import batch
from tests.unit.sched.small import Do, Found, Op, small_machine

MOST = 30_000
pytestmark = pytest.mark.timeout(600)  # The traced build of the whole kernel may have to be compiled first.


def compare(*programs, most=MOST) -> tuple[Found, Found]:
    """Both strategies without a bound; dpor has to be through whenever dfs is, with the same ends."""
    with small_machine(len(programs), native.TRACED) as small:
        return compare_in(small, *programs, most=most)


def compare_in(small, *programs, most=MOST) -> tuple[Found, Found]:
    small.load(*programs)
    full = small.explore("dfs", most=most)
    few = small.explore("dpor", most=most)
    if full.proved:
        assert few.proved and few.ends == full.ends and few.schedules <= full.schedules
    else:
        assert full.ends <= few.ends or not few.proved
    return full, few


FLUSHES = [Do(Op.STORE, 0, 1), Do(Op.FLUSH), Do(Op.LOAD, 0)]
LOST_UPDATE = [Do(Op.LOAD, 0), Do(Op.PUT, 0, 1)]
LOCKED = [Do(Op.LOCK, 1), *LOST_UPDATE, Do(Op.UNLOCK, 1)]


@pytest.mark.parametrize("programs", [
    (FLUSHES, FLUSHES), (LOST_UPDATE,) * 3, (FLUSHES, [Do(Op.CACHE, 0)] * 2, [Do(Op.LOAD, 0)])])
def test_no_schedule_comes_twice_and_none_is_begun_in_vain(programs):
    """A quarter seemed to: two schedules were taken for one when a stretch ended with a look in the one, and before it in the
    other."""
    with small_machine(len(programs), native.TRACED) as small:
        small.load(*programs)
        before = batch.schedules
        few = small.explore("dpor")
        assert few.proved and batch.schedules - before == few.schedules and batch.cut == 0


def test_what_does_not_conflict_needs_one_schedule():
    full, few = compare([Do(Op.STORE, 0, 1), Do(Op.LOAD, 0)], [Do(Op.STORE, 1, 1), Do(Op.ADD, 2, 3)])
    assert full.proved and full.schedules >= 20
    # Both CPUs enter and leave the mm's cpumask: or_ with or_ and and_ with and_ commute, or_ with and_ do not.
    assert few.schedules <= 3


def test_a_lost_update_is_found_and_a_lock_keeps_it_away():
    _, few = compare(LOST_UPDATE, LOST_UPDATE)
    assert {values[0] for _, values in few.ends} == {1, 2}
    full, few = compare(LOCKED, LOCKED)
    assert {values[0] for _, values in few.ends} == {2}
    assert few.schedules * 10 <= full.schedules


def test_one_of_three_forgets_the_lock():
    _, few = compare(LOCKED, LOCKED, LOST_UPDATE, most=5000)
    assert few.proved and {values[0] for _, values in few.ends} == {1, 2, 3}


def test_additions_commute_until_somebody_asks():
    _, few = compare([Do(Op.ADD, 0, 1)] * 3, [Do(Op.ADD, 0, 2)] * 3, most=5000)
    asked = compare([Do(Op.ADD, 0, 1)] * 3, [Do(Op.FETCH_ADD, 0, 2)] * 3, most=5000)[1]
    assert few.schedules < asked.schedules and len(few.ends) == 1 and len(asked.ends) == 4


def test_a_wake_up_that_can_be_lost_is_lost():
    _, few = compare([Do(Op.SLEEP, 0)], [Do(Op.WAKE, 0, 1)])
    assert {verdict for verdict, _ in few.ends} == {"FINISHED"}
    _, few = compare([Do(Op.SLEEP_ONCE, 0)], [Do(Op.WAKE, 0, 1)])
    assert {verdict for verdict, _ in few.ends} == {"FINISHED", "DEADLOCK"}


def test_two_locks_the_wrong_way_round():
    one = [Do(Op.CAS, 0, 1), Do(Op.SLEEP, 2), Do(Op.WAKE, 3, 1)]
    other = [Do(Op.FETCH_ADD, 0, 1), Do(Op.SLEEP, 3), Do(Op.WAKE, 2, 1)]
    _, few = compare(one, other)
    assert {verdict for verdict, _ in few.ends} == {"DEADLOCK"}
    _, few = compare(one, [other[0], other[2], other[1]])
    assert {verdict for verdict, _ in few.ends} == {"FINISHED"}


def test_polling_ends_when_what_is_polled_is_written():
    waits = [Do(Op.POLL, 0), Do(Op.LOAD, 1)]
    full, few = compare(waits, [Do(Op.STORE, 1, 5), Do(Op.ADD, 0, 1)])
    assert {verdict for verdict, _ in few.ends} == {"FINISHED"} and full.ends == few.ends
    _, few = compare(waits, [Do(Op.ADD, 0, 1), Do(Op.STORE, 1, 5)])
    assert {values[-2] for _, values in few.ends} == {0, 5}


def test_a_bug_that_needs_one_order_is_found():
    _, few = compare([Do(Op.STORE, 0, 1), Do(Op.STORE, 1, 1)], [Do(Op.LOAD, 1), Do(Op.BUG_IF, 0, 1), Do(Op.LOAD, 0)])
    assert {verdict for verdict, _ in few.ends} == {"FINISHED", "BUG"}


def test_a_stale_translation_is_used_before_the_flush_and_not_behind_it():
    uses = [Do(Op.CACHE, 0), Do(Op.CACHE, 0)]
    full, few = compare([Do(Op.STORE, 0, 1), Do(Op.FLUSH), Do(Op.LOAD, 0)], uses)
    assert full.proved and {values[-1] for _, values in few.ends} == {1, 2}


def test_three_cpus_and_a_flush():
    """Interrupts are no threads of their own here; dfs is through after 1,263 schedules."""
    uses = [Do(Op.CACHE, 0), Do(Op.STORE, 1, 1)]
    full, few = compare([Do(Op.STORE, 0, 1), Do(Op.FLUSH)], uses, [Do(Op.LOAD, 1)], most=20_000)
    assert full.proved and few.proved and few.ends == full.ends and len(few.ends) == 4
    assert few.schedules * 8 <= full.schedules


@pytest.mark.parametrize("programs, ends", [
    ((LOST_UPDATE,) * 3, 16),
    (([Do(Op.FLUSH)], [Do(Op.CACHE, 0)], [Do(Op.STORE, 0, 1)]), 2),
    (([Do(Op.WAKE, 0, 1)], [Do(Op.SLEEP_ONCE, 0)], [Do(Op.LOAD, 1)]), 2),
    (([Do(Op.POLL, 0)], [Do(Op.ADD, 0, 1)], [Do(Op.ADD, 0, 1)]), 1),
])
def test_three_cpus_end_alike(programs, ends):
    full, few = compare(*programs)
    assert full.proved and few.proved and few.ends == full.ends and len(few.ends) == ends


STEPS = st.one_of(
    st.builds(Do, st.sampled_from([Op.LOAD, Op.ADD, Op.FETCH_ADD, Op.CAS, Op.STORE, Op.PUT]), st.integers(0, 1),
              st.integers(1, 2)),
    st.builds(Do, st.sampled_from([Op.CACHE, Op.FLUSH, Op.SLEEP, Op.POLL, Op.WAKE, Op.SLEEP_ONCE]), st.integers(0, 1),
              st.just(1)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("nr, examples", [(2, 40), (3, 20)])
def test_random_programs_end_alike(nr, examples):
    counts = [0, 0]
    with small_machine(nr, native.TRACED) as small:
        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(st.lists(st.lists(STEPS, min_size=1, max_size=3 if nr == 2 else 2), min_size=nr, max_size=nr))
        def check(programs):
            full, few = compare_in(small, *programs, most=3000)
            if full.proved:
                counts[0] += full.schedules
                counts[1] += few.schedules

        check()
    assert counts[1] * 3 < counts[0]
