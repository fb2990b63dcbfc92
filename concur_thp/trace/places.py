"""Names of what lies at an address, as a kernel developer would say it: `pmd[0x200000]`, `page 0x110 _refcount`.

A place also has a weight: how much a change there says about a race. Entries of page tables say most; a CPU's own
lists, counters and the harness's words say nothing.
"""

from collections.abc import Iterable
from typing import NamedTuple

from concur_thp.check.facts import Facts
from concur_thp.check.lock_names import ZONE_NAMES, Place, locate, segment_offset
from concur_thp.config import PAGE_SHIFT, PGDIR_SHIFT, PMD_SHIFT, PUD_SHIFT, MachineConfig
from concur_thp.mm.mm_types import PAGE_TYPE_TABLE, Page, mem_map
from concur_thp.mm.page_flags import FLAG_NAMES, PG_head, PG_locked, PG_waiters
from concur_thp.mm.pgtable import (
    _PAGE_HUGE,
    _PAGE_HWPOISON,
    _PAGE_MIGRATION,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    _PAGE_SWAP,
    _PAGE_TABLE,
    PFN_SHIFT,
)

SHIFTS = {1: PAGE_SHIFT, 2: PMD_SHIFT, 3: PUD_SHIFT, 4: PGDIR_SHIFT}
ENTRY_NAMES = {1: "pte", 2: "pmd", 3: "pud", 4: "pgd"}
WEIGHTS: dict[str, int | dict[str, int]] = {
    "tables": 10, "frames": 9, "swap_map": 6, "cache_slots": 6, "swap_cache_slots": 6, "pins": 3, "vma_slots": 2,
    "mem_map": {"_refcount": 7, "_mapcount": 8, "compound_mapcount": 8, "flags": 7, "mapping": 8, "index": 5, "private": 4,
                "compound_head": 6, "pmd_huge_pte": 7, "deferred_next": 4, "deferred_prev": 2},
    "vmas": {"vm_start": 8, "vm_end": 8, "vm_pgoff": 8, "vm_flags": 7, "anon_vma": 8, "avc_head": 4},
    "mms": {"mm_users": 1, "mm_count": 1, "flags": 5, "tlb_flush_pending": 6, "tlb_flush_batched": 6, "map_count": 3, "pgd": 5},
    "anon_vmas": {"refcount": 6, "degree": 5, "rb_root": 5, "parent": 2}, "avcs": 4,
    "files": {"nrpages": 2, "i_mmap": 4}, "tlb_contexts": {"generation": 3, "cpumask": 0},
    "pgdat": {"huge_zero_page": 7, "huge_zero_refcount": 7, "split_queue_len": 3},
}
"""By array, or by array and field; what is not here weighs nothing."""
TABLE_FIELDS = ("ptl", "pmd_huge_pte", "pt_mm", "pt_level", "flags", "_refcount", "_mapcount", "page_type", "lock_owner")
TAIL_FIELDS = {1: ("compound_mapcount", "compound_order"), 2: ("deferred_next", "deferred_prev")}
LOCKS = {"ptl": "ptl", "mmap_sem": "mmap_sem", "page_table_lock": "page_table_lock", "rwsem": "anon_vma rwsem",
         "i_mmap_rwsem": "i_mmap_rwsem", "i_pages": "i_pages lock", "lru_lock": "lru_lock",
         "split_queue_lock": "split_queue_lock"}
"""Fields that are locks, and what they are called."""
LOCK_BITS = 1 << PG_locked | 1 << PG_waiters


class Name(NamedTuple):
    """What lies somewhere."""

    text: str
    weight: int
    kind: str
    """How its value reads: entry, flags, lock, or number."""


