"""Patterns name exactly one statement, and each kind of edit does what it says."""

import ast

import pytest

from concur_thp.errors import EmulatorError
from concur_thp.machine import Machine
from concur_thp.rules.edit import Delete, Edit, Force, Insert, Move, Replace, Rewrite, Swap, edited_trees
from concur_thp.rules.find import PatternError, find, source_named, text

Machine._import_kernel()

CODE = '''
def f(cpu, page, old):
    """Doc."""
    spin_lock(cpu, page.ptl)
    if old != 0:
        spin_unlock(cpu, page.ptl)
        return 0
    for i in range(8):
        page.count.add(i)
    while old:
        put_page(cpu, page)
        old = old - 1
    put_page(cpu, page)
    spin_unlock(cpu, page.ptl)
    return old
'''


def tree() -> ast.FunctionDef:
    function = ast.parse(CODE).body[0]
    assert isinstance(function, ast.FunctionDef)
    return function


def after(edit: Edit) -> str:
    changed = tree()
    edit.apply(changed)
    return ast.unparse(ast.fix_missing_locations(changed))


@pytest.mark.parametrize("pattern, found", [
    ("spin_lock(...)", "spin_lock(cpu, page.ptl)"),
    ("if old != 0:", "if old != 0"),
    ("if ... != 0", "if old != 0"),
    ("for i in range(8):", "for i in range(8)"),
    ("put_page(cpu, page) #2", "put_page(cpu, page)"),
    ("put_page(cpu,page) in while old", "put_page(cpu, page)"),
    ("spin_unlock(...) in if old != 0", "spin_unlock(cpu, page.ptl)"),
    ("old = old-1", "old = old - 1"),
    ("return 0", "return 0"),
])
def test_a_pattern_names_one_statement(pattern, found):
    assert text(find(tree(), pattern).statement) == found


@pytest.mark.parametrize("pattern, complaint", [
    ("put_page(...)", "has 2 of"),
    ("put_page(...) #3", "has 2 of"),
    ("get_page(cpu, page)", "has no statement .* it has 'put_page"),
    ("put_page(...) in if old != 0", "has no statement"),
    ("'Doc.'", "has no statement"),
])
def test_a_pattern_that_names_none_or_several_is_refused(pattern, complaint):
    with pytest.raises(PatternError, match=complaint):
        find(tree(), pattern)


@pytest.mark.parametrize("edit, there, gone", [
    (Delete("f", "put_page(...) #2"), "old = old - 1\n    spin_unlock", "1\n    put_page"),
    (Delete("f", "page.count.add(i)"), "range(8):\n        pass", "add"),
    (Force("f", "if old != 0", True), "if True:", "if old"),
    (Rewrite("f", "old = old - 1", "1", "2"), "old = old - 2", "old - 1"),
    (Rewrite("f", "if old != 0", "old", "page.count"), "if page.count != 0", "if old"),
    (Replace("f", "return old", "old = 1\nreturn 7"), "old = 1\n    return 7", "return old"),
    (Insert("f", "get_page(cpu, page)", before="if old != 0"), "get_page(cpu, page)\n    if old", "nothing"),
    (Insert("f", "x = 1", after="spin_lock(...)"), "spin_lock(cpu, page.ptl)\n    x = 1", "nothing"),
    (Move("f", "spin_lock(...)", after="if old != 0"), "return 0\n    spin_lock", "\n    spin_lock(cpu, page.ptl)\n    if"),
    (Move("f", "return old", before="spin_lock(...)"), "return old\n    spin_lock", "page.ptl)\n    return old"),
    (Swap("f", "put_page(...) #2", "spin_unlock(...) #2"), "page.ptl)\n    put_page(cpu, page)\n    return", "nothing"),
])
def test_an_edit(edit, there, gone):
    changed = after(edit)
    assert there in changed and gone not in changed


@pytest.mark.parametrize("edit", [
    Force("f", "spin_lock(...)", True),
    Rewrite("f", "spin_lock(...)", "nothing", "0"),
    Move("f", "if old != 0", after="return 0"),
    Swap("f", "if old != 0", "return 0"),
])
def test_an_edit_that_makes_no_sense_is_refused(edit):
    with pytest.raises(PatternError):
        edit.apply(tree())


def test_edits_never_touch_the_real_tree_and_add_up():
    real = ast.dump(source_named("zap_huge_pmd").tree)
    trees = edited_trees([Delete("zap_huge_pmd", "tlb_record(...)"), Force("zap_huge_pmd", "if mapped #2", True)])
    assert len(trees) == 1 and ast.dump(source_named("zap_huge_pmd").tree) == real
    assert "tlb_record" not in ast.unparse(next(iter(trees.values())))


def test_an_edit_that_changes_nothing_is_refused():
    with pytest.raises(EmulatorError, match="changes nothing"):
        edited_trees([Rewrite("zap_huge_pmd", "mapped = ...", "old", "old")])


def test_functions_that_do_not_exist_are_named_with_near_ones():
    with pytest.raises(PatternError, match="zap_huge_pmd"):
        source_named("zap_huge_pdm")
