"""The scenarios as tables: they cover Appendix B, speak of everything they look at, and turn down what they do not name."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from concur_thp.config import Param
from concur_thp.errors import Misuse
from concur_thp.program.rows import MAX_ROWS
from concur_thp.program.step import parse_program, print_program
from concur_thp.program.table import StepOp
from stress.scenarios.registry import PAIRS, RACES, SCENARIOS, find
from stress.scenarios.scenario import Outcome, Result, Scenario, Seen, pages

ABSURD = -9999
EACH = pytest.mark.parametrize("scenario", RACES.values(), ids=RACES.keys())


@pytest.fixture(autouse=True, params=[3, 9])
def order(request, monkeypatch):
    monkeypatch.setattr(Param, "order", request.param)
    return request.param


def one_of(allowed):
    """A number that is allowed."""
    return pages(allowed) if isinstance(allowed, (int, str)) else pages(next(iter(allowed)))


def example(scenario: Scenario, outcome: Outcome) -> Seen:
    """Something that the outcome's row allows."""
    spoken = {**scenario.always, **outcome.where}
    both = {label: spoken[label] if isinstance(spoken[label], tuple) else (spoken[label], 0) for label in scenario.labels}
    results = {label: Result(one_of(status), one_of(value)) for label, (status, value) in both.items()}
    return Seen(results, (), {name: one_of(spoken[name]) if name in spoken else 0 for name in scenario.stats})


def wrong(seen: Seen, scenario: Scenario, outcome: Outcome) -> Iterator[Seen]:
    """The same with one thing wrong, for each thing that is looked at."""
    for label, result in seen.results.items():
        yield replace(seen, results={**seen.results, label: result._replace(status=ABSURD)})
        if scenario.labels[label]:
            yield replace(seen, results={**seen.results, label: result._replace(value=ABSURD)})
    for name in seen.stats.keys() & ({*scenario.always, *outcome.where}):
        yield replace(seen, stats={**seen.stats, name: ABSURD})
    yield replace(seen, unlabelled=(("store 0 1", -14),))


def test_every_pair_of_the_appendix_is_played():
    assert list(PAIRS) == list(range(1, 31))
    assert {number for scenario in RACES.values() for number in scenario.pairs} == set(PAIRS)
    assert {"fault_vs_collapse", "dontneed_vs_split_pmd"} <= SCENARIOS.keys()


@EACH
def test_outcomes_speak_of_every_label(scenario):
    assert list(scenario.problems()) == []
    assert scenario.meaning and scenario.rules and 2 <= len(scenario.cpus) <= 4
    assert any(outcome.must for outcome in scenario.outcomes)
    assert all(outcome.when is None or outcome.when.__doc__ for outcome in scenario.outcomes)  # `races show` prints it


@EACH
def test_programs_survive_printing_and_keep_to_the_rules(scenario):
    for program in scenario.programs.values():
        assert parse_program(print_program(program)) == program
        assert [step.words() for step in program]
    scanning = [n for n, program in scenario.programs.items() if any(step.op == StepOp.scan for step in program)]
    assert len(scanning) <= 1  # khugepaged is one thread
    entered = [step.arguments[0] for program in scenario.programs.values() for step in program if step.op == StepOp.enter]
    assert 7 not in entered  # the bystanders' space
    assert sum(map(len, scenario.programs.values())) < MAX_ROWS // 2


@EACH
def test_a_result_that_nobody_named_is_no_outcome(scenario):
    for outcome in scenario.outcomes:
        seen = example(scenario, outcome)
        if outcome.when is None:
            assert scenario.classify(seen) is not None, (outcome.name, str(seen))
        for other in wrong(seen, scenario, outcome):
            assert scenario.classify(other) is None, (outcome.name, str(other))


def test_the_check_of_tables_can_fail():
    good = SCENARIOS["dontneed_vs_split_pmd"]
    mute = replace(good, always={k: v for k, v in good.always.items() if k != "old"})
    assert "says nothing of old" in next(iter(mute.problems()))
    short = replace(good, always={**good.always, "old": 0})
    assert "(status, value)" in next(iter(short.problems()))
    typo = replace(good, always={**good.always, "odl": 0})
    assert "which no step has" in next(iter(typo.problems()))


def test_a_relation_between_results_can_fail():
    scenario = SCENARIOS["file_unmap_vs_drop"]
    outcome = scenario.outcomes[0]
    seen = example(scenario, outcome)
    whole = replace(seen, results={**seen.results, "later": Result(pages("1h"), 0)})
    assert scenario.classify(whole) == outcome.name
    assert scenario.classify(replace(seen, results={**seen.results, "later": Result(1, 0)})) is None


def test_pages_in_outcomes(order):
    assert pages("1h-1") == (1 << order) - 1 and pages("4e") == 1 << (order - 1) and pages(7) == 7


def test_races_are_found_by_name_by_number_and_all():
    assert [s.name for s in find(("4", "dontneed_vs_mprotect"))] == ["dontneed_vs_mprotect"]
    assert len(find(("all", "1"))) == len(RACES)
    for name in ("0", "31", "nothing", ""):
        with pytest.raises(Misuse, match="pass a number from 1 to 30"):
            find((name,))
