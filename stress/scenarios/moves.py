"""Races of what moves: migration of pages to other frames, mremap of entries to other places."""

from typing import Any

from concur_thp.program.table import LOOK_DIRTY, LOOK_HUGE, LOOK_PTE, LOOK_WRITE
from stress.scenarios.scenario import Outcome, Scenario
from stress.scenarios.setups import EAGAIN, EBUSY, EFAULT, ESRCH, HUGE

FRESH = LOOK_WRITE | LOOK_DIRTY
WRITE = {LOOK_WRITE, FRESH}

_PINNED: dict[str, Any] = dict(pinned=1, stored=0, word=(0, 77), again=0, kept=(0, 88), old=("1h-1", 0))
_UNPINNED: dict[str, Any] = dict(pinned=0, stored=ESRCH, word=(ESRCH, 0), again=ESRCH, kept=(0, 103), old=("1h", 0))

MIGRATE_VS_PIN = Scenario(
    "migrate_vs_pin", "a huge page is migrated while gup-fast pins a part of it and writes through the pin", (21,),
    ("R7", "X24", "X28", "I12"),
    HUGE,
    ("enter 0; pinned: pin 0 3 fast_only_write; stored: pin_store 0 77; word: pin_load 0", "moved: migrate_frame 0 whole"),
    "enter 0; kind: look 0 0; again: pin_store 0 88; kept: load 3; old: count 0 1h 100; same: same 0 0",
    (
        Outcome("pinned: it stays where it was", moved=EBUSY, same=1, **_PINNED),
        Outcome("migrated, then pinned", moved=0, same=0, **_PINNED),
        Outcome("migrated, and gup-fast met a migration entry", moved=0, same=0, **_UNPINNED),
        Outcome("in each other's way: a reference that was given back", moved=EBUSY, same=1, must=False, **_UNPINNED),
    ),
    always=dict(kind=(LOOK_HUGE, WRITE)))

MIGRATE_VS_FORK = Scenario(
    "migrate_vs_fork", "a huge page is migrated while a process that maps it forks", (21, 10), ("X12", "X13", "I14"),
    HUGE,
    ("moved: migrate_frame 0 whole", "enter 0; fork 1"),
    "enter 0; parent: look 0 0; old: count 0 1h 100; same: same 0 0; enter 1; child: look 1 0; copy: count 0 1h 100; "
    "note 1 0; frame: frame 1",
    (
        Outcome("migrated, for both", moved=0, same=0),
        Outcome("not migrated: fork held a reference for a moment", moved=EBUSY, same=1, must=False),
    ),
    always=dict(parent=(LOOK_HUGE, {0, LOOK_DIRTY}), child=(LOOK_HUGE, {0, LOOK_DIRTY}), old=("1h", 0), copy=("1h", 0),
                frame=(2, 2)))

MIGRATE_VS_MUNMAP = Scenario(
    "migrate_vs_munmap", "a huge page is migrated while its only mapping goes", (21,), ("X13", "X27", "R7"),
    HUGE,
    ("moved: migrate_frame 0 whole", "enter 0; unmap 0 1h"),
    "enter 0; gone: load 0; pages: rss 0; queue: queued",
    (
        Outcome("migrated, or unmapped in between: nothing is left", moved=0),
        Outcome("not migrated: the munmap was in the way", moved=EBUSY),
    ),
    always=dict(gone=(EFAULT, 0), pages=(0, 0), queue=0))

MIGRATE_VS_FAULT = Scenario(
    "migrate_vs_fault", "a huge page is migrated while two of its pages are used", (21, 9), ("X23", "X24", "X21"),
    HUGE,
    ("moved: migrate_frame 0 whole", "enter 0; store 3 8; own: load 3", "enter 0; other: load 5"),
    "enter 0; kind: look 0 0; old: count 0 1h 100; same: same 0 0",
    (
        Outcome("migrated, and who came in between waited", moved=0, same=0),
        Outcome("not migrated: somebody waited for it with a reference", moved=EBUSY, same=1, must=False),
    ),
    always=dict(own=(0, 8), other=(0, 105), kind=(LOOK_HUGE, WRITE), old=("1h-1", 0)))

