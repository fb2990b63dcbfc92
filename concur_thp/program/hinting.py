"""NUMA hints: the scanner that takes rights from entries so that the next access tells who it is. (Linux: mm/mempolicy.c)"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.config import PAGE_SIZE
from concur_thp.mm.errno import EINVAL, ESRCH
from concur_thp.mm.flags import VM_ACCESS
from concur_thp.mm.huge_entry import vma_is_anonymous
from concur_thp.mm.mprotect import change_protection
from concur_thp.mm.pgtable import _PAGE_PROTNONE
from concur_thp.mm.vma_tree import find_vma, vma_next
from concur_thp.program.spaces import current_mm, in_mm
from concur_thp.sync.rwsem import down_read, up_read


@kernel
def change_prot_numa(cpu: Cpu, addr: int, length: int):
    """Take the rights from every entry of a range; its vmas keep theirs, so the next access faults and gets them back.

    Context: user mode; takes mmap_sem read, so DONTNEED and faults of other threads run beside it (X10).
    Return: pages changed; -ESRCH in no mm; -EINVAL.
    Linux: mm/mempolicy.c change_prot_numa
    Differs: anonymous memory only. Zero pages and entries that have no rights already are not left out.
    """
    if not in_mm(cpu):
        return -ESRCH
    if (addr | length) & (PAGE_SIZE - 1) != 0:
        return -EINVAL
    mm = current_mm(cpu)
    end = addr + length
    pages = 0
    down_read(cpu, mm.mmap_sem)
    vma = find_vma(mm, addr)
    while vma and vma.vm_start < end:
        if vma_is_anonymous(vma) and vma.vm_flags & VM_ACCESS != 0:
            pages += change_protection(cpu, vma, max(addr, vma.vm_start), min(end, vma.vm_end), _PAGE_PROTNONE, 1)
        vma = vma_next(mm, vma)
    up_read(cpu, mm.mmap_sem)
    return pages


__all__ = ["change_prot_numa"]