class Namer:
    """Names places of one run. Where tables belong it learns before the run, behind it, and from what the run writes."""

    def __init__(self, config: MachineConfig):
        self.config = config
        self.tables: dict[int, tuple[int, int, int]] = {}
        """Frame of a table -> level, first address, mm."""
        self.heads: set[int] = set()
        self._names: dict[int, Name] = {}

    def look(self) -> None:
        """Learn from the state the machine is in now."""
        facts = Facts(self.config)
        for level, links in facts.walked.linked.items():
            for pfn, address, mm in zip(links.pfn.tolist(), links.addr.tolist(), links.mm.tolist(), strict=True):
                self.tables[pfn] = (level, address, mm)
        self.heads.update(int(pfn) for pfn in (facts.page["flags"] >> PG_head & 1).nonzero()[0])

    def learn(self, writes: Iterable[tuple[int, int]]) -> None:
        """Learn from entries that were written: (address, value)."""
        for address, value in writes:
            place = locate(self.config, segment_offset(address))
            if place is None or place.array.name != "tables" or not value & _PAGE_TABLE or place.index not in self.tables:
                continue
            level, base, mm = self.tables[place.index]
            number = (address - int(place.array.base)) % place.array.stride // 8
            self.tables.setdefault(value >> PFN_SHIFT, (level - 1, base + (number << int(SHIFTS[level])), mm))

    def name(self, address: int) -> Name:
        """What lies at an address of this process."""
        if address not in self._names:
            self._names[address] = self._name(address)
        return self._names[address]

    def _name(self, address: int) -> Name:
        place = locate(self.config, segment_offset(address))
        if place is None:
            return Name(f"{address:#x}", 0, "number")
        rest = address - int(place.array.base) - place.index * place.array.stride
        if place.array.name == "tables":
            return self._entry(place.index, rest // 8)
        if place.array.name == "frames":
            return Name(f"data of frame {place.index:#x}, word {rest // 8}", 9, "number")
        field = self._field(place, rest)
        if field in LOCKS:
            return Name(self._lock(place, field), 0, "lock")
        if field in ("lock", "wait_lock"):
            which = f" {ZONE_NAMES[place.index]}" if place.array.name == "zones" else ""
            return Name(f"{place.array.name.rstrip('s')} lock{which}", 0, "lock")
        weights = WEIGHTS.get(place.array.name, 0)
        weight = weights if isinstance(weights, int) else weights.get(field, 0)
        kind = "flags" if (place.array.name, field) == ("mem_map", "flags") else "number"
        return Name(f"{self._owner(place)} {field}".strip(), weight, kind)

    def _entry(self, table: int, number: int) -> Name:
        known = self.tables.get(table)
        if known is None:
            return Name(f"entry {number} of table {table:#x}", 10, "entry")
        level, base, mm = known
        several = len({of for _, _, of in self.tables.values()}) > 1
        return Name(f"{ENTRY_NAMES[level]}[{base + (number << int(SHIFTS[level])):#x}]{f' of mm {mm}' if several else ''}",
                    10, "entry")

    def _field(self, place: Place, rest: int) -> str:
        """The field of the struct, the right one where several lie over each other."""
        if place.array.struct is not Page:
            return place.field
        candidates = [row.name for row in Page.FIELDS.values() if row.offset <= rest < row.offset + row.stride]
        is_table = place.index in self.tables or mem_map[place.index].page_type == PAGE_TYPE_TABLE
        wanted: tuple[str, ...] = TABLE_FIELDS if is_table else ()
        for distance, fields in TAIL_FIELDS.items():
            if place.index - distance in self.heads and not wanted:
                wanted = fields
        return next((name for name in candidates if name in wanted), candidates[0] if candidates else "")

    def _lock(self, place: Place, field: str) -> str:
        if field == "ptl":
            level, base, _ = self.tables.get(place.index, (0, 0, 0))
            return f"{ENTRY_NAMES.get(level, '')} ptl of table {place.index:#x}".strip()
        number = "" if place.array.name == "pgdat" else f" of {self._owner(place)}"
        return LOCKS[field] + (f" {place.index}" if field == "rwsem" else number)

    @staticmethod
    def _owner(place: Place) -> str:
        name = {"mem_map": "page", "pgdat": "", "mms": "mm", "vmas": "vma", "anon_vmas": "anon_vma", "avcs": "avc",
                "files": "file", "tlb_contexts": "TLB context"}.get(place.array.name, place.array.name)
        if not name:
            return ""
        return f"{name} {place.index:#x}" if place.array.name == "mem_map" else f"{name} {place.index}"


def place_name(config: MachineConfig, address: int) -> str:
    """What lies at an address of this process, without knowing a run."""
    return Namer(config).name(address).text


def change_text(name: Name, before: int, after: int | None) -> str:
    """`pmd[0x200000] huge 0x110 -> none`; one value when nothing was written (after None) or nothing changed."""
    if name.kind == "flags":
        if after is None or before == after:
            return name.text
        changed = [f"{'+' if after >> bit & 1 else '-'}PG_{FLAG_NAMES.get(bit, bit)}" for bit in range(64)
                   if (before ^ after) >> bit & 1]
        return f"{name.text} {' '.join(changed)}"
    say = entry_text if name.kind == "entry" else str
    if after is None or before == after:
        return f"{name.text} is {say(before)}"
    return f"{name.text} {say(before)} -> {say(after)}"


def entry_text(value: int) -> str:
    """What a page table entry says."""
    pfn = f"{value >> PFN_SHIFT:#x}"
    if value == 0:
        return "none"
    if value & _PAGE_TABLE:
        return f"table {pfn}"
    for bit, word in ((_PAGE_MIGRATION, "migration"), (_PAGE_HWPOISON, "hwpoison"), (_PAGE_SWAP, "swap")):
        if value & bit:
            return f"{word} {pfn}"
    kind = "huge" if value & _PAGE_HUGE else "page"
    if value & _PAGE_PROTNONE:
        return f"protnone {kind} {pfn}"
    if not value & _PAGE_PRESENT:
        return f"{kind} {pfn} !present"
    return f"{kind} {pfn}{'' if value & _PAGE_RW else ' ro'}"




__all__ = ["Name", "Namer", "change_text", "entry_text", "place_name"]
