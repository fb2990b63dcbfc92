"""Spaces: numbered mms that CPUs come to run in, whoever made them. A space holds one reference to its mm."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, Struct, embed, field
from concur_thp.mm.errno import ENOMEM, ESRCH
from concur_thp.mm.fork import dup_mm, mm_alloc, mmget, mmput, switch_to_mm
from concur_thp.mm.mm_types import Mm, mms, percpu
from concur_thp.program.table import NR_SPACES
from concur_thp.sync.lock_classes import FIRST_USER_CLASS
from concur_thp.sync.spinlock import SpinLock, spin_lock, spin_lock_init, spin_unlock

SPACE_LOCK = FIRST_USER_CLASS


class Space(Struct, size=64):
    """An mm that CPUs may run in, shared by all who come."""

    lock = embed(SpinLock, "guards mm; taken for a moment to get a reference")
    mm = field(I32, "lock", "its number, 0 for none; the space holds a reference")


spaces = SharedArray("spaces", Space, lambda c: NR_SPACES)


def init_spaces() -> None:
    """Before the first use: no space has an mm."""
    for number in range(NR_SPACES):
        spin_lock_init(spaces[number].lock, SPACE_LOCK)
        spaces[number].mm = 0


@inline
def current_mm(cpu: Cpu) -> Mm:
    """The mm that this CPU runs in."""
    return mms[percpu[cpu.id].mm]


@inline
def in_mm(cpu: Cpu):
    return percpu[cpu.id].mm != 0


@kernel
def get_space(cpu: Cpu, number: int) -> Mm:
    """Become a user of a space's mm.

    Context: any with irqs on, no spinlock held.
    Return: the mm; NULL when the space has none.
    Emulator: what get_task_mm() is for a task.
    """
    space = spaces[number]
    mm = Mm(0)
    spin_lock(cpu, space.lock)
    if space.mm != 0:
        mm = mms[space.mm]
        mmget(mm)
    spin_unlock(cpu, space.lock)
    return mm


@kernel
def enter_space(cpu: Cpu, number: int):
    """Run in a space's mm, as one more thread of it; an mm that this CPU runs in is left before.

    Context: user mode.
    Return: 0, or -ESRCH when the space has no mm.
    Emulator: what clone(CLONE_VM) and a scheduler would do.
    """
    mm = get_space(cpu, number)
    if not mm:
        return -ESRCH
    if in_mm(cpu):
        leave_space(cpu)
    switch_to_mm(cpu, mm.id)
    return 0


@kernel
def leave_space(cpu: Cpu):
    """Leave the mm; the last one out tears it down.

    Context: user mode, in an mm.
    Emulator: a thread's exit.
    """
    mm = current_mm(cpu)
    switch_to_mm(cpu, 0)
    mmput(cpu, mm)


@kernel
def replace_space(cpu: Cpu, number: int, mm: int):
    """Put another mm, by its number, into a space, which takes over the caller's reference; 0 leaves it empty.

    Context: user mode.
    Emulator: the old program of the space ends as soon as its threads have left.
    """
    space = spaces[number]
    spin_lock(cpu, space.lock)
    old = space.mm
    space.mm = mm
    spin_unlock(cpu, space.lock)
    if old != 0:
        mmput(cpu, mms[old])


@kernel
def renew_space(cpu: Cpu, number: int):
    """Put a fresh mm into a space.

    Context: user mode.
    Return: 0 or -ENOMEM.
    Emulator: a new program starts.
    """
    mm = mm_alloc(cpu)
    if not mm:
        return -ENOMEM
    replace_space(cpu, number, mm.id)
    return 0


@kernel
def fork_space(cpu: Cpu, number: int):
    """Fork the mm that this CPU runs in; the child goes into a space.

    Context: user mode.
    Return: 0, -ESRCH: in no mm; -ENOMEM.
    Emulator: fork(2), where somebody else runs the child.
    """
    if not in_mm(cpu):
        return -ESRCH
    child = dup_mm(cpu, current_mm(cpu))
    if not child:
        return -ENOMEM
    replace_space(cpu, number, child.id)
    return 0


__all__ = ["SPACE_LOCK", "Space", "current_mm", "enter_space", "fork_space", "get_space", "in_mm", "init_spaces", "leave_space",
           "renew_space", "replace_space", "spaces"]
