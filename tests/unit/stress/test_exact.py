"""Scenarios of one CPU that end in one way: whole tables, and that the real code ends so, at both orders."""

import pytest

from concur_thp.config import Param
from concur_thp.machine import Machine
from concur_thp.program.step import parse_program, print_program
from stress.exploring.explorer import Explorer, link_for
from stress.exploring.job import Job
from stress.scenarios.registry import EXACT, MIXES, PROVOKING, RACES

EACH = pytest.mark.parametrize("scenario", EXACT.values(), ids=EXACT.keys())


@EACH
def test_tables_are_whole(scenario, monkeypatch):
    monkeypatch.setattr(Param, "order", 3)
    assert list(scenario.problems()) == [] and scenario.meaning and scenario.rules and len(scenario.cpus) == 1
    assert len(scenario.outcomes) == 1 and scenario.name not in RACES | PROVOKING | MIXES
    for program in scenario.programs.values():
        assert parse_program(print_program(program)) == program


@pytest.mark.parametrize("order", [3, 9])
@EACH
def test_the_real_code_ends_so(scenario, order):
    Machine._import_kernel()
    job = Job(scenario.name, order=order, checks=1)
    link_for(job)
    explored = Explorer(job, cells=1, schedules=2).run()
    assert explored.failure is None and explored.tally.outcomes == {"as it must be": 2}
