"""Races about translations that CPUs remember, and about marks that hardware sets: who was told of a change must see it.

One CPU changes an entry and then stores into a page of its own, the flag. Another has the entry in its TLB, looks at the
flag, and uses the entry again: with the flag up it must see the change.
"""

from concur_thp.program.table import LOOK_DIRTY, LOOK_HUGE, LOOK_HUGE_ZERO, LOOK_NONE, LOOK_PTE, LOOK_WRITE
from stress.scenarios.scenario import ANY_COUNT, Allowed, Outcome, Scenario, Seen
from stress.scenarios.setups import EBUSY, EFAULT, HUGE, MAPPED

FRESH = LOOK_WRITE | LOOK_DIRTY
WRITE = {LOOK_WRITE, FRESH}
FLAGGED = "new 0; enter 0; map 0 1h rw; map 4h 1h rw; fill 0 1h 100; store 4h 0; drain; note 0 0\n"
"""HUGE, and far enough from it a page for the flag."""
SPLIT_FLAGGED = FLAGGED + "split_pmd 0\n"
LAZY = MAPPED + "fill 0 1h 100; drain; advise 0 1h free; drain; note 0 0\n"
"""A huge page that reclaim may drop, unless it is written."""
LAZY_SMALL = MAPPED + "advise 0 1h nohuge; fill 0 1h 100; drain; advise 0 1h free; drain\n"


def told(seen: Seen) -> bool:
    """The reader saw the flag, or had the old word still; it never sees anything else."""
    return seen.word == (0, 0) or (seen.word == (0, 103) and seen.flag.value == 0)


READER = "enter 0; warm: load 3" + "; load 5; load 3" * 8 + "; flag: load 4h; word: load 3"
"""Reads for a while, so that the change falls between its first load and its last."""
DONTNEED_VS_LOAD = Scenario(
    "dontneed_vs_load", "MADV_DONTNEED of a huge page while another thread reads it", (3,), ("X8", "I15", "I16"), FLAGGED,
    ("enter 0; advise 0 1h dontneed; store 4h 1", READER), "enter 0; old: count 0 1h 100",
    (Outcome("read before, or zero", warm=(0, {0, 103}), flag=(0, {0, 1}), word=(0, {0, 103}), old=(0, "1h"), when=told),))
DONTNEED_VS_LOAD_SMALL = Scenario(
    "dontneed_vs_load_small", "the same, of a huge page that ptes map", (3,), ("X8", "I15", "I16"), SPLIT_FLAGGED,
    ("enter 0; advise 0 1h dontneed; store 4h 1", READER), "enter 0; old: count 0 1h 100",
    (Outcome("read before, or zero", warm=(0, {0, 103}), flag=(0, {0, 1}), word=(0, {0, 103}), old=(0, "1h"), when=told),))
TWO_DONTNEEDS_VS_LOAD = Scenario(
    "two_dontneeds_vs_load", "two MADV_DONTNEEDs of one huge page; who is back first has found nothing, or not", (5,),
    ("X8", "I16"), FLAGGED,
    ("enter 0; advise 0 1h dontneed; store 4h 1", "enter 0; advise 0 1h dontneed; store 4h 1", READER),
    "enter 0; old: count 0 1h 100",
    (Outcome("read before, or zero", warm=(0, {0, 103}), flag=(0, {0, 1}), word=(0, {0, 103}), old=(0, "1h"), when=told),))


def _stored(seen: Seen) -> bool:
    """A store that the writer did before it saw the flag may be there; one behind it is not."""
    return not (seen.flag.value == 1 and seen.of_child.value == 9)


FORK_VS_STORE = Scenario(
    "fork_vs_store", "fork while another thread of the parent stores through its TLB", (), ("X11", "I16"), FLAGGED,
    ("enter 0; fork 1; store 4h 1", "enter 0; store 3 7" + "; store 5 105; store 3 7" * 8 + "; flag: load 4h; store 3 9; own:"
                                                                                            " load 3"),
    "enter 0; mine: load 3; old: count 0 1h 100; enter 1; of_child: load 3; copy: count 0 1h 100",
    (Outcome("the child has what was there at the fork", flag=(0, {0, 1}), own=(0, 9), mine=(0, 9), old=("1h-1", 0),
             of_child=(0, {103, 7, 9}), copy=({"1h", "1h-1"}, 0), when=_stored),))

MOVED_READER = "enter 0; warm: load 3; " + "; ".join(f"r{n}: load 5" for n in range(8)) + "; flag: load 4h; word: load 3"
READS: dict[str, Allowed] = {f"r{n}": ({0, EFAULT}, {0, 105}) for n in range(8)}

