"""X12, X13, X19-X25, X28: rmap walks, migration entries, and pages found without a lock. (semantics 5.1)"""

from concur_thp.rules.edit import Delete, Force, Insert, Move, Replace, Rewrite
from concur_thp.rules.rule import At, Rule, Variant

ENTRIES = "transhuge.rst, Refcounts and transparent huge pages: 'uses migration entries'"
PINNED = "transhuge.rst, Refcounts and transparent huge pages: 'fails any requests to split pinned huge page'"
SCANNERS = "transhuge.rst, Refcounts and transparent huge pages: 'the only legitimate way'"

RULES = (
    Rule(
        "X12", "A walk of the rmap finds every mapping: a child's vma is in the trees before its first entry, and behind its"
        " parent's; what mremap moves is found at the old place or at the new.", ENTRIES, "1.5, 3.12.2, 3.25.1",
        (At("dup_vma", "if anon_vma_fork(...) != 0"), At("anon_vma_interval_tree_insert", "while ..."),
         At("copy_vma", "cpu.scratch[0] = int(new_vma.vm_pgoff <= vma.vm_pgoff)")), ("Q6", "Q7"),
        (
            Variant("X12a", "fork puts the child's vma into the trees after it has copied the entries",
                    (Delete("dup_vma", "if anon_vma_fork(...) != 0"),
                     Replace("dup_vma", "return copy_page_range(...)", "error = copy_page_range(cpu, mm, oldmm, mpnt)\n"
                             "if anon_vma_fork(cpu, tmp, mpnt) != 0:\n    return -ENOMEM\nreturn error")),
                    "split_vs_fork", ("Q7", "bug: migration entry of an unlocked page", "livelock", "outcome"),
                    ("2 mms",)),
            Variant("X12b", "a child's vma comes before its parent's in the tree",
                    (Rewrite("anon_vma_interval_tree_insert", "while ...", "avc_start_pgoff(after) <= key",
                             "avc_start_pgoff(after) < key"),),
                    "split_vs_fork", ("Q7", "bug: migration entry of an unlocked page", "livelock", "outcome"),
                    ("2 mms",)),
            Variant("X12c", "mremap into an older vma does not take the rmap locks",
                    (Replace("copy_vma", "cpu.scratch[0] = int(new_vma.vm_pgoff <= vma.vm_pgoff)", "cpu.scratch[0] = 0"),),
                    "mremap_back_vs_split", ("Q7", "bug: migration entry of an unlocked page", "livelock", "outcome",
                                             "bug: try_to_unmap: a pmd maps")),
        ),
    ),
    Rule(
        "X13", "A migration entry has no reference and no mapcount, so fork copies none; and neither copy may write.", ENTRIES,
        "3.12.3, 3.13.3",
        (At("copy_migration_pmd", "if pte_write(pmd)"), At("copy_nonpresent_pte", "if is_write_migration_entry(pte) and ...")),
        ("Q4", "Q5", "Q19"),
        (
            Variant("X13a", "fork takes a reference for a huge migration entry",
                    (Insert("copy_migration_pmd", "page_ref_add(mem_map[entry_pfn(pmd)], 1)", before="add_huge_pmd(...)"),),
                    "migrate_vs_fork", ("Q4", "I25", "outcome"), ("2 mms",)),
            Variant("X13b", "a huge migration entry stays writable in parent and child",
                    (Delete("copy_migration_pmd", "if pte_write(pmd)"),), "migrate_vs_fork", ("Q19", "outcome", "COW"),
                    ("2 mms",)),
            Variant("X13c", "small migration entries stay writable in parent and child",
                    (Force("copy_nonpresent_pte", "if is_write_migration_entry(pte) and ...", False),), "split_vs_fork",
                    ("Q19", "outcome", "COW"), ("2 mms",)),
            Variant("X13d", "fork counts a mapping for a huge migration entry",
                    (Insert("copy_migration_pmd", "page_dup_rmap(cpu, mem_map[entry_pfn(pmd)], 1)",
                            before="add_huge_pmd(...)"),),
                    "migrate_vs_fork", ("Q5", "I19", "outcome", "bug: bad compound page", "bug: free"), ("2 mms",)),
        ),
    ),
    Rule(
        "X19", "Deciding to split and leaving the deferred split queue are one step under the queue's lock, after the unmap.",
        PINNED, "3.18.8 and 9",
        (At("freeze_and_split", "spin_lock_irq(cpu, pgdat.split_queue_lock)"),
         At("freeze_and_split", "if frozen and split_queued(head)"),
         At("freeze_and_split", "frozen = ...")), ("I17", "Q11"),
        (
            Variant("X19a", "the queue's lock is not taken: its list breaks when two CPUs are at it",
                    (Delete("freeze_and_split", "spin_lock_irq(cpu, pgdat.split_queue_lock)"),
                     Delete("freeze_and_split", "spin_unlock_irq(cpu, pgdat.split_queue_lock)")),
                    "split_vs_queueing", ("Q11", "I17", "lockdep", "bug: bad compound page", "crash")),
            Variant("X19b", "a split page stays on the queue",
                    (Delete("freeze_and_split", "if frozen and split_queued(head)"),),
                    "split_page_of_ptes", ("Q11", "I17", "bug: deferred split", "crash")),
            Variant("X19c", "the page is frozen although it is still mapped",
                    (Rewrite("freeze_and_split", "frozen = ...", "total_mapcount(head) == 0", "total_mapcount(head) >= 0"),
                     Rewrite("freeze_and_split", "frozen = ...", "page_ref_freeze(head, 1 + extra_pins(head))",
                             "page_ref_freeze(head, 1 + extra_pins(head) + total_mapcount(head))"),
                     Delete("split_unmapped", "try_to_unmap(...)")),
                    "split_page_of_ptes", ("bug: split: a tail is mapped", "Q4", "Q5")),
        ),
    ),
    Rule(
        "X20", "What a split or migration maps again has the rights of the vma now.", ENTRIES, "3.18.10.h, 3.23",
        (At("remove_migration_pte", "value = maybe_mkwrite(value, vma)"),
         At("change_pte", "if is_migration_entry(old) and pte_write(old) and not prot_numa"),
         At("change_huge_pmd", "if pte_write(old) and not prot_numa"),
         At("remove_migration_pmd", "value = maybe_mkwrite(value, vma)")),
         ("outcome",),
        (
            Variant("X20a", "ptes come back with the rights they had, and mprotect leaves migration entries alone",
                    (Replace("remove_migration_pte", "value = maybe_mkwrite(value, vma)", "value = value | _PAGE_RW"),
                     Force("change_pte", "if is_migration_entry(old) and pte_write(old) and not prot_numa", False)),
                    "split_vs_mprotect", ("outcome", "I16", "Q15", "I8")),
            Variant("X20b", "huge pmds come back with the rights they had, and mprotect leaves migration entries alone",
                    (Replace("remove_migration_pmd", "value = maybe_mkwrite(value, vma)", "value = value | _PAGE_RW"),
                     Delete("change_huge_pmd", "if pte_write(old) and not prot_numa")),
                    "migrate_vs_mprotect", ("outcome", "I16", "Q15", "I8")),
        ),
    ),
    Rule(
        "X21", "A split that fails maps everything again.", ENTRIES, "3.18.11",
        (At("split_unmapped", "remove_migration_range(...)"), At("unmap_and_move_locked", "remove_migration_ptes(...)")),
        ("Q7",),
        (
            Variant("X21a", "only a split that succeeds replaces its migration entries",
                    (Move("split_unmapped", "remove_migration_range(...)", after="if not frozen"),),
                    "split_vs_get", ("Q7", "bug: migration entry of an unlocked page", "livelock")),
            Variant("X21b", "only a migration that succeeds replaces its migration entries",
                    (Rewrite("unmap_and_move_locked", "if was_mapped #2", "was_mapped", "was_mapped and result == 0"),),
                    "migrate_vs_pin", ("Q7", "bug: migration entry of an unlocked page", "livelock")),
        ),
    ),
    Rule(
        "X22", "The lock and the reference of who splits stay with the piece that it named.", PINNED, "3.18.10.i",
        (At("release_pieces", "if piece != page"),), ("Q4", "Q18"),
        (
            Variant("X22a", "they stay with the head", (Rewrite("release_pieces", "if piece != page", "page", "head"),),
                    "split_page_by_tail", ("Q18", "bug: unlock_page: not locked by this CPU", "Q4")),
        ),
    ),
    Rule(
        "X23", "Who waits for a migration takes its reference by get_page_unless_zero(): the page may be frozen.", SCANNERS,
        "3.26",
        (At("wait_for_migration", "taken = get_page_unless_zero(page)"),), ("I11",),
        (
            Variant("X23a", "it takes a reference that may not be there",
                    (Replace("wait_for_migration", "taken = get_page_unless_zero(page)", "page_ref_add(page, 1)\ntaken = 1"),),
                    "split_vs_fault", ("I1", "Q4", "bug: page_ref_unfreeze", "bug: split", "bug: put_page", "crash")),
            Variant("X23b", "it takes none, and waits for the lock of a page that may be gone",
                    (Replace("wait_for_migration", "taken = get_page_unless_zero(page)", "taken = 1"),),
                    "migrate_vs_fault", ("Q4", "bug: put_page", "I3", "crash")),
        ),
    ),
    Rule(
        "X24", "A page moves only when nobody but its mappings, its cache and the migration has a reference.", PINNED, "3.26.4",
        (At("migrate_page_move_mapping", "if page_ref_count(page) != 1"), At("move_swap_cache", "frozen = ...")),
        ("I25", "Q19"),
        (
            Variant("X24a", "a pinned page moves, and what is written through the pin is lost",
                    (Force("migrate_page_move_mapping", "if page_ref_count(page) != 1", False),), "migrate_of_pinned",
                    ("outcome", "Q19", "bug: a pinned page")),
        ),
    ),
    Rule(
        "X25", "A page on the deferred split queue is alive: its last put takes it off, and the shrinker holds what it works"
               " on.",
        "transhuge.rst, Partial unmap and deferred_split_huge_page()", "3.19, 3.31.3",
        (At("undefer_split_huge_page", "if split_queued(head)"), At("deferred_split_scan", "put_page(cpu, page)"),
         At("undefer_split_huge_page", "spin_lock_irq(...)")), ("I17", "Q11"),
        (
            Variant("X25a", "the shrinker drops its reference before it locks the page",
                    (Move("deferred_split_scan", "put_page(cpu, page)", before="if trylock_page(cpu, page)"),),
                    "deferred_vs_free", ("outcome", "bug: split_huge_page", "bug: bad page", "Q2", "Q18", "crash")),
            Variant("X25b", "the last put does not take the page off the queue",
                    (Delete("undefer_split_huge_page", "if split_queued(head)"),), "partial_then_unmap",
                    ("bug: bad compound page: on the deferred split list", "Q11")),
            Variant("X25c", "the last put looks at the queue without its lock",
                    (Delete("undefer_split_huge_page", "spin_lock_irq(...)"),
                     Delete("undefer_split_huge_page", "spin_unlock_irq(...)")),
                    "deferred_vs_free", ("Q11", "I17", "lockdep", "bug: bad compound page", "crash")),
        ),
    ),
    Rule(
        "X28", "gup-fast looks at the entry again when it has its reference.", "implied: get_user_pages returns what is mapped",
        "3.15.3 and 4",
        (At("gup_huge_pmd", "if pmdp.val.load() != orig"), At("gup_pte_range", "if ptep.val.load() != pte")), ("I25", "Q19"),
        (
            Variant("X28a", "not at a huge pmd, and irqs stay on: the page was zapped and is another's (with irqs off the zap's"
                    " flush waits, and hides the mistake)",
                    (Force("gup_huge_pmd", "if pmdp.val.load() != orig", False),
                     Delete("__get_user_pages_fast", "local_irq_disable(cpu)"),
                     Delete("__get_user_pages_fast", "local_irq_enable(cpu)")),
                    "pin_fast_vs_reuse", ("outcome", "Q19", "Q4", "I25")),
            Variant("X28b", "not at a pte, and irqs stay on: the page was copied away and is another's",
                    (Force("gup_pte_range", "if ptep.val.load() != pte", False),
                     Delete("__get_user_pages_fast", "local_irq_disable(cpu)"),
                     Delete("__get_user_pages_fast", "local_irq_enable(cpu)")),
                    "pin_fast_vs_cow", ("outcome", "Q19", "Q4", "I25"), ("2 mms",)),
        ),
    ),
)
