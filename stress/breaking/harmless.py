"""Cuts whose loss cannot be noticed, each with its reason."""

from stress.breaking.cuts import Cut

BARRIERS = ("smp_mb", "smp_wmb", "smp_rmb")
ASKED_AGAIN = "saves time: the collapse asks again in hugepage_vma_revalidate()"
HARMLESS: dict[tuple[str, str], str] = {
    ("wake_all_kswapds", "if kswapd_wait.asleep.load() != 0"): "saves a system call: nobody waits for this wake-up",
    ("wakeup_kcompactd", "if kcompactd_wait.max_order.read() < order"): "saves a wake-up; kcompactd looks at the zones itself",
    ("__collapse_huge_page_copy", "spin_lock(cpu, mem_map[table].ptl)"):
        "the table is detached, mmap_sem and the anon_vma are held for write: nobody else gets there (I22)",
    ("khugepaged_scan_ptes", "spin_lock(cpu, ptl)"):
        "the scan is a hint: everything is looked at again under mmap_sem write before a page is taken",
    ("khugepaged_scan_pte", "if page_ref_count(page) != 1 + PageSwapCache(page)"): "a hint: isolation counts again",
    ("khugepaged_scan_vma", "if not khugepaged_test_exit(mm)"): ASKED_AGAIN,
    ("khugepaged_scan_vmas", "if not khugepaged_test_exit(mm)"): ASKED_AGAIN,
    ("follow_huge_pmd", "if pmd_none(pmdval)"): "what is none fails the next question too",
    ("page_lock_anon_vma_read", "if mapping & PAGE_MAPPING_ANON == 0 or not page_mapped(head)"):
        "saves a lock: whether the page is still mapped is asked again with the lock, or the reference, in hand",
}
"""(function, statement) -> why its loss cannot be noticed. Only what was thought through stands here."""


def harmless(cut: Cut) -> str:
    """Why the loss of a cut cannot be noticed here; empty when it should be."""
    if cut.what.startswith(BARRIERS):
        return "controlled runs are sequentially consistent: what this barrier orders is in order anyway"
    return HARMLESS.get((cut.function, cut.what), "")


__all__ = ["HARMLESS", "harmless"]
