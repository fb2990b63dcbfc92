"""Replay: exactly, or as far as it fits."""

import pytest

from concur_thp.sched.batch import batch
from concur_thp.sched.replay import CANNOT
from concur_thp.sched.snapshot import restore
from concur_thp.sched.state import Reason, Verdict, sched, sched_log, sched_plan
from tests.unit.sched.small import Do, Op, small_machine

WAITS = [Do(Op.LOCK, 1), Do(Op.LOAD, 0), Do(Op.PUT, 0, 1), Do(Op.UNLOCK, 1), Do(Op.POLL, 2), Do(Op.SLEEP_ONCE, 3)]
WAKES = [Do(Op.LOAD, 0), Do(Op.PUT, 0, 1), Do(Op.ADD, 2, 1), Do(Op.LOCK, 1), Do(Op.FLUSH), Do(Op.UNLOCK, 1), Do(Op.WAKE, 3, 1)]
Rows = list[tuple[int, int, int, int]]


def run(small, strategy: str, seed: int = 0, plan: Rows | None = None) -> tuple[tuple, Rows]:
    """One run: its end and its stretches."""
    small.controlled.choose(strategy, 3)
    for number, values in enumerate(plan or []):
        row = sched_plan[number]
        row.cpu, row.reason, row.steps, row.site = values
    sched.expected = len(plan or [])
    small.controlled.run(seed, 1)
    rows = [(r.cpu, r.reason, r.steps, r.site) for r in (sched_log[i] for i in range(sched.stretches))]
    end = small.end()
    restore(batch.granules)
    return end, rows


@pytest.fixture
def small():
    with small_machine(2) as it:
        it.load(WAITS, WAKES)
        yield it


@pytest.mark.parametrize("strategy", ["random", "pct"])
def test_every_run_is_had_again(small, strategy):
    verdicts = set()
    for seed in range(200):
        end, rows = run(small, strategy, seed)
        assert run(small, "replay", plan=rows) == (end, rows)
        verdicts.add(end[0])
    assert verdicts == {"FINISHED", "DEADLOCK"}


def stopped(small) -> tuple[Rows, int]:
    """A schedule with a preemption, and where."""
    for seed in range(100):
        _, rows = run(small, "pct", seed)
        for at, row in enumerate(rows[:-1]):
            if row[1] == Reason.PREEMPT and row[2] > 0:
                return rows, at
    raise AssertionError("no schedule has a preemption")


@pytest.mark.parametrize("change", ["site", "cpu", "reason", "shorter", "longer"])
def test_another_stretch_diverges_where_it_is(small, change):
    rows, at = stopped(small)
    cpu, reason, steps, site = rows[at]
    other = {"site": [(cpu, reason, steps, site + 1)], "cpu": [(1 - cpu, reason, steps, site)],
             "reason": [(cpu, int(Reason.BLOCK), steps, site)], "shorter": [(cpu, reason, steps - 1, site)],
             "longer": [(cpu, reason, steps + 1, site)]}[change]
    end, _ = run(small, "replay", plan=[*rows[:at], *other, *rows[at + 1:]])
    passed = sum(row[2] for row in rows[:at])
    assert end[0] == "DIVERGED" and passed <= sched.diverged


def test_a_plan_that_ends_too_early_diverges_behind_it(small):
    rows, at = stopped(small)
    end, _ = run(small, "replay", plan=rows[:at + 1])
    assert end[0] == "DIVERGED" and sched.diverged == sum(row[2] for row in rows[:at + 1])
    assert (sched.diverged_cpu, sched.diverged_why) == (rows[at][0], Reason.PREEMPT)


def test_a_cpu_that_is_done_cannot_go_on(small):
    rows, _ = stopped(small)
    last = next(at for at, row in enumerate(rows) if row[1] == Reason.DONE)
    cpu = rows[last][0]
    end, _ = run(small, "replay", plan=[*rows[:last + 1], (cpu, int(Reason.DONE), 1, 0)])
    assert end[0] == "DIVERGED" and (sched.diverged_cpu, sched.diverged_why) == (cpu, CANNOT)


def test_guided_follows_a_plan_that_fits_and_goes_on_where_it_does_not(small):
    rows, at = stopped(small)
    assert run(small, "guided", plan=rows)[1] == rows
    for plan in (rows[:at], rows[at + 1:], [*rows[:at], (1, int(Reason.PREEMPT), 1 << 20, 0)], []):
        end, taken = run(small, "guided", plan=plan)
        assert end[0] in ("FINISHED", "DEADLOCK")
        assert run(small, "replay", plan=taken) == (end, taken), "what guided came to is a plan itself"


def test_an_empty_plan_is_no_run(small):
    end, rows = run(small, "replay", plan=[])
    assert Verdict[end[0]] == Verdict.DIVERGED and rows == []
