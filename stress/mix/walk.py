"""The graceful fallback in a mix: a walker that knows nothing of huge pages."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.config import PAGE_SHIFT
from concur_thp.mm.pagewalk import clear_refs
from concur_thp.program.spaces import current_mm
from stress.mix.state import draw_range, page_addr


@kernel
def mix_walk(cpu: Cpu):
    """Make a range of the current mm old, pte by pte; its huge pmds are split on the way.

    Context: user mode.
    Return: 0.
    Emulator: one step of a mix.
    """
    where = draw_range(cpu)
    addr = page_addr(where >> 32)
    clear_refs(cpu, current_mm(cpu), addr, addr + ((where & 0xFFFFFFFF) << PAGE_SHIFT))
    return 0
