"""Kernel functions: declared in plain Python, compiled one by one, linked through slots.

A call between kernel functions loads the callee's address from its slot, so the order of definition does not matter,
cycles are fine and an edit recompiles one function. `@inline` functions are compiled into their callers.

    @kernel
    def page_remove_rmap(cpu: Cpu, page: Page, compound: int): ...

Called from Python, a kernel function runs natively once `link()` was called, else (or inside `interpreted()`) as the
plain Python that it is: sound for one CPU.
"""

import ast
import ctypes
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from concur_thp.arch import builtins as intrinsics
from concur_thp.arch.expressions import INT, TranslateError
from concur_thp.arch.shared import SharedArray, SharedOne, Word
from concur_thp.arch.struct import Struct, signed
from concur_thp.arch.translate import parse
from concur_thp.config import Param

SLOTS = (ctypes.c_int64 * 8192)()
"""Addresses of the kernel functions this process runs; a broken variant is put in place by writing one word."""


class Source:
    """A kernel or inline function as the translator sees it."""

    inline = False
    every: list["Source"] = []

    def __init__(self, function: Callable[..., Any]):
        Source.every.append(self)
        self._take(function)

    def _take(self, function: Callable[..., Any]) -> None:
        assert isinstance(function, types.FunctionType)
        functools.update_wrapper(self, function)  # type: ignore[arg-type]
        self.function = function
        self.quiet = getattr(function, "quiet", False)
        self.name = function.__name__
        self.filename = function.__code__.co_filename
        self.first_line = function.__code__.co_firstlineno
        self.unique = _unique(f"{function.__module__}.{function.__qualname__}")
        hints = inspect.get_annotations(function)
        self.parameters = {n: _kind(hints.get(n, int)) for n in inspect.signature(function).parameters}
        self.returns = _kind(hints.get("return", int))

    @functools.cached_property
    def tree(self) -> ast.FunctionDef:
        return parse(self.function)

    @functools.cached_property
    def namespace(self) -> dict[str, Any]:
        free = self.function.__code__.co_freevars
        cells = {n: c.cell_contents for n, c in zip(free, self.function.__closure__ or (), strict=True)}
        return {**self.function.__globals__, **cells}

    def interpret(self, *args: Any, **kwargs: Any) -> Any:
        """Run as plain Python; the result wraps like a register."""
        given = [self._pointer(k, intrinsics.text_id(a) if isinstance(a, str) else a)
                 for a, k in zip(args, self.parameters.values(), strict=False)]
        result = self.function(*given, **kwargs)
        if isinstance(result, Struct):
            return result
        return self._pointer(self.returns, signed(int(result or 0)))

    @staticmethod
    def _pointer(kind: Any, value: Any) -> Any:
        return kind(int(value)) if kind is not INT and not isinstance(value, kind) else value

    def digest(self, seen: set[Any]) -> Iterator[str]:
        """Everything the native code of this function depends on."""
        seen.add(self)
        yield f"{self.unique}({[_label(k) for k in self.parameters.values()]})->{_label(self.returns)}"
        yield ast.dump(self.tree)
        names = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        for name in sorted(names & self.namespace.keys()):
            yield from _depends(name, self.namespace[name], seen)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = self.namespace.get(node.value.id)
                if isinstance(owner, (types.ModuleType, type)):
                    yield from _depends(node.attr, getattr(owner, node.attr, None), seen)


def _depends(name: str, thing: Any, seen: set[Any]) -> Iterator[str]:
    if isinstance(thing, (int, Param)):
        yield f"{name}={int(thing)}"
    elif isinstance(thing, Word):
        yield thing.symbol
    elif isinstance(thing, SharedOne):
        yield f"{thing.array.name} {_layouts(thing.struct, seen)}"
    elif isinstance(thing, SharedArray):
        yield f"{thing.name}:{thing.stride} {_layouts(thing.struct, seen)}"
    elif isinstance(thing, type) and issubclass(thing, Struct):
        yield _layouts(thing, seen)
    elif isinstance(thing, types.FunctionType) and thing in intrinsics.NATIVE:
        yield f"{name} {inspect.getsource(intrinsics.NATIVE[thing])}"
    elif isinstance(thing, Inline):
        if thing not in seen:
            yield from thing.digest(seen)
    elif isinstance(thing, Kernel):
        yield f"{thing.slot_symbol}({[_label(k) for k in thing.parameters.values()]})->{_label(thing.returns)}"
        for kind in (*thing.parameters.values(), thing.returns):
            if kind is not INT:
                yield _layouts(kind, seen)


def _layouts(struct: Any, seen: set[Any]) -> str:
    if struct in seen:
        return struct.__name__
    seen.add(struct)
    inner = [_layouts(f.struct, seen) for f in struct.FIELDS.values() if f.struct]
    return " ".join([struct.layout(), *inner])


def _label(kind: Any) -> str:
    return kind if isinstance(kind, str) else kind.__name__


