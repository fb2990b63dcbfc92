"""What a vma's rights become in its entries, and what the system allows an mm. (Linux: mm/mmap.c protection_map)"""

from typing import Any

from concur_thp.arch.linker import inline
from concur_thp.arch.shared import SharedOne
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.mm.flags import VM_ACCESS, VM_SHARED, VM_WRITE
from concur_thp.mm.mm_types import Mm, Vma, mm_globals
from concur_thp.mm.pgtable import _PAGE_PRESENT, _PAGE_PROTNONE, _PAGE_RW


class MmapSwitches(Struct, size=64):
    """Kernel code only reads these."""

    map_stack_nohuge = field(I32, "const", "1: MAP_STACK gives VM_NOHUGEPAGE, as Linux does since 6.7; v4.20: 0")
    memlock = field(I64, "const", "RLIMIT_MEMLOCK of every mm, in pages")


mmap_switches = SharedOne("mmap_switches", MmapSwitches)


def init_mmap(config: Any) -> None:
    """Boot: the sizes and the switch as the configuration has them."""
    mm_globals.nr_frames = config.frames
    mm_globals.max_map_count = config.max_map_count
    mm_globals.file_pages = config.file_pages
    mm_globals.nr_mms = config.mms
    mmap_switches.map_stack_nohuge = int(getattr(config, "stack_nohuge", False))
    # So much that a huge page fits, so little that a handful of mms leave room for the others.
    mmap_switches.memlock = max(config.frames // 16, int(HPAGE_PMD_NR))


@inline
def mlock_limit_reached(mm: Mm, more: int):
    """Would `more` VM_LOCKED pages be more than the mm may have?"""
    return mm.locked_vm + more > mmap_switches.memlock


@inline
def vm_get_page_prot(vm_flags: int):
    """Bits of a present entry under these rights: a private mapping is never writable here, COW makes it so."""
    if vm_flags & VM_ACCESS == 0:
        return _PAGE_PROTNONE
    return _PAGE_PRESENT | _PAGE_RW if vm_flags & (VM_SHARED | VM_WRITE) == VM_SHARED | VM_WRITE else _PAGE_PRESENT


@inline
def vma_prot_bits(vma: Vma):
    """Bits of a present entry of this vma (vm_page_prot); faults add _PAGE_RW where the vma has VM_WRITE."""
    return vm_get_page_prot(vma.vm_flags)
