"""Races of faults with each other: who comes first maps, who comes second finds it, and nothing is counted twice."""

from concur_thp.program.table import LOOK_DIRTY, LOOK_HUGE, LOOK_PTE, LOOK_WRITE
from stress.scenarios.scenario import Outcome, Scenario
from stress.scenarios.setups import HUGE, MAPPED, SHARED

FRESH = LOOK_WRITE | LOOK_DIRTY
SOME = range(1, 1 << 30)

FAULT_VS_FAULT = Scenario(
    "fault_vs_fault", "four write faults on one pmd with nothing in it", (1,), ("R2", "R18", "X7", "I2"),
    MAPPED,
    ("enter 0; store 0 1", "enter 0; store 1 2", "enter 0; store 4e 3", "enter 0; store 7e 4"),
    "enter 0; kind: look 0 0; pages: rss 0; a: load 0; b: load 1; c: load 4e; d: load 7e",
    (
        Outcome("one came first, the others found its huge page", pgfree=0),
        Outcome("several made a huge page, and all but one freed theirs", pgfree=SOME),
    ),
    always=dict(kind=(LOOK_HUGE, FRESH), pages=("1h", 0), a=(0, 1), b=(0, 2), c=(0, 3), d=(0, 4), thp_fault_alloc=1))

READ_VS_WRITE_FAULT = Scenario(
    "read_vs_write_fault", "a huge read fault and a huge write fault on one pmd", (2,), ("R2", "X30", "X35"),
    MAPPED,
    ("enter 0; read: load 0", "enter 0; store 3 8"),
    "enter 0; kind: look 0 0; pages: rss 0; kept: load 3; rest: load 5",
    (
        Outcome("the huge zero page first, then its copy", thp_zero_page_alloc=1),
        Outcome("the huge page first", thp_zero_page_alloc=0),
    ),
    always=dict(read=(0, 0), kind=(LOOK_HUGE, FRESH), pages=("1h", 0), kept=(0, 8), rest=(0, 0)))

PMD_SPLIT_VS_FORK = Scenario(
    "pmd_split_vs_fork", "the pmd of a huge page is split while its process forks", (6,), ("R24", "R27", "R29"),
    HUGE,
    ("enter 0; split_pmd 3", "enter 0; fork 1"),
    "enter 0; parent: look 0 0; child: look 1 0; frame: frame 0; old: count 0 1h 100; enter 1; copy: count 0 1h 100",
    (
        Outcome("the child has the huge pmd", child=(LOOK_HUGE, LOOK_DIRTY), frame=("1h+1", "1h+1")),
        Outcome("the child has small entries", child=(LOOK_PTE, 0), frame=("2h", "2h")),
    ),
    always=dict(parent=(LOOK_PTE, {0, LOOK_WRITE}), old=("1h", 0), copy=("1h", 0), thp_split_pmd=1))

PMD_SPLIT_VS_PMD_SPLIT = Scenario(
    "pmd_split_vs_pmd_split", "parent and child split their pmds of one huge page", (7,), ("R26", "R27", "R29", "K1"),
    SHARED,
    ("enter 0; split_pmd 3", "enter 1; split_pmd 5"),
    "frame: frame 0; parent: look 0 0; child: look 1 0; drop 1; alone: frame 0; enter 0; store 3 7; old: count 0 1h 100; "
    "same: same 0 0",
    (Outcome("counts exact, and who is left alone reuses its pages", frame=("2h", "2h"), parent=(LOOK_PTE, 0),
             child=(LOOK_PTE, 0), alone=("1h", "1h"), old=("1h-1", 0), same=1, thp_split_pmd=2),))

PMD_SPLIT_VS_COW = Scenario(
    "pmd_split_vs_cow", "the parent splits its pmd while the child's store asks whether it may reuse the huge page", (8,),
    ("K1", "R24", "R27", "X6"),
    SHARED,
    ("enter 0; split_pmd 3; before: load 3", "enter 1; store 3 7; own: load 3"),
    "enter 0; kept: count 0 1h 100; frame: frame 0; enter 1; copy: count 0 1h 100; third: load 3; same: same 0 0",
    (Outcome("copied: the parent keeps the page", before=(0, 103), own=(0, 7), kept=("1h", 0), frame=("1h", "1h"),
             copy=("1h-1", 0), third=(0, 7), same=0, wp_huge_copy=1, wp_reuse=0),))

EXIT_VS_COW = Scenario(
    "exit_vs_cow", "the parent exits while the child stores into the page they shared", (24,), ("R24", "X32", "X6"),
    SHARED,
    ("drop 0", "enter 1; store 3 7"),
    "enter 1; third: load 3; copy: count 0 1h 100; pages: rss 1; gone: look 0 0; same: same 0 0",
    (
        Outcome("copied: the parent was still there", same=0),
        Outcome("reused: the child was the last", same=1),
    ),
    always=dict(third=(0, 7), copy=("1h-1", 0), pages=("1h", 0), gone=(-3, 0)))

SCENARIOS = (FAULT_VS_FAULT, READ_VS_WRITE_FAULT, PMD_SPLIT_VS_FORK, PMD_SPLIT_VS_PMD_SPLIT, PMD_SPLIT_VS_COW, EXIT_VS_COW)
