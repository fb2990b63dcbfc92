"""Finding one statement of a function by its text: the small pattern language of rules and edits.

A pattern is the text of a statement as `ast.unparse` writes it; of `if`, `while` and `for` the first line, with or without
its colon. `...` stands for anything. A pattern that fits more than one statement needs an ordinal, `#2`, or the statement
that it stands in, behind ` in `:

    put_page(cpu, page) #2                          the second of them, counted from the top
    spin_unlock(...) in if pmd.val.load() != ...    the one inside of that `if`

Whoever asks gets exactly one statement, or an EmulatorError that says what is there instead: code has changed, and the
rule or variant that names the statement has to follow.
"""

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from concur_thp.arch.linker import Source
from concur_thp.errors import EmulatorError

MOST_SHOWN = 4


class PatternError(EmulatorError):
    """A pattern that does not name exactly one place."""


@dataclass(frozen=True)
class Place:
    """A statement, the block (a list of statements) that holds it, and what it is in the body of, outermost first.

    What stands in an `else` is not in the `if`."""

    statement: ast.stmt
    block: list[ast.stmt]
    around: tuple[ast.stmt, ...]

    @property
    def index(self) -> int:
        return next(i for i, s in enumerate(self.block) if s is self.statement)


def text(statement: ast.stmt) -> str:
    """The one line that a pattern is compared with."""
    if isinstance(statement, (ast.If, ast.While)):
        word = "if" if isinstance(statement, ast.If) else "while"
        return f"{word} {ast.unparse(statement.test)}"
    if isinstance(statement, ast.For):
        return f"for {ast.unparse(statement.target)} in {ast.unparse(statement.iter)}"
    return ast.unparse(statement)


def places(tree: ast.FunctionDef) -> Iterator[Place]:
    """Every statement of a function but its docstring, from the top."""
    body = tree.body
    documented = ast.get_docstring(tree, clean=False) is not None
    yield from _inside(body, (), int(documented))


def _inside(block: list[ast.stmt], around: tuple[ast.stmt, ...], start: int = 0) -> Iterator[Place]:
    for statement in list(block[start:]):
        yield Place(statement, block, around)
        yield from _inside(getattr(statement, "body", []), (*around, statement))
        yield from _inside(getattr(statement, "orelse", []), around)


def normalised(pattern: str) -> str:
    """A pattern as ast.unparse would write it."""
    stripped = pattern.strip().removesuffix(":")
    compound = re.match(r"(if|while|for)\b", stripped)
    try:
        statement = ast.parse(f"{stripped}: pass" if compound else stripped).body[0]
    except SyntaxError:
        return stripped  # `x = ...y`, or part of a text: as it stands
    return text(statement)


def matcher(pattern: str) -> Any:
    """Compiled: fits when the whole text does."""
    parts = normalised(pattern).split("...")
    return re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL)


def find(tree: ast.FunctionDef, pattern: str) -> Place:
    """The one statement that a pattern names."""
    named, _, container = pattern.partition(" in if ")
    if container:
        container = f"if {container}"
    else:
        named, _, container = pattern.partition(" in while ")
        container = container and f"while {container}"
    ordinal = re.search(r"\s#(\d+)$", named)
    wanted = matcher(named[: ordinal.start()] if ordinal else named)
    found = [place for place in places(tree) if wanted.fullmatch(text(place.statement))]
    if container:
        outer = matcher(container)
        found = [p for p in found if any(outer.fullmatch(text(s)) for s in p.around)]
    if ordinal:
        number = int(ordinal.group(1))
        if number > len(found):
            raise PatternError(f"{tree.name} has {len(found)} of {named!r}, not {number}")
        return found[number - 1]
    if len(found) != 1:
        raise PatternError(_complaint(tree, pattern, found))
    return found[0]


def _complaint(tree: ast.FunctionDef, pattern: str, found: list[Place]) -> str:
    if found:
        lines = ", ".join(str(place.statement.lineno) for place in found)
        return f"{tree.name} has {len(found)} of {pattern!r}, at its lines {lines}: say which by #N or by ` in if ...`"
    every = [text(place.statement) for place in places(tree)]
    near = difflib.get_close_matches(normalised(pattern), every, MOST_SHOWN, 0.5) or every[:MOST_SHOWN]
    return f"{tree.name} has no statement {pattern!r}; it has {'; '.join(repr(line) for line in near)}"


def source_named(name: str) -> Source:
    """The kernel or inline function with this name, such as `zap_huge_pmd`, or `compaction.list_add` with its module."""
    found = [source for source in Source.every if f".{source.unique}".endswith(f".{name}")]
    found = [source for source in found if source.unique.startswith("concur_thp.")] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise PatternError(f"{name} is the name of {', '.join(s.unique for s in found)}: say which by its module")
    near = difflib.get_close_matches(name.rpartition(".")[2], [s.name for s in Source.every], MOST_SHOWN)
    raise PatternError(f"there is no kernel function {name}" + (f"; near are {', '.join(near)}" if near else ""))


def line_of(source: Source, statement: ast.stmt) -> int:
    """Its line in the file."""
    return source.first_line + statement.lineno - 1
