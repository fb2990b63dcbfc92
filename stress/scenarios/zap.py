"""Races about what is thrown away: DONTNEED, MADV_FREE, munmap, mprotect."""

from concur_thp.program.table import LOOK_DIRTY, LOOK_HUGE, LOOK_NONE, LOOK_PTE, LOOK_WRITE
from stress.scenarios.scenario import Outcome, Scenario, Seen, pages
from stress.scenarios.setups import EBUSY, EFAULT, HUGE, MAPPED

FRESH = LOOK_WRITE | LOOK_DIRTY

DONTNEED_VS_HUGE_FAULT = Scenario(
    "dontneed_vs_huge_fault", "MADV_DONTNEED of a huge page while two others store into it", (3,), ("R18", "R20", "X8", "K17"),
    HUGE,
    ("enter 0; advise 0 1h dontneed", "enter 0; store 3 8", "enter 0; store 5 9"),
    "enter 0; kind: look 0 0; old: count 0 1h 100; third: load 3; fifth: load 5; pages: rss 0",
    (
        Outcome("nothing is left", kind=(LOOK_NONE, 0), old=(0, "1h"), third=(0, 0), fifth=(0, 0), pages=(0, 0)),
        Outcome("the third page was stored into a fresh huge page", kind=(LOOK_HUGE, FRESH), old=(0, "1h-1"), third=(0, 8),
                fifth=(0, 0), pages=("1h", 0), must=False),
        Outcome("the fifth page was stored into a fresh huge page", kind=(LOOK_HUGE, FRESH), old=(0, "1h-1"), third=(0, 0),
                fifth=(0, 9), pages=("1h", 0), must=False),
        Outcome("both were stored into one fresh huge page", kind=(LOOK_HUGE, FRESH), old=(0, "1h-2"), third=(0, 8),
                fifth=(0, 9), pages=("1h", 0)),
    ))

DONTNEED_VS_MPROTECT = Scenario(
    "dontneed_vs_mprotect", "MADV_DONTNEED of a huge page while its protection changes", (4,), ("X10", "R20"),
    HUGE,
    ("enter 0; advise 0 1h dontneed", "enter 0; protect 0 1h ro; protect 0 1h rw; protect 0 1h ro"),
    "enter 0; kind: look 0 0; store: store 0 1; old: count 0 1h 100; pages: rss 0",
    (Outcome("data gone, and the new protection", kind=(LOOK_NONE, 0), store=EFAULT, old=(0, "1h"), pages=(0, 0)),))

DONTNEED_VS_DONTNEED = Scenario(
    "dontneed_vs_dontneed", "a huge page is thrown away at once, in parts, and by two at a time", (5,),
    ("R14", "R18", "R19", "R20"),
    HUGE,
    ("enter 0; advise 0 1h dontneed", "enter 0; advise 0 4e dontneed; low: load 0", "enter 0; advise 0 1h dontneed"),
    "enter 0; pages: rss 0; queue: queued; old: count 0 1h 100",
    (
        Outcome("zapped whole", thp_split_pmd=0),
        Outcome("split first, then zapped page by page", thp_split_pmd={1, 2}),
    ),
    always=dict(low=(0, 0), pages=(0, 0), queue=0, old=(0, "1h")))

PARTIAL_DONTNEED_VS_DONTNEED = Scenario(
    "partial_dontneed_vs_dontneed", "three overlapping partial DONTNEEDs of one huge page", (5,),
    ("R18", "R19", "R38", "R39", "I8"),
    HUGE,
    ("enter 0; advise 0 4e dontneed", "enter 0; advise 2e 4e dontneed", "enter 0; advise 3e 1e dontneed"),
    "enter 0; pages: rss 0; kind: look 0 6e; gone: look 0 3e; queue: queued; split: drain_split 4; after: queued; "
    "old: count 0 1h 100",
    (Outcome("one split of the pmd, each page zapped once", pages=("2e", 0), kind=(LOOK_PTE, LOOK_WRITE), gone=(LOOK_NONE, 0),
             queue=1, split=1, after=0, old=("2e", "6e"), thp_split_pmd=1),))

DONTNEED_VS_SPLIT_PMD = Scenario(
    "dontneed_vs_split_pmd", "MADV_DONTNEED of a huge page while its pmd is split", (3, 5), ("R11", "R18", "R19", "X1", "K17"),
    HUGE,
    ("enter 0; advise 0 1h dontneed", "enter 0; split_pmd 3"),
    "enter 0; kind: look 0 0; pages: rss 0; old: count 0 1h 100; queue: queued",
    (
        Outcome("zapped whole", thp_split_pmd=0),
        Outcome("split, then zapped page by page", thp_split_pmd=1),
    ),
    always=dict(kind=(LOOK_NONE, 0), pages=(0, 0), old=(0, "1h"), queue=0))

MUNMAP_VS_FAULT = Scenario(
    "munmap_vs_fault", "munmap of half a huge page while others store into both halves", (5, 20), ("I8", "R40", "X26", "X27"),
    MAPPED + "fill 4e 4e 200; drain",
    ("enter 0; unmap 0 4e", "enter 0; low: store 3 8", "enter 0; store 7e 9"),
    "enter 0; gone: load 0; kind: look 0 4e; kept: load 7e; pages: rss 0; queue: queued; old: count 4e 3e 200",
    (
        Outcome("stored before it was unmapped", low=0),
        Outcome("refused: unmapped before", low=EFAULT),
    ),
    always=dict(gone=(EFAULT, 0), kind=(LOOK_PTE, LOOK_WRITE), kept=(0, 9), pages=("4e", 0), queue=1, old=("3e", 0)))


def _old_or_zero(seen: Seen) -> bool:
    """each page but the one stored into has what it had, or zero"""
    return seen.old.status + seen.old.value == pages("1h-1")


MADV_FREE_VS_WRITE = Scenario(
    "madv_free_vs_write", "MADV_FREE, then a store, while reclaim takes the page", (26,), ("R12", "X3"),
    MAPPED + "fill 0 1h 100; drain",
    ("enter 0; advise 0 1h free; store 3 7", "enter 0; reclaimed: swap_out 0"),
    "enter 0; kept: load 3; old: count 0 1h 100; rest: load 5",
    (
        Outcome("freed lazily", rest=(0, 0), when=_old_or_zero),
        Outcome("everything was kept", rest=(0, 105), when=_old_or_zero),
    ),
    always=dict(kept=(0, 7), old=(range(1 << 20), range(1 << 20)), reclaimed=frozenset({EFAULT, EBUSY, *range(513)})),
    swap=True)

SCENARIOS = (DONTNEED_VS_HUGE_FAULT, DONTNEED_VS_MPROTECT, DONTNEED_VS_DONTNEED, PARTIAL_DONTNEED_VS_DONTNEED,
             DONTNEED_VS_SPLIT_PMD, MUNMAP_VS_FAULT, MADV_FREE_VS_WRITE)
