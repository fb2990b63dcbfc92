"""Each access of the traced build, written down in order: what charts, race detection and DPOR read."""

from concur_thp.arch.linker import kernel, quiet
from concur_thp.sched.state import MAX_STEPS_LOGGED, sched, sched_accesses

MAX_ACCESSES = 4 * MAX_STEPS_LOGGED


@kernel
@quiet
def note_access(cpu: int, address: int, width: int, kind: int, site: int):
    """access_hook() of a run that is looked at: remember the access.

    Context: before the access, one CPU at a time.
    Emulator: fills sched_accesses; a run with more keeps the first.
    """
    if sched.accesses < MAX_ACCESSES:
        row = sched_accesses[sched.accesses]
        row.cpu = sched.current
        row.address = address
        row.width = width
        row.kind = kind
        row.step = sched.logged
        row.site = site
        sched.accesses = sched.accesses + 1
