"""Moving the borders of vmas, splitting them, and the vma structs themselves. (Linux: mm/mmap.c, kernel/fork.c)

Everybody who finds a vma through a page holds the rmap locks and reads start, end and pgoff; so these three change only
under mmap_sem, i_mmap_rwsem and the anon_vma's rwsem, all for write, with the vma out of both trees.
A huge pmd lies in one vma (I8): what a new border would cut is split before any border moves.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PAGE_SHIFT
from concur_thp.mm.anon_vma import (
    anon_vma_clone,
    anon_vma_interval_tree_post_update_vma,
    anon_vma_interval_tree_pre_update_vma,
    anon_vma_lock_write,
    anon_vma_unlock_write,
    unlink_anon_vmas,
)
from concur_thp.mm.errno import ENOMEM
from concur_thp.mm.file_table import fput, get_file
from concur_thp.mm.huge_memory import vma_adjust_trans_huge
from concur_thp.mm.mm_types import POOL_VMA, Mm, Vma, anon_vmas, files, mm_globals, mms, vmas
from concur_thp.mm.slab import kmem_cache_alloc, kmem_cache_free
from concur_thp.mm.vma_tree import (
    vma_interval_tree_insert,
    vma_interval_tree_remove,
    vma_link,
    vma_next,
    vma_unlink,
)
from concur_thp.sync.rwsem import assert_held_write, down_write, up_write

MAP_COUNT_RESERVE = 2
"""munmap may split at both ends before it removes anything; the tree must have room for that."""


@inline
def map_count_reached(mm: Mm, more: int):
    """Would `more` vmas beyond the present ones be too many? (sysctl_max_map_count)"""
    return mm.map_count + more > mm_globals.max_map_count - MAP_COUNT_RESERVE


@kernel
def vm_area_alloc(cpu: Cpu, mm: Mm) -> Vma:
    """A vma of `mm` with nothing in it.

    Context: any.
    Return: the vma, NULL when there are no more.
    Linux: kernel/fork.c vm_area_alloc
    """
    number = kmem_cache_alloc(cpu, POOL_VMA)
    if number == 0:
        return Vma(0)
    vma = vmas[number]
    vma.vm_mm = mm.id
    vma.vm_flags = 0
    vma.vm_file = 0
    vma.anon_vma = 0
    vma.avc_head = 0
    vma.shared_next = 0
    vma.shared_prev = 0
    return vma


@kernel
def vm_area_dup(cpu: Cpu, orig: Vma) -> Vma:
    """A copy of a vma that is in no tree and has no anon_vma_chains. It counts as a user of the file.

    Context: mmap_sem of its mm.
    Return: the copy, NULL when there are no more.
    Linux: kernel/fork.c vm_area_dup
    Differs: takes the file's reference, which Linux does a few lines later.
    """
    new = vm_area_alloc(cpu, mms[orig.vm_mm])
    if new:
        new.vm_start = orig.vm_start
        new.vm_end = orig.vm_end
        new.vm_pgoff = orig.vm_pgoff
        new.vm_flags = orig.vm_flags
        new.vm_file = orig.vm_file
        new.anon_vma = orig.anon_vma
        get_file(new.vm_file)
    return new


@kernel
def vm_area_free(cpu: Cpu, vma: Vma):
    """Free a vma that is out of every tree, and its reference to the file.

    Context: may sleep: the last reference frees a file.
    Linux: kernel/fork.c vm_area_free, mm/mmap.c remove_vma
    """
    bug_on(cpu, vma.avc_head != 0, "vm_area_free: still in an anon_vma (value: vma)", vmas.index(vma), vma.avc_head)
    fput(cpu, vma.vm_file)
    kmem_cache_free(cpu, POOL_VMA, vmas.index(vma))


@kernel
def __vma_adjust(cpu: Cpu, vma: Vma, start: int, end: int, pgoff: int, insert: Vma, expand: Vma):
    """Give `vma` new borders; its neighbour shrinks, grows or goes as they demand. Or `insert` fills what it leaves.

    Context: mmap_sem write; takes the rmap locks. `expand` is the vma that grows (vma itself or the next one), NULL
    when none needs to inherit. The cases are those of vma_merge().
    Return: 0 or -ENOMEM, then nothing has changed.
    Linux: mm/mmap.c __vma_adjust
    """
    mm = mms[vma.vm_mm]
    assert_held_write(cpu, mm.mmap_sem)
    bug_on(cpu, start >= end, "__vma_adjust: no vma left (values: start, end)", start, end)
    orig_vma = vma
    next = Vma(0)
    if not insert:
        next = vma_next(mm, vma)
    adjust_next = 0
    remove_next = 0
    if next:
        if end >= next.vm_end:
            if next == expand:  # Case 8: the next one grows downwards over vma, which goes.
                remove_next = 3
                next = vma
                vma = expand
            else:  # Cases 1, 7: the next one goes; case 6: the two next ones, one after the other.
                remove_next = 2 if end > next.vm_end else 1
                end = next.vm_end
        elif end > next.vm_start:  # Case 5: the border moves up.
            adjust_next = (end - next.vm_start) >> PAGE_SHIFT
        elif end < vma.vm_end:  # Case 4: the border moves down.
            adjust_next = -((vma.vm_end - end) >> PAGE_SHIFT)
        if (remove_next != 0 or adjust_next != 0) and inherit_anon_vma(cpu, mm, vma, next, adjust_next, remove_next):
            return -ENOMEM
    adjust_borders(cpu, orig_vma, vma, next, start, end, pgoff, insert, adjust_next, remove_next)
    if remove_next == 2:
        next = vma_next(mm, vma)
        adjust_borders(cpu, orig_vma, vma, next, start, next.vm_end, pgoff, insert, 0, 1)
    return 0


@kernel
def inherit_anon_vma(cpu: Cpu, mm: Mm, vma: Vma, next: Vma, adjust_next: int, remove_next: int):
    """Before a vma grows over pages of another: it must be in every anon_vma that those pages may belong to.

    Context: mmap_sem write, no rmap lock. Without this the imported pages could not be found by rmap.
    Return: 0 or -ENOMEM.
    Linux: mm/mmap.c __vma_adjust, its exporter and importer
    """
    exporter = next
    importer = vma
    if remove_next == 2 and next.anon_vma == 0:
        exporter = vma_next(mm, next)
    if adjust_next < 0:
        exporter = vma
        importer = next
    if exporter.anon_vma == 0 or importer.anon_vma != 0:
        return 0
    importer.anon_vma = exporter.anon_vma
    error = anon_vma_clone(cpu, importer, exporter)
    if error != 0:
        importer.anon_vma = 0
    return error


@kernel
def adjust_borders(cpu: Cpu, orig_vma: Vma, vma: Vma, next: Vma, start: int, end: int, pgoff: int, insert: Vma,
                   adjust_next: int, remove_next: int):
    """Change borders and trees in one step for every rmap walker.

    Context: mmap_sem write; takes i_mmap_rwsem, then the anon_vma's rwsem. Cannot fail.
    Linux: mm/mmap.c __vma_adjust, from its label "again"
    """
    mm = mms[vma.vm_mm]
    # 3.22.1: a pmd split may flush and takes the rmap's place in the lock order only below mmap_sem: first of all.
    vma_adjust_trans_huge(cpu, orig_vma, start, end, adjust_next)
    file = vma.vm_file
    if file != 0:
        down_write(cpu, files[file].i_mmap_rwsem)
    anon_vma = vma.anon_vma
    if anon_vma == 0 and adjust_next != 0:
        anon_vma = next.anon_vma
    if anon_vma != 0:
        if adjust_next != 0:
            bug_on(cpu, next.anon_vma != 0 and next.anon_vma != anon_vma,
                   "vma_adjust: neighbours of different anon_vmas (values: anon_vmas)", anon_vma, next.anon_vma)
        anon_vma_lock_write(cpu, anon_vmas[anon_vma])
    if remove_next != 0:
        vma_unlink(cpu, mm, next)
        if file != 0:
            vma_interval_tree_remove(cpu, next)
    move_borders(cpu, vma, next, start, end, pgoff, adjust_next)
    if insert:
        if file != 0:
            vma_interval_tree_insert(cpu, insert)
        vma_link(cpu, mm, insert)
    if anon_vma != 0:
        anon_vma_unlock_write(cpu, anon_vmas[anon_vma])
    if file != 0:
        up_write(cpu, files[file].i_mmap_rwsem)
    if remove_next != 0:
        bug_on(cpu, next.anon_vma != 0 and next.anon_vma != vma.anon_vma,
               "vma_adjust: merged vmas of different anon_vmas (values: anon_vmas)", vma.anon_vma, next.anon_vma)
        unlink_anon_vmas(cpu, next)
        vm_area_free(cpu, next)


@inline
def move_borders(cpu: Cpu, vma: Vma, next: Vma, start: int, end: int, pgoff: int, adjust_next: int):
    """3.22.2: out of the rmap trees, new borders, back in. The rmap locks are held."""
    anon_vma_interval_tree_pre_update_vma(cpu, vma)
    if vma.vm_file != 0:
        vma_interval_tree_remove(cpu, vma)
    if adjust_next != 0:
        anon_vma_interval_tree_pre_update_vma(cpu, next)
        if next.vm_file != 0:
            vma_interval_tree_remove(cpu, next)
        next.vm_start = next.vm_start + (adjust_next << PAGE_SHIFT)
        next.vm_pgoff = next.vm_pgoff + adjust_next
        if next.vm_file != 0:
            vma_interval_tree_insert(cpu, next)
        anon_vma_interval_tree_post_update_vma(cpu, next)
    vma.vm_start = start
    vma.vm_end = end
    vma.vm_pgoff = pgoff
    if vma.vm_file != 0:
        vma_interval_tree_insert(cpu, vma)
    anon_vma_interval_tree_post_update_vma(cpu, vma)


@kernel
def vma_adjust(cpu: Cpu, vma: Vma, start: int, end: int, pgoff: int, insert: Vma):
    """Give `vma` new borders where nobody needs to inherit an anon_vma.

    Context: mmap_sem write.
    Return: 0 or -ENOMEM.
    Linux: include/linux/mm.h vma_adjust
    """
    return __vma_adjust(cpu, vma, start, end, pgoff, insert, Vma(0))


@kernel
def __split_vma(cpu: Cpu, mm: Mm, vma: Vma, addr: int, new_below: int):
    """Cut a vma in two at `addr`. The new vma is the lower part if `new_below`, else the upper.

    Context: mmap_sem write. Does not look at the limit of vmas: munmap may exceed it for a moment.
    Return: 0 or -ENOMEM, then nothing has changed.
    Linux: mm/mmap.c __split_vma
    """
    bug_on(cpu, addr <= vma.vm_start or addr >= vma.vm_end, "split_vma: not inside the vma (values: address, start)",
           addr, vma.vm_start)
    new = vm_area_dup(cpu, vma)
    if not new:
        return -ENOMEM
    border = vma.vm_pgoff + ((addr - vma.vm_start) >> PAGE_SHIFT)
    if new_below:
        new.vm_end = addr
    else:
        new.vm_start = addr
        new.vm_pgoff = border
    # The new vma enters the anon_vmas with its final borders, before the old one gives the range up: never unseen.
    if anon_vma_clone(cpu, new, vma) != 0:
        vm_area_free(cpu, new)
        return -ENOMEM
    if new_below:
        return vma_adjust(cpu, vma, addr, vma.vm_end, border, new)
    return vma_adjust(cpu, vma, vma.vm_start, addr, vma.vm_pgoff, new)


@kernel
def split_vma(cpu: Cpu, mm: Mm, vma: Vma, addr: int, new_below: int):
    """__split_vma() within the limit of vmas.

    Context: mmap_sem write.
    Return: 0 or -ENOMEM.
    Linux: mm/mmap.c split_vma
    """
    if map_count_reached(mm, 1):
        return -ENOMEM
    return __split_vma(cpu, mm, vma, addr, new_below)
