"""Races about copies on write, and about pages that pass from one process to another; and races about free pages."""

from typing import Any

from concur_thp.program.table import LOOK_DIRTY, LOOK_HUGE, LOOK_HUGE_ZERO, LOOK_NONE, LOOK_PTE, LOOK_WRITE
from stress.scenarios.scenario import ANY_COUNT, Outcome, Scenario, Seen
from stress.scenarios.setups import EAGAIN, EBUSY, EFAULT, HUGE, MAPPED, SHARED, SMALL

FRESH = LOOK_WRITE | LOOK_DIRTY
WRITE = {LOOK_WRITE, FRESH}
SHARED_PTES = HUGE + "split_pmd 0; fork 1\n"
FULL = "map 8h 160h rw; full: fill 8h 160h 5000\n"
"""Memory is used up, by huge pages; what follows gives some of it back. (Controlled runs begin behind it, and show 0.)"""
SCATTERED = "; ".join(f"advise {block}h 1 dontneed" for block in range(9, 60, 2))
SHORT = f"map 8h 160h rw; advise 8h 160h nohuge; full: fill 8h 160h 5000; {SCATTERED}\n"
"""Only small pages are left, and no two of them together."""
NO_HELP = {"defrag": "never", "khugepaged/defrag": "0"}

COW_VS_DONTNEED = Scenario(
    "cow_vs_dontneed", "a store copies a shared huge page while another thread throws it away", (3,), ("X7", "K17"), SHARED,
    ("enter 0; store 3 7; own: load 3", "enter 0; advise 0 1h dontneed"),
    "enter 0; old: count 0 1h 100; third: load 3; enter 1; copy: count 0 1h 100",
    (Outcome("nothing survives but the store", own=(0, {0, 7}), third=(0, {0, 7}), old=(0, {"1h", "1h-1"}), copy=("1h", 0)),))
COW_VS_DONTNEED_SMALL = Scenario(
    "cow_vs_dontneed_small", "the same, of pages that ptes map", (3,), ("X7",), SHARED_PTES,
    ("enter 0; store 3 7; own: load 3", "enter 0; advise 0 1h dontneed"),
    "enter 0; old: count 0 1h 100; third: load 3; enter 1; copy: count 0 1h 100",
    (Outcome("nothing survives but the store", own=(0, {0, 7}), third=(0, {0, 7}), old=(0, {"1h", "1h-1"}), copy=("1h", 0)),))
COW_VS_DONTNEED_LOCKED = Scenario(
    "cow_vs_dontneed_locked", "the same, while the child holds the page lock, to split its pmd", (3, 8), ("X7", "R18"), SHARED,
    ("enter 0; store 3 7; own: load 3", "enter 0; advise 0 1h dontneed", "enter 1; split_pmd 5"),
    "enter 0; old: count 0 1h 100; third: load 3; enter 1; copy: count 0 1h 100",
    (Outcome("nothing survives but the store", own=(0, {0, 7}), third=(0, {0, 7}), old=(0, {"1h", "1h-1"}), copy=("1h", 0)),))

COW_VS_REUSE = Scenario(
    "cow_vs_reuse", "a store copies a shared huge page; a thread beside it reads on; the child finds itself alone and stores",
    (8,), ("X6", "I16"), SHARED,
    ("enter 0; store 3 7", "enter 0; a: load 5; b: load 5; c: load 5", "enter 1; store 5 9"),
    "enter 0; third: load 3; fifth: load 5; enter 1; same_third: load 3; same_fifth: load 5",
    (Outcome("each has its own", a=(0, 105), b=(0, 105), c=(0, 105), third=(0, 7), fifth=(0, 105), same_third=(0, 103),
             same_fifth=(0, 9)),))
COW_VS_REUSE_SMALL = Scenario(
    "cow_vs_reuse_small", "the same, of a small page", (8,), ("X6", "I16"), SMALL + "fork 1\n",
    ("enter 0; store 3 7", "enter 0; a: load 3; b: load 3; c: load 3", "enter 1; store 3 9"),
    "enter 0; third: load 3; enter 1; same_third: load 3",
    (Outcome("each has its own", a=(0, {103, 7}), b=(0, {103, 7}), c=(0, {103, 7}), third=(0, 7), same_third=(0, 9)),))
