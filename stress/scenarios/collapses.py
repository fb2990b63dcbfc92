"""Races of khugepaged: what happens to a range that is used, pinned, unmapped or torn down while it is collapsed."""

from typing import Any

from concur_thp.mm.collapse_check import Scan
from concur_thp.program.table import LOOK_DIRTY, LOOK_HUGE, LOOK_PTE, LOOK_SWAP, LOOK_WRITE
from stress.scenarios.scenario import ANY_COUNT, Outcome, Scenario
from stress.scenarios.setups import EBUSY, EFAULT, ESRCH, MAPPED, SMALL

FRESH = LOOK_WRITE | LOOK_DIRTY
DONE = int(Scan.SCAN_SUCCEED)
IN_USE = frozenset({int(Scan.SCAN_FAIL), int(Scan.SCAN_PAGE_COUNT), int(Scan.SCAN_PAGE_LRU), int(Scan.SCAN_PAGE_LOCK)})
"""khugepaged's answers when it meets a page that somebody works with."""
GONE = frozenset({int(Scan.SCAN_FAIL), int(Scan.SCAN_PMD_NULL), int(Scan.SCAN_VMA_NULL), int(Scan.SCAN_ADDRESS_RANGE),
                  int(Scan.SCAN_VMA_CHECK), int(Scan.SCAN_EXCEED_NONE_PTE), int(Scan.SCAN_PAGE_RO)})
"""Its answers when the range is no longer what it was."""

FAULT_VS_COLLAPSE = Scenario(
    "fault_vs_collapse", "a range of small pages is collapsed while its process stores into it and faults a new page in", (17,),
    ("R15", "R16", "X16", "X17", "X18", "I9", "I22"),
    MAPPED + "advise 0 1h nohuge; fill 0 4e 100; advise 0 1h huge; drain",
    ("enter 0; store 1 7; store 6e 8; own: load 1; new: load 6e", "done: collapse 0 0"),
    "enter 0; kind: look 0 0; first: load 1; late: load 6e; old: count 0 4e 100; pages: rss 0",
    (
        Outcome("collapsed, with or under the new page", done=DONE, kind=(LOOK_HUGE, FRESH), pages=("1h", 0)),
        Outcome("given up: a page was in use", done=IN_USE, kind=(LOOK_PTE, FRESH), pages=("4e+1", 0)),
    ),
    always=dict(own=(0, 7), new=(0, 8), first=(0, 7), late=(0, 8), old=("4e-1", 0)))

_PINNED: dict[str, Any] = dict(pinned=1, stored=0, word=(0, 77), again=0, kept=(0, 88))
_UNPINNED: dict[str, Any] = dict(pinned=0, stored=ESRCH, word=(ESRCH, 0), again=ESRCH, kept=(0, 103))
"""What is stored through the pin is what the program loads, also when everything is over: the pin is CPU 0's, which looks."""

COLLAPSE_VS_GUP_FAST = Scenario(
    "collapse_vs_gup_fast", "a range is collapsed while gup-fast pins one of its pages and writes through the pin", (17,),
    ("R7", "X14", "X15", "I26"),
    SMALL,
    ("enter 0; pinned: pin 0 3 fast_only_write; stored: pin_store 0 77; word: pin_load 0", "done: collapse 0 0"),
    "enter 0; kind: look 0 0; again: pin_store 0 88; kept: load 3; old: count 0 1h 100",
    (
        Outcome("pin seen: not collapsed", done=IN_USE, kind=(LOOK_PTE, FRESH), **_PINNED),
        Outcome("collapsed, then a part of the huge page was pinned", done=DONE, kind=(LOOK_HUGE, FRESH), **_PINNED),
        Outcome("collapsed, and gup-fast saw no table", done=DONE, kind=(LOOK_HUGE, FRESH), **_UNPINNED, must=False),
        Outcome("not collapsed, and gup-fast saw no table", done=IN_USE, kind=(LOOK_PTE, FRESH), **_UNPINNED, must=False),
    ),
    always=dict(old=({"1h", "1h-1"}, 0)))

COLLAPSE_VS_GUP_SLOW = Scenario(
    "collapse_vs_gup_slow", "a range is collapsed while get_user_pages pins one of its pages", (17,), ("R7", "R15", "X15"),
    SMALL,
    ("enter 0; pinned: pin 0 3 write; stored: pin_store 0 77; word: pin_load 0", "done: collapse 0 0"),
    "enter 0; kind: look 0 0; again: pin_store 0 88; kept: load 3; old: count 0 1h 100",
    (
        Outcome("pinned: not collapsed", done=IN_USE, kind=(LOOK_PTE, FRESH)),
        Outcome("collapsed, then pinned", done=DONE, kind=(LOOK_HUGE, FRESH)),
    ),
    always=dict(old=("1h-1", 0), **_PINNED))

COLLAPSE_VS_MIGRATE = Scenario(
    "collapse_vs_migrate", "a range is collapsed while one of its pages is migrated", (18,), ("R16", "X15", "X17", "I9"),
    SMALL,
    ("done: collapse 0 0", "moved: migrate_frame 0 whole; drain"),
    "enter 0; kind: look 0 0; old: count 0 1h 100; pages: rss 0",
    (
        Outcome("migrated, then collapsed", done=DONE, moved=0, kind=(LOOK_HUGE, FRESH)),
        Outcome("collapsed, and the page was not to be had", done=DONE, moved=EBUSY, kind=(LOOK_HUGE, FRESH)),
        Outcome("migrated, and the collapse given up", done=IN_USE | {int(Scan.SCAN_PTE_NON_PRESENT)}, moved=0,
                kind=(LOOK_PTE, FRESH)),
        Outcome("both were in each other's way", done=IN_USE | {int(Scan.SCAN_PTE_NON_PRESENT)}, moved=EBUSY,
                kind=(LOOK_PTE, FRESH), must=False),
    ),
    always=dict(old=("1h", 0), pages=("1h", 0)))

