"""Can a range become part of its neighbours? (Linux: mm/mmap.c vma_merge)

A is addr..end, the range to be mapped or to get new flags; P the vma before it, N the one behind, X one that A covers
up to its end (mprotect, madvise: A lies in an existing vma).

      AAAA             AAAA                AAAA              AAAA
     PPPPPPNNNNNN     PPPPPPNNNNNN     PPPPPPNNNNNN      PPPP    NNNN
     no merge         becomes          becomes           becomes PPPPPPPPPPPP 1, PPPPPPPPNNNN 2 or PPPPNNNNNNNN 3
                      PPNNNNNNNNNN 4   PPPPPPPPPPNN 5

         AAAA
     PPPPXXXXNNNN     becomes PPPPPPPPPPPP 6, PPPPPPPPNNNN 7 or PPPPNNNNNNNN 8
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PAGE_SHIFT
from concur_thp.mm.mm_slots import khugepaged_enter_vma_merge
from concur_thp.mm.mm_types import Mm, Vma, avcs
from concur_thp.mm.vma_adjust import __vma_adjust
from concur_thp.mm.vma_tree import vma_first, vma_next, vma_pages


@inline
def list_is_singular(vma: Vma):
    """Is the vma in exactly one anon_vma?"""
    return vma.avc_head != 0 and avcs[vma.avc_head].same_vma == 0


@inline
def is_mergeable_anon_vma(anon_vma1: int, anon_vma2: int, vma: Vma):
    """May pages of both anon_vmas live in one vma?

    The same anon_vma, or one has none yet; but a vma that was forked (more than one chain) gets no new neighbours'
    pages, else its chains would only ever grow.
    """
    if (anon_vma1 == 0 or anon_vma2 == 0) and (not vma or list_is_singular(vma)):
        return 1
    return anon_vma1 == anon_vma2


@inline
def is_mergeable_vma(vma: Vma, file: int, vm_flags: int):
    return vma.vm_flags == vm_flags and vma.vm_file == file


@inline
def can_vma_merge_before(vma: Vma, vm_flags: int, anon_vma: int, file: int, vm_pgoff: int):
    """Can a range that ends at offset `vm_pgoff` grow into the front of `vma`?"""
    return (is_mergeable_vma(vma, file, vm_flags) and is_mergeable_anon_vma(anon_vma, vma.anon_vma, vma)
            and vma.vm_pgoff == vm_pgoff)


@inline
def can_vma_merge_after(vma: Vma, vm_flags: int, anon_vma: int, file: int, vm_pgoff: int):
    """Can `vma` grow over a range behind it that begins at offset `vm_pgoff`?"""
    return (is_mergeable_vma(vma, file, vm_flags) and is_mergeable_anon_vma(anon_vma, vma.anon_vma, vma)
            and vma.vm_pgoff + vma_pages(vma) == vm_pgoff)


@kernel
def vma_merge(cpu: Cpu, mm: Mm, prev: Vma, addr: int, end: int, vm_flags: int, anon_vma: int, file: int,
              pgoff: int) -> Vma:
    """Make addr..end, with these properties, a part of a neighbour or of both.

    Context: mmap_sem write. The range is empty, or lies in one vma (whose anon_vma is given) that is to change.
    Return: the vma that now has it; NULL when nothing fits or memory is short, and nothing has changed.
    Linux: mm/mmap.c vma_merge
    """
    bug_on(cpu, addr >= end or (int(prev) != 0 and addr <= prev.vm_start), "vma_merge: bad range", addr, end)
    pglen = (end - addr) >> PAGE_SHIFT
    next = vma_next(mm, prev) if prev else vma_first(mm)
    area = next
    if area and area.vm_end == end:  # Cases 6, 7, 8.
        next = vma_next(mm, area)
    bug_on(cpu, int(area) != 0 and end > area.vm_end, "vma_merge: range over two vmas", addr, end)
    before = 0
    if next and end == next.vm_start:
        before = can_vma_merge_before(next, vm_flags, anon_vma, file, pgoff + pglen)
    if prev and prev.vm_end == addr and can_vma_merge_after(prev, vm_flags, anon_vma, file, pgoff):
        upto = end  # Cases 2, 5, 7.
        if before and is_mergeable_anon_vma(prev.anon_vma, next.anon_vma, Vma(0)):
            upto = next.vm_end  # Cases 1, 6.
        return merged(cpu, prev, vm_flags, __vma_adjust(cpu, prev, prev.vm_start, upto, prev.vm_pgoff, Vma(0), prev))
    if not before:
        return Vma(0)
    if prev and addr < prev.vm_end:  # Case 4.
        error = __vma_adjust(cpu, prev, prev.vm_start, addr, prev.vm_pgoff, Vma(0), next)
    else:  # Cases 3 (area is next) and 8 (area goes).
        error = __vma_adjust(cpu, area, addr, next.vm_end, next.vm_pgoff - pglen, Vma(0), next)
    return merged(cpu, next, vm_flags, error)


@inline
def merged(cpu: Cpu, vma: Vma, vm_flags: int, error: int) -> Vma:
    """The end of a merge: a vma that has grown may be worth khugepaged's while."""
    if error != 0:
        return Vma(0)
    khugepaged_enter_vma_merge(cpu, vma, vm_flags)
    return vma
