"""anon_vma: the vmas that an anonymous page may be mapped in. (Linux: mm/rmap.c, mm/mmap.c)

A vma that gets its first anonymous page gets an anon_vma. Fork gives the child's vma a chain into every anon_vma of the
parent's, so that pages from before the fork are found in both, and an anon_vma of its own for pages from after it. All
anon_vmas of one family have one root, whose rwsem covers them all.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import point
from concur_thp.arch.points import Point
from concur_thp.config import PAGE_SHIFT
from concur_thp.mm.anon_vma_ref import (
    anon_vma_alloc,
    anon_vma_free,
    anon_vma_lock_read,
    anon_vma_lock_write,
    anon_vma_root,
    anon_vma_unlock_read,
    anon_vma_unlock_write,
    get_anon_vma,
    page_anon_vma,
    page_get_anon_vma,
    page_lock_anon_vma_read,
    page_unlock_anon_vma_read,
    put_anon_vma,
)
from concur_thp.mm.anon_vma_tree import (
    anon_vma_first,
    anon_vma_interval_tree_insert,
    anon_vma_interval_tree_post_update_vma,
    anon_vma_interval_tree_pre_update_vma,
    anon_vma_interval_tree_remove,
    anon_vma_next,
)
from concur_thp.mm.errno import ENOMEM
from concur_thp.mm.flags import VM_ACCESS
from concur_thp.mm.mm_types import POOL_AVC, AnonVma, AnonVmaChain, Vma, anon_vmas, avcs, mms, vmas
from concur_thp.mm.slab import kmem_cache_alloc, kmem_cache_free
from concur_thp.mm.vma_tree import linear_page_index, vma_address, vma_next, vma_prev
from concur_thp.sync.rwsem import assert_held
from concur_thp.sync.spinlock import spin_lock, spin_unlock

# -- a vma's first ----------------------------------------------------------------------------------------------------


@inline
def anon_vma_chain_link(cpu: Cpu, vma: Vma, avc: AnonVmaChain, anon_vma: AnonVma):
    """Chain a vma to an anon_vma: newest in the vma's list, and into the tree. Root's rwsem held for write."""
    avc.vma = vmas.index(vma)
    avc.anon_vma = anon_vmas.index(anon_vma)
    avc.same_vma = vma.avc_head
    anon_vma_interval_tree_insert(cpu, avc)
    vma.avc_head = avcs.index(avc)


@inline
def anon_vma_compatible(a: Vma, b: Vma):
    """Could these neighbours be one vma, but for access rights and anon_vma?"""
    return (a.vm_end == b.vm_start and a.vm_file == b.vm_file and (a.vm_flags ^ b.vm_flags) & ~VM_ACCESS == 0
            and b.vm_pgoff == a.vm_pgoff + ((b.vm_start - a.vm_start) >> PAGE_SHIFT))


@inline
def reusable_anon_vma(old: Vma, a: Vma, b: Vma):
    """The number of old's anon_vma if both may share it, else 0; `old` is one of the neighbours a, b.

    Only mmap_sem read is held, so anon_vma_prepare() may be at work on `old`: each word is read once. A chain that is
    not there yet makes us miss the chance, no more. More than one chain is no good: the new vma would have but one.
    """
    nr = 0
    if anon_vma_compatible(a, b):
        nr = old.anon_vma
        avc = old.avc_head
        if avc == 0 or avcs[avc].same_vma != 0:
            nr = 0
    return nr


@kernel
def find_mergeable_anon_vma(cpu: Cpu, vma: Vma) -> AnonVma:
    """The anon_vma of a neighbour that this vma may be merged with one day, if they have the same.

    Context: mmap_sem held, which keeps the neighbours and their anon_vmas.
    Return: the anon_vma, or NULL.
    Linux: mm/mmap.c find_mergeable_anon_vma
    """
    mm = mms[vma.vm_mm]
    nr = 0
    near = vma_next(mm, vma)
    if near:
        nr = reusable_anon_vma(near, vma, near)
    if nr == 0:
        near = vma_prev(mm, vma)
        if near:
            nr = reusable_anon_vma(near, near, vma)
    return anon_vmas[nr] if nr != 0 else AnonVma(0)


@inline
def anon_vma_prepare(cpu: Cpu, vma: Vma):
    """Make sure that the vma has an anon_vma. mmap_sem held, may sleep. Returns 0 or -ENOMEM."""
    return 0 if vma.anon_vma != 0 else __anon_vma_prepare(cpu, vma)


@kernel
def __anon_vma_prepare(cpu: Cpu, vma: Vma):
    """Give a vma its anon_vma: a neighbour's, or a new one.

    Context: mmap_sem held (read will do). Takes the anon_vma rwsem, page_table_lock; may sleep.
    Return: 0 or -ENOMEM.
    Linux: mm/rmap.c __anon_vma_prepare
    """
    mm = mms[vma.vm_mm]
    assert_held(cpu, mm.mmap_sem)
    avc_nr = kmem_cache_alloc(cpu, POOL_AVC)
    if avc_nr == 0:
        return -ENOMEM
    allocated = AnonVma(0)
    anon_vma = find_mergeable_anon_vma(cpu, vma)
    if not anon_vma:
        anon_vma = anon_vma_alloc(cpu)
        if not anon_vma:
            kmem_cache_free(cpu, POOL_AVC, avc_nr)
            return -ENOMEM
        allocated = anon_vma
    point(cpu, Point.ANON_VMA_PREPARE)
    anon_vma_lock_write(cpu, anon_vma)
    spin_lock(cpu, mm.page_table_lock)
    # Another thread of this mm, faulting in the same vma, holds mmap_sem for reading too and may have been faster.
    if vma.anon_vma == 0:
        vma.anon_vma = anon_vmas.index(anon_vma)
        anon_vma_chain_link(cpu, vma, avcs[avc_nr], anon_vma)
        anon_vma.degree = anon_vma.degree + 1
        allocated = AnonVma(0)
        avc_nr = 0
    spin_unlock(cpu, mm.page_table_lock)
    anon_vma_unlock_write(cpu, anon_vma)
    if allocated:
        put_anon_vma(cpu, allocated)
    if avc_nr != 0:
        kmem_cache_free(cpu, POOL_AVC, avc_nr)
    return 0


# -- clone, fork, unlink ----------------------------------------------------------------------------------------------


@inline
def has_own_vma(anon_vma: AnonVma):
    """Does some vma of the tree have this anon_vma as its own? Root's rwsem held."""
    nr = anon_vma.rb_root
    mine = anon_vmas.index(anon_vma)
    while nr != 0 and vmas[avcs[nr].vma].anon_vma != mine:
        nr = avcs[nr].rb_next
    return nr != 0