COW_VS_REUSE_AND_HINT = Scenario(
    "cow_vs_reuse_and_hint", "a store copies a shared huge page; meanwhile the child gives it up, another thread of the parent"
                             " stores into it, and NUMA balancing takes its rights and gives them back", (8,), ("X7",), SHARED,
    ("enter 0; store 3 7", "enter 0; store 5 9; hinted: hint 0 1h; own: load 5", "enter 1; unmap 0 1h"),
    "enter 0; third: load 3; fifth: load 5; sixth: load 6",
    (Outcome("nothing that was stored is lost", hinted={0, "1h"}, own=(0, 9), third=(0, 7), fifth=(0, 9), sixth=(0, 106)),))
COW_VS_REUSE_AND_HINT_SMALL = Scenario(
    "cow_vs_reuse_and_hint_small", "the same, of a small page", (8,), ("X7",), SMALL + "fork 1\n",
    ("enter 0; store 3 7", "enter 0; store 3 9; hinted: hint 3 1; own: load 3", "enter 1; unmap 3 1"),
    "enter 0; third: load 3; fifth: load 5",
    (Outcome("one store after the other", hinted={0, 1}, own=(0, {7, 9}), third=(0, {7, 9}), fifth=(0, 105)),))
DONTNEED_VS_HINT = Scenario(
    "dontneed_vs_hint", "a huge page is thrown away while NUMA balancing takes its rights", (4,), ("X10",), HUGE,
    ("enter 0; advise 0 1h dontneed; own: count 0 1h 100", "enter 0; hinted: hint 0 1h"), "enter 0; old: count 0 1h 100",
    (Outcome("nothing survives", own=(0, "1h"), hinted={0, "1h"}, old=(0, "1h")),))

FAULT_WITHOUT_HUGE_PAGES = Scenario(
    "fault_without_huge_pages", "a store where no huge page is left", (), ("R2",), "new 0; enter 0\n" + SHORT,
    ("enter 0; map 0 1h rw; store 3 7; own: load 3",),
    "enter 0; kind: look 0 3; third: load 3; other: look 0 0",
    (Outcome("a small page", full={0, -12}, own=(0, 7), kind=(LOOK_PTE, FRESH), third=(0, 7), other=(LOOK_NONE, 0)),),
    switches=NO_HELP)
COW_WITHOUT_HUGE_PAGES = Scenario(
    "cow_without_huge_pages", "a store into a shared huge page where no huge page is left", (), ("R2", "X2", "K17"),
    SHARED + SHORT,
    ("enter 0; store 3 7; own: load 3", "enter 0; other: load 5"),
    "enter 0; kind: look 0 3; third: load 3; old: count 0 1h 100; enter 1; copy: count 0 1h 100",
    (Outcome("small copies", full={0, -12}, own=(0, 7), other=(0, 105), kind=(LOOK_PTE, WRITE), third=(0, 7), old=("1h-1", 0),
             copy=("1h", 0)),), switches=NO_HELP)
COW_WITHOUT_PAGES = Scenario(
    "cow_without_pages", "a store into a shared huge page where hardly a page is left", (), ("R2", "R37"),
    SHARED + "map 8h 160h rw; advise 8h 160h nohuge; full: fill 8h 160h 5000; advise 9h 1 dontneed; advise 11h 1 dontneed\n",
    ("enter 0; store 3 7; own: load 3",), "enter 0; kind: look 0 3; third: load 3; old: count 0 1h 100; enter 1; copy: count"
                                          " 0 1h 100",
    (Outcome("one small copy", full={0, -12}, own=(0, 7), kind=(LOOK_PTE, WRITE), third=(0, 7), old=("1h-1", 0),
             copy=("1h", 0)),),
    switches=NO_HELP)
COW_VS_DONTNEED_WITHOUT_HUGE_PAGES = Scenario(
    "cow_vs_dontneed_without_huge_pages", "a store copies a shared huge page into small ones while another thread throws it"
                                          " away", (3,), ("X7", "K17"),
    SHARED + SHORT, ("enter 0; store 3 7; own: load 3", "enter 0; advise 0 1h dontneed"),
    "enter 0; old: count 0 1h 100; third: load 3; enter 1; copy: count 0 1h 100",
    (Outcome("nothing survives but the store", full={0, -12}, own=(0, {0, 7}), third=(0, {0, 7}), old=(0, {"1h", "1h-1"}),
             copy=("1h", 0)),), switches=NO_HELP)
