"""numpy views of what lies in the segment: the same rows as the structs, no copies.

A view has a structured dtype made from the struct's fields, so `view(mem_map, n)["_refcount"]` is a column over frames.
Columns that are read often are copied out once (`column`): a struct page is a cache line, its column is 4 bytes.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import Struct

Column = np.ndarray[Any, np.dtype[Any]]
_dtypes: dict[str, np.dtype[Any]] = {}


def dtype_of(struct: type[Struct]) -> np.dtype[Any]:
    """The struct as a numpy dtype: same names, same places, overlays and embedded structs included."""
    found = _dtypes.get(struct.__name__)
    if found is None:
        names, formats, offsets = [], [], []
        for name, row in struct.FIELDS.items():
            each: Any = dtype_of(row.struct) if row.struct else np.dtype(f"i{row.width}")
            names.append(name)
            formats.append((each, (row.count,)) if row.count else each)
            offsets.append(row.offset)
        layout: Any = {"names": names, "formats": formats, "offsets": offsets, "itemsize": struct.SIZE}
        found = _dtypes[struct.__name__] = np.dtype(layout)
    return found


def raw(address: int, size: int) -> Column:
    """`size` bytes at `address`, as they are."""
    memory: Any = (ctypes.c_byte * size).from_address(address)
    return np.frombuffer(memory, dtype=np.int8)


def view(array: SharedArray | SharedOne, count: int = 1) -> Column:
    """The first `count` structs of a shared array (a SharedOne has one)."""
    shared: SharedArray = array.array if isinstance(array, SharedOne) else array
    return raw(int(shared.base), shared.struct.SIZE * count).view(dtype_of(shared.struct))


def words(array: SharedArray, rows: int, width: int = 8) -> Column:
    """An array whose elements are rows of plain words (page tables, index slots), as a plane of ints."""
    plane = raw(int(array.base), array.stride * rows).view(f"i{width}")
    return plane.reshape(rows, array.stride // width)


def column(rows: Column, name: str) -> Column:
    """One field of every row, copied together."""
    return np.ascontiguousarray(rows[name])


def chain(following: Sequence[int] | Column, first: int, limit: int, end: int = 0) -> tuple[list[int], str]:
    """Follow a list of indices from `first` to `end`; also says what is wrong with it, or ''."""
    seen: list[int] = []
    size = len(following)
    at = int(first)
    while at != end:
        if not 0 <= at < size:
            return seen, f"it leads to {at:#x}, outside 0..{size - 1:#x}"
        seen.append(at)
        if len(seen) > limit:
            return seen[:limit], "it does not end"
        at = int(following[at])
    return seen, ""


Lists = tuple[Column, Column, list[str]]
"""Members of many lists, the owner of the list each is on, and what is wrong with the lists."""


def follow(following: Column, first: Column, owners: Column, what: str) -> Lists:
    """Follow the list of each owner from its `first` on."""
    members: list[int] = []
    owner: list[int] = []
    errors = []
    for number in owners.tolist():
        row, wrong = chain(following, int(first[number]), len(following))
        members += row
        owner += [number] * len(row)
        if wrong:
            errors.append(f"{what} {number}: {wrong}")
    return np.array(members, dtype=np.int64), np.array(owner, dtype=np.int64), errors
