"""mlock and munlock in a mix."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.config import PAGE_SHIFT
from concur_thp.mm.syscall import sys_mlock, sys_munlock
from stress.mix.state import draw_range, page_addr


@kernel
def mix_mlock(cpu: Cpu, lock: int):
    """mlock a range, or munlock one. What an mm may have mlocked is limited, so neither memory nor the test run out.

    Context: user mode.
    Return: what the system call said.
    Emulator: one step of a mix.
    """
    where = draw_range(cpu)
    addr = page_addr(where >> 32)
    size = (where & 0xFFFFFFFF) << PAGE_SHIFT
    if lock:
        return sys_mlock(cpu, addr, size)
    return sys_munlock(cpu, addr, size)
