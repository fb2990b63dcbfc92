"""Broken code in place of the real: compiled under a label of its own, put into this process's slots, taken out again.

    with broken(edits, "R18a"):
        ...                      # this process, and every CPU process that it forks, runs the broken functions

An edited inline function is compiled into its callers, so all kernel functions that use it, however deep, are compiled
anew. Interpreted runs see the same edits. Objects are cached on disk under a digest of the edited trees, like all others;
normal code carries no switch and pays nothing.
"""

import ast
import functools
import hashlib
import re
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from concur_thp.arch import native
from concur_thp.arch.linker import SLOTS, Inline, Kernel, Source
from concur_thp.config import Param
from concur_thp.errors import EmulatorError
from concur_thp.rules.edit import Edit, edited_trees
from concur_thp.rules.find import source_named

LABEL_DIGITS = 8
_loaded: dict[tuple[int, str, str], dict[str, int]] = {}
"""(order, build, label) -> function -> address: code once loaded stays for the life of the process."""


def used_by(source: Source) -> set[Source]:
    """The inline functions that a function names, directly."""
    code, found = source.function.__code__, set()
    names = (*code.co_names, *code.co_freevars)
    for name in names:
        thing = source.namespace.get(name)
        if isinstance(thing, types.ModuleType):
            found |= {getattr(thing, inner, None) for inner in names}
        found.add(thing)
    return {thing for thing in found if isinstance(thing, Inline)}


def kernels_with(changed: Iterable[Source]) -> list[Kernel]:
    """The kernel functions whose native code has any of these functions in it."""
    dirty = set(changed)
    users = {source: used_by(source) for source in Source.every}
    while more := {s for s, used in users.items() if s not in dirty and s.inline and used & dirty}:
        dirty |= more
    return [k for k in Kernel.all if k in dirty or users[k] & dirty]


class Variant:
    """A set of edits, ready to be put in place."""

    def __init__(self, edits: Iterable[Edit], name: str = "edited", build: str = native.PLAIN):
        self.edits, self.name, self.build = tuple(edits), name, build
        self.trees = edited_trees(self.edits)
        digest = hashlib.sha256("\n".join(f"{s.unique} {ast.dump(t)}" for s, t in self.trees.items()).encode())
        self.label = f"{name}-{digest.hexdigest()[:LABEL_DIGITS]}"
        self._undo: list[tuple[Any, ...]] = []
        self._before: dict[int, int] = {}

    @functools.cached_property
    def kernels(self) -> list[Kernel]:
        """What has to be compiled."""
        return kernels_with(self.trees)

    def compile(self) -> dict[str, int]:
        """Addresses of the broken functions, compiled, fetched from the cache or loaded before."""
        key = (int(Param.order), self.build, self.label)
        if key not in _loaded:
            kernels = self.kernels
            with self._trees_in_place():
                names = {k: native.symbol_of(k, self.label, self.build) for k in kernels}
                addresses = native.load({name: native.object_for(k, name, self.build) for k, name in names.items()})
            _loaded[key] = {k.unique: addresses[name] for k, name in names.items()}
        return _loaded[key]

    @contextmanager
    def _trees_in_place(self) -> Iterator[None]:
        """What the translator reads: trees, and the names that the new parts use."""
        saved = [(source, dict(source.__dict__)) for source in self.trees]
        try:
            for source, tree in self.trees.items():
                names = namespace_for(source, tree)
                source.__dict__["tree"], source.__dict__["namespace"] = tree, names
            yield
        finally:
            for source, before in saved:
                for name in ("tree", "namespace"):
                    source.__dict__.pop(name, None)
                    if name in before:
                        source.__dict__[name] = before[name]

    def put(self) -> None:
        """Broken from now on, in this process. Native code needs `native.link()` before."""
        if self._undo:
            raise EmulatorError(f"{self.name} is in place already")
        for source, tree in self.trees.items():
            self._undo.append((source, source.function))
            source.function = as_python(source, tree)
        if any(k.address for k in self.kernels):
            self._put_native(self.compile())

    def _put_native(self, addresses: dict[str, int]) -> None:
        # By address, not by slot: a hook may have been redirected to an edited function.
        replace = {SLOTS[k.slot]: addresses[k.unique] for k in self.kernels if SLOTS[k.slot]}
        for k in Kernel.all:
            if SLOTS[k.slot] in replace:
                self._before[k.slot] = SLOTS[k.slot]
                SLOTS[k.slot] = replace[SLOTS[k.slot]]

    def take(self) -> None:
        """The real code again."""
        for slot, address in self._before.items():
            SLOTS[slot] = address
        for source, function in self._undo:
            source.function = function
        self._before.clear()
        self._undo.clear()


    @contextmanager
    def in_place(self) -> Iterator["Variant"]:
        """Broken for as long as the block runs."""
        self.put()
        try:
            yield self
        finally:
            self.take()


@contextmanager
def broken(edits: Iterable[Edit], name: str = "edited", build: str = native.PLAIN) -> Iterator[Variant]:
    """Edited kernel functions in this process, and those it forks, for as long as the block runs."""
    with Variant(edits, name, build).in_place() as variant:
        yield variant


def namespace_for(source: Source, tree: ast.FunctionDef) -> dict[str, Any]:
    """The names of a function, and those that only its edit uses: kernel functions, and constants of their modules."""
    names = dict(source.namespace)
    own = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own |= set(source.parameters) | {"range", "int", "bool", "min", "max", "__func__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in names and node.id not in own:
            names[node.id] = _elsewhere(node.id)
    return names


def _elsewhere(name: str) -> Any:
    if any(source.name == name for source in Source.every):
        return source_named(name)
    found = {id(value): value for source in Source.every if source.unique.startswith("concur_thp.")
             for value in [source.function.__globals__.get(name)] if value is not None}
    if not found:
        raise EmulatorError(f"an edit uses {name}, which no kernel module has")
    return next(iter(found.values()))


def as_python(source: Source, tree: ast.FunctionDef) -> types.FunctionType:
    """The edited function as plain Python, for interpreted runs."""
    bare = ast.FunctionDef(**{name: value for name, value in ast.iter_fields(tree)} | {"decorator_list": []})
    module = ast.Module([ast.copy_location(bare, tree)], [])
    names = namespace_for(source, tree)
    code = compile(ast.fix_missing_locations(module), source.filename, "exec")
    scope: dict[str, Any] = dict(names)
    exec(code, scope)
    function: types.FunctionType = scope[re.sub(r"\W", "_", tree.name)]
    function.__dict__.update({k: v for k, v in source.function.__dict__.items() if k != "__wrapped__"})
    return function
