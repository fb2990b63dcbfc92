"""Races of split_huge_page and of the deferred split queue with whoever maps, unmaps or pins the page."""

from concur_thp.program.table import LOOK_DIRTY, LOOK_HUGE, LOOK_NONE, LOOK_POISON, LOOK_PTE, LOOK_WRITE
from stress.scenarios.scenario import Outcome, Scenario
from stress.scenarios.setups import EAGAIN, EBUSY, EFAULT, EHWPOISON, ESRCH, HUGE, MAPPED

FRESH = LOOK_WRITE | LOOK_DIRTY
WRITE = {LOOK_WRITE, FRESH}

SPLIT_VS_FAULT = Scenario(
    "split_vs_fault", "split_huge_page while two of its pages are used", (9,), ("R31", "R33", "X21", "X23", "I11"),
    HUGE,
    ("split: split_frame 0", "enter 0; store 3 8; read: load 3", "enter 0; other: load 5"),
    "enter 0; kind: look 0 0; kept: load 3; old: count 0 1h 100; pages: rss 0",
    (
        Outcome("split, and who came in between waited", split=0),
        Outcome("not split: somebody waited for it with a reference", split=EBUSY, must=False),
    ),
    always=dict(read=(0, 8), other=(0, 105), kind=(LOOK_PTE, WRITE), kept=(0, 8), old=("1h-1", 0), pages=("1h", 0)))

SPLIT_VS_FORK = Scenario(
    "split_vs_fork", "split_huge_page while a process that maps it forks", (10,), ("R33", "X12", "X13"),
    HUGE,
    ("split: split_frame 0", "enter 0; fork 1"),
    "enter 0; parent: look 0 0; child: look 1 0; old: count 0 1h 100; enter 1; copy: count 0 1h 100; frame: frame 0",
    (
        Outcome("split, in both", split=0, parent=(LOOK_PTE, {0, LOOK_WRITE, FRESH}), child=(LOOK_PTE, 0), frame=(2, 2)),
        Outcome("not split: fork was counting", split=EBUSY,
                parent=({LOOK_PTE, LOOK_HUGE}, {0, LOOK_WRITE, LOOK_DIRTY, FRESH}),
                child=({LOOK_PTE, LOOK_HUGE}, {0, LOOK_DIRTY}),
                frame=({2, "1h+1", "2h"}, {2, "1h+1", "2h"}), must=False),
    ),
    always=dict(old=("1h", 0), copy=("1h", 0)))

SPLIT_VS_MPROTECT = Scenario(
    "split_vs_mprotect", "split_huge_page while the page becomes read-only", (11,), ("R33", "X20"),
    HUGE,
    ("split: split_frame 0", "enter 0; protect 0 1h ro"),
    "enter 0; kind: look 0 3; store: store 3 9; old: count 0 1h 100",
    (Outcome("split, under the new protection", split=0, kind=(LOOK_PTE, {0, LOOK_DIRTY}), store=EFAULT, old=("1h", 0)),))

SPLIT_VS_ZAP = Scenario(
    "split_vs_zap", "split_huge_page while half of the page is thrown away", (12,), ("R32", "R38", "R39"),
    HUGE,
    ("split: split_frame 0", "enter 0; advise 4e 4e dontneed"),
    "enter 0; queue: queued; gone: look 0 4e; pages: rss 0; old: count 0 1h 100",
    (
        Outcome("split, and the zapped pages are free", split=0, queue=0),
        Outcome("not split: the zap was in the way; queued for later", split=EBUSY, queue=1),
        Outcome("not split: the page was locked by the zap's split of the pmd; queued", split=EAGAIN, queue=1, must=False),
    ),
    always=dict(gone=(LOOK_NONE, 0), pages=("4e", 0), old=("4e", "4e")))

SPLIT_VS_MUNMAP = Scenario(
    "split_vs_munmap", "split_huge_page while its only mapping goes", (12, 14), ("R32", "R7", "X27"),
    HUGE,
    ("split: split_frame 0", "enter 0; unmap 0 1h"),
    "enter 0; queue: queued; gone: load 0; pages: rss 0",
    (
        Outcome("split before it was unmapped", split=0),
        Outcome("not split: the munmap was in the way", split=EBUSY),
        Outcome("free already", split=EAGAIN),
    ),
    always=dict(queue=0, gone=(EFAULT, 0), pages=(0, 0)))

SPLIT_VS_EXIT = Scenario(
    "split_vs_exit", "split_huge_page while the process that maps it exits, and its anon_vma with it", (14,),
    ("R32", "R7", "I12"),
    HUGE,
    ("split: split_frame 0", "drop 0"),
    "queue: queued; gone: look 0 0",
    (
        Outcome("split before the exit", split=0),
        Outcome("not split: the exit was in the way, or no anon_vma any more", split=EBUSY),
        Outcome("free already", split=EAGAIN),
    ),
    always=dict(queue=0, gone=(ESRCH, 0)))

