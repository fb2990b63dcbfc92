"""Controlled runs in this process: every strategy, snapshots, replay, shrinking, and what is said of runs that do not end."""

import ctypes
import time
from dataclasses import replace

import numpy as np
import pytest

from concur_thp.arch.checked import GRANULE_SHIFT
from concur_thp.check.instant import checking
from concur_thp.rules.table import VARIANTS
from concur_thp.rules.variant import Variant
from concur_thp.sched.batch import batch
from concur_thp.sched.state import Reason, Verdict, sched
from stress.exploring.cell import Cell
from stress.exploring.explorer import Explorer, link_for
from stress.exploring.job import Failure, Job, Known, Tally
from stress.exploring.shrink import Shrinker
from stress.exploring.token import Token

ZAP_VS_SPLIT = Job("dontneed_vs_split_pmd", seed=7)
LOST_ZAP, LOCK_KEPT, WILD = "R19a", "R19d", "X16a"
"""Broken variants: ptes are left behind; a lock is not dropped; a table that is gone is collapsed."""


def variant_named(name: str) -> Variant:
    return Variant(VARIANTS[name][1].edits, name, ZAP_VS_SPLIT.build)


def explore(job: Job, schedules: int, variant: Variant | None = None) -> tuple[Cell, Failure | None]:
    link_for(job, variant)
    with Cell(job) as cell:
        if variant is not None:
            variant.put()
            cell.on_close(variant.take)
        tally, failure = cell.explore(0, schedules, time.monotonic() + 240, lambda tally: None)
        assert tally.schedules == schedules or failure is not None or tally.exhausted
        cell.tally = tally
    return cell, failure


def test_checks_are_made_as_often_as_the_job_says():
    for every in (1, 7):
        job = replace(ZAP_VS_SPLIT, checks=every)
        link_for(job)
        with Cell(job):
            assert checking.every == every


@pytest.mark.parametrize("strategy", ["random", "pct"])
def test_the_real_code_is_clean_and_every_outcome_is_seen(strategy):
    cell, failure = explore(Job("dontneed_vs_split_pmd", strategy=strategy, seed=7), 2000)
    assert failure is None
    assert sum(cell.tally.outcomes.values()) == 2000 and len(cell.tally.outcomes) == 2
    assert cell.tally.distinct > 100 and cell.tally.states < 50


def test_an_interrupt_does_not_come_in_the_middle_of_an_access():
    """A page walk that was preempted between entry and TLB, and flushed there, left what the flush was to take away."""
    _, failure = explore(Job("fault_vs_collapse", checks=1), 3000)
    assert failure is None, failure.symptom


def test_dfs_runs_every_schedule_once_and_says_that_it_is_through():
    counts = []
    for bound in (0, 1):
        cell, failure = explore(Job("dontneed_vs_split_pmd", strategy="dfs", depth=bound), 100_000)
        assert failure is None and cell.tally.exhausted
        assert cell.tally.distinct == cell.tally.schedules
        counts.append(cell.tally.schedules)
    assert counts[0] == 2 and counts[1] > 100, "two orders without a preemption; one preemption at any point of either"


def test_a_run_leaves_nothing_behind():
    link_for(ZAP_VS_SPLIT)
    with Cell(ZAP_VS_SPLIT) as cell:
        base, size = cell.machine.base, cell.controlled.snapshot.granules << GRANULE_SHIFT
        cell.controlled.run(1, 1)
        cell.controlled.restore()
        before = ctypes.string_at(base, size)
        cell.explore(2, 300, time.monotonic() + 240, lambda tally: None)
        changed = [at >> 8 for at in range(0, size, 256) if before[at:at + 256] != ctypes.string_at(base + at, 256)]
        cpus = cell.machine.places["cpus"]
        assert not [granule for granule in changed if not cpus[0] <= granule << 8 < cpus[0] + cpus[1]]


def broken() -> tuple[Job, Variant, Failure]:
    variant = variant_named(LOST_ZAP)
    _, failure = explore(ZAP_VS_SPLIT, 3000, variant)
    assert failure is not None and failure.kind == "outcome"
    return ZAP_VS_SPLIT, variant, failure