MREMAP_VS_LOAD = Scenario(
    "mremap_vs_load", "a huge page moves away while another thread reads it at its old place", (22,), ("X9", "I16"), FLAGGED,
    ("enter 0; move 0 1h 1g; store 4h 1", MOVED_READER),
    "enter 0; kind: look 0 1g; old: count 1g 1h 100",
    (
        Outcome("read before it moved", must=False, word=(0, 103), flag=(0, 0), warm=(0, 103)),
        Outcome("it was gone", word=(EFAULT, 0), flag=(0, {0, 1}), warm=({0, EFAULT}, {0, 103})),
    ), always=dict(kind=(LOOK_HUGE, FRESH), old=("1h", 0), **READS))
MREMAP_VS_LOAD_SMALL = Scenario(
    "mremap_vs_load_small", "the same, of a huge page that ptes map", (22,), ("X9", "I16"), SPLIT_FLAGGED,
    ("enter 0; move 0 1h 1g; store 4h 1", MOVED_READER),
    "enter 0; kind: look 0 1g; old: count 1g 1h 100",
    (
        Outcome("read before it moved", must=False, word=(0, 103), flag=(0, 0), warm=(0, 103)),
        Outcome("it was gone", word=(EFAULT, 0), flag=(0, {0, 1}), warm=({0, EFAULT}, {0, 103})),
    ), always=dict(kind=(LOOK_PTE, WRITE), old=("1h", 0), **READS))

SPLIT_PMD_VS_STORE = Scenario(
    "split_pmd_vs_store", "the pmd of a huge page is split while another thread stores into it", (), ("X1", "X2", "X3", "I14"),
    HUGE,
    ("enter 0; split_pmd 0; read: load 3", "enter 0; store 3 7; store 5 8; own: load 3; store 6e 9; far: load 6e"),
    "enter 0; kind: look 0 3; third: load 3; fifth: load 5; sixth: load 6e; old: count 0 1h 100; pages: rss 0",
    (Outcome("split, and everything stored is there", read=(0, {103, 7}), own=(0, 7), far=(0, 9), kind=(LOOK_PTE, WRITE),
             third=(0, 7),
             fifth=(0, 8), sixth=(0, 9), old=("1h-3", 0), pages=("1h", 0)),))

SPLIT_PMD_VS_FIRST_STORE = Scenario(
    "split_pmd_vs_first_store", "the pmd of a clean huge page is split while another thread reads it, and stores into it", (),
    ("X1", "I14"), LAZY,
    ("enter 0; split_pmd 0; read: load 3", "enter 0; warm: load 3" + "; load 3" * 8 + "; store 3 7; store 5 8; own: load 3"),
    "enter 0; kind: look 0 3; third: load 3; fifth: load 5; old: count 0 1h 100",
    (Outcome("split, and everything stored is there", read=(0, {103, 7}), warm=(0, 103), own=(0, 7), kind=(LOOK_PTE, WRITE),
             third=(0, 7), fifth=(0, 8), old=("1h-2", 0)),))

LAZYFREE_VS_DONTNEED = Scenario(
    "lazyfree_vs_dontneed", "MADV_FREE, MADV_DONTNEED and a store, of one huge page", (26, 3), ("X10", "R20", "K17"), HUGE,
    ("enter 0; advise 0 1h free", "enter 0; advise 0 1h dontneed", "enter 0; store 3 8; own: load 3"),
    "enter 0; third: load 3; old: count 0 1h 100; kind: look 0 0",
    (Outcome("nothing survives but the store", own=(0, {0, 8}), third=(0, {0, 8}), old=(0, {"1h", "1h-1"}),
             kind=({LOOK_NONE, LOOK_HUGE, LOOK_HUGE_ZERO}, range(4))),))


ANY_STATUS = frozenset({*range(1 << 10), EBUSY, EFAULT, -11})


def _lazy(name: str, meaning: str, rules: tuple[str, ...], other: str, *, setup: str = LAZY) -> Scenario:
    """A store that begins when the page is lazily free already must be there after reclaim, whatever else went on."""
    return Scenario(name, meaning, (26,), rules, setup, (other, "enter 0; store 3 7"),
                    "enter 0; drain; late: swap_out 0; kept: load 3",
                    (Outcome("the store is kept", done=ANY_STATUS, late=ANY_STATUS, kept=(0, 7)),))


LAZYFREE_VS_SPLIT_PMD = _lazy("lazyfree_vs_split_pmd", "a lazily free huge page is stored into while its pmd is split",
                              ("X3", "X1"),
                              "enter 0; done: split_pmd 0")
