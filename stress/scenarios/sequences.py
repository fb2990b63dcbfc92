"""No races: what one process does on one CPU, and what must come of it. Rules whose breach needs no second CPU."""

from concur_thp.mm.collapse_check import Scan
from concur_thp.program.table import LOOK_DIRTY, LOOK_HUGE, LOOK_HUGE_ZERO, LOOK_NONE, LOOK_PTE, LOOK_WRITE, LOOK_ZERO
from stress.scenarios.scenario import Allowed, Outcome, Scenario
from stress.scenarios.setups import EBUSY, EFAULT, HUGE, MAPPED, SHARED, SMALL

FRESH = LOOK_WRITE | LOOK_DIRTY
WRITE = {LOOK_WRITE, FRESH}
DONE = int(Scan.SCAN_SUCCEED)


def sequence(name: str, meaning: str, rules: tuple[str, ...], setup: str, program: str, check: str,
             swap: bool = False, **expected: Allowed) -> Scenario:
    """A scenario of one CPU that can end in one way only. What it begins with is a part of it, and as broken as the rest."""
    return Scenario(name, meaning, (), rules, "", (f"{setup}; leave; {program}",), check,
                    (Outcome("as it must be", **expected),), swap=swap)  # type: ignore[arg-type]


PARTIAL_DONTNEED = sequence(
    "partial_dontneed", "a quarter of a huge page is thrown away; later the rest is split",
    ("R1", "R11", "R37", "R38", "R39", "X5"),
    HUGE, "enter 0; advise 2e 2e dontneed",
    "enter 0; gone: look 0 2e; kept: look 0 0; old: count 0 1h 100; pages: rss 0; queue: queued; frame: frame 0; "
    "split: drain_split 4; after: queued; alone: frame 0; again: count 0 1h 100; advise 0 1h dontneed",
    gone=(LOOK_NONE, 0), kept=(LOOK_PTE, WRITE), old=("6e", "2e"), pages=("6e", 0), queue=1, frame=("6e", "6e"), split=1,
    after=0,
    alone=(1, 1), again=("6e", "2e"))

PARTIAL_DONTNEED_OF_PINNED = sequence(
    "partial_dontneed_of_pinned", "a quarter of a pinned huge page is thrown away", ("R37", "R7"),
    HUGE, "enter 0; pinned: pin 0 0 write; advise 2e 2e dontneed; split: drain_split 4; again: drain_split 4",
    "enter 0; gone: look 0 2e; old: count 0 1h 100; queue: queued",
    pinned=1, split={0, -1}, again={0, -1}, gone=(LOOK_NONE, 0), old=("6e", "2e"), queue=1)

PARTIAL_THEN_UNMAP = sequence(
    "partial_then_unmap", "a huge page with a hole goes for good", ("X25", "R38"),
    HUGE, "enter 0; advise 2e 2e dontneed; unmap 0 1h", "queue: queued", queue=0)

MPROTECT_PART = sequence(
    "mprotect_part", "a quarter of a huge page becomes read-only", ("R11", "R17"),
    HUGE, "enter 0; protect 2e 2e ro", "enter 0; refused: store 2e 9; kept: look 0 2e; store 0 100; old: count 0 1h 100",
    refused=EFAULT, kept=(LOOK_PTE, {0, LOOK_DIRTY}), old=("1h", 0))

MREMAP_PART = sequence(
    "mremap_part", "a quarter of a huge page moves away", ("R11", "R13"),
    HUGE, "enter 0; move 2e 2e 2h", "enter 0; gone: load 2e; moved: look 0 2h; pages: rss 0; low: count 0 2e 100; high: load"
                                    " 7e",
    gone=(EFAULT, 0), moved=(LOOK_PTE, WRITE), pages=("1h", 0), low=("2e", 0), high=(0, range(100, 1000)))

MREMAP_MISALIGNED = sequence(
    "mremap_misaligned", "a huge page moves to a place that is not aligned for one", ("R13",),
    HUGE, "enter 0; move 0 1h 1g+1", "enter 0; gone: load 0; moved: look 0 1g+1; pages: rss 0; old: count 1g+1 1h 100",
    gone=(EFAULT, 0), moved=(LOOK_PTE, WRITE), pages=("1h", 0), old=("1h", 0))

MREMAP_FAR = sequence(
    "mremap_far", "a huge page moves to another PMD table, and is split there", ("X5", "R13"),
    HUGE, "enter 0; move 0 1h 1g; advise 1g 2e dontneed", "enter 0; pages: rss 0; kept: look 0 1g+2e; zero: load 1g",
    pages=("6e", 0), kept=(LOOK_PTE, WRITE), zero=(0, 0))

