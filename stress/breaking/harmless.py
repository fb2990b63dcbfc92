"""Cuts whose loss cannot be noticed, each with its reason."""

from stress.breaking.cuts import Cut

BARRIERS = ("smp_mb", "smp_wmb", "smp_rmb")
ASKED_AGAIN = "saves time: the collapse asks again in hugepage_vma_revalidate()"
NOT_PLAYED = "no part of a scenario: whoever needs pages reclaims, and compacts, himself"
IRQS_OFF = ("its irqs are off: who changed the entry and is about to free or move the page waits for this CPU's answer to its"
            " flush, and then sees the reference; X28 breaks both")
TABLE_STAYS = "mmap_sem is held for writing: nobody throws anything away, and an rmap walk only turns huge pmds into tables"
ASKED_UNDER_PTL = "saves a lock: who is called asks again under the ptl, and says that it was no huge pmd"
FREE_IS_ADVICE = "nothing is freed lazily, which is all that MADV_FREE promises; `compare` would see it"
SLOT_STAYS = "the slot stays with its page until reclaim finds that nobody needs it"
HARMLESS: dict[tuple[str, str], str] = {
    ("wake_all_kswapds", "if kswapd_wait.asleep.load() != 0 (always)"): "saves a system call: nobody waits for this wake-up",
    ("wake_all_kswapds", "if kswapd_wait.asleep.load() != 0 (never)"): NOT_PLAYED,
    ("wakeup_kcompactd", "if kcompactd_wait.max_order.read() < order (always)"):
        "saves a wake-up; kcompactd looks at the zones itself",
    ("wakeup_kcompactd", "if kcompactd_wait.max_order.read() < order (never)"): NOT_PLAYED,
    ("compaction_deferred", "if order >= state.order_failed.read() (always)"): "says whether to try, no more",
    ("compaction_deferred", "if order >= state.order_failed.read() (never)"): "says whether to try, no more",
    ("__collapse_huge_page_copy", "spin_lock(cpu, mem_map[table].ptl)"):
        "the table is detached, mmap_sem and the anon_vma are held for write: nobody else gets there (I22)",
    ("khugepaged_scan_ptes", "spin_lock(cpu, ptl)"):
        "the scan is a hint: everything is looked at again under mmap_sem write before a page is taken",
    ("khugepaged_scan_pte", "if page_ref_count(page) != 1 + PageSwapCache(page)"): "a hint: isolation counts again",
    ("khugepaged_scan_vma", "if not khugepaged_test_exit(mm) (always)"): ASKED_AGAIN,
    ("khugepaged_scan_vmas", "if not khugepaged_test_exit(mm) (always)"): ASKED_AGAIN,
    ("follow_page_mask", "if pmd_none(pmdval)"): "what is none is not present either: the next question says the same",
    ("follow_huge_pmd", "if pmd_none(pmdval)"): "what is none fails the next question too",
    ("follow_huge_pmd", "spin_lock(cpu, ptl) #2"): "behind a wait that only FOLL_MIGRATION asks for, which no caller passes",
    ("page_lock_anon_vma_read", "if mapping & PAGE_MAPPING_ANON == 0 or not page_mapped(head)"):
        "saves a lock: whether the page is still mapped is asked again with the lock, or the reference, in hand",
    ("finish_fault", "if pmd_trans_unstable(pmd)"):
        "only vmas of files come here, where nothing makes a pmd huge: a table stays one under mmap_sem",
    ("gup_huge_pmd", "if pmdp.val.load() != orig"): IRQS_OFF,
    ("gup_pte_range", "if ptep.val.load() != pte"): IRQS_OFF,
    ("tlb_flush_mmu_tlbonly", "flush_tlb_mm(cpu, tlb.mm)"):
        "only of an mm that everybody has left, and without identifiers of address spaces whoever leaves forgets all of it",
    ("tlb_finish_mmu", "if mm.tlb_flush_pending.load() > 1 (always)"): "flushes more than it has to",
    ("zap_pte_range", "tlb_flush_mmu_tlbonly(cpu)"):
        "for write back, which cleans a page under the ptl: files have no disk here, and a page that was dirty stays so",
    ("zap_pte_range", "tlb_flush_mmu(cpu)"): "gives back a little earlier what tlb_finish_mmu() would",
    ("move_ptes", "flush_tlb_batched_pending(cpu, mms[vma.vm_mm])"):
        "the old place is unmapped before mmap_sem is free, and zap_pte_range() flushes on behalf of reclaim (K19f)",
    ("move_ptes", "if not pte_none(old_pte.val.load()) (always)"): "moves nothing to where nothing is",
    ("move_huge_pmd", "if new_pmd.val.load() != 0"):
        "the new place was unmapped, tables and all, under the same hold of mmap_sem for writing",
    ("__split_huge_pmd", "if pmd_trans_huge(seen) and TestFlag(mem_map[entry_pfn(seen)], PG_mlocked) (always)"):
        "clear_page_mlock() asks whether the page is",
    ("split_huge_pmd", "if is_swap_pmd(seen) or pmd_trans_huge(seen) (always)"): "__split_huge_pmd() asks again under the ptl",
    ("copy_pmd", "if not pmd_none(value) (always)"): "what is none is no table: copy_pte_range() asks",
    ("copy_pte_range", "if pmd_trans_unstable(src_pmd)"): TABLE_STAYS,
    ("change_pmd", "if pmd_none(old)"): "what is none is no table: change_pte_range() asks",
    ("pvmw_look_at_pmd", "if not (pmd_trans_huge(seen) or is_pmd_migration_entry(seen))"):
        "takes the lock, which is all that the branch may do, and asks again under it",
    ("unmap_and_move_locked", "if not page_mapped(page) (always)"):
        "who maps the page has a reference, and those are counted before anything moves",
    ("pageout", "if page_ref_count(page) != cache_references(page) or not PageSwapCache(page)"):
        "saves a transfer: __remove_mapping() freezes the references, or keeps the page",
    ("swap_in_failed", "spin_lock(cpu, ptl)"):
        "reads one word, whole, of a table that mmap_sem keeps, as if just before the holder had the lock; and who gave the"
        " slot up had changed the entry before, on the other side of si.lock",
    ("wp_page_shared", "lock_page(cpu, page)"):
        "no entry leads here: where a shared vma may be written, its entries have RW from the start, for no file system wants"
        " to be told and nothing tracks soft-dirty; and the entry is made dirty before, which whoever takes it down passes on",
    ("walk_pte_range", "spin_lock(cpu, ptl)"):
        "one atomic AND takes Accessed from a word of a table that mmap_sem keeps; entries that are not present have no such"
        " bit, and of one that became another's meanwhile no more is lost than that it was used",
    ("shrink_slab", "if pgdat.huge_zero_refcount.read() == 1 (always)"): "shrink_huge_zero_page() asks by compare and swap",
    ("unpoison_memory", "if page_mapped(page) or PageSwapCache(page) or page_ref_count(page) > 1"):
        "scenarios unpoison when every program has ended",
    ("drop_swap_cache", "lock_page(cpu, page)"): "called when all other CPUs stand still",
    ("collapse_pmd", "spin_lock(cpu, pte_ptl)"):
        "the table is detached, mmap_sem and the anon_vma are held for write: nobody else gets there (I22)",
    ("khugepaged_scan_mm_slot", "if finished or khugepaged_test_exit(mm) (always)"):
        "the rest of the mm waits for the next round; collect_mm_slot() asks itself whether the mm is dead",
    ("collect_mm_slot", "if not khugepaged_test_exit(mm)"):
        "a live mm leaves the list, flag and reference with it: its next huge fault enters it again",
    ("handle_mm_fault", "if pmd_none(orig_pmd)"): "small pages where a huge one was possible: that is always allowed (R2)",
    ("handle_mm_fault", "if is_swap_pmd(orig_pmd)"):
        "handle_pte_fault() finds the pmd unstable and the access is tried again: it polls where it should sleep",
    ("huge_pmd_set_accessed", "if pmd.val.load() == orig_pmd and flags & FAULT_FLAG_WRITE != 0 (never)"):
        "the entry allows the access already: the walk that tries it again sets both bits itself",
    ("move_whole_pmd", "if not is_swap_pmd(old) and (not pmd_trans_huge(old))"):
        "move_huge_pmd() and __split_huge_pmd() ask under the ptl; a table stays one under mmap_sem write",
    ("zap_pmd", "if pmd_trans_huge(value) or is_swap_pmd(value) (always)"): ASKED_UNDER_PTL,
    ("madvise_free_pmd", "if pmd_trans_huge(old) (always)"): ASKED_UNDER_PTL,
    ("madvise_free_pmd", "if pmd_trans_huge(old) (never)"): FREE_IS_ADVICE,
    ("madvise_free_pmd", "if not done and (not pmd_trans_unstable(pmd)) (never)"): FREE_IS_ADVICE,
    ("make_page_clean", "if not TestFlag(page, PG_dirty) and (not PageSwapCache(page))"):
        "saves the page lock; a clean page that is shared is then kept, as a dirty one is",
    ("migrate_pfn", "if compound_head(page) == head (never)"): "always -EBUSY, which is always allowed",
    ("migrate_pfn", "if compound_head(page) == head (always)"):
        "what was the head is moved, of which there is a reference: another page than was asked for, but a page",
    ("ptep_clear_flush", "if old & _PAGE_PRESENT or (old & _PAGE_PROTNONE and mm.tlb_flush_pending.load() > 0) (always)"):
        "flushes more than it has to",
    ("activate_page",
     "if head.flags.read() & (1 << PG_lru | 1 << PG_active | 1 << PG_unevictable) == 1 << PG_lru (always)"):
        "activate_fn() asks again under lru_lock",
    ("activate_locked", "if PageSwapCache(page) and (vm_swap_full() or mlocked) (never)"): SLOT_STAYS,
    ("free_swap_cache", "if PageSwapCache(page) (always)"): "saves the page lock: try_to_free_swap() asks with it held",
    ("set_tlb_ubc_flush_pending", "try_to_unmap_flush(cpu)"): "needs pages of 15 mms in one batch; programs have 8",
}
"""(function, statement) -> why its loss cannot be noticed. Only what was thought through stands here."""


def harmless(cut: Cut) -> str:
    """Why the loss of a cut cannot be noticed here; empty when it should be."""
    if cut.what.startswith(BARRIERS):
        return "controlled runs are sequentially consistent: what this barrier orders is in order anyway"
    return HARMLESS.get((cut.function, cut.what), "")


__all__ = ["HARMLESS", "harmless"]
