"""What a CPU's program can do: the closed list of operations, as rows of one int64 array.

A program (recorded or drawn at random) is an array of shape (n, 8): operation, six arguments, and the line of the
recording it came from (0 when there is none). The array lives in the shared segment; `mm/` executes it natively.

Emulator: the format between `stress/` (which writes programs) and `workers/cpu.py` (which runs them).
"""

from enum import IntEnum, unique

ROW_WORDS = 8
"""int64 words of one row: op, a0..a5, line."""


@unique
class Op(IntEnum):
    """Operations. Addresses and lengths are bytes; `task` is an index into the program's task table."""

    END = 0  # the task has nothing more to do
    LOAD = 1  # a0 address
    STORE = 2  # a0 address
    MMAP = 3  # a0 address (always fixed), a1 length, a2 prot, a3 MAP_* flags, a4 file number or 0, a5 pgoff
    MUNMAP = 4  # a0 address, a1 length
    BRK = 5  # a0 new break
    MPROTECT = 6  # a0 address, a1 length, a2 prot
    MREMAP = 7  # a0 old address, a1 old length, a2 new length, a3 new address (always given)
    MADVISE = 8  # a0 address, a1 length, a2 advice
    FORK = 9  # a0 task that starts with a copy of this mm
    VFORK = 10  # a0 task that starts inside this mm, until its EXEC
    CLONE = 11  # a0 task that starts as a thread of this mm
    EXEC = 12  # a0 start of the heap: leave this mm, start with an empty one
    EXIT = 13  # leave this mm; the last one out tears it down
    WAIT = 14  # a0 task, a1 row: go on only when that task has finished that row
    MLOCK = 15  # a0 address, a1 length
    MUNLOCK = 16  # a0 address, a1 length


SYS_OP_MASK, SYS_ARGUMENT_SHIFT = 0xFF, 8
"""A sys_enter event's first value: the Op, and above it the argument that is not an address (prot, advice)."""
OP_NAMES = {int(op): op.name for op in Op}
"""What `cpu.op` may hold, for reports; whoever runs other operations adds theirs, from 100 on."""