PIN_OF_TAIL = sequence(
    "pin_of_tail", "two pages in the middle of a huge page are pinned, in both ways", ("R5", "R7", "R8", "R21"),
    HUGE, "enter 0; fast: pin 0 3 fast_only_write; slow: pin 1 5 write; a: pin_load 0; b: pin_load 1; pin_store 0 7;"
          " pin_store 1 8",
    "enter 0; third: load 3; fifth: load 5; old: count 0 1h 100; kind: look 0 0; frame: frame 0",
    fast=1, slow=1, a=(0, 103), b=(0, 105), third=(0, 7), fifth=(0, 8), old=("1h-2", 0), kind=(LOOK_HUGE, FRESH), frame=(3, 1))

PIN_AFTER_SPLIT_PMD = sequence(
    "pin_after_split_pmd", "a page of a huge page that ptes map is pinned", ("R17", "R5"),
    HUGE, "enter 0; split_pmd 0; slow: pin 0 3 write; word: pin_load 0", "frame: frame 0", slow=1, word=(0, 103),
    frame=("1h+1", "1h"))

REUSE_LAST_SUBPAGE = sequence(
    "reuse_last_subpage", "of a shared huge page one page is left, to one process, which stores into it", ("R6",),
    HUGE, "enter 0; split_pmd 0; advise 0 5e dontneed; advise 6e 2e dontneed; fork 1; drop 1; store 5e 7",
    "enter 0; kept: load 5e; pages: rss 0; frame: frame 0; unmap 0 1h", kept=(0, 7), pages=("1e", 0), frame=("1e", "1e"))

SPLIT_PAGE_OF_PTES = sequence(
    "split_page_of_ptes", "a huge page that only ptes map, and not whole, is split", ("R26", "R31", "R33", "X19"),
    HUGE, "enter 0; split_pmd 0; advise 6e 2e dontneed; leave; split: split_frame 0",
    "enter 0; queue: queued; pages: rss 0; frame: frame 0; old: count 0 1h 100; store 0 100; more: drain_split 4",
    split=0, queue=0, pages=("6e", 0), frame=(1, 1), old=("6e", "2e"), more=-1)

SPLIT_PAGE_OF_PMD = sequence(
    "split_page_of_pmd", "a huge page that only a pmd maps is split", ("R26", "R31", "R33"),
    HUGE, "leave; split: split_frame 0", "frame: frame 0; enter 0; old: count 0 1h 100", split=0, frame=(1, 1), old=("1h", 0))

SPLIT_PAGE_OF_BOTH = sequence(
    "split_page_of_both", "a huge page that a pmd of one process and ptes of another map is split", ("R26", "R27", "R29"),
    SHARED, "enter 0; split_pmd 0; leave; split: split_frame 0",
    "frame: frame 0; enter 0; old: count 0 1h 100; enter 1; copy: count 0 1h 100", split=0, frame=(2, 2), old=("1h", 0),
    copy=("1h", 0))

SPLIT_PAGE_BY_TAIL = sequence(
    "split_page_by_tail", "a huge page is split by who found one of its tails", ("X22", "R31"),
    HUGE, "enter 0; note 1 3; leave; split: split_frame 1; again: split_frame 0",
    "frame: frame 0; third: frame 1; enter 0; old: count 0 1h 100", split=0, again=-11, frame=(1, 1), third=(1, 1),
    old=("1h", 0))

FORK_THEN_WRITE = sequence(
    "fork_then_write", "parent and child each store into what they share", ("R24", "X11", "X35"),
    HUGE, "enter 0; fork 1; store 3 7; leave; enter 1; store 5 9",
    "pages: rss 0; of_child: rss 1; enter 0; third: load 3; fifth: load 5; old: count 0 1h 100; enter 1; same_third: load 3; "
    "same_fifth: load 5; copy: count 0 1h 100",
    pages=("1h", 0), of_child=("1h", 0), third=(0, 7), fifth=(0, 105), old=("1h-1", 0), same_third=(0, 103), same_fifth=(0, 9),
    copy=("1h-1", 0))

FORK_THEN_CHILD_WRITES = sequence(
    "fork_then_child_writes", "a child stores into what it shares with its parent", ("X11",),
    HUGE, "enter 0; fork 1; leave; enter 1; store 5 9", "enter 0; old: count 0 1h 100; enter 1; copy: count 0 1h 100; fifth:"
                                                        " load 5",
    old=("1h", 0), copy=("1h-1", 0), fifth=(0, 9))