def _kind(annotation: Any) -> Any:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Struct) else INT


_names: dict[str, int] = {}


def _unique(name: str) -> str:
    """A closure may be defined again and again; each gets its own slot."""
    _names[name] = _names.get(name, 0) + 1
    return name if _names[name] == 1 else f"{name}~{_names[name]}"


class Inline(Source):
    """A small function compiled into its callers."""

    inline = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.interpret(*args, **kwargs)


class Kernel(Source):
    """A kernel function: one native object, reached through one slot."""

    all: list["Kernel"] = []
    interpreting = 0

    def __init__(self, function: Callable[..., Any]):
        super().__init__(function)
        self.slot = len(Kernel.all)
        self.slot_symbol = f"slot.{self.unique}"
        Kernel.all.append(self)
        self._native: tuple[int, Any] = (0, None)

    @property
    def slot_address(self) -> int:
        return ctypes.addressof(SLOTS) + 8 * self.slot

    @property
    def address(self) -> int:
        """Of the native code this process would run; 0 before `link()`."""
        return SLOTS[self.slot]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        address = SLOTS[self.slot]
        if not address or Kernel.interpreting:
            return self.interpret(*args, **kwargs)
        if self._native[0] != address:
            kind = ctypes.CFUNCTYPE(ctypes.c_int64, *([ctypes.c_int64] * len(self.parameters)))
            self._native = (address, kind(address))
        if kwargs:
            args = (*args, *(kwargs[n] for n in list(self.parameters)[len(args):]))
        return self._native[1](*(intrinsics.text_id(a) if isinstance(a, str) else int(a) for a in args))


class Weak(Kernel):
    """A kernel function that a lower layer calls and a higher one defines; until then its own body stands in."""

    defined = False

    def define(self, function: Callable[..., Any]) -> "Weak":
        """Take another body; the slot stays, so callers need not know."""
        if self.defined:
            raise TypeError(f"{self.name} is defined already, in {self.filename}:{self.first_line}")
        before = (self.parameters, self.returns)
        self._take(function)
        if (self.parameters, self.returns) != before:
            raise TypeError(f"{self.filename}:{self.first_line}: {self.name} has other parameters than its declaration")
        for derived in ("tree", "namespace"):
            self.__dict__.pop(derived, None)
        SLOTS[self.slot] = 0  # Native code of the stand-in, if it was linked, is no longer this function's.
        self.defined = True
        return self


def kernel(function: Callable[..., Any]) -> Kernel:
    """Declare a kernel function."""
    return Kernel(function)


def weak(function: Callable[..., Any]) -> Weak:
    """Declare a kernel function that a higher layer may define; the body is what happens without it. (Linux: __weak)

        @weak                                          # page_alloc.py, which must not import vmscan.py
        def try_to_free_pages(cpu: Cpu, order: int, gfp: int): ...

        @defines(page_alloc.try_to_free_pages)         # vmscan.py; the same parameters
        def try_to_free_pages(cpu: Cpu, order: int, gfp: int): ...
    """
    return Weak(function)


def defines(declared: Kernel) -> Callable[[Callable[..., Any]], Weak]:
    """Give a `@weak` kernel function its real body. The name is then the same object in both modules."""
    if not isinstance(declared, Weak):
        raise TypeError(f"{declared.name} is not declared @weak")
    return declared.define


def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """Under @kernel: this function does not leave its name in `cpu.func`, so a report names its caller."""
    function.quiet = True  # type: ignore[attr-defined]
    return function


def inline(function: Callable[..., Any]) -> Inline:
    """Declare a function that is compiled into each of its callers."""
    return Inline(function)


def redirect(hook: Kernel, target: Kernel) -> None:
    """From now on this process, and those it forks, run `target` where code calls `hook`. Same parameters, both linked."""
    assert list(hook.parameters.values()) == list(target.parameters.values()) and target.address
    SLOTS[hook.slot] = target.address


@contextmanager
def interpreted() -> Iterator[None]:
    """Kernel functions called inside run as plain Python: for pdb, coverage and unit tests, on one CPU."""
    Kernel.interpreting += 1
    try:
        yield
    finally:
        Kernel.interpreting -= 1


@functools.cache
def texts() -> dict[int, str]:
    """Number of each message in kernel code -> the message."""
    from concur_thp.arch.guard_words import messages

    found = {intrinsics.text_id(source.name): source.name for source in Source.every}
    found |= {intrinsics.text_id(text): text for text in messages()}
    for filename in {source.filename for source in Source.every}:  # A file at once: parsing each function takes seconds.
        with suppress(OSError):  # Typed in, not in a file: its messages stay numbers.
            for node in ast.walk(ast.parse(Path(filename).read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found[intrinsics.text_id(node.value)] = node.value
    return found


__all__ = ["SLOTS", "Inline", "Kernel", "TranslateError", "defines", "inline", "interpreted", "kernel", "quiet",
           "texts", "weak"]