ZERO_WITHOUT_HUGE_PAGES = Scenario(
    "zero_without_huge_pages", "a store into the huge zero page where no huge page is left", (), ("R2", "X30"),
    MAPPED + "a: load 0\n" + SHORT, ("enter 0; store 3 7; own: load 3",),
    "enter 0; kind: look 0 3; third: load 3; rest: count 0 1h 1; other: load 5; again: store 5 8; zero: load 6e",
    (Outcome("one small page", a=(0, 0), full={0, -12}, own=(0, 7), kind=(LOOK_PTE, FRESH), third=(0, 7), rest=(0, "1h-1"),
             other=(0, 0), again=0,
             zero=(0, 0)),), switches=NO_HELP)
FAULT_SMALL_VS_FAULT = Scenario(
    "fault_small_vs_fault", "two stores into one empty block, and one huge page is left for both", (1,), ("X33", "R2", "X7"),
    "new 0; enter 0\n" + FULL + "advise 20h 1h dontneed; advise 22h 1h dontneed; map 0 1h rw\n",
    ("enter 0; store 3 7; own: load 3", "enter 0; store 5 8; mine: load 5"),
    "enter 0; third: load 3; fifth: load 5; kind: look 0 3",
    (Outcome("both are there", full={0, -12}, own=(0, 7), mine=(0, 8), third=(0, 7), fifth=(0, 8),
             kind=({LOOK_PTE, LOOK_HUGE}, FRESH)),), switches=NO_HELP)
FAULT_VS_FAULT_SMALL = Scenario(
    "fault_vs_fault_small", "two stores into one empty page, where huge pages are off", (1,), ("X7",),
    MAPPED + "advise 0 1h nohuge\n",
    ("enter 0; store 3 7", "enter 0; store 3 8"), "enter 0; third: load 3; pages: rss 0; kind: look 0 3",
    (Outcome("one page", third=(0, {7, 8}), pages=(1, 0), kind=(LOOK_PTE, FRESH)),))

COLLAPSE_VS_REMAP = Scenario(
    "collapse_vs_remap", "a range is unmapped and mapped again while khugepaged is between its windows", (20,), ("X16",), SMALL,
    ("done: collapse 0 0", "enter 0; unmap 0 1h; map 0 1h rw; store 3 7; own: load 3"),
    "enter 0; third: load 3; old: count 0 1h 100",
    (Outcome("the new mapping has what was stored into it", done=ANY_COUNT, own=(0, 7), third=(0, 7), old=(0, "1h-1")),))
ZERO_VS_ZERO = Scenario(
    "zero_vs_zero", "two threads map the huge zero page for the first time", (2, 23), ("X31",), "new 0; enter 0; map 0 2h rw\n",
    ("enter 0; a: load 0", "enter 0; b: load 1h"), "one: look 0 0; two: look 0 1h; drop 0; freed: shrink_zero",
    (Outcome("one reference, for the mm", a=(0, 0), b=(0, 0), one=(LOOK_HUGE_ZERO, 0), two=(LOOK_HUGE_ZERO, 0), freed="1h"),))
MREMAP_HUGE_VS_SPLIT = Scenario(
    "mremap_huge_vs_split", "a huge page moves, aligned, while it is split", (22,), ("R19", "X12"), HUGE,
    ("enter 0; move 0 1h 1g", "split: split_frame 0"), "enter 0; gone: load 0; old: count 1g 1h 100; pages: rss 0",
    (Outcome("it is all there", split={0, EBUSY, EAGAIN}, gone=(EFAULT, 0), old=("1h", 0), pages=("1h", 0)),))
MREMAP_BACK_VS_SPLIT = Scenario(
    "mremap_back_vs_split", "a huge page moves into a mapping that its rmap walk visits first, while it is split", (22,),
    ("X12", "R33"), "new 0; enter 0; map 0 2h rw; fill 0 1h 1; fill 1h 1h 100; drain; note 0 1h; move 1h 1h 1g\n",
    ("enter 0; move 1g 1h 1h", "split: split_frame 0"), "enter 0; gone: load 1g; old: count 1h 1h 100; low: count 0 1h 1;"
                                                        " pages: rss 0",
    (Outcome("it is all there", split={0, EBUSY, EAGAIN}, gone=(EFAULT, 0), old=("1h", 0), low=("1h", 0), pages=("2h", 0)),))
