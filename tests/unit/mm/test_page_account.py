"""Shadow accounting: what each helper notes, when it objects; silent when nobody listens."""

import pytest

from concur_thp.arch.irq import cpu_resume
from concur_thp.arch.linker import interpreted
from concur_thp.errors import KernelBug
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE
from concur_thp.mm.mm_types import Page
from concur_thp.mm.page_account import (
    CACHE,
    MAP,
    PIN,
    account,
    account_cache,
    account_maps,
    account_pins,
    account_refs,
    page_account,
)
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_ref import (
    get_page,
    get_page_unless_zero,
    page_ref_add,
    page_ref_freeze,
    page_ref_sub,
    page_ref_unfreeze,
)
from concur_thp.mm.put_page import put_page


@pytest.fixture
def cpu(machine_factory):
    machine = machine_factory(memory="4M", order=3)
    machine.listen_checks(every=1)
    cpu_resume(machine.cpu())
    with interpreted():
        yield machine.cpu()


def fresh(cpu) -> Page:
    return Page(int(alloc_page(cpu, GFP_HIGHUSER_MOVABLE)))


def parts(page: Page) -> tuple[int, int, int, int]:
    word = page_account(page)
    return account_refs(word), account_maps(word), account_cache(word), account_pins(word)


def test_every_helper_notes_what_it_does(cpu):
    page = fresh(cpu)
    assert parts(page) == (1, 0, 0, 0)
    get_page(cpu, page)
    assert get_page_unless_zero(page)
    page_ref_add(page, 3)
    assert parts(page) == (6, 0, 0, 0)
    for change, number in ((MAP, 2), (CACHE, 3), (PIN, 1)):
        account(cpu, page, number * change)
    assert parts(page) == (6, 2, 3, 1)
    for change, number in ((MAP, 2), (CACHE, 3), (PIN, 1)):
        account(cpu, page, -number * change)
    page_ref_sub(cpu, page, 4)
    assert parts(page) == (2, 0, 0, 0) and page._refcount.read() == 2
    assert not page_ref_freeze(page, 1) and page_ref_freeze(page, 2)
    assert parts(page) == (0, 0, 0, 0) and not get_page_unless_zero(page)
    page_ref_unfreeze(cpu, page, 1)
    put_page(cpu, page)
    assert parts(page) == (0, 0, 0, 0)


def test_a_frozen_page_may_keep_its_slots_and_nothing_else(cpu):
    page = fresh(cpu)
    page_ref_add(page, 1)
    account(cpu, page, CACHE)
    assert page_ref_freeze(page, 2)
    assert parts(page) == (0, 0, 1, 0)
    with pytest.raises(KernelBug, match="^I3: "):
        account(cpu, page, MAP)


@pytest.mark.parametrize("change", [MAP, CACHE, PIN])
def test_nothing_without_a_reference_each(cpu, change):
    page = fresh(cpu)
    account(cpu, page, change)
    with pytest.raises(KernelBug, match="^I3: "):
        account(cpu, page, MAP)


@pytest.mark.parametrize("change", [MAP, CACHE, PIN])
def test_nothing_goes_below_zero(cpu, change):
    page = fresh(cpu)
    with pytest.raises(KernelBug, match="^I25: "):
        account(cpu, page, -change)


def test_without_listeners_nothing_is_noted(machine_factory):
    machine = machine_factory(memory="4M", order=3)
    cpu_resume(machine.cpu())
    with interpreted():
        page = fresh(machine.cpu())
        account(machine.cpu(), page, -MAP)
        assert page_account(page) == 0
        put_page(machine.cpu(), page)
