"""How much memory replaying needs: the most frames each task can hold at once, all tasks at the same time."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stress.recordings.calls import PAGE_SHIFT
from stress.recordings.model import LINUX_4_20, simulate

UPPER_TABLES = 8
"""Tables above the lowest level in one mm: pgd, and two of each other level for each of image, mmap area and stack."""
SPARE = 64
"""Frames that are on their way from one owner to another, per task."""


def frames_needed(programs: Sequence[NDArray[np.int64]], sequence: NDArray[np.int32]) -> int:
    """An upper estimate in 4 KiB frames, with THP on and off.

    In a replay a parent need not wait for its child's end, as it did in the recording, so what every task needs at its
    peak adds up. What a task finds mapped after a fork counts for it too: the parent may be gone before it.
    """
    cache: set[tuple[int, int]] = set()
    demand = max(_demand(programs, sequence, huge, cache) for huge in (False, True))
    return demand + len(cache) + len(programs) * (UPPER_TABLES + SPARE)


def _demand(
    programs: Sequence[NDArray[np.int64]],
    sequence: NDArray[np.int32],
    huge: bool,
    cache: set[tuple[int, int]],
) -> int:
    """Frames besides page cache, whose pages are collected in `cache`: they are never given back."""
    peaks: dict[int, int] = {}
    rows = [program[:, 1].tolist() for program in programs]
    for task, number, mm, faulted in simulate(programs, sequence, huge, LINUX_4_20):
        if not faulted:
            continue
        peaks[mm.owner] = max(peaks.get(mm.owner, 0), mm.frames())
        vma = mm.space.find(rows[task][number])
        if vma and vma.file:
            page = (rows[task][number] - vma.start) >> PAGE_SHIFT
            cache.add((vma.file, vma.pgoff + page))
    return sum(peaks.values())
