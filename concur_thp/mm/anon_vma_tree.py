"""The chains of an anon_vma by page offset. (Linux: mm/interval_tree.c)

Linux has an interval tree of anon_vma_chains; here it is a list sorted by the vma's first page offset, equal ones in
order of insertion, which is the order that the tree is walked in. Fork and mremap count on it (semantics 3.12): a
child's vma is inserted later than its parent's and so is visited after it.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.mm.i_mmap import vma_last_pgoff
from concur_thp.mm.mm_types import AnonVma, AnonVmaChain, Vma, anon_vmas, avcs, vmas
from concur_thp.sync.rwsem import assert_held_write


@inline
def avc_start_pgoff(nr: int):
    """The key of chain number `nr`: read from the vma, so a vma may change only while it is in no tree."""
    return vmas[avcs[nr].vma].vm_pgoff


@kernel
def anon_vma_interval_tree_insert(cpu: Cpu, avc: AnonVmaChain):
    """Put a chain into its anon_vma, behind all that start at the same page or before.

    Context: the root's rwsem held for write.
    Linux: mm/interval_tree.c anon_vma_interval_tree_insert
    Differs: a sorted list.
    """
    anon_vma = anon_vmas[avc.anon_vma]
    assert_held_write(cpu, anon_vmas[anon_vma.root].rwsem)
    nr = avcs.index(avc)
    key = vmas[avc.vma].vm_pgoff
    prev = 0
    after = anon_vma.rb_root
    while after != 0 and avc_start_pgoff(after) <= key:
        prev = after
        after = avcs[after].rb_next
    avc.rb_prev = prev
    avc.rb_next = after
    if prev != 0:
        avcs[prev].rb_next = nr
    else:
        anon_vma.rb_root = nr
    if after != 0:
        avcs[after].rb_prev = nr


@kernel
def anon_vma_interval_tree_remove(cpu: Cpu, avc: AnonVmaChain):
    """Take a chain out of its anon_vma.

    Context: the root's rwsem held for write.
    Linux: mm/interval_tree.c anon_vma_interval_tree_remove
    """
    anon_vma = anon_vmas[avc.anon_vma]
    assert_held_write(cpu, anon_vmas[anon_vma.root].rwsem)
    prev = avc.rb_prev
    after = avc.rb_next
    if prev != 0:
        avcs[prev].rb_next = after
    else:
        bug_on(cpu, anon_vma.rb_root != avcs.index(avc),
               "anon_vma_interval_tree_remove: not there (values: chain, anon_vma)", avcs.index(avc), avc.anon_vma)
        anon_vma.rb_root = after
    if after != 0:
        avcs[after].rb_prev = prev
    avc.rb_prev = 0
    avc.rb_next = 0


@inline
def anon_vma_from(nr: int, first: int, last: int) -> AnonVmaChain:
    """The first chain, from number `nr` on in tree order, whose vma maps a page of first .. last; NULL if none."""
    while nr != 0 and avc_start_pgoff(nr) <= last and vma_last_pgoff(vmas[avcs[nr].vma]) < first:
        nr = avcs[nr].rb_next
    return avcs[nr] if nr != 0 and avc_start_pgoff(nr) <= last else AnonVmaChain(0)


@inline
def anon_vma_first(anon_vma: AnonVma, first: int, last: int) -> AnonVmaChain:
    """The first chain of an anon_vma that maps a page of first .. last, NULL if none. Root's rwsem held."""
    return anon_vma_from(anon_vma.rb_root, first, last)


@inline
def anon_vma_next(avc: AnonVmaChain, first: int, last: int) -> AnonVmaChain:
    """The next one behind `avc`."""
    return anon_vma_from(avc.rb_next, first, last)


@kernel
def anon_vma_interval_tree_pre_update_vma(cpu: Cpu, vma: Vma):
    """Take the vma out of all its trees, because its start, end or pgoff will change.

    Context: mmap_sem; the root's rwsem held for write until anon_vma_interval_tree_post_update_vma().
    Linux: mm/mmap.c anon_vma_interval_tree_pre_update_vma
    """
    nr = vma.avc_head
    while nr != 0:
        anon_vma_interval_tree_remove(cpu, avcs[nr])
        nr = avcs[nr].same_vma


@kernel
def anon_vma_interval_tree_post_update_vma(cpu: Cpu, vma: Vma):
    """Put the vma back into all its trees, by its new start.

    Context: as anon_vma_interval_tree_pre_update_vma().
    Linux: mm/mmap.c anon_vma_interval_tree_post_update_vma
    """
    nr = vma.avc_head
    while nr != 0:
        anon_vma_interval_tree_insert(cpu, avcs[nr])
        nr = avcs[nr].same_vma
