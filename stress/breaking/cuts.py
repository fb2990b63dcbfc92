"""Every call of a lock, trylock or flush in mm/, and every second look, found in the syntax trees: what happens without it?

Nobody wrote this list down, so it also holds what no rule speaks of. A lock goes together with its unlocks, in the same
function and where ELSEWHERE says, so that what is missing is the exclusion and not the bookkeeping.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from concur_thp.arch.checked import site_id
from concur_thp.arch.linker import Source
from concur_thp.rules.edit import Edit
from concur_thp.rules.find import find, places, text

UNLOCKS = {
    "spin_lock": "spin_unlock", "spin_lock_nested": "spin_unlock", "spin_lock_irq": "spin_unlock_irq",
    "down_read": "up_read", "down_write": "up_write", "down_write_nested": "up_write", "lock_page": "unlock_page",
    "anon_vma_lock_write": "anon_vma_unlock_write", "anon_vma_lock_read": "anon_vma_unlock_read",
    "rmap_walk_lock": "rmap_walk_unlock", "take_rmap_locks": "drop_rmap_locks", "pvmw_lock": "pvmw_unlock",
    "page_lock_anon_vma_read": "page_unlock_anon_vma_read", "lock_anon_pmd_page": "unlock_page",
}
"""A call that waits for a lock, and the call that gives it back."""
TRYLOCKS = {"trylock_page": "unlock_page", "spin_trylock": "spin_unlock", "down_read_trylock": "up_read",
            "down_write_trylock": "up_write", "rmap_walk_trylock": "rmap_walk_unlock"}
FLUSHES = {"flush_tlb_mm_range", "flush_tlb_mm", "flush_tlb_page", "flush_tlb_range", "try_to_unmap_flush",
           "try_to_unmap_flush_dirty", "flush_tlb_batched_pending", "tlb_flush_mmu", "tlb_flush_mmu_tlbonly", "smp_mb",
           "smp_wmb", "smp_rmb"}
SECOND_LOOKS = {"pmd_same", "pte_same", "pmd_trans_unstable", "hugepage_vma_revalidate", "khugepaged_test_exit", "page_mapped",
                "pmd_none", "pte_none", "is_swap_pmd", "pmd_trans_huge", "pmd_huge_or_swap", "compound_head", "PageLRU",
                "page_count", "total_mapcount", "page_trans_huge_map_swapcount", "PageSwapCache", "page_ref_freeze"}
"""Questions that are asked again because the answer may have changed."""
LEAVES = (ast.Return, ast.Continue, ast.Break)
ALWAYS, NEVER = " (always)", " (never)"
"""The two ways of an `if` that does not leave."""


ELSEWHERE: dict[tuple[str, str], tuple[tuple[str, str, int], ...]] = {
    ("anon_vma_lock_read", "down_read"): (
        ("anon_vma_unlock_read", "up_read(...)", 0), ("page_lock_anon_vma_read", "if down_read_trylock(...)", 1)),
    ("anon_vma_lock_write", "down_write"): (("anon_vma_unlock_write", "up_write(...)", 0),),
    ("migration_entry_wait", "spin_lock"): (
        ("pmd_migration_entry_wait", "spin_lock(...)", 1), ("wait_for_migration", "spin_unlock(...) #1", 0),
        ("wait_for_migration", "spin_unlock(...) #1", 0)),
    ("pmd_migration_entry_wait", "spin_lock"): (
        ("migration_entry_wait", "spin_lock(...)", 1), ("wait_for_migration", "spin_unlock(...) #1", 0),
        ("wait_for_migration", "spin_unlock(...) #1", 0)),
    ("pvmw_lock", "spin_lock"): (("pvmw_unlock", "spin_unlock(...)", 0),),
    ("take_rmap_locks", "down_write"): (("drop_rmap_locks", "up_write(...)", 0),),
    ("take_rmap_locks", "anon_vma_lock_write"): (("drop_rmap_locks", "anon_vma_unlock_write(...)", 0),),
    ("rmap_walk_lock", "down_read"): (("rmap_walk_unlock", "up_read(...)", 0),),
}
"""(function, lock) -> where the lock is given back in other functions, and what stands there then."""
GIVES: dict[str, int | str] = {"lock_anon_pmd_page": "Page(0)"}
"""Locks that return what they have locked, and what without them is in its place: nothing to unlock."""
AROUND = {"pvmw_lock", "page_lock_anon_vma_read"}
"""Locks whose body has cuts of its own; nobody would miss a call of them but the books."""


class Cut(NamedTuple):
    """One thing left out."""

    id: str
    kind: str
    """lock, trylock, flush or look."""
    function: str
    line: int
    what: str
    edits: tuple[Edit, ...]
    site: int
    """The statement, as checked and traced builds number it."""
    body: tuple[int, ...] = ()
    """Of an `if`: the statements that run when it is true."""

    @property
    def name(self) -> str:
        """What the broken code is compiled as."""
        return re.sub(r"\W+", "-", f"cut-{self.id}").strip("-")

    @property
    def edit(self) -> Edit:
        """What is done to the function itself."""
        return self.edits[0]


@dataclass(frozen=True)
class WithoutLock(Edit):
    """A lock call and the unlocks of the same thing in the function are left out."""

    number: int

    def apply(self, tree: ast.FunctionDef) -> None:
        place = list(places(tree))[self.number]
        call = _call(place.statement)
        assert call is not None
        name, lock = _name(call), _argument(call)
        _replace(place.statement, call, GIVES.get(name, 1))
        unlock = UNLOCKS.get(name) or TRYLOCKS.get(name)
        for other in list(places(tree)):
            undo = _call(other.statement)
            if undo is not None and _name(undo) == unlock and _argument(undo) == lock:
                _replace(other.statement, undo, 0)


@dataclass(frozen=True)
class WithoutCall(Edit):
    """A call that returns nothing is left out."""

    number: int

    def apply(self, tree: ast.FunctionDef) -> None:
        statement = list(places(tree))[self.number].statement
        call = _call(statement)
        assert call is not None
        _replace(statement, call, 0)


@dataclass(frozen=True)
class Elsewhere(Edit):
    """A call that belongs to a lock left out in another function."""

    at: str
    value: int

    def apply(self, tree: ast.FunctionDef) -> None:
        statement = find(tree, self.at).statement
        call = _call(statement)
        assert call is not None
        _replace(statement, call, self.value)


@dataclass(frozen=True)
class WithoutLook(Edit):
    """An `if` goes one way whatever there is."""

    number: int
    value: bool

    def apply(self, tree: ast.FunctionDef) -> None:
        statement = list(places(tree))[self.number].statement
        assert isinstance(statement, ast.If)
        statement.test = ast.copy_location(ast.Constant(self.value), statement.test)


def _call(statement: ast.stmt) -> ast.Call | None:
    """The interesting call of a statement, wherever it stands in it (but not in its body)."""
    head = statement.test if isinstance(statement, (ast.If, ast.While)) else statement
    if isinstance(head, (ast.For,)):
        return None
    for node in ast.walk(head):
        if isinstance(node, ast.Call) and _name(node) in (*UNLOCKS, *UNLOCKS.values(), *TRYLOCKS, *TRYLOCKS.values(), *FLUSHES):
            return node
    return None


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _argument(call: ast.Call) -> str:
    return ", ".join(ast.unparse(a) for a in call.args if ast.unparse(a) != "cpu")


def _replace(statement: ast.stmt, call: ast.Call, value: int | str) -> None:
    """Put a number, or an expression, where the call stood."""
    instead = ast.parse(str(value), mode="eval").body

    class Swap(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.expr:
            if node is call:
                for part in ast.walk(instead):
                    ast.copy_location(part, node)
                return instead
            self.generic_visit(node)
            return node

    Swap().visit(statement)


def all_cuts() -> list[Cut]:
    """Every cut in mm/, in the order of the source."""
    found = []
    for source in sorted({s for s in Source.every if s.unique.startswith("concur_thp.mm.")}, key=lambda s: s.unique):
        found += list(_cuts_of(source))
    return found


def _cuts_of(source: Source) -> Iterator[Cut]:
    seen: Counter[str] = Counter()
    for number, place in enumerate(places(source.tree)):
        statement = place.statement
        what = text(statement)
        seen[what] += 1
        what += f" #{seen[what]}" if seen[what] > 1 else ""
        line = source.first_line + statement.lineno - 1
        for kind, edit, how in _cuts_at(source, number, statement):
            edits = (edit, *(Elsewhere(*row) for row in ELSEWHERE.get((source.name, _lock_of(statement)), ())))
            yield Cut(f"{source.name}:{line}{how}", kind, source.name, line, what + how, edits, site_id(source, statement),
                      tuple(_body_of(source, statement)) if kind == "look" else ())


def _body_of(source: Source, statement: ast.stmt) -> Iterator[int]:
    assert isinstance(statement, ast.If)
    for inner in statement.body:
        for node in ast.walk(inner):
            if isinstance(node, ast.stmt):
                yield site_id(source, node)


def _lock_of(statement: ast.stmt) -> str:
    call = _call(statement)
    return _name(call) if call is not None else ""


def _cuts_at(source: Source, number: int, statement: ast.stmt) -> Iterator[tuple[str, Edit, str]]:
    """Kind, edit, and what tells two cuts of one statement apart."""
    call = _call(statement)
    name = _name(call) if call is not None else ""
    if name in AROUND:
        return
    if name in UNLOCKS and UNLOCKS[name] != source.name:
        yield "lock", WithoutLock(source.name, number), ""
    elif name in TRYLOCKS:
        yield "trylock", WithoutLock(source.name, number), ""
    elif name in FLUSHES and isinstance(statement, ast.Expr):
        yield "flush", WithoutCall(source.name, number), ""
    elif isinstance(statement, ast.If) and _looks_again(statement.test):
        if any(isinstance(node, LEAVES) for inner in statement.body for node in ast.walk(inner)):
            yield "look", WithoutLook(source.name, number, False), ""  # Who leaves has found a change.
        else:  # A question may ask for the old state, or for what has to be made good: nobody can tell by its looks.
            yield "look", WithoutLook(source.name, number, True), ALWAYS
            yield "look", WithoutLook(source.name, number, False), NEVER


def _looks_again(test: ast.expr) -> bool:
    """Does a test read something shared and compare it, or ask one of SECOND_LOOKS?"""
    for node in ast.walk(test):
        if isinstance(node, ast.Call) and _name(node) in SECOND_LOOKS:
            return True
        if isinstance(node, ast.Compare):
            reads = [n for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
                     and n.func.attr in ("read", "load", "cas")]
            if reads:
                return True
    return False


__all__ = ["Cut", "all_cuts"]
