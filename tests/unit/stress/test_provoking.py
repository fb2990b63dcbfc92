"""The scenarios made for broken variants: as tables, and played for a moment on the real code, where they are clean."""

from dataclasses import replace

import pytest

from concur_thp.config import Param
from concur_thp.program.step import parse_program, print_program
from concur_thp.rules.table import VARIANTS
from stress.breaking.free import Free
from stress.scenarios.registry import PAIRS, PROVOKING, RACES, SCENARIOS
from stress.scenarios.scenario import Result, Seen

EACH = pytest.mark.parametrize("scenario", PROVOKING.values(), ids=PROVOKING.keys())
QUICK = ("partial_dontneed", "kernelcore", "dontneed_vs_load", "cow_vs_dontneed")


def test_each_variant_has_its_scenario_and_each_scenario_a_variant():
    used = {variant.scenario for _, variant in VARIANTS.values()}
    assert used <= SCENARIOS.keys()
    others = {"cow_vs_reuse_and_hint_small", "lazyfree_vs_reclaim_huge", "mremap_vs_load_small", "swap_out_vs_load_small",
              "split_page_of_pmd"}
    assert PROVOKING.keys() <= used | others, "a scenario that no variant names provokes nothing"
    assert not PROVOKING.keys() & RACES.keys()


@EACH
def test_tables_are_whole(scenario, monkeypatch):
    monkeypatch.setattr(Param, "order", 3)
    assert list(scenario.problems()) == [] and set(scenario.pairs) <= set(PAIRS)
    assert scenario.meaning and scenario.rules and any(outcome.must for outcome in scenario.outcomes)
    for program in scenario.programs.values():
        assert parse_program(print_program(program)) == program


def test_a_reader_that_was_told_must_not_see_the_old_word():
    scenario = PROVOKING["dontneed_vs_load"]
    good = Seen({"warm": Result(0, 103), "flag": Result(0, 1), "word": Result(0, 0), "old": Result(0, 1 << Param.order)})
    assert scenario.classify(good) == "read before, or zero"
    stale = replace(good, results={**good.results, "word": Result(0, 103)})
    assert scenario.classify(stale) is None
    early = replace(stale, results={**stale.results, "flag": Result(0, 0)})
    assert scenario.classify(early) == "read before, or zero"


@pytest.mark.parametrize("name", QUICK)
def test_some_are_clean(name):
    assert Free().hunt(PROVOKING[name], None, (1, 2), 0.5) is None


@pytest.mark.slow
@EACH
def test_all_are_clean(scenario):
    assert Free().hunt(scenario, None, range(1, 9), 2.0) is None
