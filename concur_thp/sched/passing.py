"""By which statements the runs of a scenario come, and by which more than one CPU comes in one run. Traced build."""

import mmap

from concur_thp.arch.linker import kernel, quiet
from concur_thp.arch.shared import Word
from concur_thp.arch.struct import I64, Struct, field
from concur_thp.sched.batch import batch
from concur_thp.sched.snapshot import address_of
from concur_thp.sched.state import sched

PASSING = Word("sched.passing")
"""Address of the table, which lies outside of the segment: restoring a snapshot leaves it alone."""
PLACES = 1 << 15
"""A power of two, several times as many as mm/ has statements."""


class Passed(Struct, size=64):
    """A statement; a place of a hash table."""

    site = field(I64, "owner", "its number, 0: the place is empty")
    run = field(I64, "owner", "the last run that came by, from 1")
    cpus = field(I64, "owner", "a bit for each CPU that came by in that run")
    runs = field(I64, "owner", "runs that came by")
    shared = field(I64, "owner", "runs in which several CPUs came by")


SIZE = Passed.SIZE


@kernel
@quiet
def note_passing(cpu: int, site: int, func: int):
    """statement_hook() of runs whose way is of interest: count the statement.

    Context: before the statement, one CPU at a time.
    Emulator: fills the table at PASSING.
    """
    at = site & (PLACES - 1)
    row = Passed(int(PASSING) + at * SIZE)
    while row.site != 0 and row.site != site:
        at = (at + 1) & (PLACES - 1)
        row = Passed(int(PASSING) + at * SIZE)
    row.site = site
    bit = 1 << sched.current
    if row.run != batch.done + 1:
        row.run = batch.done + 1
        row.cpus = 0
        row.runs = row.runs + 1
    if row.cpus != 0 and row.cpus & bit == 0 and row.cpus & (row.cpus - 1) == 0:
        row.shared = row.shared + 1
    row.cpus = row.cpus | bit


def open_passing() -> mmap.mmap:
    """An empty table."""
    memory = mmap.mmap(-1, PLACES * SIZE)
    PASSING.set(address_of(memory))
    return memory


def passed() -> dict[int, tuple[int, int]]:
    """Statement -> runs in which several CPUs came by, and runs that came by at all."""
    rows = (Passed(int(PASSING) + at * SIZE) for at in range(PLACES))
    return {row.site: (row.shared, row.runs) for row in rows if row.site}


__all__ = ["note_passing", "open_passing", "passed"]
