"""Every page table of every mm, read level by level: which frame is mapped where.

A level is one gather over the arrays of table entries, so a thousand tables cost a few array operations.
What cannot be followed (a wild pfn, a table in two places) is noted in `wild`, not followed.
"""

from dataclasses import dataclass, field

import numpy as np

from concur_thp.check.views import Column, words
from concur_thp.config import (
    PAGE_SHIFT,
    PGDIR_SHIFT,
    PMD_SHIFT,
    PTRS_PER_PTE,
    PTRS_PER_UPPER,
    PUD_SHIFT,
    MachineConfig,
)
from concur_thp.mm.mm_types import tables
from concur_thp.mm.pgtable import (
    _PAGE_HUGE,
    _PAGE_MIGRATION,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_SWAP,
    _PAGE_TABLE,
    PFN_SHIFT,
)

LEVELS = {4: "PGD", 3: "PUD table", 2: "PMD table", 1: "PTE table"}
NUMBER = np.int64


def _none() -> Column:
    return np.zeros(0, dtype=NUMBER)


@dataclass
class Entries:
    """Non-empty entries of one kind, as columns."""

    mm: Column = field(default_factory=_none)
    addr: Column = field(default_factory=_none)
    val: Column = field(default_factory=_none)
    table: Column = field(default_factory=_none)
    """The frame of the table the entry is in."""

    def __len__(self) -> int:
        return len(self.mm)

    def where(self, chosen: Column) -> "Entries":
        return Entries(self.mm[chosen], self.addr[chosen], self.val[chosen], self.table[chosen])

    @property
    def pfn(self) -> Column:
        return self.val >> PFN_SHIFT


@dataclass
class PageTables:
    """The result of the walk."""

    linked: dict[int, Entries]
    """By level of the table (4 ... 1): the links to the tables of that level; a PGD has its mm's `pgd` as its link."""
    pmd: Entries
    """Entries of PMD tables that are no tables: huge ones of every kind."""
    pte: Entries
    """Non-empty ptes."""
    wild: Entries
    """Links that could not be followed."""


def walk(config: MachineConfig, mms: Column, pgds: Column) -> PageTables:
    """Walk the tables of `mms`, whose top tables are `pgds`."""
    frames = config.frames
    linked, pmd, wild = {}, Entries(), []
    links = Entries(
        mms.astype(NUMBER),
        np.zeros(len(mms), NUMBER),
        pgds.astype(NUMBER) << PFN_SHIFT,
        np.full(len(mms), -1, NUMBER),
    )
    seen = np.zeros(frames, dtype=bool)
    for level, shift in ((4, int(PGDIR_SHIFT)), (3, int(PUD_SHIFT)), (2, int(PMD_SHIFT))):
        links, bad = _follow(links, frames, seen)
        wild.append(bad)
        linked[level] = links
        entries = _entries(config, links, shift, int(PTRS_PER_UPPER))
        is_table = entries.val & _PAGE_TABLE != 0
        others = entries.where(~is_table)
        if level == 2:
            pmd = others
        else:
            wild.append(others)
        links = entries.where(is_table)
    linked[1], bad = _follow(links, frames, seen)
    wild.append(bad)
    pte = _entries(config, linked[1], PAGE_SHIFT, int(PTRS_PER_PTE))
    return PageTables(linked, pmd, pte, _join(wild))


def _follow(links: Entries, frames: int, seen: Column) -> tuple[Entries, Entries]:
    """Those links that lead to a frame nobody led to before, and the others."""
    pfn = links.pfn
    good = (pfn >= 0) & (pfn < frames)
    inside = np.where(good, pfn, 0)
    first = np.zeros(len(pfn), dtype=bool)
    first[np.unique(inside, return_index=True)[1]] = True
    good &= first & ~seen[inside]
    seen[inside[good]] = True
    return links.where(good), links.where(~good)


def _entries(config: MachineConfig, links: Entries, shift: int, size: int) -> Entries:
    """The non-empty entries of the tables that `links` lead to."""
    if not len(links):
        return Entries()
    pfn = links.pfn
    rows = words(tables, config.frames)[pfn, :size]
    row, index = np.nonzero(rows)
    return Entries(
        links.mm[row], links.addr[row] + (index.astype(NUMBER) << shift), rows[row, index], pfn[row]
    )


def _join(parts: list[Entries]) -> Entries:
    return Entries(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("mm", "addr", "val", "table"))
    )


def present(values: Column) -> Column:
    """Which ptes or huge pmds map a page, for software: present, protnone, or a huge one in the middle of a split."""
    return ((values & (_PAGE_PRESENT | _PAGE_PROTNONE | _PAGE_HUGE)) != 0) & (
        (values & (_PAGE_MIGRATION | _PAGE_SWAP)) == 0
    )
