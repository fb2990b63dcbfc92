"""Which scenarios come by a statement, and in which several CPUs do: what `break --locks` chooses by."""

from concur_thp.machine import Machine
from stress.breaking.coverage import Visit, coverage
from stress.breaking.cuts import Cut, all_cuts
from stress.breaking.wholesale import BEST, FIRST_SCHEDULES, SCHEDULES, THEN, attempts, ranked


def cut(function: str, what: str) -> Cut:
    Machine._import_kernel()
    return next(c for c in all_cuts() if c.function == function and what in c.what)


def test_those_in_which_cpus_meet_come_first():
    zap = cut("zap_pte_range", "spin_lock(cpu, ptl)")
    rows = coverage(("partial_dontneed", "mix_dontneeds"))[zap.site]
    assert [row.scenario for row in rows] == ["mix_dontneeds", "partial_dontneed"] and rows[0].shared > rows[1].shared


def test_every_scenario_is_looked_at_and_the_best_are_gone_on_with():
    rows = [Visit(f"s{n}", 9 - n, 9) for n in range(6)]
    made = list(attempts(rows, 1))
    first, then = made[:6], made[6:]
    assert [job.scenario for job, _ in first] == [row.scenario for row in rows]
    assert {schedules for _, schedules in first} == {FIRST_SCHEDULES} and {schedules for _, schedules in then} == {SCHEDULES}
    assert {job.scenario for job, _ in then} == {"s0", "s1", "s2", "s3"} and len(then) == BEST * len(THEN)


def test_flushes_are_looked_for_first_where_a_stale_translation_tells():
    rows = [Visit("mix_brk", 9, 9), Visit("mix_forks", 8, 8), Visit("lazyfree_dontneed_vs_load", 1, 9)]
    flush, lock = cut("swap_duplicate", "spin_lock")._replace(kind="flush"), cut("swap_duplicate", "spin_lock")
    assert [row.scenario for row in ranked(flush, rows)] == ["mix_forks", "lazyfree_dontneed_vs_load", "mix_brk"]
    assert ranked(lock, rows) == rows


def test_what_the_rules_name_for_a_function_comes_before_all():
    rows = [Visit("mix_dontneeds", 99, 99), Visit("two_dontneeds_vs_load", 9, 9)]
    assert ranked(cut("tlb_finish_mmu", "tlb_flush_pending"), rows)[0].scenario == "two_dontneeds_vs_load"
