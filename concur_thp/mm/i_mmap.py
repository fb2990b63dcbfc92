"""The vmas of a file. (Linux: mm/interval_tree.c, mm/mmap.c)

Linux has an interval tree; here it is a list sorted by the vmas' first page, equal ones in order of insertion, which is
the order that the tree is walked in. The order matters (semantics 1.5): fork's child is visited after its parent.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PAGE_SHIFT
from concur_thp.mm.mm_types import AddressSpace, Vma, files, vmas
from concur_thp.sync.rwsem import assert_held_write, down_write, up_write


@inline
def vma_last_pgoff(vma: Vma):
    """The last page offset that the vma maps."""
    return vma.vm_pgoff + ((vma.vm_end - vma.vm_start) >> PAGE_SHIFT) - 1


@inline
def vma_file(vma: Vma) -> AddressSpace:
    return files[vma.vm_file]


@inline
def __shared_insert(vma: Vma, prev: int, after: int):
    """Between the vmas numbered `prev` and `after`; 0 is the end of the list."""
    nr = vmas.index(vma)
    vma.shared_prev = prev
    vma.shared_next = after
    if prev != 0:
        vmas[prev].shared_next = nr
    else:
        vma_file(vma).i_mmap = nr
    if after != 0:
        vmas[after].shared_prev = nr


@kernel
def vma_interval_tree_insert(cpu: Cpu, vma: Vma):
    """Put a vma among those of its file, behind all that start at the same page or before.

    Context: i_mmap_rwsem held for write.
    Linux: mm/interval_tree.c vma_interval_tree_insert
    Differs: a sorted list.
    """
    assert_held_write(cpu, vma_file(vma).i_mmap_rwsem)
    prev = 0
    after = vma_file(vma).i_mmap
    while after != 0 and vmas[after].vm_pgoff <= vma.vm_pgoff:
        prev = after
        after = vmas[after].shared_next
    __shared_insert(vma, prev, after)


@kernel
def vma_interval_tree_insert_after(cpu: Cpu, vma: Vma, prev: Vma):
    """Put a vma right behind another that starts at the same page: fork's child behind its parent.

    Context: i_mmap_rwsem held for write; `prev` is in the list.
    Linux: mm/interval_tree.c vma_interval_tree_insert_after
    """
    assert_held_write(cpu, vma_file(vma).i_mmap_rwsem)
    bug_on(cpu, vma.vm_pgoff != prev.vm_pgoff or vma.vm_file != prev.vm_file,
           "vma_interval_tree_insert_after: not the same place (values: vma, prev)", vmas.index(vma), vmas.index(prev))
    __shared_insert(vma, vmas.index(prev), prev.shared_next)


@kernel
def vma_interval_tree_remove(cpu: Cpu, vma: Vma):
    """Take a vma out of its file's list.

    Context: i_mmap_rwsem held for write.
    Linux: mm/interval_tree.c vma_interval_tree_remove
    """
    assert_held_write(cpu, vma_file(vma).i_mmap_rwsem)
    prev = vma.shared_prev
    after = vma.shared_next
    if prev != 0:
        vmas[prev].shared_next = after
    else:
        bug_on(cpu, vma_file(vma).i_mmap != vmas.index(vma), "vma_interval_tree_remove: not in the list (value: vma)",
               vmas.index(vma), vma.vm_file)
        vma_file(vma).i_mmap = after
    if after != 0:
        vmas[after].shared_prev = prev
    vma.shared_prev = 0
    vma.shared_next = 0


@inline
def vma_interval_tree_from(nr: int, first: int, last: int) -> Vma:
    """The first vma, from number `nr` on in list order, that maps a page of first .. last; NULL if none."""
    while nr != 0 and vmas[nr].vm_pgoff <= last and vma_last_pgoff(vmas[nr]) < first:
        nr = vmas[nr].shared_next
    return vmas[nr] if nr != 0 and vmas[nr].vm_pgoff <= last else Vma(0)


@inline
def vma_interval_tree_first(file: AddressSpace, first: int, last: int) -> Vma:
    """The first vma of a file that maps a page of first .. last, NULL if none. i_mmap_rwsem held."""
    return vma_interval_tree_from(file.i_mmap, first, last)


@inline
def vma_interval_tree_next(vma: Vma, first: int, last: int) -> Vma:
    """The next one behind `vma`."""
    return vma_interval_tree_from(vma.shared_next, first, last)


@kernel
def unlink_file_vma(cpu: Cpu, vma: Vma):
    """Hide a vma from the rmap walks of its file, before its page tables are freed.

    Context: mmap_sem held for write, or the mm has no users. Takes i_mmap_rwsem; may sleep.
    Linux: mm/mmap.c unlink_file_vma
    """
    if vma.vm_file != 0:
        down_write(cpu, vma_file(vma).i_mmap_rwsem)
        vma_interval_tree_remove(cpu, vma)
        up_write(cpu, vma_file(vma).i_mmap_rwsem)
    return 0
