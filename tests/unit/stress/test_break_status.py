"""What `break` makes of hunts that were disturbed, by exit status and in words."""

import pytest

from concur_thp.rules.table import VARIANTS
from stress.breaking.hunt import Hunted
from stress.breaking.main import line, status, total, whole
from stress.exploring.job import Failure

AIMED, EQUIVALENT = "R19a", "K19f"
KILLED = "a cell was ended by SIGKILL, which no run does by itself"


def hunted(name=AIMED, **facts) -> Hunted:
    found = Hunted(name, VARIANTS[name][1], control_clean=True)
    if facts.get("caught"):
        found.failure = Failure("audit", "Q5: a count is wrong")
    for key, value in facts.items():
        setattr(found, key, value)
    return found


@pytest.mark.parametrize("facts, wanted", [
    ({"caught": True}, 0),
    ({"caught": False}, 1),
    ({"caught": True, "problem": KILLED}, 0),
    ({"caught": False, "problem": KILLED}, 4),
    ({"caught": True, "problem": KILLED, "control_clean": None}, 4),
    ({"caught": True, "control_clean": False, "control": Failure("bug", "x")}, 1),
    ({"caught": True, "problem": KILLED, "control_clean": False, "control": Failure("bug", "x")}, 1),
    ({"name": EQUIVALENT, "caught": False}, 0),
    ({"name": EQUIVALENT, "caught": True}, 1),
])
def test_the_exit_status(facts, wanted):
    assert status([hunted(**facts)]) == wanted
    assert status([hunted(caught=True), hunted(**facts)]) == wanted


def test_one_that_was_not_caught_outweighs_one_that_was_disturbed():
    assert status([hunted(problem=KILLED), hunted()]) == 1


def test_what_disturbed_is_said():
    disturbed = hunted(problem=KILLED, control_clean=None)
    assert KILLED in line(disturbed) and "NOT CAUGHT" in line(disturbed)
    assert KILLED in line(hunted(caught=True, problem=KILLED, control_clean=None))
    assert "SO IS THE REAL CODE" in line(hunted(caught=True, control_clean=False, control=Failure("bug", "x")))
    assert total([disturbed]).endswith(f"real code clean; somebody ended cells of {AIMED}")
    assert whole(disturbed).row_count == whole(hunted()).row_count + 1
