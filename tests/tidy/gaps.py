"""Modules without a unit test of their own name: their functions are tested through others.

The lists may only get shorter: a test that arrives takes its module out, and so does a module that goes.
"""

NO_TEST_YET = {
    "arch": """
        bug builtins cpu expressions futex listen points random shared system tlbflush
    """,
    "sync": "",
    "mm": """
        anon_vma_ref anon_vma_tree collapse collapse_check collapse_copy compound
        deferred_split_drain errno flags follow_page gup gup_fast highmem
        huge_move huge_split_locked huge_split_pmd lru madvise
        migrate_move mm_types move_page_tables move_pages mremap munmap
        page_flags page_ref page_vma_mapped pgtable
        remove_migration split_huge_page_tail swap_io
        swapops syscall try_to_unmap vma_adjust vma_prot vmstat
    """,
    "check": """
        audit audit_counts audit_frames audit_lists audit_misc audit_rmap audit_tables audit_tlb clock events
        free_lists lock_names oracle pins report views walk
    """,
    "sched": """
        accesses control draw processes reversals runs touches words
    """,
    "program": """
        access physical pinning pressure spaces table
    """,
}