FORK_OF_PTES = sequence(
    "fork_of_ptes", "the same, with a huge page that ptes map", ("R23", "R27", "X11"),
    HUGE, "enter 0; split_pmd 0; fork 1; store 3 7; leave; enter 1; store 5 9",
    "frame: frame 0; enter 0; third: load 3; fifth: load 5; old: count 0 1h 100; enter 1; same_third: load 3; same_fifth:"
    " load 5; "
    "copy: count 0 1h 100",
    frame=("2h-2", "2h-2"), third=(0, 7), fifth=(0, 105), old=("1h-1", 0), same_third=(0, 103), same_fifth=(0, 9),
    copy=("1h-1", 0))

FORK_SPLIT_ONE = sequence(
    "fork_split_one", "of two processes one maps a part by ptes, the other all by its pmd, and then exits",
    ("R27", "R29", "R38"),
    SHARED, "enter 0; split_pmd 0; advise 2e 2e dontneed; before: frame 0; early: queued; drop 1",
    "frame: frame 0; queue: queued; enter 0; old: count 0 1h 100; store 0 100; same: same 0 0; split: drain_split 4",
    before=("6e+1", "6e+1"), early=0, frame=("6e", "6e"), queue=1, old=("6e", "2e"), same=1, split=1)

MIGRATE_SMALL = sequence(
    "migrate_small", "a page of a huge page is migrated by who knows small pages only", ("R9", "R10"),
    HUGE, "enter 0; moved: migrate 3 split", "enter 0; kind: look 0 3; frame: frame 0; old: count 0 1h 100", moved=0,
    kind=(LOOK_PTE, WRITE), frame=(1, 1), old=("1h", 0))

MIGRATE_SMALL_OF_SPLIT_PMD = sequence(
    "migrate_small_of_split_pmd", "the same, of a huge page that ptes map", ("R9", "R10"),
    HUGE, "enter 0; split_pmd 0; moved: migrate 3 split", "enter 0; kind: look 0 3; frame: frame 0; old: count 0 1h 100",
    moved=0,
    kind=(LOOK_PTE, WRITE), frame=(1, 1), old=("1h", 0))

MIGRATE_SMALL_TARGET = sequence(
    "migrate_small_target", "a huge page is migrated where there are small targets only", ("R10", "R12"),
    HUGE, "enter 0; moved: migrate 0 small", "enter 0; kind: look 0 3; old: count 0 1h 100; same: same 0 0", moved=0,
    kind=(LOOK_PTE, WRITE), old=("1h", 0), same=0)

MIGRATE_OF_PINNED = sequence(
    "migrate_of_pinned", "a pinned page is migrated in every way there is", ("R12", "R32", "X24"),
    HUGE, "enter 0; pinned: pin 0 3 write; whole: migrate 0 whole; pieces: migrate 0 small; split: migrate 0 split; pin_store"
          " 0 7",
    "enter 0; kept: load 3; old: count 0 1h 100; same: same 0 0", pinned=1, whole=EBUSY, pieces={EBUSY, -12}, split=EBUSY,
    kept=(0, 7), old=("1h-1", 0), same=1)

LAZYFREE_OF_PINNED = sequence(
    "lazyfree_of_pinned", "MADV_FREE of a pinned huge page that ptes map", ("R12",),
    HUGE, "enter 0; split_pmd 0; pinned: pin 0 3 write; advise 0 1h free", "enter 0; old: count 0 1h 100", pinned=1,
    old=("1h", 0))

LAZYFREE_OF_SHARED = sequence(
    "lazyfree_of_shared", "MADV_FREE of a huge page that a child has, too", ("X33", "R12"),
    SHARED, "enter 0; advise 0 1h free", "kind: look 0 0; enter 0; old: count 0 1h 100; enter 1; copy: count 0 1h 100",
    kind=(LOOK_HUGE, {0, LOOK_DIRTY}), old=("1h", 0), copy=("1h", 0))

LAZYFREE_WRITE_MPROTECT = sequence(
    "lazyfree_write_mprotect", "a lazily freed page that is written, and protected, is not thrown away", ("R14", "X3"),
    MAPPED + "fill 0 1h 100; drain", "enter 0; advise 0 1h free; drain; store 3 7; protect 0 1h ro; protect 0 1h rw; drain;"
                                     " out: swap_out 0",
    "enter 0; kept: load 3", out=range(1 << 10), kept=(0, 7))

ZERO_THEN_DONTNEED = sequence(
    "zero_then_dontneed", "the huge zero page is mapped twice, and taken down", ("X30", "X31"),
    "new 0; enter 0; map 0 2h rw", "enter 0; a: load 0; b: load 1h; advise 0 2h dontneed; leave; drop 0; freed: shrink_zero",
    "gone: look 0 0", a=(0, 0), b=(0, 0), freed="1h", gone=(-3, 0))