def test_a_failure_is_replayed_exactly_and_not_on_the_real_code():
    job, variant, failure = broken()
    token = Token.parse(str(Token.of(job, failure)))
    assert token.job.plan == failure.schedule and token.symptom == failure.symptom
    with Cell(token.job) as cell:
        variant.put()
        for _ in range(5):
            again = cell.follow(token.job.plan)
            assert again is not None and (again.kind, again.symptom) == (failure.kind, failure.symptom)
            assert again.schedule == failure.schedule
        variant.take()
        there = cell.follow(token.job.plan)
        assert there is None or there.kind == "diverged"


def test_a_plan_that_does_not_fit_diverges_where_it_does_not_fit():
    job, variant, failure = broken()
    at = next(n for n, stretch in enumerate(failure.schedule) if stretch.reason == Reason.PREEMPT)
    plan = list(failure.schedule)
    plan[at] = plan[at]._replace(site=plan[at].site + 1)
    with Cell(job) as cell:
        variant.put()
        cell.on_close(variant.take)
        found = cell.follow(tuple(plan))
        assert found is not None and found.kind == "diverged"
        assert found.diverged == sum(stretch.steps for stretch in plan[:at + 1])


def test_shrinking_keeps_the_failure_and_takes_preemptions_away():
    job, variant, failure = broken()
    small_job, small = Shrinker(job, variant, 120.0).shrink(failure)
    assert small.kind == failure.kind and small.preemptions <= min(failure.preemptions, 2)
    assert small_job.scenario == job.scenario


def test_a_lock_that_is_not_given_back_is_noticed():
    _, failure = explore(ZAP_VS_SPLIT, 3000, variant_named(LOCK_KEPT))
    assert failure is not None and failure.kind in ("deadlock", "audit", "bug")


def test_verdicts_and_batches_agree():
    link_for(ZAP_VS_SPLIT)
    with Cell(ZAP_VS_SPLIT) as cell:
        assert cell.controlled.run(3, 1) == 0 and not cell.controlled.complete, "the first end of all is new"
        assert sched.verdict == Verdict.FINISHED and cell.judge() is None
        cell.controlled.restore()
        assert cell.controlled.run(3, 1) == 1 and cell.controlled.complete
        assert batch.done == 2 and batch.states == 1


def test_cells_side_by_side_find_what_one_finds():
    variant = variant_named(LOST_ZAP)
    link_for(ZAP_VS_SPLIT, variant)
    explored = Explorer(ZAP_VS_SPLIT, variant, 2, schedules=20_000, seconds=240).run()
    assert explored.verdict == "fail" and explored.failure is not None and explored.failure.kind == "outcome"
    clean = Explorer(ZAP_VS_SPLIT, None, 2, schedules=2000, seconds=240).run()
    assert clean.verdict == "pass" and clean.tally.schedules == 2000


def test_what_two_cells_have_met_counts_once():
    job = replace(ZAP_VS_SPLIT, strategy="pct", depth=1)  # No change of priorities: one CPU first, or the other.
    tally = Explorer(job, None, 2, schedules=2000, seconds=240).run().tally
    assert (tally.schedules, tally.distinct, tally.states, tally.full) == (2000, 2, 2, False)


def test_more_than_cells_remember_is_said():
    total = Tally()
    for number in (3, 5):
        total.add(Tally(10, 3, full=number == 5, states=1, known=Known(np.array([1, 2, number]), np.array([7]))))
    assert (total.distinct, total.states) == (6, 2)
    total.settle()
    assert (total.schedules, total.distinct, total.states, total.full) == (20, 4, 1, True)
    nothing = Known(np.array([], np.int64), np.array([], np.int64))
    assert [len(numbers) for numbers in nothing.united(nothing)] == [0, 0]


def test_code_that_kills_its_process_is_a_finding_with_a_schedule():
    job = Job("collapse_vs_munmap", seed=1)
    variant = variant_named(WILD)
    link_for(job, variant)
    failure = Explorer(job, variant, 1, schedules=20_000, seconds=240).run().failure
    assert failure is not None and failure.kind in ("crash", "bug") and len(failure.schedule) > 1
