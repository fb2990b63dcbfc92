"""Races of reclaim with a program whose CPU still has the translations that reclaim has taken down without a flush.

A page that must be written is flushed before that (try_to_unmap_flush_dirty), so what waits for the flush behind the list
are clean pages: lazily free ones, and those that the swap cache has had before.
"""

from collections.abc import Callable
from typing import Any

from stress.scenarios.mixes import ANY, SWAPPED
from stress.scenarios.scenario import HAS_VALUE, Outcome, Scenario, Seen
from stress.scenarios.setups import EBUSY, EFAULT, SMALL
from stress.scenarios.stale import LAZY_SMALL

DONE = {0, 1, EFAULT, EBUSY}
"""What a swap_out of a small page returns: reclaimed, in use again, not there, on nobody's list."""

LAZYFREE_RECLAIM_VS_LOAD = Scenario(
    "lazyfree_reclaim_vs_load", "lazily free pages are reclaimed while a thread reads them through its TLB", (26,),
    ("K11", "K19", "I15"), LAZY_SMALL,
    ("enter 0; out: swap_out 3; more: swap_out 5", "enter 0; a: load 3; b: load 5; c: load 3; d: load 5"),
    "enter 0; third: load 3; fifth: load 5; old: count 0 1h 100",
    (Outcome("the old word or zero", out=DONE, more=DONE, a=(0, {0, 103}), b=(0, {0, 105}), c=(0, {0, 103}), d=(0, {0, 105}),
             third=(0, {0, 103}), fifth=(0, {0, 105}), old=({"1h", "1h-1", "1h-2"}, range(3))),))

STORES = "; ".join(f"store 3 {number}" for number in range(200, 248))
"""One after another through one translation: reclaim clears Accessed, and nothing sets it again. Many, as some pass while
reclaim waits for the device."""
SWAP_OUT_VS_STORES = Scenario(
    "swap_out_vs_stores", "a small page is written to the swap device while a thread stores into it through its TLB", (25,),
    ("K11", "X3"), SMALL,
    ("enter 0; out: swap_out 3", f"enter 0; {STORES}; own: load 3"),
    "enter 0; third: load 3; old: count 0 1h 100",
    (Outcome("the last store is kept", out=DONE, own=(0, 247), third=(0, 247), old=("1h-1", 0)),), swap=True)


FLAG = "map 4h 1h rw; advise 4h 1h nohuge; store 4h 0; drain\n"
"""Far enough, a page for the flag that says: the call, or the fault, has returned."""
FILE = "new 0; enter 0; file 0 1h; map_file 0 1h rw private 0; v3: load 3; v5: load 5; drain\n"


BUSY = "; ".join(f"b{n}: store 6 106" for n in range(40))
"""What a CPU does with a translation in its TLB that it does not use: always to the same end."""


def reader(page: int) -> str:
    """Has the page in its TLB for a while, looks at the flag, and reads the page once more."""
    return f"enter 0; warm: load {page}; {BUSY}; flag: load 4h; word: load {page}"


def writer(page: int) -> str:
    """The same with stores."""
    return f"enter 0; warm: store {page} 7; {BUSY}; flag: load 4h; late: store {page} 9"


def batched(name: str, meaning: str, rules: tuple[str, ...], setup: str, page: int, other: str, last: str,
            told: Callable[[Seen], bool], check: str = "drain") -> Scenario:
    """Reclaim takes an entry down and flushes later; what another CPU does under the ptl meanwhile must not leave a third CPU
    with the old translation."""
    programs = (f"enter 0; done: swap_out {page}", f"enter 0; {other}; store 4h 1", last)
    swap = setup in (SMALL, SWAPPED)
    draft = Scenario(name, meaning, (25,), rules, setup + FLAG, programs, check, (), swap=swap)
    steps = [step for program in draft.programs.values() for step in program if step.label]
    always: dict[str, Any] = {step.label: (ANY, ANY) if step.op in HAS_VALUE else ANY for step in steps}
    outcomes = (Outcome("who saw the flag saw what was before it", when=lambda seen: seen.flag != (0, 1) or told(seen)),)
    return Scenario(name, meaning, (25,), rules, setup + FLAG, programs, check, outcomes, always=always, swap=swap)


BATCHED = (
    batched("lazyfree_refault_vs_load", "a store fills the place of a page that reclaim has dropped and not flushed, while a"
            " third thread reads through its TLB", ("K19", "I16"), LAZY_SMALL, 3, "store 3 7", reader(3),
            lambda seen: seen.word == (0, 7)),
    batched("lazyfree_reread_vs_load", "the same, and it is read: a zero page", ("K19", "I16"), LAZY_SMALL, 3, "seen: load 3",
            reader(3), lambda seen: seen.seen != (0, 0) or seen.word == (0, 0)),
    batched("swap_refault_vs_load", "the same, of a page that comes back from the device", ("K19", "I16"), SWAPPED, 5,
            "store 5 7", reader(5), lambda seen: seen.word == (0, 7)),
    batched("file_refault_vs_load", "the same, of a page of a file, copied for the store", ("K19", "I16"), FILE, 3, "store 3 7",
            reader(3), lambda seen: seen.word == (0, 7)),
    batched("lazyfree_dontneed_vs_load", "MADV_DONTNEED passes where reclaim has been and not flushed", ("K19", "X8", "I16"),
            LAZY_SMALL, 3, "advise 3 1 dontneed", reader(3), lambda seen: seen.word == (0, 0)),
    batched("lazyfree_move_vs_load", "mremap passes where reclaim has been and not flushed", ("K19", "X9", "I16"), LAZY_SMALL,
            3, "move 3 1 1g", reader(3), lambda seen: seen.word.status != 0),
    batched("swap_protect_vs_store", "mprotect passes where reclaim has been and not flushed", ("K19", "X10", "I16"), SMALL, 3,
            "protect 3 1 ro", writer(3), lambda seen: seen.late.status != 0),
    batched("swap_free_vs_store", "MADV_FREE passes where reclaim has been and not flushed: a store behind it is kept",
            ("K19", "X3", "I16"), SMALL, 3, "advise 3 1 free", writer(3), lambda seen: seen.third == (0, 9),
            check="enter 0; third: load 3"),
)

SCENARIOS = (LAZYFREE_RECLAIM_VS_LOAD, SWAP_OUT_VS_STORES, *BATCHED)
