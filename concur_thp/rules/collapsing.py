"""X14-X18: what a collapse has to be sure of. (transhuge.rst: Locking in hugepage aware code; semantics 3.28.3, 5.1)"""

from concur_thp.rules.edit import Delete, Force, Move, Replace, Rewrite
from concur_thp.rules.rule import At, Rule, Variant

LOCKING = "transhuge.rst, Locking in hugepage aware code: 'khugepaged collapse_huge_page'"

RULES = (
    Rule(
        "X14", "Once the pmd is none, collapse waits until every CPU has irqs on: gup-fast walks with irqs off.", LOCKING,
        "3.15, 3.28.3.6",
        (At("pmdp_collapse_flush", "flush_tlb_mm_range(...)"), At("__get_user_pages_fast", "local_irq_disable(cpu)")),
        ("Q19", "I25"),
        (
            Variant("X14a", "collapse does not flush: gup-fast and stores still reach the old pages",
                    (Delete("pmdp_collapse_flush", "flush_tlb_mm_range(...)"),), "fault_vs_collapse",
                    ("Q19", "I15", "Q15", "outcome")),
            Variant("X14b", "gup-fast walks with irqs on: nobody waits for it",
                    (Delete("__get_user_pages_fast", "local_irq_disable(cpu)"),
                     Delete("__get_user_pages_fast", "local_irq_enable(cpu)")),
                    "collapse_vs_pin_run", ("outcome", "Q19", "Q4", "bug: gup_fast", "crash")),
        ),
    ),
    Rule(
        "X15", "Each page's references are counted again with the page locked, when no new one can come.", LOCKING, "3.28.3.7",
        (At("isolate_pte_page", "if page_ref_count(page) != 1 + PageSwapCache(page)"),
         At("isolate_pte_page", "if not trylock_page(...)")),
        ("I25", "Q19"),
        (
            Variant("X15a", "the count is not looked at again: a page that was pinned meanwhile is copied away",
                    (Rewrite("isolate_pte_page", "if page_ref_count(page) != ...",
                             "page_ref_count(page) != 1 + PageSwapCache(page)",
                             "page_ref_count(page) < 1"),), "collapse_vs_gup_fast", ("outcome", "Q19", "Q4")),
            Variant("X15b", "neither the scan nor the collapse looks at the count: a page shared by fork is taken from the"
                            " other",
                    (Rewrite("isolate_pte_page", "if page_ref_count(page) != ...",
                             "page_ref_count(page) != 1 + PageSwapCache(page)",
                             "page_ref_count(page) < 1"),
                     Force("khugepaged_scan_pte", "if page_ref_count(page) != ...", False)),
                    "collapse_of_shared", ("bug: collapse: page mapped elsewhere", "Q5", "Q19"), ("2 mms",)),
        ),
    ),
    Rule(
        "X16", "After each wait without mmap_sem everything is looked at anew: the mm, the vma, the table.", LOCKING,
        "3.28.3.2 to 4",
        (At("collapse_into", "result = hugepage_vma_revalidate(...) #2"),
         At("collapse_into", "if mm_find_pmd(mm, address) != pmd"),
         At("hugepage_vma_revalidate", "if khugepaged_test_exit(mm)")), ("I23", "I9"),
        (
            Variant("X16a", "nothing is looked at anew under mmap_sem write",
                    (Replace("collapse_into", "result = hugepage_vma_revalidate(...) #2", "result = Scan.SCAN_SUCCEED"),
                     Force("collapse_into", "if mm_find_pmd(mm, address) != pmd", False)),
                    "collapse_vs_munmap", ("bug: pmdp_collapse_flush: not a table", "crash", "lockdep", "Q8")),
            Variant("X16b", "the pmd is not looked at anew: it is none, or huge, by now",
                    (Force("collapse_into", "if mm_find_pmd(mm, address) != pmd", False),),
                    "collapse_vs_remap", ("bug: pmdp_collapse_flush: not a table", "crash", "Q8")),
            Variant("X16c", "nobody asks whether the mm is exiting",
                    (Force("hugepage_vma_revalidate", "if khugepaged_test_exit(mm)", False),),
                    "collapse_vs_exit", ("crash", "bug: free_pgtables", "bug: __mmdrop", "bug: pmdp_collapse_flush", "Q1", "Q4",
                                         "Q8")),
        ),
    ),
    Rule(
        "X17", "A collapse that gives up leaves everything as it was.", LOCKING, "3.28.3.7",
        (At("collapse_undo", "pmd_populate(...)"), At("release_pte_pages", "for i in range(count)"),
         At("release_pte_page", "unlock_page(cpu, page)")),
        ("Q8", "Q12", "Q18", "Q19"),
        (
            Variant("X17a", "the table is not linked again", (Delete("collapse_undo", "pmd_populate(...)"),),
                    "collapse_vs_gup_fast", ("Q19", "Q8", "Q1", "outcome", "bug: __mmdrop")),
            Variant("X17b", "the first page stays locked and isolated",
                    (Rewrite("release_pte_pages", "for i in range(count)", "range(count)", "range(1, count)"),),
                    "collapse_vs_gup_fast", ("Q12", "Q18", "deadlock", "lockdep")),
            Variant("X17c", "a page that is in use stays locked", (Delete("isolate_pte_page", "unlock_page(cpu, page)"),),
                    "collapse_vs_gup_fast", ("Q18", "deadlock", "lockdep")),
        ),
    ),
    Rule(
        "X18", "The copy is complete before the huge pmd is there.", LOCKING, "3.28.3.9 to 11",
        (At("collapse_pmd", "__collapse_huge_page_copy(...)"), At("collapse_install", "smp_wmb()"),
         At("__SetPageUptodate", "smp_wmb()")), ("Q19",),
        (
            Variant("X18a", "the huge page is mapped first and filled then, as a weakly ordered machine would without a"
                            " barrier",
                    (Move("collapse_pmd", "__collapse_huge_page_copy(...)", after="collapse_install(...)"),),
                    "fault_vs_collapse", ("Q19", "outcome", "bug: page_add")),
        ),
    ),
)
