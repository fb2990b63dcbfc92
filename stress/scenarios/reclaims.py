"""Races of reclaim with a program whose CPU still has the translations that reclaim has taken down without a flush.

A page that must be written is flushed before that (try_to_unmap_flush_dirty), so what waits for the flush behind the list
are clean pages: lazily free ones, and those that the swap cache has had before.
"""

from stress.scenarios.scenario import Outcome, Scenario
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

SCENARIOS = (LAZYFREE_RECLAIM_VS_LOAD, SWAP_OUT_VS_STORES)
