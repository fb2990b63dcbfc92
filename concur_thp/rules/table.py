"""All rules: found by id, resolved to files and lines, with their broken variants as diffs.

Kernel functions have to be imported before anything is resolved (machine.py does).
"""

import ast
import copy
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from concur_thp.arch.linker import Source
from concur_thp.errors import Misuse
from concur_thp.rules import (
    accounts,
    collapsing,
    counts,
    deferred,
    design,
    gup,
    holes,
    order,
    split_page,
    walkers,
    walks,
)
from concur_thp.rules.edit import edited_trees
from concur_thp.rules.find import find, line_of, source_named, text
from concur_thp.rules.rule import At, Rule, Variant

ROOT = Path(__file__).resolve().parents[2]
NEAR = 4


def _order(rule: Rule) -> tuple[int, int]:
    """R before X before K, each by number."""
    return ("RXK".index(rule.id[0]), int(rule.id[1:]))


_MODULES: tuple[Any, ...] = (design, gup, walkers, counts, split_page, deferred, order, collapsing, walks, accounts, holes)
RULES: tuple[Rule, ...] = tuple(sorted((rule for module in _MODULES for rule in module.RULES), key=_order))
VARIANTS: dict[str, tuple[Rule, Variant]] = {variant.id: (rule, variant) for rule in RULES for variant in rule.variants}


class Line(NamedTuple):
    """Where an enforcing statement stands now."""

    file: str
    line: int
    function: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def resolve(at: At) -> Line:
    """The statement's place in the source, wherever it has moved to."""
    source = source_named(at.function)
    statement = find(source.tree, at.pattern).statement
    return Line(relative(source), line_of(source, statement), source.name, text(statement))


def relative(source: Source) -> str:
    """The function's file, from the top of the project."""
    path = Path(source.filename).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def rule_named(name: str) -> Rule:
    """The rule with this id, or that of a variant's id."""
    wanted = _folded(name)
    for rule in RULES:
        if wanted == rule.id.lower() or any(wanted == variant.id.lower() for variant in rule.variants):
            return rule
    raise Misuse(_unknown(name, [rule.id for rule in RULES], "rule", "rules"))


def variants_named(name: str) -> list[Variant]:
    """The variant with this id, or all variants of a rule."""
    wanted = _folded(name)
    for rule in RULES:
        found = [v for v in rule.variants if wanted in (rule.id.lower(), v.id.lower())]
        if found:
            return found
        if wanted == rule.id.lower():
            raise Misuse(f"{rule.id} has no broken variant: {rule.out_of_scope}")
    raise Misuse(_unknown(name, [rule.id for rule in RULES] + list(VARIANTS), "rule or variant", "rules"))


def _folded(name: str) -> str:
    return name.strip().lower()


def _unknown(name: str, ids: list[str], what: str, command: str) -> str:
    folded = {known.lower(): known for known in ids}
    near = [folded[n] for n in difflib.get_close_matches(_folded(name), folded, NEAR, 0.5)]
    hint = f"near are {', '.join(near)}" if near else f"`concur-thp {command}` lists them"
    return f"there is no {what} {name!r}; {hint}"


def diffs(variant: Variant) -> Iterator[str]:
    """Each changed function as a unified diff, before and after; comments and layout are not the source's."""
    for source, tree in edited_trees(variant.edits).items():
        where = f"{relative(source)}:{source.first_line}"
        before, after = _listing(source.tree), _listing(tree)
        yield "\n".join(difflib.unified_diff(before, after, f"a/{where}", f"b/{where} {variant.id}", n=3, lineterm=""))


def _listing(tree: ast.FunctionDef) -> list[str]:
    bare = copy.deepcopy(tree)
    if ast.get_docstring(bare, clean=False) is not None:
        bare.body = bare.body[1:] or [ast.Pass()]
    bare.decorator_list = []
    return ast.unparse(ast.fix_missing_locations(bare)).splitlines()


def rule_json(rule: Rule, with_diffs: bool = False) -> dict[str, Any]:
    """A rule for `--json`."""
    return {
        "id": rule.id, "statement": rule.statement, "source": rule.source, "semantics": rule.semantics,
        "out_of_scope": rule.out_of_scope or None, "noticed_by": list(rule.noticed_by),
        "enforced_in": [resolve(at)._asdict() for at in rule.enforced_in],
        "variants": [variant_json(v) | ({"diffs": list(diffs(v))} if with_diffs else {}) for v in rule.variants],
    }


def variant_json(variant: Variant) -> dict[str, Any]:
    """A variant for `--json`."""
    functions = list(dict.fromkeys(edit.function for edit in variant.edits))
    return {"id": variant.id, "mistake": variant.mistake, "functions": functions, "scenario": variant.scenario,
            "symptoms": list(variant.symptoms), "needs": list(variant.needs)}