@kernel
def anon_vma_clone(cpu: Cpu, dst: Vma, src: Vma):
    """Chain `dst` to every anon_vma of `src`, in the same order.

    Context: mmap_sem of both held for write. Takes the anon_vma rwsem; may sleep.
    Return: 0; -ENOMEM, then dst has no chain and no anon_vma.
    Linux: mm/rmap.c anon_vma_clone
    Differs: a chain is allocated under the rwsem, which never blocks here. And "degree < 2" alone does not mean "no
    vma", as Linux believed until v6.0 (CVE-2022-42703): vmas merged later would not be found from their pages.
    """
    if src.avc_head == 0:
        return 0
    locked = anon_vmas[avcs[src.avc_head].anon_vma]
    anon_vma_lock_write(cpu, locked)
    done = 0
    error = 0
    while done != src.avc_head and error == 0:
        old = avcs[src.avc_head]
        while old.same_vma != done:  # From the oldest to the newest, as the list of dst will have them.
            old = avcs[old.same_vma]
        done = avcs.index(old)
        anon_vma = anon_vmas[old.anon_vma]
        bug_on(cpu, anon_vma.root != locked.root, "anon_vma_clone: a vma with two families (values: vma, anon_vma)",
               vmas.index(src), old.anon_vma)
        nr = kmem_cache_alloc(cpu, POOL_AVC)
        if nr == 0:
            error = -ENOMEM
        else:
            anon_vma_chain_link(cpu, dst, avcs[nr], anon_vma)
            # No vma of its own and at most one child: fork may use it again instead of making the family deeper.
            # Not the parent's own, or the first child would always take that. A root has itself as parent and a child.
            if dst.anon_vma == 0 and old.anon_vma != src.anon_vma and anon_vma.degree < 2:
                dst.anon_vma = 0 if has_own_vma(anon_vma) else old.anon_vma
    if error == 0 and dst.anon_vma != 0:
        anon_vmas[dst.anon_vma].degree = anon_vmas[dst.anon_vma].degree + 1
    anon_vma_unlock_write(cpu, locked)
    if error != 0:
        dst.anon_vma = 0  # It was not counted in degree yet, so unlink must not count it off.
        unlink_anon_vmas(cpu, dst)
    return error


