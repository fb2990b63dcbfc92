"""Each statement and access of the traced build, written down in order: what charts, race detection and DPOR read."""

from concur_thp.arch.checked import FENCE, FOR_DPOR, RACY
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel, quiet
from concur_thp.sched.state import MAX_STEPS_LOGGED, sched, sched_accesses, sched_statements
from concur_thp.sched.words import Byte, Half, Long, Quarter

MAX_ACCESSES = 4 * MAX_STEPS_LOGGED
MAX_STATEMENTS = 4 * MAX_STEPS_LOGGED


@inline
def value_at(address: int, width: int):
    """What is there; 0 for what is wider than a word."""
    if width == 8:
        return Long(address).value
    if width == 4:
        return Half(address).value
    if width == 2:
        return Quarter(address).value
    if width == 1:
        return Byte(address).value
    return 0


@kernel
@quiet
def note_access(cpu: int, address: int, width: int, kind: int, site: int):
    """access_hook() of a run that is looked at: remember the access, and what was there.

    Context: before the access, one CPU at a time.
    Emulator: fills sched_accesses; a run with more keeps the first.
    """
    if kind & FOR_DPOR == 0 and sched.accesses < MAX_ACCESSES and kind & FENCE == 0:
        row = sched_accesses[sched.accesses]
        row.cpu = sched.current
        row.address = address
        row.width = width
        row.stretch = sched.stretches
        row.kind = kind & (RACY - 1)
        row.step = sched.logged
        row.site = site
        row.value = value_at(address, width)
        sched.accesses = sched.accesses + 1


@kernel
@quiet
def note_statement(cpu: int, site: int, func: int):
    """statement_hook() of a run that is looked at: remember the statement.

    Context: before the statement, one CPU at a time.
    Emulator: fills sched_statements; a run with more keeps the first.
    """
    if sched.statements < MAX_STATEMENTS:
        row = sched_statements[sched.statements]
        row.cpu = sched.current
        row.stretch = sched.stretches
        row.site = site
        row.func = func
        row.row = Cpu(cpu).row
        row.accesses = sched.accesses
        row.events = Cpu(cpu).ring_next
        sched.statements = sched.statements + 1


__all__ = ["note_access", "note_statement", "value_at"]
