"""Broken code in place of the real, and the real one back."""

import pytest

from concur_thp.arch import native
from concur_thp.arch.linker import SLOTS, Kernel, inline, interpreted, kernel
from concur_thp.errors import EmulatorError
from concur_thp.rules.edit import Delete, Insert, Replace, Rewrite
from concur_thp.rules.variant import Variant, broken, kernels_with


@inline
def rv_twice(x: int):
    return x * 2


@inline
def rv_four_times(x: int):
    return rv_twice(rv_twice(x))


@kernel
def rv_direct(x: int):
    return rv_twice(x) + 1


@kernel
def rv_deep(x: int):
    return rv_four_times(x)


@kernel
def rv_by_slot(x: int):
    y = rv_direct(x)
    y = y * 10
    return y


@pytest.fixture
def linked(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCUR_THP_CACHE", str(tmp_path))
    native.link([rv_direct, rv_deep, rv_by_slot])


def test_native_code_is_broken_and_whole_again(linked):
    before = list(SLOTS)
    assert rv_by_slot(3) == 70
    with broken([Delete("rv_by_slot", "y = y * 10")]):
        assert rv_by_slot(3) == 7
        with broken([Rewrite("rv_direct", "return ...", "1", "2")]):
            assert rv_by_slot(3) == 8
    assert rv_by_slot(3) == 70 and list(SLOTS) == before


def test_an_inline_function_is_broken_in_all_that_use_it(linked):
    with broken([Rewrite("rv_twice", "return x * 2", "2", "3")]) as variant:
        assert variant.kernels == [rv_direct, rv_deep]
        assert (rv_direct(1), rv_deep(1), rv_by_slot(1)) == (4, 9, 40)
    assert (rv_direct(1), rv_deep(1), rv_by_slot(1)) == (3, 4, 30)


def test_users_are_found_through_other_inline_functions():
    assert kernels_with([rv_four_times]) == [rv_deep]
    assert kernels_with([rv_by_slot]) == [rv_by_slot]


def test_interpreted_code_is_broken_too():
    with interpreted():
        with broken([Delete("rv_by_slot", "y = y * 10"), Rewrite("rv_twice", "return ...", "2", "5")]):
            assert rv_by_slot(3) == 16
        assert rv_by_slot(3) == 70


def test_an_edit_may_use_names_that_its_module_does_not_have(linked):
    with broken([Insert("rv_by_slot", "y = y + is_swap_pmd(0) + PG_lru", before="return y")]):
        assert rv_by_slot(0) == 15
    with pytest.raises(EmulatorError, match="no kernel module"):
        Variant([Replace("rv_by_slot", "return y", "return no_such_name")]).put()
    assert rv_by_slot(0) == 10


def test_a_redirected_hook_runs_the_broken_function(linked):
    before = SLOTS[rv_direct.slot]
    SLOTS[rv_direct.slot] = SLOTS[rv_deep.slot]
    try:
        with broken([Replace("rv_deep", "return ...", "return 99")]):
            assert rv_direct(1) == 99
        assert rv_direct(1) == 4
    finally:
        SLOTS[rv_direct.slot] = before


def test_the_same_variant_compiles_once(linked, monkeypatch):
    edits = [Rewrite("rv_direct", "return ...", "1", "41")]
    with broken(edits):
        assert rv_direct(0) == 41
    monkeypatch.setattr(native, "object_for", None)
    with broken(edits):
        assert rv_direct(0) == 41
    assert all(isinstance(k, Kernel) for k in kernels_with([rv_direct]))


def test_twice_in_place_is_refused(linked):
    variant = Variant([Rewrite("rv_direct", "return ...", "1", "3")])
    variant.put()
    try:
        with pytest.raises(EmulatorError, match="already"):
            variant.put()
    finally:
        variant.take()
    assert rv_direct(0) == 1
