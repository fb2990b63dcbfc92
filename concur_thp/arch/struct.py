"""Structs of the shared segment: fields declared once, as rows with width, guard and meaning.

    class Page(Struct, size=64):
        index = field(I64, "init", "offset in the mapping")
        _refcount = atomic(I32, "0 = free, or frozen by page_ref_freeze()")

Kernel code sees typed pointers. `page.index` is a relaxed atomic load (READ_ONCE), `page.index = 7` such a store;
an atomic field yields a reference whose methods are real atomics: `page._refcount.add(1)`. A pointer is a plain address
in native code and an instance of the class here, when code runs as ordinary Python. That too is atomic once this process
has native code (arch/native.py): from then on other CPUs may be at the same words.

Guards are words of a closed list: `const` (set at boot), `init` (set before publication), `atomic`, `cpu` (only its own
CPU), `owner` (only who holds the lock it is part of, or has the object to himself), or the name of a lock class; `a+b`
means either to read, both to write, and `a+b?` that only `a` is always needed to write. `|racy` behind it: reads need no
lock, they look again or can do with an old value. The checked build verifies what can be decided (arch/guards.py), race
detection the rest (sched/races.py).
"""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple, Self

I8, I16, I32, I64 = 1, 2, 4, 8
WIDTHS = (I8, I16, I32, I64)
"""Widths in bytes; every field is signed."""

LINES = 128
"""Two cache lines: processors fetch them in pairs, so fields that different CPUs write are kept so far apart."""

_CTYPE = {I8: ctypes.c_int8, I16: ctypes.c_int16, I32: ctypes.c_int32, I64: ctypes.c_int64}
_MASK = (1 << 64) - 1


def signed(value: int, width: int = 8) -> int:
    """Wrap a Python int the way a register of `width` bytes does."""
    bits = 8 * width
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


native_cas: dict[int, Callable[[int, int, int], int]] = {}
"""Width -> the processor's compare and swap of (address, old, new), which returns what was there."""


class Ref:
    """An atomic word, interpreted. Every read-modify-write returns the OLD value and is a full barrier."""

    __slots__ = ("addr", "width", "_cell")

    def __init__(self, addr: int, width: int):
        self.addr, self.width, self._cell = addr, width, _CTYPE[width].from_address(addr)

    def load(self) -> int:
        """Acquire load."""
        return self._cell.value

    def store(self, value: int) -> None:
        """Release store."""
        self._cell.value = int(value)

    read, write = load, store  # relaxed: READ_ONCE and WRITE_ONCE

    def _update(self, change: Callable[[int], int]) -> int:
        while True:
            old: int = self._cell.value
            if self.cas(old, change(old)) == old:
                return old

    def xchg(self, value: int) -> int:
        return self._update(lambda old: int(value))

    def add(self, value: int) -> int:
        return self._update(lambda old: old + int(value))

    def sub(self, value: int) -> int:
        return self._update(lambda old: old - int(value))

    def or_(self, value: int) -> int:
        return self._update(lambda old: old | int(value))

    def and_(self, value: int) -> int:
        return self._update(lambda old: old & int(value))

    def cas(self, old: int, new: int) -> int:
        """Compare and swap; returns what was there, which is `old` exactly when it was replaced."""
        if self.width in native_cas:
            return native_cas[self.width](self.addr, int(old), int(new))
        seen: int = self._cell.value
        if seen == old:
            self._cell.value = int(new)
        return seen


class Array:
    """An array field, interpreted."""

    __slots__ = ("addr", "field")

    def __init__(self, addr: int, field: "Field"):
        self.addr, self.field = addr, field

    def __getitem__(self, index: int) -> Any:
        return self.field.at(self.addr + int(index) * self.field.stride)

    def __setitem__(self, index: int, value: int) -> None:
        self.field.put(self.addr + int(index) * self.field.stride, value)