DONTNEED_VS_DONTNEED_WHOLE = Scenario(
    "dontneed_vs_dontneed_whole", "MADV_DONTNEED of a part and of the whole of a huge page, and a store", (5, 3),
    ("X33", "R18", "R1"), HUGE,
    ("enter 0; advise 2e 2e dontneed", "enter 0; advise 0 1h dontneed", "enter 0; store 3 8; own: load 3"),
    "enter 0; third: load 3; old: count 0 1h 100",
    (Outcome("nothing survives but the store", own=(0, {0, 8}), third=(0, {0, 8}), old=(0, {"1h", "1h-1"})),))
MIGRATE_VS_PARTIAL_DONTNEED = Scenario(
    "migrate_vs_partial_dontneed", "a huge page is migrated while a part of it is thrown away", (21, 5), ("K2", "X20"), HUGE,
    ("moved: migrate_frame 0 whole", "enter 0; advise 2e 2e dontneed"),
    "enter 0; old: count 0 1h 100; pages: rss 0; gone: load 2e",
    (Outcome("the rest is there", moved={0, EBUSY}, old=("6e", "2e"), pages=("6e", 0), gone=(0, 0)),))
PIN_VS_DONTNEED = Scenario(
    "pin_vs_dontneed", "get_user_pages while the page is thrown away, or its pmd split", (17, 3), ("R18", "R5"), HUGE,
    ("enter 0; slow: pin 0 3 read; word: pin_load 0", "enter 0; advise 0 1h dontneed", "enter 0; split_pmd 5"),
    "enter 0; old: count 0 1h 100",
    (Outcome("the old page, or zero", slow={1}, word=(0, {0, 103}), old=(0, "1h")),))
PIN_FAST_VS_REUSE = Scenario(
    "pin_fast_vs_reuse", "gup-fast while the page is thrown away, and another process gets its frame", (17, 3), ("X28", "R34"),
    HUGE + "leave; new 1; enter 1; map 0 1h rw\n",
    ("enter 0; fast: pin 0 3 fast_only_write; stored: pin_store 0 77",
     "enter 0; advise 0 1h dontneed; drain; enter 1; fill 0 1h 200"),
    "enter 1; theirs: count 0 1h 200; enter 0; old: count 0 1h 100",
    (Outcome("nobody writes into another's page", fast={0, 1}, stored={0, -3}, theirs=("1h", 0), old=(0, "1h")),))
PIN_FAST_VS_COW = Scenario(
    "pin_fast_vs_cow", "gup-fast for reading while a page that a child has, too, goes in both, and its frame to a third",
    (17, 8), ("X28",),
    SMALL + "fork 1; leave; new 2; enter 2; map 0 1h rw; advise 0 1h nohuge\n",
    ("enter 0; fast: pin 0 3 fast_only; stored: pin_store 0 77",
     "enter 1; advise 3 1 dontneed; leave; enter 0; advise 3 1 dontneed; leave; enter 2; fill 0 1h 200"),
    "enter 2; theirs: count 0 1h 200",
    (Outcome("nobody writes into another's page", fast={0, 1}, stored={0, -3}, theirs=("1h", 0)),))

def _written_through_pins(seen: Seen) -> bool:
    """What was stored through a pin is what the program reads there."""
    first, last = 77 if seen.low.status == 0 else 100, 78 if seen.high.status == 0 else 107
    return (seen.first.value, seen.last.value) == (first, last)


COLLAPSE_VS_PIN_RUN = Scenario(
    "collapse_vs_pin_run", "a range is collapsed while gup-fast pins a run of its pages and writes through the pins", (17,),
    ("X14", "X15", "I25"), SMALL,
    ("done: collapse 0 0", "enter 0; got: pin_run 0 0 8 fast_only_write; low: pin_store 0 77; high: pin_store 7 78"),
    "enter 0; first: load 0; last: load 7",
    (Outcome("nothing that was written is lost", done=ANY_COUNT, got=range(9), low={0, -3}, high={0, -3}, first=(0, {100, 77}),
             last=(0, {107, 78}), when=_written_through_pins),))
