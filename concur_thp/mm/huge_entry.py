"""Values of huge pmds, and what their users share. (Linux: mm/huge_memory.c, arch/x86/include/asm/pgtable.h)

A huge page's content must be visible before its first entry: fill it, __SetPageUptodate() (which has the barrier), then
take the pmd ptl and write the entry.
"""

from concur_thp.arch.linker import inline
from concur_thp.mm.flags import (
    __GFP_DIRECT_RECLAIM,
    __GFP_KSWAPD_RECLAIM,
    __GFP_NORETRY,
    GFP_TRANSHUGE,
    GFP_TRANSHUGE_LIGHT,
    VM_HUGEPAGE,
    VM_WRITE,
)
from concur_thp.mm.huge_zero import is_huge_zero_pfn
from concur_thp.mm.mm_types import Page, Vma
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_HUGE,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    entry_pfn,
    mk_entry,
    pmd_trans_huge,
)
from concur_thp.mm.thp_sysfs import DEFRAG_ALWAYS, DEFRAG_DEFER, DEFRAG_DEFER_MADVISE, DEFRAG_MADVISE, thp
from concur_thp.mm.vma_prot import vma_prot_bits

PROTECTION = _PAGE_PRESENT | _PAGE_PROTNONE | _PAGE_RW
"""The bits of an entry that a change of protection replaces."""


@inline
def vma_is_anonymous(vma: Vma):
    return vma.vm_file == 0


@inline
def is_huge_zero_pmd(pmd: int):
    """A huge pmd of the zero page; never a migration entry (K13)."""
    return pmd_trans_huge(pmd) and is_huge_zero_pfn(entry_pfn(pmd))


@inline
def mk_huge_pmd(page: Page, vma: Vma):
    """The entry of a page just touched, read-only in a private vma."""
    return mk_entry(page_to_pfn(page), vma_prot_bits(vma) | _PAGE_HUGE | _PAGE_ACCESSED)


@inline
def maybe_mkwrite(entry: int, vma: Vma):
    """Writable if the vma is. For an anon page that is the faulting mm's alone."""
    return entry | _PAGE_RW if vma.vm_flags & VM_WRITE != 0 else entry


@inline
def new_anon_pmd(page: Page, vma: Vma):
    """The entry that makes a fresh anon huge page the vma's own: dirty, young, writable if the vma is."""
    return maybe_mkwrite(mk_huge_pmd(page, vma) | _PAGE_DIRTY, vma)


@inline
def pmd_modify(pmd: int, prot: int):
    """Another protection; Accessed, Dirty and the rest stay."""
    return (pmd & ~PROTECTION) | (prot & PROTECTION)


@inline
def savedwrite(entry: int, prot_numa: int):
    """What a NUMA hint leaves of the rights: a protnone entry keeps RW, so that the hinting fault can give it back.

    It has to: hints come under mmap_sem read. A COW that copies without the ptl takes a read-only entry of the same page for
    proof that nobody has written to it meanwhile; nothing else under mmap_sem read makes a writable entry read-only in place.
    (A migration entry keeps its write bit for the same reason.)
    """
    return entry & _PAGE_RW if prot_numa else 0


@inline
def alloc_hugepage_direct_gfpmask(vma: Vma):
    """How hard a fault tries for a huge page: the table of 3.34."""
    madvised = vma.vm_flags & VM_HUGEPAGE != 0
    defrag = thp.defrag
    gfp = GFP_TRANSHUGE_LIGHT
    if defrag == DEFRAG_ALWAYS:
        gfp = GFP_TRANSHUGE if madvised else GFP_TRANSHUGE | __GFP_NORETRY
    elif defrag == DEFRAG_DEFER:
        gfp = GFP_TRANSHUGE_LIGHT | __GFP_KSWAPD_RECLAIM
    elif defrag == DEFRAG_DEFER_MADVISE:
        gfp = GFP_TRANSHUGE_LIGHT | (__GFP_DIRECT_RECLAIM if madvised else __GFP_KSWAPD_RECLAIM)
    elif defrag == DEFRAG_MADVISE and madvised:
        gfp = GFP_TRANSHUGE
    return gfp
