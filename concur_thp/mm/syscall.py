"""System calls of the program that a CPU runs, on the mm it runs in. (Linux: mm/mmap.c, mprotect.c, mremap.c, madvise.c)

Each leaves a sys_enter event and runs the mm function of the same name; errors come back negative.
"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.mm.do_mlock import do_mlock, do_munlock
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.mm_types import Mm, mms, percpu
from concur_thp.mm.mmap import do_brk, vm_mmap
from concur_thp.mm.mprotect import do_mprotect
from concur_thp.mm.mremap import do_mremap
from concur_thp.mm.munmap import vm_munmap
from concur_thp.ops import SYS_ARGUMENT_SHIFT, Op


@inline
def current(cpu: Cpu) -> Mm:
    """The mm of the task that this CPU runs."""
    return mms[percpu[cpu.id].mm]


@kernel
def sys_mmap(cpu: Cpu, addr: int, length: int, prot: int, flags: int, file: int, pgoff: int):
    """mmap(2); `file` is a file's number, 0 for anonymous memory.

    Context: user mode; takes mmap_sem write.
    Return: the address, or an error.
    Linux: arch/x86/kernel/sys_x86_64.c mmap
    """
    trace(cpu, Tracepoint.sys_enter, Op.MMAP, addr, length)
    return vm_mmap(cpu, current(cpu), addr, length, prot, flags, file, pgoff)


@kernel
def sys_munmap(cpu: Cpu, addr: int, length: int):
    """munmap(2).

    Context: user mode; takes mmap_sem write.
    Return: 0 or an error.
    Linux: mm/mmap.c munmap
    """
    trace(cpu, Tracepoint.sys_enter, Op.MUNMAP, addr, length)
    return vm_munmap(cpu, current(cpu), addr, length)


@kernel
def sys_brk(cpu: Cpu, brk: int):
    """brk(2).

    Context: user mode; takes mmap_sem write.
    Return: the break, which is `brk` when it was moved.
    Linux: mm/mmap.c brk
    """
    trace(cpu, Tracepoint.sys_enter, Op.BRK, brk, 0)
    return do_brk(cpu, current(cpu), brk)


@kernel
def sys_mprotect(cpu: Cpu, addr: int, length: int, prot: int):
    """mprotect(2).

    Context: user mode; takes mmap_sem write.
    Return: 0 or an error.
    Linux: mm/mprotect.c mprotect
    """
    trace(cpu, Tracepoint.sys_enter, Op.MPROTECT | prot << SYS_ARGUMENT_SHIFT, addr, length)
    return do_mprotect(cpu, current(cpu), addr, length, prot)


@kernel
def sys_mremap(cpu: Cpu, addr: int, old_length: int, new_length: int, new_addr: int):
    """mremap(2) with MREMAP_MAYMOVE; `new_addr` other than 0 is MREMAP_FIXED.

    Context: user mode; takes mmap_sem write.
    Return: the address, or an error.
    Linux: mm/mremap.c mremap
    """
    trace(cpu, Tracepoint.sys_enter, Op.MREMAP, addr, new_addr)
    return do_mremap(cpu, current(cpu), addr, old_length, new_length, new_addr)


@kernel
def sys_madvise(cpu: Cpu, addr: int, length: int, advice: int):
    """madvise(2).

    Context: user mode; takes mmap_sem, read or write as the advice needs.
    Return: 0 or an error.
    Linux: mm/madvise.c madvise
    """
    trace(cpu, Tracepoint.sys_enter, Op.MADVISE | advice << SYS_ARGUMENT_SHIFT, addr, length)
    return do_madvise(cpu, current(cpu), addr, length, advice)


@kernel
def sys_mlock(cpu: Cpu, addr: int, length: int):
    """mlock(2).

    Context: user mode; takes mmap_sem write, then read.
    Return: 0 or an error.
    Linux: mm/mlock.c mlock
    """
    trace(cpu, Tracepoint.sys_enter, Op.MLOCK, addr, length)
    return do_mlock(cpu, current(cpu), addr, length)


@kernel
def sys_munlock(cpu: Cpu, addr: int, length: int):
    """munlock(2).

    Context: user mode; takes mmap_sem write.
    Return: 0 or an error.
    Linux: mm/mlock.c munlock
    """
    trace(cpu, Tracepoint.sys_enter, Op.MUNLOCK, addr, length)
    return do_munlock(cpu, current(cpu), addr, length)
