"""What the audit knows of frames: their struct pages as columns, gathered once."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from concur_thp.check.pins import declared_pins
from concur_thp.check.views import Column, column, view
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_ORDER, MachineConfig
from concur_thp.mm.mm_types import mem_map, percpu, pgdat
from concur_thp.mm.page_flags import PG_head


class PageFacts:
    """The frames of a machine at rest, as columns. Properties are computed when first asked for."""

    def __init__(self, config: MachineConfig, pins: Mapping[int, int] | None = None, expect_empty: bool = False):
        self.config = config
        self.pins = declared_pins()
        """References that programs and the harness itself hold: pfn -> number."""
        for pfn, count in (pins or {}).items():
            self.pins[pfn] = self.pins.get(pfn, 0) + count
        self.expect_empty = expect_empty
        self.memo: dict[str, Any] = {}
        """What laws share that is not here."""
        self.frames = config.frames
        self.nr = int(HPAGE_PMD_NR)
        self.order = int(HPAGE_PMD_ORDER)
        self.page = view(mem_map, config.frames)
        self.pgdat = view(pgdat)[0]
        self.percpu = view(percpu, config.cpus)

    @functools.cached_property
    def flags(self) -> Column:
        return column(self.page, "flags")

    @functools.cached_property
    def refcount(self) -> Column:
        return column(self.page, "_refcount")

    @functools.cached_property
    def mapcount(self) -> Column:
        return column(self.page, "_mapcount")

    @functools.cached_property
    def mapping(self) -> Column:
        return column(self.page, "mapping")

    @functools.cached_property
    def index(self) -> Column:
        return column(self.page, "index")

    @functools.cached_property
    def page_type(self) -> Column:
        return column(self.page, "page_type")

    @functools.cached_property
    def lru_next(self) -> list[int]:
        """As a Python list: lists are followed one by one."""
        found: list[int] = column(self.page, "lru_next").tolist()
        return found

    @functools.cached_property
    def compound_head(self) -> Column:
        return column(self.page, "compound_head")

    @functools.cached_property
    def is_tail(self) -> Column:
        return (self.compound_head & 1) != 0

    @functools.cached_property
    def heads(self) -> Column:
        """Frames with PG_head whose block fits into memory."""
        found = np.flatnonzero(self.has(PG_head))
        return found[(found + self.nr <= self.frames)]

    @functools.cached_property
    def head_of(self) -> Column:
        """Each frame's head; its own number for what is no tail, or whose head is out of range."""
        own = np.arange(self.frames)
        head = self.compound_head.astype(np.int64) >> 1
        return np.where(self.is_tail & (head >= 0) & (head < self.frames), head, own)

    def has(self, flag: int) -> Column:
        """Which frames have a PG_* flag in their own word."""
        found: Column = (self.flags >> flag) & 1 != 0
        return found

    def subpages(self, heads: Column) -> Column:
        """The frames of each head's block, as rows."""
        rows: Column = heads[:, None] + np.arange(self.nr)[None, :]
        return rows

    def inside(self, pfn: Column) -> Column:
        found: Column = (pfn >= 0) & (pfn < self.frames)
        return found

    @property
    def huge_zero_pfn(self) -> int:
        return int(self.pgdat["huge_zero_page"])

    @property
    def zero_pfn(self) -> int:
        return int(self.pgdat["zero_pfn"])
