"""The vocabulary of guards, read."""

import pytest

from concur_thp.arch.guard_words import CLASS_MASKS, excused, message, messages, read_guard
from concur_thp.mm.mm_types import Page, Vma
from concur_thp.mm.unshared import ROWS

SEM, ANON, FILE = CLASS_MASKS["mmap_sem"], CLASS_MASKS["anon_vma_rwsem"], CLASS_MASKS["i_mmap_rwsem"]


@pytest.mark.parametrize("text", ["const", "init", "cpu", "owner", "atomic", "box_lock", "init|racy"])
def test_words_that_demand_nothing_of_the_locks_held(text):
    guard = read_guard(text)
    assert (guard.read, guard.masks) == (0, ())


def test_either_to_read_both_to_write():
    guard = read_guard("mmap_sem+anon_vma_rwsem+i_mmap_rwsem?|racy")
    assert guard.read == SEM | ANON | FILE and guard.masks == (SEM, ANON) and guard.racy and not guard.const


def test_a_nested_class_is_its_class():
    assert bin(CLASS_MASKS["pmd_ptl"]).count("1") == 2 and CLASS_MASKS["pmd_ptl/1"] & CLASS_MASKS["pmd_ptl"]


def test_messages_name_the_field_and_what_it_needs():
    field = Vma.FIELDS["vm_end"]
    assert "Vma.vm_end read without mmap_sem or anon_vma_rwsem or i_mmap_rwsem" in message(field, False)
    assert "Vma.vm_end written without mmap_sem (" in message(field, True)
    assert {message(field, False), message(field, True)} <= set(messages())


def test_an_excuse_is_for_one_function_and_one_field():
    private = Page.FIELDS["private"]
    assert excused(private, "prep_new_page") and excused(private, "other", "prep_new_page")
    assert not excused(private, "other") and not excused(Page.FIELDS["mapping"], "prep_new_page")
    assert ROWS
