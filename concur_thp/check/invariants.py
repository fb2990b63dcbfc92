"""The instant invariants as data: what holds, where it is asked, what the asker holds, and by which function (4a).

`places` are the points that lead to `check` through check_at() (check/instant.py). The rows without a place are asked at
every single change, inside the helpers that make it. Documents and tests read this table.
"""

from typing import NamedTuple

from concur_thp.arch.linker import Kernel
from concur_thp.arch.points import Point
from concur_thp.check import instant_pages as pages
from concur_thp.check import instant_tables as tables
from concur_thp.check import instant_tlb as tlb
from concur_thp.check import instant_windows as windows
from concur_thp.mm.page_account import __account as account_changed

P = Point


class Invariant(NamedTuple):
    """One row. Why no other CPU can make the check speak wrongly stands in the function's `Sound:` lines."""

    id: str
    law: str
    under: str
    """What the CPU that asks holds, or what else makes its answer true."""
    places: tuple[Point, ...]
    checks: tuple[Kernel, ...]


INVARIANTS = (
    Invariant("I1", "a tail has no references",
              "a reference, or the page is frozen or on its way to be freed",
              (P.PUT_PAGE_ZERO, P.GUP_PINNED, P.PAGE_FROZEN), (pages.check_page,)),
    Invariant("I2", "no mapcount is below -1",
              "a reference, or the page is frozen or on its way to be freed",
              (P.PUT_PAGE_ZERO, P.GUP_PINNED, P.PAGE_FROZEN), (pages.check_page,)),
    Invariant("I3", "a head has at least as many references as entries, cache slots and pins",
              "nothing: the account of a page is one word, and each change of it is looked at",
              (), (account_changed,)),
    Invariant("I4", "mapcounts and references are read apart, so only a freeze decides: after one that succeeded, nothing "
              "maps the page",
              "page lock, frozen by this CPU", (P.PAGE_FROZEN,), (pages.check_nothing_maps,)),
    Invariant("I5", "a PMD table has as many deposited tables as huge pmds, of whatever kind",
              "the pmd ptl", (P.SPIN_UNLOCK,), (tables.check_pmd_table,)),
    Invariant("I6", "a huge pmd maps a huge page, aligned, with a reference and a mapcount, or the huge zero page",
              "the pmd ptl", (P.SPIN_UNLOCK,), (tables.check_pmd,)),
    Invariant("I7", "a pte that is not special maps a page in use, with a reference and a mapcount",
              "the pte ptl", (P.SPIN_UNLOCK,), (tables.check_pte_table,)),
    Invariant("I8", "a huge pmd lies inside one vma, at the place that its page's index says",
              "mmap_sem or the rmap lock, and the pmd ptl", (P.HUGE_PMD_SET,), (tables.check_huge_in_vma,)),
    Invariant("I9", "what was found to be a table stays the same table until mmap_sem is released",
              "mmap_sem for reading", (P.UP_READ,), (windows.check_table_kept,)),
    Invariant("I10", "a migration entry's page is locked",
              "the entry's ptl", (P.SPIN_UNLOCK,), (tables.check_migration_entry,)),
    Invariant("I11", "a frozen page is mapped nowhere, gets no reference, and only the freezer writes to it",
              "page lock, frozen by this CPU", (P.PAGE_FROZEN, P.PAGE_THAW), (pages.check_frozen, pages.check_thaw)),
    Invariant("I12", "all tails of a head lead to it, side by side and aligned",
              "a reference, or the page is frozen or on its way to be freed",
              (P.PUT_PAGE_ZERO, P.GUP_PINNED, P.PAGE_FROZEN), (pages.check_page,)),
    Invariant("I13", "a piece of a split page has its flags, mapping and index before it can be reached",
              "page lock, frozen by this CPU", (P.PAGE_THAW,), (pages.check_thaw,)),
    Invariant("I14", "no CPU holds an address small and huge",
              "its own CPU", (P.USER,), (tlb.check_tlb,)),
    Invariant("I15", "a frame that becomes free is in no TLB",
              "the last reference is gone", (P.PUT_PAGE_ZERO,), (tlb.check_frame_free,)),
    Invariant("I16", "a translation matches its entry, or somebody is about to flush it",
              "its own CPU, which acknowledges nothing meanwhile", (P.USER,), (tlb.check_translation,)),
    Invariant("I17", "what waits for a deferred split is a huge page, and linked",
              "split_queue_lock", (P.SPIN_UNLOCK,), (pages.check_queued,)),
    Invariant("I18", "PG_lru says who is on an LRU list: no tail, no isolated page, who has a reference then",
              "lru_lock, or the isolation", (P.SPIN_UNLOCK, P.LRU_ISOLATED), (pages.check_lru_lists, pages.check_isolated)),
    Invariant("I19", "nothing maps a page that a split has unmapped",
              "page lock and anon_vma write", (P.SPLIT_PAGE_UNMAPPED,), (windows.check_vma_unmapped,)),
    Invariant("I20", "PG_double_map of an anon page means that a pmd maps it",
              "the pmd ptl of such a pmd, or the page is frozen", (P.SPIN_UNLOCK, P.PAGE_FROZEN),
              (pages.check_double_map, pages.check_nothing_maps)),
    Invariant("I21", "no pte maps an anon THP that is mlocked",
              "the pte ptl", (P.SPIN_UNLOCK,), (tables.check_pte_table,)),
    Invariant("I22", "nobody can reach a table that khugepaged has detached",
              "mmap_sem write", (P.COLLAPSE_ISOLATED, P.COLLAPSE_COPIED), (windows.check_detached,)),
    Invariant("I23", "khugepaged is in no tables of an mm whose exit_mmap has started",
              "mmap_sem, by khugepaged", (P.SCAN_PMD, P.COLLAPSE_WRITE), (windows.check_not_exiting,)),
    Invariant("I24", "a vma keeps its anon_vma under mmap_sem, an anon page changes its own under its lock and in the family",
              "mmap_sem for reading; the page lock", (P.UP_READ, P.ANON_RMAP_MOVED),
              (windows.check_table_kept, pages.check_anon_rmap_move)),
    Invariant("I25", "references, mappings, slots and pins counted one by one agree with _refcount when that becomes 0",
              "nothing: from 0 nobody else takes a reference", (P.PAGE_FROZEN,), (pages.check_frozen, account_changed)),
)

__all__ = ["INVARIANTS", "Invariant"]