MREMAP_VS_MIGRATE = Scenario(
    "mremap_vs_migrate", "a huge page's entry moves to another table while an rmap walk looks for it, for a migration",
    (22,), ("R13", "X9", "X12"),
    HUGE,
    ("enter 0; move 0 1h 1g", "moved: migrate_frame 0 whole", "enter 0; first: store 3 7; stored: store 3 8"),
    "enter 0; gone: load 0; kind: look 0 1g; third: load 1g+3; old: count 1g 1h 100; same: same 0 1g",
    (
        Outcome("found, and migrated; stored at the old place", first=0, stored=0, third=(0, 8), old=("1h-1", 0)),
        Outcome("found, and migrated; moved between two stores", first=0, stored=EFAULT, third=(0, 7), old=("1h-1", 0),
                must=False),
        Outcome("found, and migrated; moved before it was stored into", first=EFAULT, stored=EFAULT, third=(0, 103),
                old=("1h", 0)),
        Outcome("not migrated: a store waited for it with a reference", moved=EBUSY, same=1, first=0, stored={0, EFAULT},
                third=(0, {7, 8}), old=("1h-1", 0), must=False),
        Outcome("not migrated: a store waited for it with a reference, and then the entry had moved", moved=EBUSY, same=1,
                first=EFAULT, stored=EFAULT, third=(0, 103), old=("1h", 0), must=False),
    ),
    always=dict(moved=0, same=0, gone=(EFAULT, 0), kind=(LOOK_HUGE, WRITE)))

MREMAP_VS_SPLIT = Scenario(
    "mremap_vs_split", "the ptes of a huge page move to unaligned places while an rmap walk looks for them, for a split",
    (22,), ("R13", "R33", "X9", "X12", "K16"),
    HUGE + "split_pmd 0",
    ("enter 0; move 0 1h 1g+1", "split: split_frame 0"),
    "enter 0; gone: load 0; kind: look 0 1g+1; old: count 1g+1 1h 100; pages: rss 0; queue: queued",
    (Outcome("found, and split", split=0, queue=0, gone=(EFAULT, 0), kind=(LOOK_PTE, WRITE), old=("1h", 0), pages=("1h", 0)),))

MREMAP_PMD_VS_SPLIT = Scenario(
    "mremap_pmd_vs_split", "a huge pmd is split to move to an unaligned place while an rmap walk looks for it, for a split",
    (22,), ("R13", "R33", "X9", "X12", "K1"),
    HUGE,
    ("enter 0; move 0 1h 1g+1", "split: split_frame 0"),
    "enter 0; gone: load 0; kind: look 0 1g+1; old: count 1g+1 1h 100; pages: rss 0; queue: queued",
    (
        Outcome("found, and split", split=0, queue=0),
        Outcome("not split: the split of the pmd had the page lock", split=EAGAIN, queue=0, must=False),
        Outcome("not split: the split of the pmd waited for the page lock, with a reference", split=EBUSY, queue={0, 1},
                must=False),
    ),
    always=dict(gone=(EFAULT, 0), kind=(LOOK_PTE, WRITE), old=("1h", 0), pages=("1h", 0)))

MREMAP_VS_FAULT = Scenario(
    "mremap_vs_fault", "a huge page moves while another thread uses the old place", (22, 3), ("X9", "R13"),
    HUGE,
    ("enter 0; move 0 1h 1g; moved: load 1g+3", "enter 0; stored: store 3 8"),
    "enter 0; gone: load 0; kind: look 0 1g; third: load 1g+3; old: count 1g 1h 100",
    (
        Outcome("stored, then moved", moved=(0, 8), stored=0, third=(0, 8), old=("1h-1", 0)),
        Outcome("moved away under the store", moved=(0, 103), stored=EFAULT, third=(0, 103), old=("1h", 0)),
    ),
    always=dict(gone=(EFAULT, 0), kind=(LOOK_HUGE, FRESH)))

SCENARIOS = (MIGRATE_VS_PIN, MIGRATE_VS_FORK, MIGRATE_VS_MUNMAP, MIGRATE_VS_FAULT, MREMAP_VS_MIGRATE, MREMAP_VS_SPLIT,
             MREMAP_PMD_VS_SPLIT, MREMAP_VS_FAULT)