SPLIT_VS_GET = Scenario(
    "split_vs_get", "split_huge_page while gup-fast and a scanner of physical memory take references", (13,),
    ("R7", "R31", "R32", "R34", "R35", "R36", "I1", "I11"),
    HUGE,
    ("split: split_frame 0", "enter 0; fast: pin 0 3 fast_only_write; word: pin_load 0", "got: get 1 0"),
    "enter 0; kind: look 0 3; old: count 0 1h 100; frame: frame 0",
    (
        Outcome("pinned: not split", split=EBUSY, fast=1, got=0, word=(0, 103), kind=({LOOK_HUGE, LOOK_PTE}, WRITE),
                frame=({2, "1h+1"}, {1, "1h"}), must=False),
        Outcome("taken by the scanner: not split", split=EBUSY, fast=0, got=1, word=(ESRCH, 0),
                kind=({LOOK_HUGE, LOOK_PTE}, WRITE), frame=({2, "1h+1"}, {1, "1h"}), must=False),
        Outcome("both: not split", split=EBUSY, fast=1, got=1, word=(0, 103), kind=({LOOK_HUGE, LOOK_PTE}, WRITE),
                frame=({3, "1h+2"}, {1, "1h"})),
        Outcome("split: neither got it", split=0, fast=0, got=0, word=(ESRCH, 0), kind=(LOOK_PTE, WRITE), frame=(1, 1),
                must=False),
        Outcome("split: gup-fast then pinned a small page", split=0, fast=1, got=0, word=(0, 103), kind=(LOOK_PTE, WRITE),
                frame=(1, 1), must=False),
        Outcome("split: the scanner then took a small page", split=0, fast=0, got=1, word=(ESRCH, 0), kind=(LOOK_PTE, WRITE),
                frame=(2, 1), must=False),
        Outcome("split: both then took small pages", split=0, fast=1, got=1, word=(0, 103), kind=(LOOK_PTE, WRITE),
                frame=(2, 1)),
    ),
    always=dict(old=("1h", 0)))

QUEUED = HUGE + "advise 4e 4e dontneed\n"

DEFERRED_VS_FREE = Scenario(
    "deferred_vs_free", "the shrinker splits a queued huge page while its last mapping goes", (15,), ("R41", "X25", "I12"),
    QUEUED,
    ("split: drain_split 4", "enter 0; unmap 0 4e"),
    "queue: queued; pages: rss 0",
    (
        Outcome("split before it was free", split=1),
        Outcome("pinned by the shrinker, freed by it", split={0, -1}, thp_split_page_failed=1),
        Outcome("free before the shrinker looked, or while it did", split={0, -1}, thp_split_page_failed=0),
    ),
    always=dict(queue=0, pages=(0, 0)))

DEFERRED_VS_ADD = Scenario(
    "deferred_vs_add", "the shrinker has a queued huge page on its list while another of its pages is unmapped", (16,),
    ("R38", "R41", "X25"),
    QUEUED,
    ("split: drain_split 4", "enter 0; advise 0 1e dontneed", "enter 0; advise 2e 1e dontneed"),
    "queue: queued; later: drain_split 4; empty: queued; pages: rss 0; enter 0; old: count 0 1h 100",
    (
        Outcome("split", split=1, queue=0, later=-1),
        Outcome("not split: a zap was in the way; queued once", split=0, queue=1, later=1),
    ),
    always=dict(empty=0, pages=("2e", 0), old=("2e", "6e")))

MLOCK_VS_SPLIT = Scenario(
    "mlock_vs_pmd_split", "mlock of a huge page while its pmd is split", (28,), ("I21", "R30", "X29"),
    HUGE,
    ("enter 0; lock 0 1h", "enter 0; split_pmd 3"),
    "enter 0; kind: look 0 3; kept: advise 0 1 dontneed; old: count 0 1h 100; unlock 0 1h",
    (Outcome("mapped by ptes, and not mlocked", kind=(LOOK_PTE, WRITE), kept=-22, old=("1h", 0), NR_MLOCK=0),))

MLOCK_VS_FORK = Scenario(
    "mlock_vs_fork", "mlock of a huge page while its process forks", (28,), ("I21", "R24"),
    MAPPED + "fill 0 1h 100; drain",
    ("enter 0; lock 0 1h", "enter 0; fork 1"),
    "parent: look 0 3; child: look 1 3; enter 0; old: count 0 1h 100; unlock 0 1h; enter 1; copy: count 0 1h 100",
    (
        Outcome("mlocked, then shared", wp_huge_copy=0),
        Outcome("shared, so a copy of its own was mlocked", wp_huge_copy=1),
    ),
    always=dict(parent=({LOOK_HUGE, LOOK_PTE}, range(4)), child=({LOOK_HUGE, LOOK_PTE}, {0, LOOK_DIRTY}), old=("1h", 0),
                copy=("1h", 0), NR_MLOCK="1h"))

POISON_VS_STORE = Scenario(
    "poison_vs_store", "memory failure of one frame of a huge page while its process stores there, and elsewhere", (9, 13),
    ("R12", "R32", "R34", "X21"),
    HUGE + "note 1 3",
    ("broken: poison 1", "enter 0; stored: store 3 8; other: load 5", "enter 0; store 7e 9"),
    "enter 0; kind: look 0 3; kept: load 3; low: count 0 3 100; high: load 7e; pages: rss 0",
    (
        Outcome("stored before the page was lost", broken=0, stored=0, kind=(LOOK_POISON, 0), kept=(EHWPOISON, 0),
                pages=("1h-1", 0)),
        Outcome("killed: the page was lost before", broken=0, stored=EHWPOISON, kind=(LOOK_POISON, 0), kept=(EHWPOISON, 0),
                pages=("1h-1", 0)),
        Outcome("not taken out: somebody waited for it with a reference", broken=EBUSY, stored=0, kind=(LOOK_PTE, WRITE),
                kept=(0, 8), pages=("1h", 0), must=False),
    ),
    always=dict(other=(0, 105), low=(3, 0), high=(0, 9)))

SCENARIOS = (SPLIT_VS_FAULT, SPLIT_VS_FORK, SPLIT_VS_MPROTECT, SPLIT_VS_ZAP, SPLIT_VS_MUNMAP, SPLIT_VS_EXIT, SPLIT_VS_GET,
             DEFERRED_VS_FREE, DEFERRED_VS_ADD, MLOCK_VS_SPLIT, MLOCK_VS_FORK, POISON_VS_STORE)