class Field:
    """One row of a struct; as a descriptor it is also the interpreted access."""

    def __init__(self, width: int, guard: str, meaning: str, count: int, overlay: str, struct: "type[Struct] | None",
                 apart: bool = False):
        self.width, self.guard, self.meaning, self.count = width, guard, meaning, count
        self.overlay, self.struct, self.apart = overlay, struct, apart
        self.name, self.owner, self.offset = "", "", -1
        self.stride = struct.SIZE if struct else width

    @property
    def is_atomic(self) -> bool:
        return self.guard == "atomic"

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.owner = name, owner.__name__

    def at(self, addr: int) -> Any:
        if self.struct:
            return self.struct(addr)
        return Ref(addr, self.width) if self.is_atomic else _CTYPE[self.width].from_address(addr).value

    def put(self, addr: int, value: int) -> None:
        if self.struct or self.is_atomic:
            raise TypeError(f"{self.name} is not a plain field: use its methods")
        _CTYPE[self.width].from_address(addr).value = int(value)

    def __get__(self, pointer: "Struct | None", owner: type) -> Any:
        if pointer is None:
            return self
        addr = pointer.addr + self.offset
        return Array(addr, self) if self.count else self.at(addr)

    def __set__(self, pointer: "Struct", value: int) -> None:
        self.put(pointer.addr + self.offset, value)


class Row(NamedTuple):
    """A field as data, for checks and documents."""

    struct: str
    field: str
    width: int
    guard: str
    meaning: str


STRUCTS: dict[str, "type[Struct]"] = {}
"""Every struct declared, by name."""


class Struct:
    """A typed pointer into the shared segment. `Page(0)` is NULL and is false."""

    __slots__ = ("addr",)
    SIZE = 0
    FIELDS: dict[str, Field]

    def __init__(self, addr: int):
        self.addr = int(addr)

    def __init_subclass__(cls, size: int = 0, align: int = 8) -> None:
        cls.FIELDS = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        end = 0
        for name, row in cls.FIELDS.items():
            each = row.struct.SIZE if row.struct else row.width
            natural = 8 if row.struct else row.width
            if row.apart:
                natural = LINES
            if row.overlay:
                row.offset = cls.FIELDS[row.overlay].offset
                if row.offset % natural:
                    raise TypeError(f"{cls.__name__}.{name}: laid over {row.overlay}, which is not aligned for it")
            else:
                row.offset = -(-end // natural) * natural
            end = max(end, row.offset + each * max(row.count, 1))
        if size and end > size:
            raise TypeError(f"{cls.__name__} needs {end} bytes, declared {size}")
        if any(row.apart for row in cls.FIELDS.values()):
            align = max(align, LINES)
        cls.SIZE = size or -(-end // align) * align
        STRUCTS[cls.__name__] = cls

    def __index__(self) -> int:
        return self.addr

    __int__ = __index__

    @property
    def _as_parameter_(self) -> int:
        return self.addr

    def __bool__(self) -> bool:
        return self.addr != 0

    def __eq__(self, other: object) -> bool:
        return self.addr == (other.addr if isinstance(other, Struct) else other)

    def __hash__(self) -> int:
        return hash(self.addr)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.addr:#x})"

    @classmethod
    def rows(cls) -> list[Row]:
        return [Row(cls.__name__, f.name, f.width, f.guard, f.meaning) for f in cls.FIELDS.values()]

    @classmethod
    def layout(cls) -> str:
        """Everything native code depends on, for cache keys."""
        rows = ((f.name, f.offset, f.width, f.count, f.stride, f.is_atomic) for f in cls.FIELDS.values())
        return f"{cls.__name__}:{cls.SIZE}:{tuple(rows)}"

    def copy(self, addr: int) -> Self:
        return type(self)(addr)


def field(width: int, guard: str, meaning: str, *, count: int = 0, overlay: str = "") -> Any:
    """A plain field: relaxed loads and stores. `overlay` names the field whose place it shares, as in a C union."""
    return Field(width, guard, meaning, count, overlay, None)


def atomic(width: int, meaning: str, *, count: int = 0, overlay: str = "", apart: bool = False) -> Any:
    """A field touched by atomic operations only."""
    return Field(width, "atomic", meaning, count, overlay, None, apart)


def embed(struct: type[Struct], meaning: str, *, count: int = 0, overlay: str = "", apart: bool = False) -> Any:
    """A struct inside a struct; reading the field gives a pointer to it.

    `apart`: it and what follows begin a cache line of their own (Linux: ____cacheline_aligned_in_smp).
    """
    return Field(0, "const", meaning, count, overlay, struct, apart)
