"""The table of instant invariants: complete, and each row has cases of both kinds."""

import pytest

from concur_thp.check.invariants import INVARIANTS
from tests.unit.check import test_instant_pages, test_instant_tables, test_instant_tlb, test_instant_windows
from tests.unit.check.invariant_cases import ALLOWS, CATCHES

FILES = (test_instant_pages, test_instant_tables, test_instant_tlb, test_instant_windows)


def test_all_are_there():
    assert [row.id for row in INVARIANTS] == [f"I{n}" for n in range(1, 26)]


@pytest.mark.parametrize("row", INVARIANTS, ids=lambda row: row.id)
def test_a_row_is_tested_both_ways(row):
    assert CATCHES.get(row.id), "write a case with @breaks: what it must catch"
    assert ALLOWS.get(row.id), "write a case with @allows: what looks broken and must pass"


def test_every_case_is_run():
    """Each file of cases ends in the tests that run them."""
    ran = {file.__name__ for file in FILES if file.test_it_speaks and file.test_it_keeps_silent}
    assert {case.__module__ for kind in (CATCHES, ALLOWS) for cases in kind.values() for case in cases} == ran
