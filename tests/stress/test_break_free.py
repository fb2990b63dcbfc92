"""`break --free`: variants are caught by the scenario of their row, equivalent ones are not, the real code stays clean."""

import json

import pytest
from click.testing import CliRunner

from concur_thp.errors import Misuse
from concur_thp.rules.edit import Delete
from concur_thp.rules.rule import Variant
from concur_thp.rules.table import VARIANTS
from stress.breaking.caught import Caught, symptom_of_report
from stress.breaking.free import Free
from stress.breaking.racing import Broken, line
from stress.cli import break_
from stress.scenarios.registry import SCENARIOS

SEEDS, MOST_SECONDS = range(1, 1000), 200.0
"""A hunt ends with what it catches, and most catch something in their first slice: on a slow machine it may take long."""
CERTAIN = {"R5a": "outcome", "R22a": "I1", "X5a": "I5", "R9a": "bug", "R20a": "I5", "X31a": "Q13"}


@pytest.mark.parametrize("name, symptom", CERTAIN.items())
def test_a_variant_is_caught_at_once(name, symptom):
    variant = VARIANTS[name][1]
    caught = Free().hunt(SCENARIOS[variant.scenario], variant, SEEDS, MOST_SECONDS)
    assert caught and caught.symptom == symptom and caught.expected(variant), caught


def test_what_a_race_does_wrong_is_caught():
    variant = VARIANTS["R19a"][1]
    caught = Free().hunt(SCENARIOS[variant.scenario], variant, SEEDS, MOST_SECONDS)
    assert caught and caught.symptom == "outcome"


def test_a_machine_that_stands_still_is_caught(monkeypatch):
    monkeypatch.setattr("stress.breaking.free.STUCK_SECONDS", 1.0)
    monkeypatch.setattr("stress.breaking.free.WATCHED", 8)
    variant = VARIANTS["R12a"][1]
    caught = Free().hunt(SCENARIOS[variant.scenario], variant, SEEDS, MOST_SECONDS)
    assert caught and caught.symptom == "stuck" and caught.expected(variant)


def test_an_equivalent_variant_is_not_noticed():
    variant = VARIANTS["R14a"][1]
    assert variant.equivalent and Free().hunt(SCENARIOS[variant.scenario], variant, range(1, 9), 1.0) is None


def test_the_command_says_what_it_caught(tmp_path):
    path = tmp_path / "break.json"
    words = ["R5a", "--free", "--seconds", str(MOST_SECONDS), "--seed", "3", "--json", str(path)]
    result = CliRunner().invoke(break_, words, standalone_mode=False)
    data = json.loads(path.read_text())
    assert result.return_value == 0, result.output
    assert {"id", "variant", "caught", "seconds_to_catch", "tries", "symptom", "token", "control_clean"} <= data.keys()
    assert (data["id"], data["variant"], data["caught"], data["control_clean"]) == ("R5", "R5a", True, True)


def test_a_variant_that_is_not_caught_is_exit_1(monkeypatch):
    rule, variant = VARIANTS["R5a"]
    harmless = Variant("R5a", variant.mistake, (Delete("zap_huge_pmd", "point(...)"),), "partial_dontneed", ("outcome",))
    monkeypatch.setitem(VARIANTS, "R5a", (rule, harmless))
    result = CliRunner().invoke(break_, ["R5a", "--free", "--seconds", "0.5", "--quiet"], standalone_mode=False)
    assert result.return_value == 1


def test_unknown_names_are_refused():
    with pytest.raises(Misuse, match="near are"):
        CliRunner().invoke(break_, ["R5z", "--free"], standalone_mode=False, catch_exceptions=False)


@pytest.mark.parametrize("text, symptom", [("I15: a freed frame is in a TLB (values ..)", "I15"), ("Q19: a lost write", "Q19"),
                                           ("lockdep: too many locks held (values 0x0, 0x0)", "lockdep"),
                                           ("rwsem not held (values 0x1, 0x0) in f on cpu 0", "lockdep"),
                                           ("put_page: page has no reference (value: pfn)", "bug")])
def test_reports_are_of_a_kind(text, symptom):
    assert symptom_of_report(text) == symptom


def test_expectation_and_control_decide_what_is_good():
    rule, variant = VARIANTS["R5a"]
    caught = Caught("free", "outcome", "x", 1.0, 2, 1)
    assert Broken(rule, variant, caught, None).good and not Broken(rule, variant, caught, caught).good
    assert not Broken(rule, variant, None, None).good and "NOT CAUGHT" in line(Broken(rule, variant, None, None))
    wild = Variant("R5a", "", (), "", ("crash",))
    assert Caught("free", "I7", "", 1, 1, 1).expected(wild) and not Caught("free", "outcome", "", 1, 1, 1).expected(wild)
    assert Caught("free", "bug", "bad page: x", 1, 1, 1).expected(Variant("R5a", "", (), "", ("bug: bad",)))
