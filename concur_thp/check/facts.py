"""What the audit knows of a machine that stands still: columns over frames, mms, vmas and mappings, gathered once.

Everything a law needs is here, so that each law is a few lines. Gathering trusts nothing: numbers that lead nowhere
are left out and show up as violations of the law they belong to.
"""

import functools

import numpy as np

from concur_thp.check.facts_pages import PageFacts
from concur_thp.check.views import Column, Lists, chain, column, follow, raw, view
from concur_thp.check.walk import Entries, PageTables, present, walk
from concur_thp.config import PAGE_SHIFT
from concur_thp.mm.mm_types import (
    NIL,
    POOL_FILE,
    anon_vmas,
    avcs,
    cache_slots,
    files,
    mms,
    pools,
    vma_slots,
    vmas,
)
from concur_thp.mm.pgtable import _PAGE_SPECIAL, _PAGE_SWAP
from concur_thp.mm.slab import INDEX
from concur_thp.mm.swap_state import swap_cache_slots

ADDRESS_BITS = 47
"""An mm and an address in one sortable number: mm << ADDRESS_BITS | address."""


class Facts(PageFacts):
    """A machine at rest: its frames, and what refers to them."""

    # --- mms and their tables

    @functools.cached_property
    def mm(self) -> Column:
        return view(mms, self.config.mms + 1)

    @functools.cached_property
    def live_mms(self) -> Column:
        """Mms somebody still refers to; those without users have lost their vmas already."""
        live = self.mm["mm_count"] > 0
        live[0] = False
        return np.flatnonzero(live)

    @functools.cached_property
    def walked(self) -> PageTables:
        return walk(self.config, self.live_mms, self.mm["pgd"][self.live_mms])

    @functools.cached_property
    def pte(self) -> Entries:
        """Present ptes that map a page of their own (no small zero page), to a frame that exists."""
        found = self.walked.pte
        good = present(found.val) & ((found.val & _PAGE_SPECIAL) == 0) & self.inside(found.pfn)
        return found.where(good)

    @functools.cached_property
    def huge(self) -> Entries:
        """Present huge pmds, the huge zero page included, whose frame exists."""
        found = self.walked.pmd
        return found.where(present(found.val) & self.inside(found.pfn))

    @functools.cached_property
    def thp(self) -> Entries:
        """Huge pmds that map a page of their own."""
        return self.huge.where(self.huge.pfn != self.huge_zero_pfn)

    @functools.cached_property
    def swap_pte(self) -> Entries:
        """Ptes that are swap entries; their `pfn` is the slot."""
        found = self.walked.pte
        return found.where(found.val & _PAGE_SWAP != 0)

    @functools.cached_property
    def swap_cached(self) -> tuple[Column, Column]:
        """Swap cache: columns slot, pfn of every filled slot."""
        slots = raw(int(swap_cache_slots.base), 4 * max(self.config.swap_slots, 1)).view(np.int32)
        filled = np.flatnonzero(slots)
        pfn = slots[filled].astype(np.int64) - 1
        good = self.inside(pfn)
        return filled[good], pfn[good]

    @functools.cached_property
    def pte_maps(self) -> Column:
        """M: ptes that map each frame."""
        return np.bincount(self.pte.pfn, minlength=self.frames)

    @functools.cached_property
    def pmd_maps(self) -> Column:
        """P: huge pmds that map each head."""
        return np.bincount(self.thp.pfn, minlength=self.frames)

    @functools.cached_property
    def deposits(self) -> tuple[Entries, list[str]]:
        """Deposited tables: `table` is the PMD table, `val` the deposited one. Also what is wrong with the lists."""
        links, errors = self.walked.linked[2], []
        rows: list[tuple[int, int, int]] = []
        first = self.page["pmd_huge_pte"][links.pfn]
        for mm, table, head in zip(links.mm.tolist(), links.pfn.tolist(), first.tolist(), strict=True):
            found, wrong = chain(self.lru_next, head, self.frames, NIL)
            rows += [(mm, table, pfn) for pfn in found]
            if wrong:
                errors.append(f"deposit list of PMD table pfn {table:#x} of mm {mm}: {wrong}")
        data = np.array(rows, dtype=np.int64).reshape(-1, 3)
        return Entries(data[:, 0], np.zeros(len(rows), np.int64), data[:, 2], data[:, 1]), errors

    # --- vmas

    @functools.cached_property
    def vma(self) -> Column:
        return view(vmas, self.config.vmas + 1)

    @functools.cached_property
    def vma_list(self) -> Column:
        """Vma numbers of all live mms, mm by mm in the order of their slots."""
        return np.concatenate([np.zeros(0, np.int64), *self._vma_rows]).astype(np.int64)

    @functools.cached_property
    def vma_mm(self) -> Column:
        """The mm whose slot each vma of vma_list stands in."""
        return np.repeat(self.live_mms, [len(row) for row in self._vma_rows]).astype(np.int64)

    @functools.cached_property
    def _vma_rows(self) -> list[Column]:
        # Row by row: slots that were never used are not resident, and reading them would make them so.
        each = self.config.max_map_count
        counts = np.clip(self.mm["map_count"], 0, each)
        base = int(vma_slots.base)
        rows = [raw(base + 4 * int(mm) * each, 4 * int(counts[mm])).view(np.int32) for mm in self.live_mms]
        return [row[(row > 0) & (row <= self.config.vmas)] for row in rows]

    @functools.cached_property
    def vma_start(self) -> Column:
        return self.vma["vm_start"][self.vma_list]

    @functools.cached_property
    def vma_end(self) -> Column:
        return self.vma["vm_end"][self.vma_list]

    @functools.cached_property
    def _vma_order(self) -> tuple[Column, Column]:
        keys = (self.vma_mm << ADDRESS_BITS) | self.vma_start
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def find_vma(self, mm: Column, addr: Column) -> Column:
        """The vma number that contains each address, 0 where there is none."""
        keys, order = self._vma_order
        if not len(keys):
            return np.zeros(len(mm), dtype=np.int64)
        at = np.searchsorted(keys, (mm << ADDRESS_BITS) | addr, side="right") - 1
        row = order[np.maximum(at, 0)]
        good = (at >= 0) & (self.vma_mm[row] == mm) & (addr < self.vma_end[row]) & (addr >= self.vma_start[row])
        return np.where(good, self.vma_list[row], 0)

    def linear_index(self, vma: Column, addr: Column) -> Column:
        """linear_page_index() of each address in its vma."""
        found: Column = ((addr - self.vma["vm_start"][vma]) >> PAGE_SHIFT) + self.vma["vm_pgoff"][vma]
        return found

    # --- anon_vmas, files
    # Never the whole of a large pool: what was never used is not resident, and reading it would make it so.

    @functools.cached_property
    def avc(self) -> Column:
        return view(avcs, 2 * self.config.vmas + 1)

    @functools.cached_property
    def anon_vma(self) -> Column:
        return view(anon_vmas, self.config.vmas + 1)

    @functools.cached_property
    def vma_chains(self) -> Lists:
        """Every anon_vma_chain on the lists of vmas."""
        return follow(self.avc["same_vma"], self.vma["avc_head"], self.vma_list, "anon_vma_chain list of vma")

    @functools.cached_property
    def tree_chains(self) -> Lists:
        """Every anon_vma_chain in the trees of anon_vmas."""
        return follow(self.avc["rb_next"], self.anon_vma["rb_root"], self.live_anon_vmas, "tree of anon_vma")

    @functools.cached_property
    def file_vmas(self) -> Lists:
        """Every vma on the i_mmap lists of files."""
        return follow(self.vma["shared_next"], self.file["i_mmap"], self.live_files, "i_mmap of file")

    @functools.cached_property
    def live_anon_vmas(self) -> Column:
        """Anon_vmas that a vma leads to, and their roots."""
        chains = self.vma_chains[0]
        found = np.concatenate([self.avc["anon_vma"][chains], self.vma["anon_vma"][self.vma_list]]).astype(np.int64)
        found = np.unique(found[(found > 0) & (found <= self.config.vmas)])
        roots = self.anon_vma["root"][found].astype(np.int64)
        return np.union1d(found, roots[(roots > 0) & (roots <= self.config.vmas)])

    @functools.cached_property
    def file(self) -> Column:
        return view(files, self.config.files + 1)

    @functools.cached_property
    def live_files(self) -> Column:
        """Files that are handed out: what is not on the pool's free list."""
        free = np.zeros(self.config.files + 2, dtype=bool)
        link = column(self.file, "free_next").tolist()
        at = pools[POOL_FILE].top.load() & INDEX
        while 0 < at <= self.config.files and not free[at]:
            free[at] = True
            at += 1 + link[at]
        return np.flatnonzero(~free[1 : self.config.files + 1]) + 1

    @functools.cached_property
    def cached(self) -> tuple[Column, Column, Column]:
        """Page cache: columns file, index, pfn of every filled slot."""
        rows = []
        for number in self.live_files.tolist():
            size = min(int(self.file["size"][number]), self.config.file_pages)
            at = int(cache_slots.base) + 4 * number * self.config.file_pages
            slots = raw(at, 4 * max(size, 0)).view(np.int32)
            filled = np.flatnonzero(slots)
            rows.append(np.stack([np.full(len(filled), number), filled, slots[filled].astype(np.int64) - 1]))
        data = np.concatenate([np.zeros((3, 0), np.int64), *rows], axis=1)
        good = self.inside(data[2])
        return data[0][good], data[1][good], data[2][good]
