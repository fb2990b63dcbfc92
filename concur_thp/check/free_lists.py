"""The buddy lists of every zone and the per-CPU lists, followed once for each audit."""

import numpy as np

from concur_thp.check.facts import Facts
from concur_thp.check.views import Column, chain, view
from concur_thp.mm.mm_types import NIL, NR_FREE_LISTS, NR_ORDERS, NR_ZONES, free_areas, zones


class FreeLists:
    """Free blocks as columns: first frame, and order, zone, migratetype and number of the list each was found on."""

    def __init__(self, facts: Facts):
        self.errors: list[str] = []
        self.zone = view(zones, NR_ZONES)
        areas = view(free_areas, NR_ZONES * NR_FREE_LISTS * NR_ORDERS).reshape(NR_ZONES, NR_FREE_LISTS, NR_ORDERS)
        self.areas = areas[:, : facts.config.cpus + 1]
        rows: list[tuple[int, int, int, int, int]] = []
        heads = self.areas["head"]
        self.held = (heads != NIL).any(axis=2)
        """zone, list number, type: is there any block?"""
        for zone, number, order, kind in np.argwhere(heads != NIL).tolist():
            what = f"free list of zone {zone} cpu {number - 1} order {order} type {kind}"
            found = self._follow(facts, int(heads[zone, number, order, kind]), what)
            rows += [(pfn, order, zone, kind, number) for pfn in found]
        table = np.array(rows, dtype=np.int64).reshape(-1, 5)
        self.pfn, self.order, self.owner, self.kind, self.number = (np.ascontiguousarray(table[:, n]) for n in range(5))
        self.pcp_counts: list[tuple[int, int, int, int]] = []
        """cpu, list, pages found, its count word."""
        self.pcp = self._pcp(facts)
        self.counts = self._counts(facts)

    def _follow(self, facts: Facts, head: int, what: str) -> list[int]:
        found, wrong = chain(facts.lru_next, head, facts.frames, NIL)
        if wrong:
            self.errors.append(f"{what}: {wrong}")
        return found

    def _pcp(self, facts: Facts) -> Column:
        pfns: list[int] = []
        for cpu in range(facts.config.cpus):
            heads = facts.percpu["pcp"]["head"][cpu].tolist()
            counts = facts.percpu["pcp"]["count"][cpu].tolist()
            for number, (head, count) in enumerate(zip(heads, counts, strict=True)):
                found = self._follow(facts, head, f"pcp list {number} of cpu {cpu}")
                pfns += found
                self.pcp_counts.append((cpu, number, len(found), count))
        return np.array(pfns, dtype=np.int64)

    def _counts(self, facts: Facts) -> tuple[Column, Column]:
        edges = np.bincount(self.pfn, minlength=facts.frames + 1)
        edges -= np.bincount(np.minimum(self.pfn + (1 << self.order), facts.frames), minlength=facts.frames + 1)
        return np.cumsum(edges)[:-1], np.bincount(self.pcp, minlength=facts.frames)


def free_lists(facts: Facts) -> FreeLists:
    """The free lists of the machine that `facts` is about."""
    if "free_lists" not in facts.memo:
        facts.memo["free_lists"] = FreeLists(facts)
    found: FreeLists = facts.memo["free_lists"]
    return found


def free_counts(facts: Facts) -> tuple[Column, Column]:
    """How many free blocks, and how many pcp entries, each frame is in."""
    return free_lists(facts).counts
