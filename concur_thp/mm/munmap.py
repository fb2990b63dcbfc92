"""Taking mappings away: munmap, and all of them at exit. (Linux: mm/mmap.c; v4.19's form, mmap_sem stays write: K8)

The order is what keeps everybody safe: entries go down and are flushed before pages are put (mmu_gather); a vma leaves
the rmap trees before its tables are freed, so that no rmap walker can be in them (X27).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.config import PAGE_MASK, PAGE_SIZE, TASK_SIZE
from concur_thp.mm.errno import EINVAL, ENOMEM
from concur_thp.mm.free_pgtables import free_pgtables
from concur_thp.mm.mm_types import Mm
from concur_thp.mm.mmu_gather import FULL_MM_END, tlb_finish_mmu, tlb_gather_mmu
from concur_thp.mm.munlock import munlock_vmas
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.vma_adjust import __split_vma, map_count_reached, vm_area_free
from concur_thp.mm.vma_tree import find_vma, find_vma_index, vma_at, vma_unlink_range
from concur_thp.mm.zap import unmap_page_range
from concur_thp.sync.rwsem import assert_held_write, down_write, up_write


@inline
def PAGE_ALIGN(length: int):
    return (length + PAGE_SIZE - 1) & PAGE_MASK


@kernel
def do_munmap(cpu: Cpu, mm: Mm, start: int, length: int):
    """Take every mapping of [start, start + length) away; holes are fine.

    Context: mmap_sem write, and it stays so (K8). May sleep.
    Return: 0, -EINVAL, -ENOMEM (a vma could not be split; nothing is unmapped then).
    Linux: mm/mmap.c do_munmap (v4.19)
    """
    assert_held_write(cpu, mm.mmap_sem)
    if start & ~PAGE_MASK != 0 or start < 0 or start > TASK_SIZE or length > TASK_SIZE - start or length <= 0:
        return -EINVAL
    end = start + PAGE_ALIGN(length)
    vma = find_vma(mm, start)
    if not vma or vma.vm_start >= end:
        return 0
    if start > vma.vm_start:
        # The count may pass the limit for a moment, but not for good: a hole in the middle makes two of one.
        if end < vma.vm_end and map_count_reached(mm, 1):
            return -ENOMEM
        if __split_vma(cpu, mm, vma, start, 0) != 0:
            return -ENOMEM
    last = find_vma(mm, end)
    if last and end > last.vm_start and __split_vma(cpu, mm, last, end, 1) != 0:
        return -ENOMEM
    first = find_vma_index(mm, start)
    behind = first
    while behind < mm.map_count and vma_at(mm, behind).vm_start < end:
        behind += 1
    munlock_vmas(cpu, mm, first, behind)
    unmap_region(cpu, mm, first, behind, start, end)
    remove_vmas(cpu, mm, first, behind)
    return 0


@kernel
def unmap_region(cpu: Cpu, mm: Mm, first: int, behind: int, start: int, end: int):
    """Unmap the pages of vmas first .. behind-1 and free the tables that nobody else needs.

    Context: mmap_sem write.
    Linux: mm/mmap.c unmap_region
    Differs: the vmas leave the array afterwards (remove_vmas); nobody can look before mmap_sem is released.
    """
    point(cpu, Point.MUNMAP_UNLINKED)
    floor = vma_at(mm, first - 1).vm_end if first > 0 else 0
    ceiling = vma_at(mm, behind).vm_start if behind < mm.map_count else TASK_SIZE
    lru_add_drain(cpu)
    tlb_gather_mmu(cpu, mm, start, end)
    unmap_vmas(cpu, mm, first, behind)
    free_pgtables(cpu, mm, first, behind, floor, ceiling)
    tlb_finish_mmu(cpu)


@inline
def unmap_vmas(cpu: Cpu, mm: Mm, first: int, behind: int):
    """Zap all that these vmas map, inside the caller's gather."""
    k = first
    while k < behind:
        vma = vma_at(mm, k)
        unmap_page_range(cpu, vma, vma.vm_start, vma.vm_end)
        k += 1


@kernel
def remove_vmas(cpu: Cpu, mm: Mm, first: int, behind: int):
    """Vmas that map nothing and are in no rmap tree leave the mm and go.

    Context: mmap_sem write, or mm_users is 0. May sleep: the last mapping of shared anonymous memory frees it.
    Linux: mm/mmap.c remove_vma_list, detach_vmas_to_be_unmapped
    """
    k = behind - 1
    while k >= first:
        vma = vma_at(mm, k)
        bug_on(cpu, vma.vm_mm != mm.id, "remove_vmas: vma of another mm (values: its mm, this one)", vma.vm_mm, mm.id)
        vm_area_free(cpu, vma)
        k -= 1
    vma_unlink_range(cpu, mm, first, behind)


@kernel
def vm_munmap(cpu: Cpu, mm: Mm, start: int, length: int):
    """munmap.

    Context: takes mmap_sem write.
    Return: as do_munmap().
    Linux: mm/mmap.c vm_munmap
    """
    down_write(cpu, mm.mmap_sem)
    error = do_munmap(cpu, mm, start, length)
    up_write(cpu, mm.mmap_sem)
    return error


@kernel
def exit_mmap(cpu: Cpu, mm: Mm):
    """Take everything out of an mm that has no user left.

    Context: mm_users is 0, so no fault and no khugepaged; rmap walkers may still be inside and use the ptls. No
    mmap_sem, as in Linux: nobody can take it any more who would go on.
    Linux: mm/mmap.c exit_mmap
    """
    bug_on(cpu, mm.mm_users.load() != 0, "exit_mmap: mm has users (values: mm, users)", mm.id, mm.mm_users.read())
    point(cpu, Point.EXIT_MMAP)
    count = mm.map_count
    if count == 0:  # fork may have failed before its first vma.
        return 0
    check_point(cpu, Point.EXIT_MMAP, mm)
    munlock_vmas(cpu, mm, 0, count)
    lru_add_drain(cpu)
    tlb_gather_mmu(cpu, mm, 0, FULL_MM_END)
    unmap_vmas(cpu, mm, 0, count)
    free_pgtables(cpu, mm, 0, count, 0, TASK_SIZE)
    tlb_finish_mmu(cpu)
    remove_vmas(cpu, mm, 0, count)
    check_point(cpu, Point.EXIT_MMAP_DONE, mm)
    return 0


__all__ = ["PAGE_ALIGN", "do_munmap", "exit_mmap", "vm_munmap"]
