"""One CPU, and ends known to the page: what is kept, given back, and found again, where in a race nearly any of it would do.

For `break --locks`: a look that only saves room, or only says which page goes first, is missed here if anywhere.
"""

from concur_thp.mm.collapse_check import Scan
from concur_thp.program.table import LOOK_DIRTY, LOOK_PTE, LOOK_SWAP, LOOK_WRITE
from stress.scenarios.scenario import Allowed
from stress.scenarios.sequences import sequence
from stress.scenarios.setups import EAGAIN, ENOMEM, ESRCH, HUGE, SMALL

FRESH = LOOK_WRITE | LOOK_DIRTY
CACHED = SMALL + "out: swap_out 3; word: load 3; drain; note 0 3"
"""Page 3 has been on the device, and is in memory again and still in the swap cache."""
HELD = SMALL + "fork 1; out: swap_out 3; leave; enter 1; word: load 3"
"""A child has page 3 back, from a slot that an entry of its parent holds, too."""
BACK: dict[str, Allowed] = dict(out=1, word=(0, 103))

SWAPPING = (
    sequence("swap_out_and_in", "a page goes to the device, comes back, and is stored into: then its slot is free", ("X32",),
             SMALL,
             "enter 0; out: swap_out 3; gone: look 0 3; used: slots; word: load 3; cached: slots; store 3 7; freed: slots",
             "enter 0; kind: look 0 3; third: load 3; old: count 0 1h 100", swap=True, gone=(LOOK_SWAP, 0), used=1, cached=1,
             freed=0, kind=(LOOK_PTE, FRESH), third=(0, 7), old=("1h-1", 0), **BACK),
    sequence("swap_cached_unmap", "a page of the swap cache goes with its only mapping, and the slot with it", ("X32",),
             CACHED, "enter 0; used: slots; advise 3 1 dontneed; freed: slots", "enter 0; zero: load 3", swap=True, used=1,
             freed=0, zero=(0, 0), **BACK),
    sequence("swap_held_unmap", "a page of the swap cache loses its mapping, and later another mm's entry its slot", ("X32",),
             HELD, "enter 1; advise 3 1 dontneed; held: slots; leave; enter 0; advise 3 1 dontneed; freed: slots",
             "enter 0; zero: load 3", swap=True, held=1, freed=0, zero=(0, 0), **BACK),
    sequence("swap_held_keeps", "of two who share a slot one gives it up: the other's page, which is in use, keeps it",
             ("X32",), HELD, "enter 0; advise 3 1 dontneed; kept: slots; leave; enter 1; again: swap_out 3; used: slots",
             "enter 1; copy: load 3", swap=True, kept=1, again=1, used=1, copy=(0, 103), **BACK),
    sequence("swap_activates", "a page that is used again while reclaim looks at its neighbours keeps its slot", ("X32",),
             CACHED, "enter 0; done: reclaim 512; used: slots", "enter 0; same: same 0 3; old: count 0 1h 100", swap=True,
             done="1h-1", used="1h", same=1, old=("1h", 0), **BACK),
    sequence("swap_in_activates", "a page of the inactive list that a second process brings back becomes active", ("X32",),
             SMALL + "fork 1; out: swap_out 3; word: load 3; drain; note 0 3",
             "before: active 0; enter 1; copy: load 3; drain", "after: active 0", swap=True, before=0, after=1, copy=(0, 103),
             **BACK),
    sequence("swap_out_whole", "a huge page goes to the device in one piece, and comes back in small ones", ("R12", "X32"),
             HUGE, "enter 0; out: swap_out 0; used: slots; gone: look 0 3",
             "enter 0; old: count 0 1h 100; cached: slots; advise 0 1h dontneed; freed: slots", swap=True, out="1h", used="1h",
             gone=(LOOK_SWAP, 0), old=("1h", 0), cached="1h", freed=0),
    sequence("swap_cached_split", "a huge page of the swap cache, kept by a vma that is mlocked, is split: each piece has its"
             " slot", ("R12", "R26", "X32"),
             HUGE + "lock 0 1h; fork 1; split_pmd 0; drain; out: swap_out 0",
             "cached: slots; split: split_frame 0; again: split_frame 0",
             "enter 0; old: count 0 1h 100; unlock 0 1h; advise 0 1h dontneed; leave; enter 1; copy: count 0 1h 100; "
             "advise 0 1h dontneed; freed: slots", swap=True, out=0, cached="1h", split=0, again=EAGAIN, old=("1h", 0),
             copy=("1h", 0), freed=0),
    sequence("collapse_of_swap_cached", "a page whose slot another process's entry holds is not collapsed", ("X15",),
             SMALL + "fork 1; leave; enter 1; unmap 1 1h; leave; enter 0; store 1 101; out: swap_out 0; word: load 0; drain",
             "done: collapse 0 0", "enter 0; old: count 0 1h 100; kind: look 0 1; enter 1; copy: load 0", swap=True, out=1,
             word=(0, 100), done=int(Scan.SCAN_FAIL), old=("1h", 0), kind=(LOOK_PTE, FRESH), copy=(0, 100)),
)
OTHERS = (
    sequence("mremap_of_hole", "a mapping moves whose first block has nothing in it", ("R13",),
             "new 0; enter 0; map 0 2h rw; fill 1h 1h 100; drain", "enter 0; move 0 2h 1g",
             "enter 0; old: count 1g+1h 1h 100; zero: load 1g; pages: rss 0", old=("1h", 0), zero=(0, 0), pages=("1h", 0)),
    sequence("zero_page_under_pressure", "the huge zero page, which nobody uses any more, goes before memory is out", ("X30",),
             "new 1; enter 1; map 0 1h rw; read: load 0; leave; drop 1; new 0; enter 0; map 8h 160h rw",
             "enter 0; full: fill 8h 160h 5000; leave; drop 0; freed: shrink_zero", "gone: look 0 0",
             read=(0, 0), full=ENOMEM, freed=0, gone=(ESRCH, 0)),
)
SCENARIOS = (*SWAPPING, *OTHERS)
