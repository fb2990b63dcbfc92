"""The table of instant invariants against the code: every row is asked at its places. (Cases: tests/unit/check.)"""

import ast
import inspect
import re
from pathlib import Path

import pytest

from concur_thp.arch.linker import Kernel, Source
from concur_thp.arch.points import Point
from concur_thp.check import instant
from concur_thp.check.invariants import INVARIANTS, Invariant
from concur_thp.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
ROWS = pytest.mark.parametrize("row", INVARIANTS, ids=lambda row: row.id)
CALL = re.compile(r"check_point(?:_with)?\(cpu, Point\.(\w+)")


def called(source: Source, tree: ast.AST) -> set[Source]:
    """Kernel and inline functions that this part of a function calls, directly or through others."""
    found: set[Source] = set()
    todo = [(source, tree)]
    while todo:
        owner, part = todo.pop()
        for node in ast.walk(part):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            callee = owner.namespace.get(name)
            if isinstance(callee, Source) and callee not in found:
                found.add(callee)
                todo.append((callee, callee.tree))
    return found


def branches() -> dict[str, set[Source]]:
    """Point -> functions that check_at() calls there."""
    found: dict[str, set[Source]] = {}
    for source in (instant.check_at, instant.check_window):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.If):
                names = re.findall(r"Point\.(\w+)", ast.unparse(node.test))
                reached = called(source, ast.Module(node.body, []))
                found |= {name: reached for name in names}
    return found


def places_in_kernel_code() -> set[str]:
    """Points that mm, sync and the mix hand to check_point()."""
    files = [path for folder in ("concur_thp/mm", "concur_thp/sync", "stress") for path in (ROOT / folder).rglob("*.py")]
    return {name for path in files for name in CALL.findall(path.read_text())}


def says(check: Kernel, row: Invariant) -> bool:
    """Does the function, or an inline part of it, speak with the row's name?"""
    parts = [check, *(part for part in called(check, check.tree) if part.inline)]
    return any(f'"{row.id}: ' in inspect.getsource(part.function) for part in parts)


@ROWS
def test_a_row_is_asked_at_its_places(row):
    at, passed = branches(), places_in_kernel_code()
    for place in row.places:
        assert place.name in passed, f"no kernel code calls check_point(cpu, Point.{place.name}, ..)"
        assert set(row.checks) & at[place.name], f"check_at() asks none of the row's functions at {place.name}"
    assert all(says(check, row) for check in row.checks), f"each function of the row must have a text \"{row.id}: ...\""


@ROWS
def test_a_row_without_places_is_asked_in_the_helpers(row):
    if not row.places:
        Machine._import_kernel()
        kernel = [source for source in Source.every if source.unique.startswith("concur_thp.mm.") and not source.inline]
        assert sum(bool(set(row.checks) & called(source, source.tree)) for source in kernel) > 5


@ROWS
def test_checks_say_why_they_are_sound(row):
    for check in row.checks:
        assert re.search(r"Sound: \S", check.function.__doc__ or "") or not row.places, check.unique


def test_every_branch_is_a_row_or_a_first_moment():
    """What check_at() does and no row names only notes something for a later place."""
    rows = {place.name for row in INVARIANTS for place in row.places}
    assert set(branches()) - rows == {"TABLE_SEEN", "EXIT_MMAP", "EXIT_MMAP_DONE"}
    assert places_in_kernel_code() >= set(branches()) == {place.name for place in instant.PLACES}
    assert max(instant.PLACES) < instant.NR_POINTS


def test_the_sampled_points_are_those_that_are_passed_often():
    frequent = {point for point in Point if instant.is_frequent(point)}
    assert frequent <= {Point[name] for name in branches()} and Point.PAGE_FROZEN not in frequent
