"""Edits of a kernel function, as data: each makes one realistic mistake in a copy of its syntax tree.

    Delete("wp_huge_copy", "pmdp_invalidate(...)")
    Force("__pmd_trans_huge_lock", "if pmd_huge_or_swap(...)", True)
    Move("split_huge_anon_pmd", "page_ref_add(...)", after="pmd_populate(...)")
    Rewrite("page_add_new_anon_rmap", "...compound_mapcount.write(0)", "write(0)", "write(1)")

Statements are named by patterns (find.py); each must name exactly one, or nothing is built. Source files are never touched.
"""

import ast
import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from concur_thp.arch.linker import Source
from concur_thp.rules.find import PatternError, find, source_named, text


@dataclass(frozen=True)
class Edit:
    """One change of one function."""

    function: str

    def apply(self, tree: ast.FunctionDef) -> None:
        """Change a tree that is the caller's own."""
        raise AssertionError("an edit says how")


@dataclass(frozen=True)
class Delete(Edit):
    """Leave a statement out, with all that it contains."""

    at: str

    def apply(self, tree: ast.FunctionDef) -> None:
        _take(tree, self.at)


@dataclass(frozen=True)
class Force(Edit):
    """Take the test of an `if` or `while` for True or False."""

    at: str
    value: bool

    def apply(self, tree: ast.FunctionDef) -> None:
        statement = find(tree, self.at).statement
        if not isinstance(statement, (ast.If, ast.While)):
            raise PatternError(f"{tree.name}: {text(statement)!r} has no test to force")
        statement.test = ast.copy_location(ast.Constant(self.value), statement.test)


@dataclass(frozen=True)
class Rewrite(Edit):
    """Replace the one part `old` of a statement, an expression, by `new`."""

    at: str
    old: str
    new: str

    def apply(self, tree: ast.FunctionDef) -> None:
        statement = find(tree, self.at).statement
        swap = _Exchange(ast.unparse(_expression(self.old)), _expression(self.new))
        for name, value in ast.iter_fields(statement):
            if name not in ("body", "orelse"):
                setattr(statement, name, [swap.visit(v) for v in value] if isinstance(value, list) else
                        swap.visit(value) if isinstance(value, ast.AST) else value)
        if swap.count != 1:
            raise PatternError(f"{tree.name}: {self.old!r} stands {swap.count} times in {text(statement)!r}, not once")


class _Exchange(ast.NodeTransformer):
    """Puts a new expression wherever the old one stands, and counts."""

    def __init__(self, old: str, new: ast.expr):
        self.old, self.new, self.count = old, new, 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and ast.unparse(node) == self.old:
            self.count += 1
            return _located(copy.deepcopy(self.new), node)
        return self.generic_visit(node)


@dataclass(frozen=True)
class Replace(Edit):
    """Put other statements in the place of one."""

    at: str
    new: str

    def apply(self, tree: ast.FunctionDef) -> None:
        place = find(tree, self.at)
        place.block[place.index:place.index + 1] = _statements(self.new, place.statement)


@dataclass(frozen=True)
class Insert(Edit):
    """Add statements behind or before one."""

    new: str
    after: str = ""
    before: str = ""

    def apply(self, tree: ast.FunctionDef) -> None:
        at = find(tree, self.after or self.before)
        index = at.index + bool(self.after)
        at.block[index:index] = _statements(self.new, at.statement)


@dataclass(frozen=True)
class Move(Edit):
    """Take a statement out of its place and put it behind or before another."""

    at: str
    after: str = ""
    before: str = ""

    def apply(self, tree: ast.FunctionDef) -> None:
        to = find(tree, self.after or self.before).statement
        moved = find(tree, self.at).statement
        if any(inner is to for inner in ast.walk(moved)):
            raise PatternError(f"{tree.name}: {text(moved)!r} cannot move next to {text(to)!r}, which is in it")
        _take(tree, self.at)
        place = next(p for p in _every(tree) if p[0][p[1]] is to)
        place[0].insert(place[1] + bool(self.after), moved)


@dataclass(frozen=True)
class Swap(Edit):
    """Exchange two statements."""

    at: str
    other: str

    def apply(self, tree: ast.FunctionDef) -> None:
        a, b = find(tree, self.at), find(tree, self.other)
        if a.statement is b.statement or a.statement in b.around or b.statement in a.around:
            raise PatternError(f"{tree.name}: {self.at!r} and {self.other!r} cannot change places")
        i, j = a.index, b.index
        a.block[i], b.block[j] = b.statement, a.statement


def _every(tree: ast.FunctionDef) -> Iterable[tuple[list[ast.stmt], int]]:
    for node in ast.walk(tree):
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                yield from ((block, index) for index in range(len(block)))


def _take(tree: ast.FunctionDef, pattern: str) -> None:
    place = find(tree, pattern)
    index = place.index
    del place.block[index]
    if not place.block:
        place.block.append(_located(ast.Pass(), place.statement))


def _located(node: Any, at: ast.AST) -> Any:
    """New nodes stand on the line of what they replace: reports and points name it."""
    for part in ast.walk(node):
        if "lineno" in getattr(part, "_attributes", ()):
            part.lineno, part.col_offset = at.lineno, at.col_offset  # type: ignore[attr-defined]
            part.end_lineno, part.end_col_offset = at.end_lineno, at.end_col_offset  # type: ignore[attr-defined]
    return node


def _expression(source: str) -> ast.expr:
    return ast.parse(source, mode="eval").body


def _statements(source: str, at: ast.stmt) -> list[ast.stmt]:
    return [_located(statement, at) for statement in ast.parse(source).body]


def edited_trees(edits: Iterable[Edit]) -> dict[Source, ast.FunctionDef]:
    """The functions that edits change, each with its changed tree. Edits of one function apply one after another."""
    trees: dict[Source, ast.FunctionDef] = {}
    for edit in edits:
        source = source_named(edit.function)
        if source not in trees:
            trees[source] = copy.deepcopy(source.tree)
        before = ast.dump(trees[source])
        edit.apply(trees[source])
        if ast.dump(trees[source]) == before:
            raise PatternError(f"{source.name}: {edit} changes nothing")
    return trees