ELSEWHERE = "map 4h 1h rw; store 4h 0; drain\n"
READER = "enter 0; load 4h; warm: load 3; " + "load 4h; " * 20 + "late: load 3"
"""Long, so that it is likely to be stopped with the translation in its TLB."""
READS: dict[str, Any] = {label: ({0, EFAULT}, {0, 103}) for label in ("warm", "late")}

MREMAP_VS_MIGRATE_AND_LOAD = Scenario(
    "mremap_vs_migrate_and_load", "a huge page moves away while a thread that has read it at its old place migrates it",
    (22, 21), ("X9", "I15"), HUGE,
    ("enter 0; move 0 1h 1g", "enter 0; warm: load 3; moved: migrate_frame 0 whole; late: load 3"),
    "enter 0; old: count 1g 1h 100",
    (Outcome("read, until it was gone", moved={0, EBUSY}, old=("1h", 0), **READS),))
MREMAP_VS_MIGRATE_AND_LOAD_SMALL = Scenario(
    "mremap_vs_migrate_and_load_small", "the same, of small pages", (22, 21), ("X9", "I15"), SMALL + ELSEWHERE,
    ("enter 0; move 0 1h 1g", "moved: migrate_frame 0 whole",
     READER), "enter 0; old: count 1g 1h 100",
    (Outcome("read, until it was gone", moved={0, EBUSY}, old=("1h", 0), **READS),))
MANY_STORES = 20
WRITER = "enter 0; " + "; ".join(f"s{n}: store 3 {200 + n}" for n in range(MANY_STORES))
"""As READER, with the right to write."""
STORES: dict[str, Any] = {f"s{n}": {0, EFAULT} for n in range(MANY_STORES)}


def _last_store_is_there(seen: Seen) -> bool:
    """Each store that went through came behind the one before it; what is there is the last."""
    done = [n for n in range(MANY_STORES) if seen.results[f"s{n}"].status == 0]
    return seen.results["third"].value == (200 + done[-1] if done else 103)


MREMAP_VS_MIGRATE_AND_STORE_SMALL = Scenario(
    "mremap_vs_migrate_and_store_small", "a small page is stored into while it moves, and its frame is migrated", (22, 21),
    ("R13", "X9", "X12"), SMALL,
    ("enter 0; move 0 1h 1g", "moved: migrate_frame 0 whole", WRITER), "enter 0; third: load 1g+3; other: load 1g+5",
    (Outcome("the last store is there", moved={0, EBUSY}, third=(0, ANY_COUNT), other=(0, 105), when=_last_store_is_there,
             **STORES),))
SPLIT_VS_QUEUEING = Scenario(
    "split_vs_queueing", "a queued huge page is split while another is queued", (16, 12), ("X19", "R38", "R41"),
    "new 0; enter 0; map 0 2h rw; fill 0 2h 100; drain; advise 4e 4e dontneed; note 0 0\n",
    ("split: split_frame 0", "enter 0; advise 1h+4e 4e dontneed"),
    "queue: queued; left: drain_split 8; after: queued; enter 0; old: count 0 4e 100; pages: rss 0",
    (Outcome("split, and the other is queued", split=0, queue=1, left=1),
     Outcome("not split: both are queued", split={EBUSY, EAGAIN}, queue=2, left=2, must=False)),
    always=dict(after=0, old=("4e", 0), pages=("1h", 0)))

COMPACT_VS_FREE = Scenario(
    "compact_vs_free", "compaction while pages go", (), ("R34",),
    SMALL + "map 2h 1h rw; advise 2h 1h nohuge; fill 2h 1h 300; drain\n",
    ("done: compact", "enter 0; unmap 0 1h; advise 2h 1h dontneed"), "enter 0; gone: load 0; pages: rss 0",
    (Outcome("gone", done={0, EBUSY}, gone=(EFAULT, 0), pages=(0, 0)),))
RECLAIM_VS_FREE = Scenario(
    "reclaim_vs_free", "reclaim while pages go", (), ("R34",), SMALL, ("done: reclaim 64", "enter 0; unmap 0 1h"),
    "enter 0; gone: load 0; pages: rss 0",
    (Outcome("gone", done=ANY_COUNT, gone=(EFAULT, 0), pages=(0, 0)),))