@kernel
def anon_vma_fork(cpu: Cpu, vma: Vma, pvma: Vma):
    """Chain a forked vma to all that its parent's is chained to, and to an anon_vma of its own.

    Context: mmap_sem of both held for write; before any entry is copied, so that every rmap walk sees the child's vma.
    Return: 0 or -ENOMEM.
    Linux: mm/rmap.c anon_vma_fork
    """
    if pvma.anon_vma == 0:
        return 0
    vma.anon_vma = 0  # Inherited by the copy.
    if anon_vma_clone(cpu, vma, pvma) != 0:
        return -ENOMEM
    if vma.anon_vma != 0:
        return 0  # One of the family's was free to be used again.
    anon_vma = anon_vma_alloc(cpu)
    if not anon_vma:
        unlink_anon_vmas(cpu, vma)
        return -ENOMEM
    nr = kmem_cache_alloc(cpu, POOL_AVC)
    if nr == 0:
        put_anon_vma(cpu, anon_vma)
        unlink_anon_vmas(cpu, vma)
        return -ENOMEM
    parent = anon_vmas[pvma.anon_vma]
    anon_vma.root = parent.root
    anon_vma.parent = pvma.anon_vma
    get_anon_vma(anon_vma_root(anon_vma))  # The root's rwsem covers us: it must not go before we do.
    vma.anon_vma = anon_vmas.index(anon_vma)
    anon_vma_lock_write(cpu, anon_vma)
    anon_vma_chain_link(cpu, vma, avcs[nr], anon_vma)
    parent.degree = parent.degree + 1
    anon_vma_unlock_write(cpu, anon_vma)
    return 0


@kernel
def unlink_anon_vmas(cpu: Cpu, vma: Vma):
    """Hide a vma from the rmap walks of its anon pages, before its page tables are freed; free what it was the last of.

    Context: mmap_sem held for write, or the mm has no users. Takes the anon_vma rwsem; may sleep.
    Linux: mm/rmap.c unlink_anon_vmas
    """
    if vma.avc_head == 0:
        return 0
    locked = anon_vmas[avcs[vma.avc_head].anon_vma]
    anon_vma_lock_write(cpu, locked)
    nr = vma.avc_head
    kept = 0
    while nr != 0:
        avc = avcs[nr]
        after = avc.same_vma
        anon_vma = anon_vmas[avc.anon_vma]
        bug_on(cpu, anon_vma.root != locked.root, "unlink_anon_vmas: a vma with two families (values: vma, anon_vma)",
               vmas.index(vma), avc.anon_vma)
        anon_vma_interval_tree_remove(cpu, avc)
        if anon_vma.rb_root == 0:
            # Empty: it goes, but its last put may want the rwsem. So the chain stays on the list until that is free.
            anon_vmas[anon_vma.parent].degree = anon_vmas[anon_vma.parent].degree - 1
            kept = nr
        else:
            if kept == 0:
                vma.avc_head = after
            else:
                avcs[kept].same_vma = after
            kmem_cache_free(cpu, POOL_AVC, nr)
        nr = after
    if vma.anon_vma != 0:
        anon_vmas[vma.anon_vma].degree = anon_vmas[vma.anon_vma].degree - 1
    anon_vma_unlock_write(cpu, locked)
    put_empty_anon_vmas(cpu, vma)
    return 0


@inline
def put_empty_anon_vmas(cpu: Cpu, vma: Vma):
    """The second half of unlink_anon_vmas(), without the lock. Nobody can find these any more but by an old number."""
    while vma.avc_head != 0:
        nr = vma.avc_head
        anon_vma = anon_vmas[avcs[nr].anon_vma]
        bug_on(cpu, anon_vma.degree != 0, "unlink_anon_vmas: empty, but not left by all (values: anon_vma, degree)",
               avcs[nr].anon_vma, anon_vma.degree)
        put_anon_vma(cpu, anon_vma)
        vma.avc_head = avcs[nr].same_vma
        kmem_cache_free(cpu, POOL_AVC, nr)


__all__ = [
    "anon_vma_alloc",
    "anon_vma_chain_link",
    "anon_vma_clone",
    "anon_vma_first",
    "anon_vma_fork",
    "anon_vma_free",
    "anon_vma_interval_tree_insert",
    "anon_vma_interval_tree_post_update_vma",
    "anon_vma_interval_tree_pre_update_vma",
    "anon_vma_interval_tree_remove",
    "anon_vma_lock_read",
    "anon_vma_lock_write",
    "anon_vma_next",
    "anon_vma_prepare",
    "anon_vma_root",
    "anon_vma_unlock_read",
    "anon_vma_unlock_write",
    "find_mergeable_anon_vma",
    "get_anon_vma",
    "linear_page_index",
    "page_anon_vma",
    "page_get_anon_vma",
    "page_lock_anon_vma_read",
    "page_unlock_anon_vma_read",
    "put_anon_vma",
    "unlink_anon_vmas",
    "vma_address",
]
