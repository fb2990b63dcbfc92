"""Swap entries: what stands in a pte whose page is on the swap device. (Linux: include/linux/swapops.h)

There is one device, so an entry is the number of its slot; slot 0 is the device's header and stands for "none".
"""

from concur_thp.arch.linker import inline
from concur_thp.mm.pgtable import _PAGE_SWAP, entry_pfn, mk_entry


@inline
def swp_entry_to_pte(entry: int):
    return mk_entry(entry, _PAGE_SWAP)


@inline
def pte_to_swp_entry(pte: int):
    return entry_pfn(pte)
