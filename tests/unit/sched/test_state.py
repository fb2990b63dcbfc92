"""What the scheduler knows: numbers that tokens depend on, and words that belong to no snapshot."""

from enum import IntEnum

import pytest

from concur_thp.arch.shared import SharedArray
from concur_thp.config import MachineConfig
from concur_thp.machine import Machine
from concur_thp.sched import state
from concur_thp.sched.state import Reason, Status, Verdict
from stress.exploring.job import KINDS, Stretch


def test_reasons_keep_their_numbers():
    """They stand in tokens that others have."""
    assert {reason.name: int(reason) for reason in Reason} == {
        "START": 0, "PREEMPT": 1, "BLOCK": 2, "YIELD": 3, "DONE": 4, "END": 5}


@pytest.mark.parametrize("enum", [Reason, Status, Verdict])
def test_numbers_have_one_name(enum: type[IntEnum]):
    assert sorted(int(member) for member in enum) == list(range(len(enum)))


def test_every_verdict_that_speaks_for_itself_is_a_kind_of_failure():
    """The others: nothing has ended yet, it is for the audit to say, or nobody asks."""
    assert set(Verdict) - set(KINDS) == {Verdict.RUNNING, Verdict.FINISHED, Verdict.CUT}


def test_a_stretch_of_a_token_is_a_row_of_the_log():
    assert [name for name in state.Stretch.FIELDS if name in Stretch._fields] == ["cpu", "reason", "steps", "site"]


def test_logs_are_there_only_where_runs_are_controlled():
    Machine._import_kernel()
    plain, controlled = (MachineConfig(cpus=2, memory=4 << 20, order=3, controlled=on) for on in (False, True))
    grown = {name for name, array in SharedArray.all.items() if array.count(controlled) != array.count(plain)}
    assert {"sched_log", "sched_plan", "sched_steps", "sched_accesses", "sched_statements"} <= grown
    assert all(name.startswith("sched") for name in grown), "nothing else of a machine depends on who runs it"