MIGRATE_FRAME_VS_FREE = Scenario(
    "migrate_frame_vs_free", "memory offlining while the page goes", (), ("R34",), SMALL,
    ("moved: migrate_frame 0 whole", "enter 0; unmap 0 1h"),
    "enter 0; gone: load 0; pages: rss 0", (Outcome("gone", moved={0, EBUSY}, gone=(EFAULT, 0), pages=(0, 0)),))
MUNLOCK_VS_SPLIT = Scenario(
    "munlock_vs_split", "munlock of a huge page while it is split", (28,), ("X29", "I21"), HUGE + "lock 0 1h\n",
    ("enter 0; unlock 0 1h", "split: split_frame 0"), "enter 0; old: count 0 1h 100",
    (Outcome("nothing is mlocked", split={0, EBUSY, EAGAIN}, old=("1h", 0)),))

SWAP_OUT_VS_LOAD = Scenario(
    "swap_out_vs_load", "a huge page is swapped out while another process's thread reads it through its TLB", (25,),
    ("K11", "I15"), HUGE,
    ("enter 0; out: swap_out 0", "enter 0; a: load 3; b: load 5; c: load 3; d: load 3"), "enter 0; old: count 0 1h 100",
    (Outcome("everything is there", out=ANY_COUNT, a=(0, 103), b=(0, 105), c=(0, 103), d=(0, 103), old=("1h", 0)),), swap=True)
SWAP_OUT_VS_LOAD_SMALL = Scenario(
    "swap_out_vs_load_small", "the same, of small pages", (25,), ("K11", "I15"), SMALL,
    ("enter 0; out: swap_out 3; more: swap_out 5", "enter 0; a: load 3; b: load 5; c: load 3; d: load 5"),
    "enter 0; old: count 0 1h 100",
    (Outcome("everything is there", out={0, 1, EFAULT, EBUSY}, more={0, 1, EFAULT, EBUSY}, a=(0, 103), b=(0, 105), c=(0, 103),
             d=(0, 105), old=("1h", 0)),), swap=True)
REUSE_VS_SWAP_IN = Scenario(
    "reuse_vs_swap_in", "parent and child store into a page that is in the swap cache", (25, 8), ("X32",),
    SMALL + "fork 1; out: swap_out 3\n", ("enter 0; store 3 7; own: load 3", "enter 1; store 3 9; mine: load 3"),
    "enter 0; third: load 3; enter 1; same_third: load 3",
    (Outcome("each has its own", out={0, 1, EBUSY}, own=(0, 7), mine=(0, 9), third=(0, 7), same_third=(0, 9)),), swap=True)

SCENARIOS = (
    COW_VS_DONTNEED, COW_VS_DONTNEED_SMALL, COW_VS_DONTNEED_LOCKED, COW_VS_REUSE, COW_VS_REUSE_SMALL, COW_VS_REUSE_AND_HINT,
    COW_VS_REUSE_AND_HINT_SMALL, DONTNEED_VS_HINT, FAULT_WITHOUT_HUGE_PAGES, COW_WITHOUT_HUGE_PAGES,
    COW_WITHOUT_PAGES, COW_VS_DONTNEED_WITHOUT_HUGE_PAGES, ZERO_WITHOUT_HUGE_PAGES, FAULT_SMALL_VS_FAULT, FAULT_VS_FAULT_SMALL,
    COLLAPSE_VS_REMAP,
    ZERO_VS_ZERO, MREMAP_VS_MIGRATE_AND_STORE_SMALL,
    MREMAP_HUGE_VS_SPLIT, MREMAP_BACK_VS_SPLIT, DONTNEED_VS_DONTNEED_WHOLE, MIGRATE_VS_PARTIAL_DONTNEED,
    PIN_VS_DONTNEED, PIN_FAST_VS_REUSE, PIN_FAST_VS_COW, COLLAPSE_VS_PIN_RUN, MREMAP_VS_MIGRATE_AND_LOAD,
    MREMAP_VS_MIGRATE_AND_LOAD_SMALL, SPLIT_VS_QUEUEING,
    COMPACT_VS_FREE,
    RECLAIM_VS_FREE, MIGRATE_FRAME_VS_FREE, MUNLOCK_VS_SPLIT, SWAP_OUT_VS_LOAD, SWAP_OUT_VS_LOAD_SMALL, REUSE_VS_SWAP_IN)
