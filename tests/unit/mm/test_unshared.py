"""What mm says about fields it touches without their lock."""

import pytest

from concur_thp.arch.guard_words import read_guard
from concur_thp.arch.linker import Source
from concur_thp.arch.struct import STRUCTS
from concur_thp.machine import Machine
from concur_thp.mm.unshared import ROWS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.function)
def test_every_excuse_is_of_a_function_and_its_guarded_fields(row):
    Machine._import_kernel()
    assert row.function in {source.name for source in Source.every if source.unique.startswith("concur_thp.mm.")}
    for name in row.fields.split():
        struct, _, member = name.partition(".")
        assert read_guard(STRUCTS[struct].FIELDS[member].guard).masks, f"{name} has no guard to be excused from"
