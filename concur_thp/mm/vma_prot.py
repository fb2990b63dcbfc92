"""What a vma's rights become in its entries, and one switch of mmap. (Linux: mm/mmap.c protection_map, vm_get_page_prot)"""

from typing import Any

from concur_thp.arch.linker import inline
from concur_thp.arch.shared import SharedOne
from concur_thp.arch.struct import I32, Struct, field
from concur_thp.mm.flags import VM_ACCESS, VM_SHARED, VM_WRITE
from concur_thp.mm.mm_types import Vma
from concur_thp.mm.pgtable import _PAGE_PRESENT, _PAGE_PROTNONE, _PAGE_RW


class MmapSwitches(Struct, size=64):
    """Kernel code only reads these."""

    map_stack_nohuge = field(I32, "const", "1: MAP_STACK gives VM_NOHUGEPAGE (Linux since 6.7, so the recordings); v4.20: 0")


mmap_switches = SharedOne("mmap_switches", MmapSwitches)


def init_mmap(config: Any) -> None:
    """Boot: the switch as the configuration has it."""
    mmap_switches.map_stack_nohuge = int(getattr(config, "stack_nohuge", False))


@inline
def vm_get_page_prot(vm_flags: int):
    """Bits of a present entry under these rights: a private mapping is never writable here, COW makes it so."""
    if vm_flags & VM_ACCESS == 0:
        return _PAGE_PROTNONE
    return _PAGE_PRESENT | _PAGE_RW if vm_flags & (VM_SHARED | VM_WRITE) == VM_SHARED | VM_WRITE else _PAGE_PRESENT


@inline
def vma_prot_bits(vma: Vma):
    """Bits of a present entry of this vma (vm_page_prot). Writers add _PAGE_RW when the vma has VM_WRITE (maybe_mkwrite)."""
    return vm_get_page_prot(vma.vm_flags)
