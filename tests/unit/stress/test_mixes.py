"""Mixes: whole tables, and clean on the real code, in free runs and under control."""

from dataclasses import replace

import pytest

from concur_thp.config import Param
from concur_thp.machine import Machine
from concur_thp.program.step import parse_program, print_program
from stress.breaking.free import Free
from stress.exploring.explorer import Explorer, link_for
from stress.exploring.job import Job
from stress.scenarios.mixes import ANY, labelled
from stress.scenarios.registry import MIXES, PROVOKING, RACES
from stress.scenarios.scenario import Result, Seen

EACH = pytest.mark.parametrize("scenario", MIXES.values(), ids=MIXES.keys())
QUICK = ("mix_dontneeds", "mix_swap_ins", "mix_pin_split")
"""The last leaves pins with CPUs that are not the one which clears away: their locks are theirs, too."""


@EACH
def test_tables_are_whole(scenario, monkeypatch):
    monkeypatch.setattr(Param, "order", 3)
    assert list(scenario.problems()) == [] and scenario.meaning and scenario.rules and 2 <= len(scenario.cpus) <= 4
    assert scenario.name.startswith("mix_") and scenario.name not in RACES | PROVOKING
    for program in scenario.programs.values():
        assert parse_program(print_program(program)) == program


def test_steps_that_may_fail_get_a_label():
    assert labelled("enter 0; load 3; word: load 5; drain", "x") == "enter 0; x1: load 3; word: load 5; drain"


def test_a_mix_looks_at_what_it_names(monkeypatch):
    monkeypatch.setattr(Param, "order", 3)
    scenario = MIXES["mix_dontneed_vs_protect"]
    seen = {label: Result(0, 0) for label in scenario.labels} | {"old": Result(0, 8)}
    assert scenario.classify(Seen(seen)) == "done"
    assert scenario.classify(Seen(seen | {"first": Result(0, 103)})) is None, "what was thrown away is there again"
    assert -14 in ANY and -9999 not in ANY


@pytest.mark.parametrize("name", QUICK)
def test_some_are_clean(name):
    Machine._import_kernel()
    assert Free().hunt(MIXES[name], None, (1, 2), 0.5) is None
    job = Job(name, seed=7, checks=1)
    link_for(job)
    explored = Explorer(job, schedules=60).run()
    assert explored.failure is None and explored.tally.schedules >= 60


def test_of_new_ends_a_part_is_audited_and_the_others_are_not_known_to_be_good():
    Machine._import_kernel()
    job = Job("mix_swap_ins", seed=3)
    link_for(job)
    every, some = (Explorer(replace(job, audits=audits), cells=1, schedules=100).run() for audits in (1, 10))
    assert every.failure is None and some.failure is None and 0 < some.tally.states < every.tally.states


@pytest.mark.slow
@EACH
def test_all_are_clean(scenario):
    Machine._import_kernel()
    assert Free().hunt(scenario, None, range(1, 5), 1.5) is None
    for strategy, depth in (("pct", 3), ("random", 2)):
        job = Job(scenario.name, seed=5, strategy=strategy, depth=depth, checks=1)
        link_for(job)
        assert Explorer(job, schedules=1000).run().failure is None
