"""Where mm touches guarded fields without their lock, and why that is right: data for the checked build (arch/guards.py).

A row is a function, the fields, and the reason: nobody else can reach the object yet, or any more, or something else keeps
others away there. What a reader may do without the lock wherever he is, is said in the field's own row (`|racy`).
"""

from typing import NamedTuple

from concur_thp.arch.guard_words import UNSHARED


class Row(NamedTuple):
    """One function and what it may touch."""

    function: str
    fields: str
    why: str


_EXIT = "also from exit_mmap(): nobody runs in the mm any more, and Linux takes no mmap_sem there either"
_NEW_MM = "the mm is on its way: nobody knows its number"
_NEW_VMA = "the vma is in no tree yet"
_FRESH = "the page is fresh from the allocator, or locked"
_FREED = "the last reference is gone"
_FREE = "Page.private of a free page is its order, under zone_lock; page_lock is for pages in use"
_OWN_LIST = "this CPU's own list: the page is its own"
_TABLE = "a table page that is not in a tree yet, or no more"
_LEFT = "nothing is in the anon_vma any more, and the vma is leaving"
_CHAIN = "under mmap_sem for reading it is page_table_lock that keeps two writers apart; for writing nobody else is here"
_STACK = "under mmap_sem for reading the anon_vma and page_table_lock keep growers apart; who reads without looks twice (K20)"

ROWS = (
    Row("mm_init", "Mm.brk Mm.start_brk Mm.mmap_base Mm.locked_vm Mm.map_count Mm.slot_next Mm.slot_prev", _NEW_MM),
    Row("exit_mmap", "Mm.map_count", _EXIT),
    Row("vma_at", "Mm.map_count", _EXIT),
    Row("vma_unlink_range", "Mm.map_count", _EXIT),
    Row("munlock_vmas", "Mm.locked_vm Vma.vm_start Vma.vm_end", _EXIT),
    Row("munlock_vma_pages_range", "Vma.vm_flags", _EXIT),
    Row("unmap_vmas", "Vma.vm_start Vma.vm_end", _EXIT),
    Row("unmap_page_range", "Vma.vm_start Vma.vm_end", _EXIT),
    Row("free_pgtables", "Vma.vm_start Vma.vm_end", _EXIT),
    Row("free_pmd_range", "Page.pmd_huge_pte", _TABLE),
    Row("pgtable_alloc_one", "Page.pmd_huge_pte Page.page_type", _TABLE),
    Row("pgtable_free", "Page.pmd_huge_pte Page.page_type Page.mapping Page.index Page.private", _TABLE),
    Row("vm_area_alloc", "Vma.anon_vma Vma.avc_head Vma.shared_next Vma.shared_prev", _NEW_VMA),
    Row("vm_area_dup", "Vma.anon_vma", _NEW_VMA),
    Row("vm_area_free", "Vma.avc_head", "the vma is in no tree any more"),
    Row("anon_vma_clone", "Vma.anon_vma", "a copy that is in no tree yet, or its neighbour under mmap_sem for writing"),
    Row("inherit_anon_vma", "Vma.anon_vma", "mmap_sem is held for writing, which keeps __anon_vma_prepare() away"),
    Row("anon_vma_fork", "Vma.anon_vma", _NEW_VMA),
    Row("anon_vma_alloc", "AnonVma.degree AnonVma.rb_root", "the anon_vma is new"),
    Row("anon_vma_free", "AnonVma.rb_root", _FREED),
    Row("put_empty_anon_vmas", "AnonVma.degree AnonVmaChain.same_vma Vma.avc_head", _LEFT),
    Row("unlink_anon_vmas", "AnonVmaChain.same_vma Vma.avc_head", _EXIT),
    Row("expand_stack", "Vma.vm_start Vma.vm_pgoff Mm.locked_vm", _STACK),
    Row("anon_vma_chain_link", "AnonVmaChain.same_vma Vma.avc_head", _CHAIN),
    Row("file_alloc", "AddressSpace.i_mmap AddressSpace.nrpages", "the file is new"),
    Row("file_free", "AddressSpace.i_mmap", "the last vma is gone, and the file has no name to be mapped by"),
    Row("__page_set_anon_rmap", "Page.mapping Page.index", _FRESH),
    Row("free_pages_prepare", "Page.mapping", _FREED),
    Row("free_tail_page", "Page.mapping", _FREED),
    Row("prep_compound_page", "Page.mapping Page.deferred_next Page.deferred_prev", _FRESH),
    Row("prep_transhuge_page", "Page.deferred_next Page.deferred_prev", _FRESH),
    Row("bad_tails", "Page.mapping", _FREED),
    Row("free_compound_tails", "Page.deferred_prev", _FREED),
    Row("prep_new_page", "Page.private", _FRESH),
    Row("add_to_free_list", "Page.private", _FREE),
    Row("del_page_from_free_list", "Page.private", _FREE),
    Row("rmqueue_bulk", "Page.private", _FREE),
    Row("free_pcppages_bulk", "Page.private", _FREE),
    Row("pcp_push", "Page.page_type", _OWN_LIST),
    Row("pcp_push_run", "Page.page_type Page.private", _OWN_LIST),
    Row("pcp_pop", "Page.page_type", _OWN_LIST),
    Row("pcp_pop_blocks", "Page.private", _OWN_LIST),
)

for row in ROWS:
    UNSHARED.setdefault(row.function, {}).update(dict.fromkeys(row.fields.split(), row.why))