LAZYFREE_VS_RECLAIM = _lazy("lazyfree_vs_reclaim", "a lazily free page is stored into while it is reclaimed", ("X3",),
                            "enter 0; done: swap_out 3",
                            setup=LAZY_SMALL)
LAZYFREE_VS_RECLAIM_HUGE = _lazy("lazyfree_vs_reclaim_huge", "the same, of a huge page", ("X3", "R12"),
                                 "enter 0; done: swap_out 0")
LAZYFREE_VS_MIGRATE = _lazy("lazyfree_vs_migrate", "a lazily free huge page is stored into while it is migrated", ("K4", "X3"),
                            "done: migrate_frame 0 whole")
LAZYFREE_VS_FORK = _lazy("lazyfree_vs_fork", "a lazily free huge page is stored into while its process forks", ("X11", "X3"),
                         "enter 0; done: fork 1; drop 1")


def _child_keeps(name: str, meaning: str, setup: str) -> Scenario:
    """What the child of a fork has of a store beside the fork, it keeps, even when the parent has given the page up."""
    return Scenario(name, meaning, (26,), ("X11", "X3"), setup, ("enter 0; done: fork 1", "enter 0; store 3 7"),
                    "enter 1; first: load 3; enter 0; advise 0 1h dontneed; enter 1; drain; late: swap_out 3; kept: load 3",
                    (Outcome("the child has the store, and keeps it", done=0, late=ANY_STATUS, first=(0, 7), kept=(0, 7)),
                     Outcome("the child has what was lazily free", done=0, late=ANY_STATUS, first=(0, 103),
                             kept=(0, {0, 103}))))


LAZYFREE_VS_FORK_CHILD = _child_keeps("lazyfree_vs_fork_child", "a lazily free huge page is stored into while its process"
                                      " forks, and the child keeps what it has of it", LAZY)
LAZYFREE_VS_FORK_CHILD_SMALL = _child_keeps("lazyfree_vs_fork_child_small", "the same, of a small page", LAZY_SMALL)

MIGRATE_VS_MPROTECT = Scenario(
    "migrate_vs_mprotect", "a huge page is migrated while it becomes read-only", (11, 21), ("X20",), HUGE,
    ("moved: migrate_frame 0 whole", "enter 0; protect 0 1h ro"),
    "enter 0; kind: look 0 3; refused: store 3 9; old: count 0 1h 100",
    (Outcome("the new protection, wherever it is", moved={0, EBUSY}, kind=(LOOK_HUGE, {0, LOOK_DIRTY}), refused=EFAULT,
             old=("1h", 0)),))

RECLAIM_VS_MPROTECT = Scenario(
    "reclaim_vs_mprotect", "reclaim splits the pmd of a huge page, which is in use again, while the page becomes read-only",
    (11, 25), ("R19", "X20"), HUGE,
    ("done: reclaim 64", "enter 0; store 3 7; protect 0 1h ro"),
    "enter 0; kept: load 3; refused: store 3 9; high: store 7e 9; old: count 0 1h 100",
    (Outcome("the store is kept, and the new protection", done=ANY_COUNT, kept=(0, 7), refused=EFAULT, high=EFAULT,
             old=("1h-1", 0)),), swap=True)

LATE_FAULT_VS_DONTNEED = Scenario(
    "late_fault_vs_dontneed", "a write fault finds that another has made the huge pmd writable, which is then thrown away",
    (3,), ("R20", "X8"), HUGE + "protect 0 1h ro; protect 0 1h rw\n",
    ("enter 0; store 3 8; advise 0 1h dontneed", "enter 0; store 5 9; own: load 5"),
    "enter 0; third: load 3; fifth: load 5; old: count 0 1h 100",
    (Outcome("nothing survives but the store", own=(0, {0, 9}), third=(0, 0), fifth=(0, {0, 9}), old=(0, {"1h", "1h-1"})),))

SCENARIOS = (RECLAIM_VS_MPROTECT, LATE_FAULT_VS_DONTNEED, DONTNEED_VS_LOAD, DONTNEED_VS_LOAD_SMALL,
             TWO_DONTNEEDS_VS_LOAD, FORK_VS_STORE, MREMAP_VS_LOAD, MREMAP_VS_LOAD_SMALL, SPLIT_PMD_VS_STORE,
             SPLIT_PMD_VS_FIRST_STORE, LAZYFREE_VS_DONTNEED, LAZYFREE_VS_SPLIT_PMD, LAZYFREE_VS_RECLAIM,
             LAZYFREE_VS_RECLAIM_HUGE, LAZYFREE_VS_MIGRATE, LAZYFREE_VS_FORK, LAZYFREE_VS_FORK_CHILD,
             LAZYFREE_VS_FORK_CHILD_SMALL, MIGRATE_VS_MPROTECT)
