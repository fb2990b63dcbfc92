"""Invariants that hold at every instant, checked natively by the CPU that has the right to look (semantics 4a).

What they are, where each is asked and by which function stands in check/invariants.py; the functions are in the
instant_*.py beside this. Each names the lock its caller holds, without which the answer would be a guess. A failure is
a bug() whose text begins with the invariant's name, so the machine stops on the CPU that did it.

`check_at()` is what a listener calls at a point. Its branches are the table's rows; a tidy test compares the two.
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.arch.points import Point
from concur_thp.arch.random import random_below
from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.arch.system import system
from concur_thp.check.instant_pages import (
    check_anon_rmap_move,
    check_frozen,
    check_isolated,
    check_page,
    check_pinned,
    check_thaw,
)
from concur_thp.check.instant_tables import check_huge_in_vma, check_release
from concur_thp.check.instant_tlb import check_frame_free, check_tlb, check_translations
from concur_thp.check.instant_windows import (
    check_detached,
    check_not_exiting,
    check_table_kept,
    check_unmapped,
    note_exit_mmap,
    note_table_seen,
)
from concur_thp.config import HPAGE_PMD_ORDER, NR_CPUS
from concur_thp.mm.mm_types import Entry, Mm, Page, Vma
from concur_thp.mm.page_flags import PageHead, page_to_pfn
from concur_thp.sync.rwsem_queue import RwSem
from concur_thp.sync.spinlock import SpinLock

NR_POINTS = 160
PLACES = (Point.USER, Point.SPIN_UNLOCK, Point.UP_READ, Point.PUT_PAGE_ZERO, Point.GUP_PINNED, Point.TABLE_SEEN,
          Point.HUGE_PMD_SET, Point.LRU_ISOLATED, Point.ANON_RMAP_MOVED, Point.PAGE_FROZEN, Point.PAGE_THAW,
          Point.SPLIT_PAGE_UNMAPPED, Point.COLLAPSE_ISOLATED, Point.COLLAPSE_COPIED, Point.SCAN_PMD, Point.COLLAPSE_WRITE,
          Point.EXIT_MMAP, Point.EXIT_MMAP_DONE)
"""Where check_at() has something to do."""
CHECK_EVERY = 64
"""Of the frequent points, free stress runs check one in so many: a whole table is looked at, or a whole TLB."""


class Checking(Struct, size=64):
    """How much is checked."""

    every = field(I64, "const", "of frequent points one in so many is checked, 1: each")


class CheckCounts(Struct, align=64):
    """What one CPU has checked."""

    at = field(I64, "cpu", "checks made, by Point", count=NR_POINTS)


checking = SharedOne("checking", Checking)
check_counts = SharedArray("check_counts", CheckCounts, lambda config: NR_CPUS)


def checks_made() -> dict[str, int]:
    """How often each place of the table was checked since the machine was booted, by all CPUs."""
    rows = range(system.nr_cpus)
    return {place.name: sum(check_counts[cpu].at[place] for cpu in rows) for place in PLACES}


@inline
def is_frequent(where: int):
    """Points that are passed so often, or whose checks look at so much, that a sample has to do."""
    return where in (Point.USER, Point.SPIN_UNLOCK, Point.PUT_PAGE_ZERO, Point.GUP_PINNED, Point.TABLE_SEEN,
                     Point.LRU_ISOLATED, Point.HUGE_PMD_SET)


@kernel
@quiet
def check_sampled(cpu: Cpu, where: int, subject: int):
    """check_at(), but of the frequent points only at one in `checking.every`.

    Context: as the point's.
    Emulator: the listener of LISTEN_CHECK, behind check_hook().
    """
    if not is_frequent(where) or checking.every <= 1 or random_below(cpu, checking.every) == 0:
        check_at(cpu, where, subject)


@kernel
@quiet
def check_at(cpu: Cpu, where: int, subject: int):
    """Check what the point `where` allows to be checked.

    Context: as the point's; takes no lock and changes nothing.
    Emulator: from a point to its invariants.
    """
    row = check_counts[cpu.id]
    row.at[where] = row.at[where] + 1
    if where == Point.SPIN_UNLOCK:
        check_release(cpu, SpinLock(subject))
    elif where == Point.UP_READ:
        check_table_kept(cpu, RwSem(subject))
    elif where == Point.PUT_PAGE_ZERO:
        check_page(cpu, Page(subject))
        check_frame_free(cpu, page_to_pfn(Page(subject)), HPAGE_PMD_ORDER if PageHead(Page(subject)) else 0)
    elif where == Point.USER:
        check_tlb(cpu)
        check_translations(cpu)
    elif where == Point.GUP_PINNED:
        check_pinned(cpu, Page(subject))
    elif where == Point.TABLE_SEEN:
        note_table_seen(cpu, Entry(subject), Vma(cpu.check_with))
    elif where == Point.HUGE_PMD_SET:
        check_huge_in_vma(cpu, Vma(subject), cpu.check_with)
    elif where == Point.LRU_ISOLATED:
        check_isolated(cpu, Page(subject))
    elif where == Point.ANON_RMAP_MOVED:
        check_anon_rmap_move(cpu, Page(subject), Vma(cpu.check_with))
    elif where == Point.PAGE_FROZEN:
        check_frozen(cpu, Page(subject))
    elif where == Point.PAGE_THAW:
        check_thaw(cpu, Page(subject))
    else:
        check_window(cpu, where, subject)


@inline
def check_window(cpu: Cpu, where: int, subject: int):
    """The points of which there are few."""
    if where == Point.SPLIT_PAGE_UNMAPPED:
        check_unmapped(cpu, Page(subject))
    elif where == Point.COLLAPSE_ISOLATED or where == Point.COLLAPSE_COPIED:
        check_detached(cpu, Entry(subject), cpu.check_with)
    elif where == Point.SCAN_PMD or where == Point.COLLAPSE_WRITE:
        check_not_exiting(cpu, Mm(subject))
    elif where == Point.EXIT_MMAP:
        note_exit_mmap(Mm(subject), 1)
    elif where == Point.EXIT_MMAP_DONE:
        note_exit_mmap(Mm(subject), 0)


__all__ = ["CHECK_EVERY", "PLACES", "check_at", "check_counts", "check_sampled", "checking", "checks_made"]
