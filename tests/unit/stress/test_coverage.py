"""Which scenarios come by a statement, and in which several CPUs do: what `break --locks` chooses by."""

from concur_thp.machine import Machine
from stress.breaking.coverage import Visit, coverage
from stress.breaking.cuts import ALWAYS, NEVER, Cut, all_cuts
from stress.breaking.wholesale import BEST, FIRST_SCHEDULES, ONCE, SCHEDULES, THEN, attempts, ranked
from stress.scenarios.registry import MIXES


def cut(function: str, what: str) -> Cut:
    Machine._import_kernel()
    return next(c for c in all_cuts() if c.function == function and what in c.what)


def test_those_in_which_cpus_meet_come_first():
    zap = cut("zap_pte_range", "spin_lock(cpu, ptl)")
    rows = coverage(("partial_dontneed", "mix_dontneeds"))[zap.site]
    assert [row.scenario for row in rows] == ["mix_dontneeds", "partial_dontneed"] and rows[0].shared > rows[1].shared


def test_every_scenario_is_looked_at_and_the_best_are_gone_on_with():
    names = list(MIXES)[:6]
    rows = [Visit(name, 9 - n, 9) for n, name in enumerate(names)]
    made = list(attempts([*rows, Visit("split_page_of_pmd", 0, 9)], 1))
    once, first, then = made[0], made[1:7], made[7:]
    assert once[0].scenario == "split_page_of_pmd" and once[1] == ONCE, "one CPU has one schedule"
    assert [job.scenario for job, _ in first] == names
    assert {schedules for _, schedules in first} == {FIRST_SCHEDULES} and {schedules for _, schedules in then} == {SCHEDULES}
    assert {job.scenario for job, _ in then} == set(names[:4]) and len(then) == BEST * len(THEN)


def test_flushes_are_looked_for_first_where_a_stale_translation_tells():
    rows = [Visit("mix_brk", 9, 9), Visit("mix_forks", 8, 8), Visit("lazyfree_dontneed_vs_load", 1, 9)]
    flush, lock = cut("swap_duplicate", "spin_lock")._replace(kind="flush"), cut("swap_duplicate", "spin_lock")
    reached = {flush.site: rows}
    assert [row.scenario for row in ranked(flush, reached)] == ["mix_forks", "lazyfree_dontneed_vs_load", "mix_brk"]
    assert ranked(lock, reached) == rows


def test_what_the_rules_name_for_a_function_comes_before_all():
    rows = [Visit("mix_dontneeds", 99, 99), Visit("two_dontneeds_vs_load", 9, 9)]
    look = cut("tlb_finish_mmu", "tlb_flush_pending")
    assert ranked(look, {look.site: rows})[0].scenario == "two_dontneeds_vs_load"


def test_a_look_is_looked_for_where_its_loss_makes_a_difference():
    always, never = (cut("next_pmd_table", f"pud_offset(pgd, addr).val.load() == 0{how}") for how in (ALWAYS, NEVER))
    assert always.site == never.site and always.body == never.body
    rows = [Visit("mix_brk", 9, 9), Visit("mix_forks", 8, 8), Visit("mix_exits", 7, 7)]
    reached = {never.site: rows, never.body[0]: [Visit("mix_forks", 1, 1), Visit("mix_exits", 7, 7)]}
    assert [row.scenario for row in ranked(never, reached)][:2] == ["mix_forks", "mix_exits"]
    assert [row.scenario for row in ranked(always, reached)][:2] == ["mix_brk", "mix_forks"]
    assert ranked(never, {never.site: rows}) == rows, "nothing is known of its body"
