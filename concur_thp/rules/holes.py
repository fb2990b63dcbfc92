"""K1-K17: holes of v4.20 that are closed here. Each variant is v4.20's own form. (semantics 3.40, DECISIONS.md)"""

from concur_thp.rules.edit import Delete, Insert, Rewrite
from concur_thp.rules.rule import At, Rule, Variant

V420 = "v4.20 itself"

RULES = (
    Rule(
        "K1", "The split of a pmd holds the page lock while mapcounts move, as since 5.8 (CVE-2020-29368).", V420, "3.16, 3.40",
        (At("__split_huge_pmd", "locked = lock_anon_pmd_page(...)"),), ("Q19",),
        (
            Variant("K1a", "it does not: the reuse test of another mm sums the mapcounts, misses one, and writes a shared page",
                    (Delete("__split_huge_pmd", "locked = lock_anon_pmd_page(...)"),), "pmd_split_vs_cow", ("Q19", "outcome"),
                    ("2 mms",)),
        ),
    ),
    Rule(
        "K2", "The split of a huge migration entry changes no count, as since 5.9.", V420, "3.16, 3.40",
        (At("split_migration_pmd", "set_split_pte(...)"),), ("Q4", "Q5"),
        (
            Variant("K2a", "it adds references and mapcounts that the entries do not have",
                    (Insert("split_migration_pmd", "page_ref_add(mem_map[entry_pfn(old)], HPAGE_PMD_NR - 1)",
                            before="pmd_populate(...)"),
                     Insert("split_migration_pmd", "mem_map[entry_pfn(old) + i]._mapcount.add(1)", after="set_split_pte(...)"),
                     Insert("split_migration_pmd", "mem_map[entry_pfn(old) + 1].compound_mapcount.sub(1)",
                            before="pmd_populate(...)")),
                    "migrate_vs_partial_dontneed", ("Q4", "Q5", "I2", "outcome", "bug: bad")),
        ),
    ),
    Rule(
        "K3", "The unmap of a split looks at no pte without its lock, as since 5.13.", V420, "3.11, 3.40",
        (At("pvmw_scan_table", "if pvmw.ptl == NIL and ..."), At("split_unmapped", "try_to_unmap(...)")), ("outcome",),
        (
            Variant("K3a", "it passes over a pte that a zap has cleared and not yet counted off: here the split only fails",
                    (Rewrite("split_unmapped", "try_to_unmap(...)", "TTU_SPLIT", "TTU_SPLIT & ~TTU_SYNC"),),
                    "split_vs_zap", ("none",)),
        ),
    ),
    Rule(
        "K4", "A huge migration entry takes dirty and write from the pmd that the invalidate returned.", V420, "3.26.3, 3.40",
        (At("set_pmd_migration_entry", "if pte_dirty(old)"),), ("Q19",),
        (
            Variant("K4a", "it takes them from a read before: a dirty bit set in between is lost",
                    (Insert("set_pmd_migration_entry", "seen = pmd.val.load()", before="old = ..."),
                     Rewrite("set_pmd_migration_entry", "if pte_dirty(old)", "old", "seen")),
                    "lazyfree_vs_migrate", ("Q19", "outcome")),
        ),
    ),
    Rule(
        "K11", "A reclaimed huge page is freed after the flush, not before.", V420, "3.30.5, 3.40",
        (At("free_reclaimed", "try_to_unmap_flush(cpu)"), At("shrink_page_list", "try_to_unmap_flush(cpu)"),
         At("write_page", "try_to_unmap_flush_dirty(cpu)")), ("I15",),
        (
            Variant("K11a", "a huge page that was swapped out whole is freed while CPUs may still read it",
                    (Delete("free_reclaimed", "try_to_unmap_flush(cpu)"),), "swap_out_vs_load", ("I15", "Q19", "outcome"),
                    ("swap",)),
            Variant("K11b", "small pages too", (Delete("shrink_page_list", "try_to_unmap_flush(cpu)"),),
                    "lazyfree_reclaim_vs_load", ("I15", "Q15", "Q19", "outcome")),
            Variant("K11c", "a page is written to the device while CPUs may still write to it",
                    (Delete("write_page", "try_to_unmap_flush_dirty(cpu)"),), "swap_out_vs_stores",
                    ("Q19", "outcome"), ("swap",)),
        ),
    ),
    Rule(
        "K16", "A walk for a huge page that straddles two pmds goes on when the first has nothing of it.", V420, "3.11, 3.40",
        (At("page_vma_mapped_walk", "pvmw.address = (pvmw.address & PMD_MASK) + PMD_SIZE"),), ("Q7", "outcome"),
        out_of_scope="the first range has nothing of the page only after a collapse beside a page that mremap has moved there,"
        " which no scenario brings about; tests/unit/mm/test_rmap_walk.py holds it",
    ),
    Rule(
        "K17", "A huge copy takes the old pmd down without passing through none (not in the document's list; found here).",
        V420,
        "3.6.9, 3.6.1.3, DECISIONS.md", (At("wp_huge_copy", "pmdp_invalidate(...)"),
                                         At("do_huge_pmd_wp_page_fallback", "pmdp_invalidate(...)")),
        ("Q19",),
        (
            Variant("K17a", "a copy into a huge page passes through none: DONTNEED passes over it, and the old data appears"
                            " again",
                    (Rewrite("wp_huge_copy", "pmdp_invalidate(...)", "pmdp_invalidate(cpu, mm, haddr, pmd)",
                             "pmdp_huge_clear_flush(cpu, mm, haddr, pmd)"),), "cow_vs_dontneed", ("Q19", "outcome"),
                             ("2 mms",)),
            Variant("K17b", "a copy into small pages passes through none",
                    (Rewrite("do_huge_pmd_wp_page_fallback", "pmdp_invalidate(...)", "pmdp_invalidate(cpu, mm, haddr, pmd)",
                             "pmdp_huge_clear_flush(cpu, mm, haddr, pmd)"),), "cow_vs_dontneed_without_huge_pages",
                             ("Q19", "outcome"), ("2 mms",)),
        ),
    ),
    Rule(
        "K19", "Who fills a pte, or relies on finding it gone, first flushes what reclaim has taken down and not flushed.",
        V420, "3.33, DECISIONS.md",
        (At("do_anonymous_page", "flush_tlb_batched_pending(...)"),
         At("map_zero_page", "flush_tlb_batched_pending(...)"),
         At("map_swap_page", "flush_tlb_batched_pending(...)"),
         At("finish_fault", "flush_tlb_batched_pending(...)"),
         At("zap_pte_range", "flush_tlb_batched_pending(...)"),
         At("move_ptes", "flush_tlb_batched_pending(...)"),
         At("change_pte_range", "flush_tlb_batched_pending(...)"),
         At("madvise_free_pte_range", "flush_tlb_batched_pending(...)")),
        ("I16", "Q19"),
        (
            Variant("K19a", "a store fills an empty pte, and nobody flushes on behalf of reclaim",
                    (Delete("do_anonymous_page", "flush_tlb_batched_pending(...)"),), "lazyfree_refault_vs_load",
                    ("outcome", "I16", "Q19"), ("3 cpus",)),
            Variant("K19b", "a load fills an empty pte, and nobody flushes on behalf of reclaim",
                    (Delete("map_zero_page", "flush_tlb_batched_pending(...)"),), "lazyfree_reread_vs_load",
                    ("outcome", "I16", "Q19"), ("3 cpus",)),
            Variant("K19c", "a page comes back from the device, and nobody flushes on behalf of reclaim",
                    (Delete("map_swap_page", "flush_tlb_batched_pending(...)"),), "swap_refault_vs_load",
                    ("outcome", "I16", "Q19"), ("3 cpus", "swap")),
            Variant("K19d", "a page of a file is mapped, and nobody flushes on behalf of reclaim",
                    (Delete("finish_fault", "flush_tlb_batched_pending(...)"),), "file_refault_vs_load",
                    ("outcome", "I16", "Q19"), ("3 cpus",)),
            Variant("K19e", "MADV_DONTNEED finds a pte gone, and nobody flushes on behalf of reclaim",
                    (Delete("zap_pte_range", "flush_tlb_batched_pending(...)"),), "lazyfree_dontneed_vs_load",
                    ("outcome", "I16", "Q19"), ("3 cpus",)),
            Variant("K19f", "mremap finds a pte gone, and nobody flushes on behalf of reclaim: unmapping the old place does"
                    " before mmap_sem is free",
                    (Delete("move_ptes", "flush_tlb_batched_pending(...)"),), "lazyfree_move_vs_load", ("none",), ("3 cpus",)),
            Variant("K19g", "mprotect finds a pte gone, and nobody flushes on behalf of reclaim",
                    (Delete("change_pte_range", "flush_tlb_batched_pending(...)"),), "swap_protect_vs_store",
                    ("outcome", "I16", "Q19"), ("3 cpus", "swap")),
            Variant("K19h", "MADV_FREE finds a pte gone, and nobody flushes on behalf of reclaim",
                    (Delete("madvise_free_pte_range", "flush_tlb_batched_pending(...)"),), "swap_free_vs_store",
                    ("outcome", "I16", "Q19"), ("3 cpus", "swap")),
        ),
    ),
    Rule(
        "K21", "A copy on write does not take an unchanged pte for proof that the page has not changed while it was copied.",
        V420, "3.7.3, DECISIONS.md", (At("wp_page_copy", "copy_page(...)"),), ("Q19",),
        out_of_scope="two threads write different words of one page; what programs store is its first word."
        " tests/litmus/test_cow_vs_reuse.py holds it",
    ),
)