ZERO_THEN_DONTNEED_SMALL = sequence(
    "zero_then_dontneed_small", "the zero page is mapped, and taken down", ("X30",),
    MAPPED + "advise 0 1h nohuge", "enter 0; a: load 0; b: load 1; kind: look 0 0; advise 0 1h dontneed", "pages: rss 0",
    a=(0, 0), b=(0, 0),
    kind=(LOOK_ZERO, 0), pages=(0, 0))

ZERO_THEN_WRITE = sequence(
    "zero_then_write", "the huge zero page is written to", ("X35", "X30"),
    MAPPED, "enter 0; a: load 0; zero: look 0 0; store 3 7", "enter 0; kind: look 0 0; pages: rss 0; third: load 3; rest:"
                                                             " count 0 1h 1", a=(0, 0),
    zero=(LOOK_HUGE_ZERO, 0), kind=(LOOK_HUGE, FRESH), pages=("1h", 0), third=(0, 7), rest=(0, "1h-1"))

SCAN_COLLAPSES = sequence(
    "scan_collapses", "khugepaged finds small pages of three processes, one of them a child", ("R3", "X35"),
    SMALL + "fork 1; leave; enter 1; fill 0 1h 200; leave; new 2; enter 2; map 0 1h rw; advise 0 1h nohuge; fill 0 1h 300; "
    "advise 0 1h huge; leave; enter 0; fill 0 1h 100; drain",
    "a: scan 16h; b: scan 16h; c: scan 16h; d: scan 16h",
    "one: look 0 0; two: look 1 0; three: look 2 0; enter 0; old: count 0 1h 100; enter 1; of_child: count 0 1h 200; enter 2; "
    "other: count 0 1h 300",
    a=range(1 << 20), b=range(1 << 20), c=range(1 << 20), d=range(1 << 20), one=(LOOK_HUGE, FRESH), two=(LOOK_HUGE, FRESH),
    three=(LOOK_HUGE, FRESH), old=("1h", 0), of_child=("1h", 0), other=("1h", 0))

COLLAPSE_THEN_SPLIT = sequence(
    "collapse_then_split", "a range is collapsed, and a part of it thrown away", ("X5", "X18"),
    SMALL, "done: collapse 0 0; enter 0; advise 2e 2e dontneed", "enter 0; old: count 0 1h 100; pages: rss 0", done=DONE,
    old=("6e", "2e"), pages=("6e", 0))

COLLAPSE_OF_SHARED = sequence(
    "collapse_of_shared", "small pages of which a child has all but one, too, are not collapsed", ("X15",),
    SMALL + "fork 1; store 0 100", "done: collapse 0 0",
    "kind: look 0 0; other: look 0 1; enter 0; old: count 0 1h 100; enter 1; copy: count 0 1h 100",
    done=int(Scan.SCAN_PAGE_COUNT), kind=(LOOK_PTE, FRESH), other=(LOOK_PTE, {0, LOOK_DIRTY}), old=("1h", 0), copy=("1h", 0))

KERNELCORE = Scenario(
    "kernelcore", "page tables where a half of memory is for what can be moved", (), ("R4",),
    "new 0; enter 0; map 0 9h rw; drain",
    ("enter 0; fill 0 8h 100",), "enter 0; old: count 0 8h 100; advise 0 4e dontneed",
    (Outcome("as it must be", old=("8h", 0)),), kernelcore=True)

SCENARIOS = (
    KERNELCORE, PARTIAL_DONTNEED, PARTIAL_DONTNEED_OF_PINNED, PARTIAL_THEN_UNMAP, MPROTECT_PART, MREMAP_PART, MREMAP_MISALIGNED,
    MREMAP_FAR,
    PIN_OF_TAIL, PIN_AFTER_SPLIT_PMD, REUSE_LAST_SUBPAGE, SPLIT_PAGE_OF_PTES, SPLIT_PAGE_OF_PMD, SPLIT_PAGE_OF_BOTH,
    SPLIT_PAGE_BY_TAIL,
    FORK_THEN_WRITE, FORK_THEN_CHILD_WRITES,
    FORK_OF_PTES, FORK_SPLIT_ONE, MIGRATE_SMALL, MIGRATE_SMALL_OF_SPLIT_PMD, MIGRATE_SMALL_TARGET, MIGRATE_OF_PINNED,
    LAZYFREE_OF_PINNED,
    LAZYFREE_OF_SHARED, LAZYFREE_WRITE_MPROTECT, ZERO_THEN_DONTNEED, ZERO_THEN_DONTNEED_SMALL, ZERO_THEN_WRITE, SCAN_COLLAPSES,
    COLLAPSE_THEN_SPLIT, COLLAPSE_OF_SHARED)
