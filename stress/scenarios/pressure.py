"""Races under memory pressure: the huge zero page, swap, and pages of files."""

from concur_thp.mm.filemap import file_content
from concur_thp.program.table import LOOK_HUGE, LOOK_HUGE_ZERO, LOOK_PTE, LOOK_SWAP
from stress.scenarios.scenario import Outcome, Scenario, Seen, pages
from stress.scenarios.setups import EFAULT, HUGE, MAPPED

HUGE_ZERO_SHRINK_VS_GET = Scenario(
    "huge_zero_shrink_vs_get", "the unused huge zero page is freed while a fault wants it", (23,), ("X30", "X31"),
    MAPPED + "new 1; enter 1; map 0 1h rw; load 0; drop 1; leave",
    ("freed: shrink_zero", "enter 0; read: load 0"),
    "enter 0; kind: look 0 0; pages: rss 0; zero: load 5",
    (
        Outcome("freed; the fault made a new one", freed="1h", thp_zero_page_alloc=1),
        Outcome("kept: the fault had it first", freed=0, thp_zero_page_alloc=0),
    ),
    always=dict(read=(0, 0), kind=(LOOK_HUGE_ZERO, 0), pages=(0, 0), zero=(0, 0)))

SWAP_OUT_VS_WRITE = Scenario(
    "swap_out_vs_write", "a huge page is swapped out while its process stores into it", (25,), ("R12", "X3", "X32", "K11"),
    HUGE,
    ("enter 0; out: swap_out 0", "enter 0; store 3 7; own: load 3"),
    "enter 0; kind: look 0 5; third: load 3; old: count 0 1h 100; pages: rss 0",
    (
        Outcome("kept: it was used, or found in the swap cache", kind=({LOOK_HUGE, LOOK_PTE}, range(4))),
        Outcome("swapped out; the store faulted its page back in", kind=(LOOK_SWAP, 0)),
    ),
    always=dict(out=range(1 << 10), own=(0, 7), third=(0, 7), old=("1h-1", 0), pages=("1h", 0)), swap=True)


def _content(index: int) -> int:
    return int(file_content.function(1, index, 0))


def _each_dropped_once(seen: Seen) -> bool:
    """each page was dropped once, in the race or by the look behind it"""
    return seen.dropped.status + seen.later.status == pages("1h")


FILE_COW_VS_DROP = Scenario(
    "file_cow_vs_drop", "a private file page is copied on write while the file's caches are dropped and another reads it",
    (27,), ("K9", "R33"),
    "new 0; enter 0; file 0 1h; map_file 0 1h rw private 0; leave",
    ("enter 0; store 3 7; own: load 3", "dropped: drop_caches 0", "enter 0; read: load 3; other: load 5"),
    "enter 0; kind: look 0 3; third: load 3; rest: load 5; pages: rss 0",
    (
        Outcome("read before the store", read=(0, _content(3))),
        Outcome("read behind the store", read=(0, 7)),
    ),
    always=dict(own=(0, 7), dropped=range(4), other=(0, _content(5)), kind=(LOOK_PTE, 3), third=(0, 7), rest=(0, _content(5)),
                pages=(1, 0)),
    note="there is no file THP, so no retract_page_tables(): played is the private COW fault against the page's eviction")

FILE_UNMAP_VS_DROP = Scenario(
    "file_unmap_vs_drop", "two mappings of a file go while its caches are dropped", (30,), ("R25", "R30"),
    "file 0 1h; new 0; enter 0; map_file 0 1h rw shared 0; fill 0 1h 100; "
    "new 1; enter 1; map_file 0 1h rw shared 0; fill 0 1h 100; leave",
    ("enter 0; unmap 0 1h", "enter 1; unmap 0 1h", "dropped: drop_caches 0"),
    "later: drop_caches 0; none: drop_caches 0; enter 0; first: load 0; enter 1; second: load 0",
    (
        Outcome("dropped before they were unmapped: nothing", dropped=0, when=_each_dropped_once),
        Outcome("dropped behind it: everything", dropped="1h", when=_each_dropped_once),
        Outcome("dropped in between: some pages", dropped=range(1, 1 << 9), when=_each_dropped_once, must=False),
    ),
    always=dict(later=range(1 << 10), none=0, first=(EFAULT, 0), second=(EFAULT, 0)),
    note="there is no file THP: played with its small pages, two munmaps and the truncation of a file's unmapped pages")

SCENARIOS = (HUGE_ZERO_SHRINK_VS_GET, SWAP_OUT_VS_WRITE, FILE_COW_VS_DROP, FILE_UNMAP_VS_DROP)
