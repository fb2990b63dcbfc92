"""Every lock there is, declared once: lockdep, lock_stat, dumps, documents and tests read these rows.

Locks are taken in rising rank; a trylock may go the other way. `irq` says whether irqs are off while it is held.
Nested classes are the second lock of the same kind, in the order that `nesting` names.
"""

from typing import NamedTuple

from concur_thp.arch.guard_words import declare_classes

FIRST_USER_CLASS = 24
"""Classes from here on belong to whoever declares locks of their own; they have no rank, only the order graph."""


class LockClass(NamedTuple):
    """One row. `per` is what an instance belongs to, `protects` what stays true while it is held."""

    name: str
    rank: int
    kind: str  # spinlock | bit | rwsem
    per: str
    irq: bool
    protects: str
    nesting: str

    @property
    def sleeps(self) -> bool:
        """May its holder sleep?"""
        return self.kind != "spinlock"


LOCK_CLASSES = (
    LockClass("none", 0, "spinlock", "-", False, "nothing: class 0 is not used", "never"),
    LockClass("mmap_sem", 10, "rwsem", "mm", False,
              "the vma list and tree. Read: no collapse and no table is freed under you (a fault may still fill an empty"
              " pmd, DONTNEED may still empty one). Write: nothing else maps, unmaps or collapses here.",
              "fork: parent, then child as mmap_sem/1"),
    LockClass("mmap_sem/1", 11, "rwsem", "mm", False, "the child's vmas during fork", "behind the parent's"),
    LockClass("page_lock", 20, "bit", "head page (PG_locked)", False,
              "mapping and index of an anon page, and whether the page is being split, migrated or reused",
              "more pages by trylock only, as khugepaged does"),
    LockClass("i_mmap_rwsem", 30, "rwsem", "address_space", False, "the vmas that map a file", "never"),
    LockClass("anon_vma_rwsem", 40, "rwsem", "root anon_vma", False,
              "the vmas a page may be mapped in. Read: walk them. Write: change them, split or collapse.", "never"),
    LockClass("page_table_lock", 50, "spinlock", "mm", False, "upper tables, and the publication of vma.anon_vma", "never"),
    LockClass("pmd_ptl", 60, "spinlock", "PMD table page", False,
              "every pmd of that table and the tables deposited behind its huge pmds",
              "fork: child, then parent; mremap: old, then new; the second as pmd_ptl/1"),
    LockClass("pmd_ptl/1", 61, "spinlock", "PMD table page", False, "as pmd_ptl", "behind another pmd_ptl"),
    LockClass("pte_ptl", 70, "spinlock", "PTE table page", False, "every pte of that table",
              "fork: child, then parent; mremap: old, then new; the second as pte_ptl/1"),
    LockClass("pte_ptl/1", 71, "spinlock", "PTE table page", False, "as pte_ptl", "behind another pte_ptl"),
    LockClass("lru_lock", 80, "spinlock", "node", True, "LRU membership and PG_lru", "never"),
    LockClass("swap_lock", 90, "spinlock", "swap device", False, "swap_map and clusters", "never"),
    LockClass("i_pages", 100, "spinlock", "address_space", True, "the slots of a page cache", "never"),
    LockClass("split_queue_lock", 110, "spinlock", "node", True, "the deferred split list and its length", "never"),
    LockClass("zone_lock", 120, "spinlock", "zone", True, "free lists and pageblock types", "never"),
    LockClass("khugepaged_mm_lock", 130, "spinlock", "machine", False, "khugepaged's list of mms and its cursor", "never"),
)

CLASS_ID = {row.name: number for number, row in enumerate(LOCK_CLASSES)}

MMAP_SEM = CLASS_ID["mmap_sem"]
PAGE_LOCK = CLASS_ID["page_lock"]
I_MMAP_RWSEM = CLASS_ID["i_mmap_rwsem"]
ANON_VMA_RWSEM = CLASS_ID["anon_vma_rwsem"]
PAGE_TABLE_LOCK = CLASS_ID["page_table_lock"]
PMD_PTL = CLASS_ID["pmd_ptl"]
PTE_PTL = CLASS_ID["pte_ptl"]
LRU_LOCK = CLASS_ID["lru_lock"]
SWAP_LOCK = CLASS_ID["swap_lock"]
I_PAGES = CLASS_ID["i_pages"]
SPLIT_QUEUE_LOCK = CLASS_ID["split_queue_lock"]
ZONE_LOCK = CLASS_ID["zone_lock"]
KHUGEPAGED_MM_LOCK = CLASS_ID["khugepaged_mm_lock"]

SPIN_CLASSES = sum(1 << n for n, row in enumerate(LOCK_CLASSES) if not row.sleeps)
"""A bit for each class whose holder must not sleep."""

declare_classes(
    {row.name: sum(1 << n for n, other in enumerate(LOCK_CLASSES) if other.name in (row.name, f"{row.name}/1"))
     for row in LOCK_CLASSES if row.rank},
    [row.name for row in LOCK_CLASSES if row.kind == "rwsem"])

assert len(LOCK_CLASSES) <= FIRST_USER_CLASS
assert all(a.rank < b.rank for a, b in zip(LOCK_CLASSES, LOCK_CLASSES[1:], strict=False)), "rows stand in rank order"
assert all(LOCK_CLASSES[n + 1].name == f"{LOCK_CLASSES[n].name}/1" for n in (MMAP_SEM, PMD_PTL, PTE_PTL))
