"""Names for what lies in the shared segment: arrays of structs, and words that each process holds for itself.

A kernel function says `mem_map[pfn]`, `mem_map.index(page)` or `system.panicked`; the base address of each array is a word
of the process (`Word`), so that one compiled object serves any machine and any mapping address.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from concur_thp.arch.struct import Struct
from concur_thp.config import _number_operators

WORDS = (ctypes.c_int64 * 256)()
"""This process's words: bases of shared arrays and the addresses of libc functions."""


class Word:
    """A process word; behaves as the int it holds."""

    by_name: dict[str, "Word"] = {}

    def __init__(self, name: str):
        if name in Word.by_name:
            raise TypeError(f"word {name!r} is declared twice")
        self.name, self.slot = name, len(Word.by_name)
        Word.by_name[name] = self

    @property
    def symbol(self) -> str:
        return f"word.{self.name}"

    @property
    def address(self) -> int:
        return ctypes.addressof(WORDS) + 8 * self.slot

    def set(self, value: int) -> None:
        WORDS[self.slot] = value

    def __int__(self) -> int:
        return WORDS[self.slot]

    __index__ = __int__

    def __hash__(self) -> int:
        return hash(self.name)


_number_operators(Word)


class SharedArray:
    """An array of structs in the segment: `mem_map[pfn]` is a pointer, `mem_map.index(page)` its number."""

    all: dict[str, "SharedArray"] = {}

    def __init__(self, name: str, struct: Any, count: Callable[[Any], int], stride: Callable[[], int] | None = None):
        self.name, self.struct, self.count, self._stride = name, struct, count, stride
        self.base: Any = Word(name)
        SharedArray.all[name] = self

    @property
    def stride(self) -> int:
        """Bytes from one element to the next; depends on the geometry for table pages only."""
        return self._stride() if self._stride else self.struct.SIZE

    def __getitem__(self, index: int) -> Any:
        return self.struct(int(self.base) + int(index) * self.stride)

    def index(self, pointer: Any) -> int:
        return (int(pointer) - int(self.base)) // self.stride


class SharedOne:
    """A single struct in the segment, used like a pointer to it: `system.panicked.load()`."""

    def __init__(self, name: str, struct: type[Struct]):
        array = SharedArray(name, struct, lambda config: 1)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "struct", struct)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array[0], name)

    def __setattr__(self, name: str, value: int) -> None:
        setattr(self.array[0], name, value)

    def __index__(self) -> int:
        return int(self.array.base)

    @property
    def _as_parameter_(self) -> int:
        return int(self.array.base)
