"""Rules about the source that no linter knows; each message says what to do instead."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from concur_thp.arch.linker import Inline, Source
from concur_thp.arch.struct import STRUCTS
from concur_thp.machine import Machine
from concur_thp.sync.lock_classes import CLASS_ID, LOCK_CLASSES
from tests.tidy.gaps import NO_TEST_YET

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("concur_thp", "workers", "stress", "tests")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
GUARDS = {"const", "init", "atomic", "cpu", "owner", *CLASS_ID}
MOST_FILE_LINES = 600
MOST_FUNCTION_LINES = 60

LONG_FUNCTIONS: dict[str, str] = {}
"""Functions over MOST_FUNCTION_LINES lines: 'path:name' -> why it reads better in one piece."""


def kernel_sources() -> list[Source]:
    Machine._import_kernel()
    import_module("concur_thp.program.rows")
    return [source for source in Source.every if source.unique.startswith("concur_thp.")]


def test_every_field_has_a_known_guard():
    kernel_sources()
    wrong = []
    for struct in STRUCTS.values():
        if not struct.__module__.startswith("concur_thp."):
            continue
        locks = {name for name in struct.FIELDS if name.endswith("lock")}
        wrong += [f"{struct.__name__}.{name}: {field.guard}" for name, field in struct.FIELDS.items()
                  if not {w.removesuffix("?") for w in field.guard.removesuffix("|racy").split("+")} <= GUARDS | locks]
    assert not wrong, f"a guard is one of {sorted(GUARDS)}, a lock field of the struct, or several joined by +: {wrong}"


def test_every_field_says_what_it_means():
    kernel_sources()
    fields = [field for struct in STRUCTS.values() for field in struct.FIELDS.values()]
    assert fields and not [field.name for field in fields if not field.meaning.strip()]


def test_every_kernel_function_says_where_it_may_be_called_and_whose_it_is():
    wrong = []
    for source in kernel_sources():
        text = source.function.__doc__ or ""
        if isinstance(source, Inline):
            continue
        if not re.search(r"^\s*Context: \S", text, re.M) or not re.search(r"^\s*(Linux|Emulator): \S", text, re.M):
            wrong.append(source.unique)
    assert not wrong, f"the docstring needs `Context: ...` and `Linux: file function` or `Emulator: why`: {wrong}"


def test_differs_says_what_differs():
    pattern = re.compile(r"Differs:\s*((nothing|none|not at all)\W*$|.*steps are the (kernel|same))", re.I | re.M)
    wrong = [source.unique for source in kernel_sources() if pattern.search(source.function.__doc__ or "")]
    assert not wrong, f"leave the line `Differs:` out when nothing differs: {wrong}"


def test_every_lock_class_is_filled_in():
    for row in LOCK_CLASSES:
        assert all(text.strip() for text in (row.name, row.kind, row.per, row.protects, row.nesting)), row
        assert row.kind in ("spinlock", "bit", "rwsem"), row


def test_no_file_is_too_long():
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := path.read_text().count("\n")) > MOST_FILE_LINES}
    assert not long, f"split by subject: {long}"


def test_long_functions_are_justified():
    long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > MOST_FUNCTION_LINES:
                long[f"{path.relative_to(ROOT)}:{node.name}"] = node.end_lineno - node.lineno + 1
    assert not long.keys() - LONG_FUNCTIONS.keys(), f"shorten, or say in LONG_FUNCTIONS why not: {long}"
    assert not LONG_FUNCTIONS.keys() - long.keys(), "no longer long: take it out of LONG_FUNCTIONS"


def test_nothing_is_left_open():
    words = re.compile(r"\b(TO" + "DO|FIX" + "ME|X" + "XX|NotImplemented" + r"Error)\b")
    lines = ((path, n, line) for path in FILES for n, line in enumerate(path.read_text().splitlines(), 1))
    found = [f"{path.relative_to(ROOT)}:{n}" for path, n, line in lines if words.search(line)]
    assert not found, f"finish it, or open an issue: {found}"


@pytest.mark.parametrize("folder", NO_TEST_YET)
def test_modules_have_a_unit_test(folder):
    modules = {path.stem for path in (ROOT / "concur_thp" / folder).glob("*.py")} - {"__init__"}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests/unit" / folder).glob("test_*.py")}
    missing, allowed = modules - tested, set(NO_TEST_YET[folder].split())
    assert not missing - allowed, f"write tests/unit/{folder}/test_<module>.py for {sorted(missing - allowed)}"
    assert not allowed - missing, f"tested or gone: take {sorted(allowed - missing)} out of tests/tidy/gaps.py"
