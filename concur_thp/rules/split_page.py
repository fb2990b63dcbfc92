"""R31-R37: splitting a huge page, and its pmd. (transhuge.rst: Refcounts and transparent huge pages)"""

from concur_thp.rules.edit import Delete, Force, Insert, Move, Replace, Rewrite
from concur_thp.rules.rule import At, Rule, Variant

SPLIT = "transhuge.rst, Refcounts and transparent huge pages"

RULES = (
    Rule(
        "R31", "split_huge_page gives the tails what they need of the head's references before the page stops being compound.",
        f"{SPLIT}, 'has to distribute the refcounts'", "3.18.10",
        (At("__split_huge_page_tail", "tail.flags.write(...)"), At("__split_huge_page_tail", "page_ref_unfreeze(...)"),
         At("__split_huge_page", "ClearFlag(head, PG_head)")), ("I12", "I13"),
        (
            Variant("R31a", "a tail becomes a page of its own before it has flags, mapping and index",
                    (Move("__split_huge_page_tail", "page_ref_unfreeze(...)", before="tail.flags.write(...)"),
                     Move("__split_huge_page_tail", "tail.compound_head = 0", before="page_ref_unfreeze(...)")),
                    "split_vs_fault", ("bug: migration entry", "bug: unlock_page", "I13", "Q12", "Q18", "crash")),
            Variant("R31b", "the tails get no references", (Delete("__split_huge_page_tail", "page_ref_unfreeze(...)"),),
                    "split_page_of_ptes", ("bug: get_page: page has no reference", "Q4")),
            Variant("R31c", "the head stops being one before its tails stop being tails, and is let go",
                    (Move("__split_huge_page", "ClearFlag(head, PG_head)", before="for i in range(...)"),
                     Move("__split_huge_page", "head._refcount.add(count)", before="for i in range(...)")),
                    "split_vs_get", ("bug: put_page", "Q4", "I12", "outcome", "I11")),
        ),
    ),
    Rule(
        "R32", "Pins cannot be handed on to the right piece: there must be none. The references must be the mapcounts and the"
        " caller's one.", f"{SPLIT}, 'fails any requests to split pinned huge page'", "3.18.3, 3.18.9",
        (At("can_split_huge_page", "return ..."), At("freeze_and_split", "frozen = ...")), ("Q4", "I25"),
        (
            Variant("R32a", "one reference more is taken for one of ours",
                    (Rewrite("can_split_huge_page", "return ...",
                             "total_mapcount(head) == page_ref_count(head) - extra_pins(head) - 1",
                             "total_mapcount(head) >= page_ref_count(head) - extra_pins(head) - 2"),
                     Rewrite("freeze_and_split", "frozen = ...", "page_ref_freeze(head, 1 + extra_pins(head))",
                             "(page_ref_freeze(head, 1 + extra_pins(head)) or page_ref_freeze(head, 2 + extra_pins(head)))")),
                    "split_vs_get", ("Q4", "outcome", "bug: put_page: page has no reference", "bug: a pinned page", "I11")),
            Variant("R32b", "the count is compared, but not frozen: somebody takes a reference of the head by a tail, and drops"
                    " it from the piece",
                    (Rewrite("freeze_and_split", "frozen = ...", "page_ref_freeze(head, 1 + extra_pins(head))",
                             "page_ref_count(head) == 1 + extra_pins(head)"),
                     Rewrite("__split_huge_page", "head._refcount.add(count)", "count", "count - 1")),
                    "split_vs_get", ("Q4", "outcome", "bug: put_page", "bug: split", "I11")),
        ),
    ),
    Rule(
        "R33", "Migration entries keep the counts of an anonymous page still while it is split; file pages are only unmapped.",
        f"{SPLIT}, 'uses migration entries to stabilize'", "3.18.4",
        (At("split_pte_value", "if freeze"), At("unmap_pte", "if flags & (TTU_MIGRATION | TTU_SPLIT_FREEZE)"),
         At("split_unmapped", "try_to_unmap(...)")), ("I3", "I19", "Q19"),
        (
            Variant("R33a", "the ptes are cleared instead: who comes meanwhile gets a page of zeroes, and the data is lost",
                    (Replace("split_pte_value", "return mk_entry(...) in if freeze", "return 0"),),
                    "split_vs_fault", ("Q19", "outcome", "Q9", "bug: do_swap_page: there is no such slot")),
            Variant("R33b", "the ptes stay present, without a mapcount or a reference",
                    (Force("split_pte_value", "if freeze", False),), "split_vs_fault",
                    ("I3", "I7", "Q4", "Q5", "outcome", "bug: page_remove_rmap: mapcount below -1")),
            Variant("R33c", "what was mapped by ptes before is cleared instead of replaced",
                    (Delete("unmap_pte", "set_entry(...)"),), "split_page_of_ptes", ("Q19", "Q9", "outcome", "bug: __mmdrop")),
        ),
    ),
    Rule(
        "R34", "Who finds a page by its frame takes a reference by get_page_unless_zero(), in no other way.",
        f"{SPLIT}, 'the only legitimate way'", "3.9, 3.36",
        (At("isolate_small_page", "if ... and get_page_unless_zero(page)"),
         At("isolate_lru_pages", "if get_page_unless_zero(page)"),
         At("migrate_pfn", "if not ... or not get_page_unless_zero(head)"), At("pin_queued", "if get_page_unless_zero(head)")),
        ("Q1", "I11"),
        (
            Variant("R34a", "compaction takes a reference of a page whose last one has just gone",
                    (Rewrite("isolate_small_page", "if ... and get_page_unless_zero(page)", "get_page_unless_zero(page)",
                             "page._refcount.add(1) >= 0"),
                     Insert("isolate_small_page", "account_get(page, 1)", before="flags = ...")),
                    "compact_vs_free", ("Q1", "Q2", "bug: __put_page", "bug: bad page", "crash")),
            Variant("R34b", "reclaim takes a reference of a page whose last one has just gone",
                    (Rewrite("isolate_lru_pages", "if get_page_unless_zero(page)", "get_page_unless_zero(page)",
                             "page._refcount.add(1) >= 0"),
                     Insert("isolate_lru_pages", "account_get(page, 1)", before="list_add(pages, page)")),
                    "reclaim_vs_free", ("Q1", "Q2", "bug: bad page", "crash")),
            Variant("R34c", "memory offlining takes a reference of a page that is being freed or is frozen",
                    (Rewrite("migrate_pfn", "if not ... or not get_page_unless_zero(head)", "not get_page_unless_zero(head)",
                             "head._refcount.add(1) < 0"),
                     Insert("migrate_pfn", "account_get(head, 1)", after="if not ... or head._refcount.add(1) < 0")),
                    "migrate_frame_vs_free", ("Q1", "Q2", "Q4", "bug: bad page", "bug: page_ref_unfreeze", "crash")),
        ),
    ),
    Rule(
        "R35", "Tails stay at zero until they are complete; whoever takes a reference of one afterwards is welcome.",
        f"{SPLIT}, 'until atomic_add()'", "3.18.10.d",
        (At("__split_huge_page_tail", "smp_wmb()"), At("__split_huge_page_tail", "page_ref_unfreeze(...)")), ("I1", "I13"),
        (
            Variant("R35a", "a tail gets its references first of all: a fault that waits for it takes one of a tail",
                    (Move("__split_huge_page_tail", "page_ref_unfreeze(...)", before="tail.flags.write(...)"),),
                    "split_vs_fault", ("I1", "I13", "bug: put_page", "Q4", "crash")),
        ),
    ),
    Rule(
        "R36", "A reference that somebody takes of the head stays with the head.", f"{SPLIT}, 'For head page'",
        "3.18.9, 3.18.10.f",
        (At("__split_huge_page", "head._refcount.add(count)"), At("page_ref_freeze", "return ...")), ("Q4", "I25"),
        (
            Variant("R36a", "the head is let go early, and its count stored at the end: a reference taken meanwhile is lost",
                    (Insert("__split_huge_page", "head._refcount.write(count)", before="for i in range(...)"),
                     Replace("__split_huge_page", "head._refcount.add(count)", "head._refcount.write(count)")),
                    "split_vs_get", ("Q4", "bug: put_page", "Q1", "crash")),
        ),
    ),
    Rule(
        "R37", "split_huge_pmd() does not care for references and never fails.", f"{SPLIT}, last sentence", "3.16",
        (At("split_huge_anon_pmd", "table = pgtable_trans_huge_withdraw(...)"), At("split_huge_anon_pmd", "page_ref_add(...)"),
         At("__do_huge_pmd_anonymous_page", "pgtable_trans_huge_deposit(...)")), ("I5", "outcome"),
        (
            Variant("R37a", "the pmd of a pinned page is not split: a part of it cannot be unmapped",
                    (Rewrite("__split_huge_pmd", "other = ...", "page and entry_pfn(seen) != page_to_pfn(page)",
                             "page and entry_pfn(seen) != page_to_pfn(page) or (not page and pmd_trans_huge(seen) and"
                             " page_count(mem_map[entry_pfn(seen)]) > total_mapcount(mem_map[entry_pfn(seen)]))"),),
                    "partial_dontneed_of_pinned", ("Q19", "outcome")),
            Variant("R37b", "the table is allocated when it is needed, under the page table lock",
                    (Rewrite("split_huge_anon_pmd", "table = ...", "pgtable_trans_huge_withdraw(cpu, mm, pmd)",
                             "pte_alloc_one(cpu, mm)"),),
                    "partial_dontneed", ("lockdep", "I5", "Q8")),
        ),
    ),
)
