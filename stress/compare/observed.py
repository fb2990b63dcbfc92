"""What is seen after a step: the same tuples from both sides. Only the standard library, as steps.py."""

from typing import NamedTuple

LOOKED_AT = ("thp_fault_alloc", "thp_split_pmd", "thp_split_page", "thp_deferred_split_page", "thp_split_page_failed",
             "thp_zero_page_alloc", "thp_collapse_alloc", "thp_fault_fallback")
"""Counters whose change is read around every step; the latter ones only guard and explain."""


BLOCK_KINDS = {".": "nothing", "H": "a huge page", "Z": "the huge zero page",
               "z": "the huge zero page where MADV_NOHUGEPAGE or prctl forbids new ones", "t": "a table",
               "s": "a table full of small pages that v4.20 would collapse", "e": "an empty table"}


VMA_KINDS = {"a": "it has an anon_vma", "p": "it was writable once, is not now, and stays accounted for (VM_ACCOUNT)"}


UNKNOWN = -1
"""What cannot be told of a block."""


class Block(NamedTuple):
    """One block of a task's arena. Sizes in KiB."""

    anon_huge: int
    rss: int
    shared: int
    private: int
    places: int


class Look(NamedTuple):
    """One task's arena. Sizes in KiB, as smaps has them."""

    anon_huge: int
    rss: int
    shared: int
    private: int
    present: int
    """Pages that are there: by an entry of their own or a huge one, zero pages too."""
    places: int
    """Checksum of which pages are there."""
    data: int
    """Checksum of every page's words: 0 where a load would find 0, or may not load."""
    blocks: tuple[Block, ...] = ()
    """The same by block, from pagemap; empty where the kernel has no PAGEMAP_SCAN (before v6.7)."""
    mappings: tuple[tuple[int, int], ...] = ()
    """First page and end of each vma, by address."""
    detail: tuple[bytes, bytes] = (b"", b"")
    """With details: a byte a page (1: there), and all words."""


class Seen(NamedTuple):
    """One step's outcome."""

    result: int
    """0, a number of pages, or a negative error number."""
    counters: tuple[int, ...]
    """By LOOKED_AT: how far each moved during the step."""
    looks: dict[int, Look]
    """By task: of everyone who is alive."""
    events: dict[str, int] = {}
    """The emulator's only: more counters that moved; the conditions of DIFFERENCES look at them."""
    blocks: dict[int, str] = {}
    """The emulator's only, by task: a letter for each block of the arena, see BLOCK_KINDS."""
    vmas: dict[int, tuple[str, ...]] = {}
    """The emulator's only, by task: letters for each of its mappings, see VMA_KINDS."""

    def counter(self, name: str) -> int:
        return self.counters[LOOKED_AT.index(name)]


Run = list[Seen]
