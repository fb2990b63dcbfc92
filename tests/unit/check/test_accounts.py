"""Accounts kept from the beginning are what a machine at rest is counted to have, whatever has happened in between."""

import pytest

from concur_thp.check.accounts import open_accounts
from concur_thp.check.pins import declare_pin, unpin
from concur_thp.check.views import view
from concur_thp.mm.gup_fast import get_user_pages_fast
from concur_thp.mm.migrate import NEW_PAGE
from concur_thp.mm.move_pages import move_page
from concur_thp.mm.page_account import CACHE, MAP, PIN, REF, page_accounts
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_mprotect, sys_munmap
from tests.unit.check.invariant_cases import child_exits, collapse, fork, pinned, small_range, split
from tests.unit.check.tables import FILE, HOLES, HUGE, PAGE, SMALL, THP


def words(scene):
    return view(page_accounts, scene.config.frames)["word"].copy()


def same_when_counted(scene):
    """Kept word by word; references that wait in pagevecs are nobody's in the count, so drain first."""
    lru_add_drain(scene.cpu)
    kept = words(scene)
    open_accounts(scene.config)
    return (kept == words(scene)).all()


def test_kept_and_counted(watched):
    scene = watched
    small_range(scene)
    assert collapse(scene) == 1
    fork(scene)
    assert sys_mprotect(scene.cpu, THP, PAGE, 1) == 0
    scene.store(HOLES, SMALL)
    assert same_when_counted(scene)
    assert move_page(scene.cpu, scene.mm, FILE, NEW_PAGE) == 0
    assert move_page(scene.cpu, scene.mm, THP + HUGE, NEW_PAGE) == 0
    assert split(scene, THP) == 0
    assert get_user_pages_fast(scene.cpu, THP + HUGE, 1, 1, pinned[0]) == 1
    declare_pin(scene.cpu, 0, pinned[0].value)
    assert same_when_counted(scene)
    child_exits(scene)
    unpin(scene.cpu, 0)
    assert sys_munmap(scene.cpu, THP, 4 * HUGE) == 0
    assert same_when_counted(scene)


@pytest.mark.parametrize("change", [REF, MAP, CACHE, PIN])
def test_the_audit_compares(scene, change):
    page = page_accounts[scene.pfn(SMALL)]
    page.word.add(change)
    assert scene.laws() == set()  # Nobody keeps accounts yet.
    scene.machine.listen_checks()
    assert scene.laws() == set()
    page.word.add(change)
    assert scene.laws() == {"I25"}