COLLAPSE_VS_RECLAIM = Scenario(
    "collapse_vs_reclaim", "a range is collapsed while one of its pages is swapped out", (18,), ("R16", "X15", "X17"),
    SMALL,
    ("done: collapse 0 0", "enter 0; out: swap_out 3"),
    "enter 0; kind: look 0 3; old: count 0 1h 100; pages: rss 0",
    (
        Outcome("collapsed", done=DONE, out={0, 1, EBUSY, EFAULT}, kind=(LOOK_HUGE, FRESH)),
        Outcome("collapsed, and the huge page swapped out", done=DONE, out="1h", kind=(LOOK_SWAP, 0), must=False),
        Outcome("swapped out, and the collapse given up", done=IN_USE, out={0, 1}, kind=(LOOK_SWAP, 0)),
        Outcome("neither", done=IN_USE, out={0, EBUSY}, kind=(LOOK_PTE, range(4)), must=False),
    ),
    always=dict(old=("1h", 0), pages=({"1h"}, {0, 1, "1h"})), swap=True)

COLLAPSE_VS_MUNMAP = Scenario(
    "collapse_vs_munmap", "a range is unmapped while khugepaged is between its windows", (20,), ("R15", "X16", "X27"),
    SMALL,
    ("done: collapse 0 0", "enter 0; unmap 0 1h"),
    "enter 0; gone: load 0; pages: rss 0",
    (
        Outcome("collapsed, then unmapped", done=DONE),
        Outcome("unmapped: there was nothing to collapse any more", done=GONE),
    ),
    always=dict(gone=(EFAULT, 0), pages=(0, 0)))

COLLAPSE_VS_MREMAP = Scenario(
    "collapse_vs_mremap", "a range moves away while khugepaged is between its windows", (20,), ("R13", "R15", "X16"),
    SMALL,
    ("done: collapse 0 0", "enter 0; move 0 1h 1g"),
    "enter 0; gone: load 0; kind: look 0 1g; old: count 1g 1h 100; pages: rss 0",
    (
        Outcome("collapsed, then moved as one", done=DONE, kind=(LOOK_HUGE, FRESH)),
        Outcome("moved: there was nothing to collapse any more", done=GONE, kind=(LOOK_PTE, FRESH)),
    ),
    always=dict(gone=(EFAULT, 0), old=("1h", 0), pages=("1h", 0)))

COLLAPSE_VS_DONTNEED = Scenario(
    "collapse_vs_dontneed", "half of a range is thrown away while it is collapsed", (17, 20), ("R15", "R18", "X16"),
    SMALL,
    ("done: collapse 0 0", "enter 0; advise 4e 4e dontneed; zero: load 5e"),
    "enter 0; kind: look 0 0; old: count 0 1h 100",
    (
        Outcome("collapsed, then split for DONTNEED", done=DONE, kind=(LOOK_PTE, LOOK_WRITE), thp_split_pmd=1),
        Outcome("thrown away, then collapsed", done=DONE, kind=(LOOK_HUGE, FRESH), thp_split_pmd=0),
        Outcome("given up: DONTNEED was at work", done=IN_USE, kind=(LOOK_PTE, FRESH), thp_split_pmd=0, must=False),
    ),
    always=dict(zero=(0, 0), old=("4e", "4e")))

TWO = SMALL + "fork 1; leave; enter 1; fill 0 1h 100; leave; enter 0; fill 0 1h 100\n"

COLLAPSE_VS_EXIT = Scenario(
    "collapse_vs_exit", "a process exits while khugepaged works on its memory", (19, 29), ("I23", "X16"),
    SMALL,
    ("progress: scan 8h", "drop 0"),
    "gone: look 0 0",
    (
        Outcome("collapsed before the exit", khugepaged_pages_collapsed=1),
        Outcome("the exit came first", khugepaged_pages_collapsed=0),
    ),
    always=dict(progress=ANY_COUNT, gone=(ESRCH, 0)))

SCAN_VS_TWO_EXITS = Scenario(
    "scan_vs_two_exits", "two processes on khugepaged's list exit while it walks the list", (29, 19), ("I23",),
    TWO,
    ("progress: scan 8h", "drop 0", "drop 1"),
    "first: look 0 0; second: look 1 0",
    (
        Outcome("both were collapsed", khugepaged_pages_collapsed=2, must=False),
        Outcome("one was collapsed", khugepaged_pages_collapsed=1),
        Outcome("both exits came first", khugepaged_pages_collapsed=0),
    ),
    always=dict(progress=ANY_COUNT, first=(ESRCH, 0), second=(ESRCH, 0)))

SCENARIOS = (FAULT_VS_COLLAPSE, COLLAPSE_VS_GUP_FAST, COLLAPSE_VS_GUP_SLOW, COLLAPSE_VS_MIGRATE, COLLAPSE_VS_RECLAIM,
             COLLAPSE_VS_MUNMAP, COLLAPSE_VS_MREMAP, COLLAPSE_VS_DONTNEED, COLLAPSE_VS_EXIT, SCAN_VS_TWO_EXITS)
