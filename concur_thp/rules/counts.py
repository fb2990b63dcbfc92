"""R21-R30: references and mapcounts of a huge page. (transhuge.rst: Refcounts and transparent huge pages, to the file pages)"""

from concur_thp.rules.edit import Delete, Force, Insert, Move, Replace, Rewrite
from concur_thp.rules.rule import At, Rule, Variant

REFCOUNTS = "transhuge.rst, Refcounts and transparent huge pages"
NO_FILE_THP = "huge pages of files are not built: no pmd maps the page cache"

NO_PAGE_LOCK = Force("__split_huge_pmd", "if not page", False)
"""As in Linux before 5.8: the page lock (K1) would hide what else is wrong."""

RULES = (
    Rule(
        "R21", "get_page(), put_page() and GUP count in the head.", f"{REFCOUNTS}, first point", "3.9",
        (At("get_page", "head = compound_head(page)"), At("put_page", "head = compound_head(page)"),
         At("gup_huge_pmd", "head = ..."), At("follow_trans_huge_pmd", "if flags & FOLL_GET")), ("I1", "I25", "Q4"),
        (
            Variant("R21a", "follow_page hands a page out without a reference",
                    (Delete("follow_trans_huge_pmd", "if flags & FOLL_GET"),),
                    "pin_of_tail", ("Q4", "bug: put_page: page has no reference", "I3", "I6", "bug: bad compound page")),
            Variant("R21b", "gup-fast hands pages out without a reference",
                    (Force("gup_huge_pmd", "if not page_cache_add_speculative(...)", False),), "pin_of_tail",
                    ("Q4", "bug: put_page: page has no reference", "I6", "outcome", "bug: bad compound page")),
        ),
    ),
    Rule(
        "R22", "The _refcount of a tail is always 0, so get_page_unless_zero() never succeeds on one.",
        f"{REFCOUNTS}, second point", "3.9, 3.18, 3.34",
        (At("prep_compound_page", "tail._refcount.write(0)"), At("__split_huge_page_tail", "tail.compound_head = 0")),
        ("I1", "I12", "Q1", "Q3"),
        (
            Variant("R22a", "a fresh huge page's tails start with one reference",
                    (Rewrite("prep_compound_page", "tail._refcount.write(0)", "0", "1"),),
                    "fault_vs_fault", ("I1", "Q3", "bug: bad tail", "bug: split")),
            Variant("R22b", "a split gives a tail its references while it still is a tail",
                    (Move("__split_huge_page_tail", "page_ref_unfreeze(...)", before="tail.compound_head = 0"),),
                    "split_vs_fault", ("I1", "bug: put_page", "Q4", "crash", "I13")),
        ),
    ),
    Rule(
        "R23", "A pte that comes or goes counts in the _mapcount of the very subpage it maps.", f"{REFCOUNTS}, third point",
        "3.17", (At("page_remove_rmap", "if sub_one(...)"), At("page_dup_rmap", "page._mapcount.add(1)"),
                 At("split_huge_anon_pmd", "tail_page(page, i)._mapcount.add(1)")), ("Q5",),
        (
            Variant("R23a", "the unmap of a pte counts in the head",
                    (Rewrite("page_remove_rmap", "if sub_one(...)", "page._mapcount.sub(1)",
                             "compound_head(page)._mapcount.sub(1)"),),
                    "partial_dontneed", ("Q5", "bug: page_remove_rmap: mapcount below -1")),
            Variant("R23b", "fork counts the copy of a pte in the head",
                    (Rewrite("page_dup_rmap", "page._mapcount.add(1)", "page", "compound_head(page)"),),
                    "fork_of_ptes", ("Q5", "Q19", "bug: page_remove_rmap: mapcount below -1", "I7"), ("2 mms",)),
            Variant("R23c", "the split of a pmd does not count the ptes it makes",
                    (Delete("split_huge_anon_pmd", "tail_page(page, i)._mapcount.add(1)"),),
                    "partial_dontneed", ("Q5", "I7", "bug: page_remove_rmap: mapcount below -1")),
        ),
    ),
    Rule(
        "R24", "A pmd that comes or goes counts in compound_mapcount, in the first tail.", f"{REFCOUNTS}, fourth point",
        "3.13, 3.17", (At("copy_anon_pmd", "page_dup_rmap(cpu, page, 1)"), At("zap_huge_pmd", "page_remove_rmap(cpu, page, 1)"),
                       At("set_pmd_migration_entry", "page_remove_rmap(cpu, page, 1)")), ("Q5", "Q19"),
        (
            Variant("R24a", "fork does not count the child's pmd: the parent finds itself alone and writes what both see",
                    (Delete("copy_anon_pmd", "page_dup_rmap(cpu, page, 1)"),), "fork_then_write",
                    ("Q5", "Q19", "outcome", "bug: page_remove_rmap: mapcount below -1"),
                    ("2 mms",)),
            Variant("R24b", "the zap of a huge pmd does not count it off",
                    (Delete("zap_huge_pmd", "if mapped #1"),), "dontneed_vs_huge_fault", ("bug: bad compound page", "Q5")),
            Variant("R24c", "fork counts the child's pmd as a pte of the first subpage",
                    (Rewrite("copy_anon_pmd", "page_dup_rmap(cpu, page, 1)", "1", "0"),), "fork_then_write",
                    ("Q5", "Q19", "I6"),
                    ("2 mms",)),
        ),
    ),
    Rule("R25", "Of a file's huge page a pmd counts in the _mapcount of all subpages as well: so the last unmap of each is"
                " found"
         " without a race.", f"{REFCOUNTS}, fourth point", "1.3, 3.17",
         (At("page_add_file_rmap", "nr += add_one(...)"), At("page_remove_file_rmap", "nr = sub_one_everywhere(...)")),
         ("Q5",), out_of_scope=NO_FILE_THP),
    Rule(
        "R26", "PageDoubleMap says that ptes may map the page: its absence proves nothing.", f"{REFCOUNTS}, 'possibly'",
        "1.3, K10",
        (At("total_mapcount", "for i in range(HPAGE_PMD_NR)"), At("page_mapped", "for i in range(HPAGE_PMD_NR)")),
        ("outcome",),
        (
            Variant("R26a", "total_mapcount looks at no subpage while PG_double_map is clear",
                    (Insert("total_mapcount", "if PageAnon(head) and not PageDoubleMap(head):\n    return count",
                            before="for i in range(HPAGE_PMD_NR)"),), "split_page_of_ptes", ("outcome", "Q5", "Q7", "Q19")),
            Variant("R26b", "page_mapped looks at no subpage while PG_double_map is clear",
                    (Insert("page_mapped", "if not PageDoubleMap(head):\n    return 0",
                            before="for i in range(HPAGE_PMD_NR)"),),
                    "split_page_of_ptes", ("outcome", "Q5")),
        ),
    ),
    Rule(
        "R27", "Of an anonymous page PageDoubleMap also says that each _mapcount is one higher: so a pte that goes is never"
               " taken"
        " for the last mapping while a pmd is left.", f"{REFCOUNTS}, 'offset up by one'", "1.3, 3.16.C6, 3.17",
        (At("move_compound_mapcount", "tail_page(page, i)._mapcount.add(1)"), At("page_mapcount", "count -= 1"),
         At("total_mapcount", "count -= HPAGE_PMD_NR"), At("page_trans_huge_map_swapcount", "most -= 1")), ("I2", "Q5"),
        (
            Variant("R27a", "PG_double_map is set, but the subpages are not counted up",
                    (Delete("move_compound_mapcount", "tail_page(page, i)._mapcount.add(1)"),),
                    "fork_split_one", ("Q5", "I2", "bug: page_remove_rmap: mapcount below -1"), ("2 mms",)),
            Variant("R27b", "the reuse test takes the offset off although it is not there: a shared page is written",
                    (Force("page_trans_huge_map_swapcount", "if PageDoubleMap(head)", True),),
                    "fork_of_ptes", ("Q19", "outcome", "COW"), ("2 mms",)),
            Variant("R27c", "total_mapcount does not take the offset off: the page is never split again",
                    (Force("total_mapcount", "if PageDoubleMap(head)", False),), "split_page_of_both", ("outcome",),
                    ("2 mms",)),
        ),
    ),
    Rule("R28", "This is an optimisation: the alternative counts every pmd in every subpage.",
         f"{REFCOUNTS}, 'This is optimization'",
         "1.3", out_of_scope="it explains R27 and demands nothing"),
    Rule(
        "R29", "PG_double_map is set when a pmd is split for the first time while another pmd maps the page; the extra counts"
               " go"
        " with the last pmd.", f"{REFCOUNTS}, 'we set PG_double_map when'", "3.16.C6 and C7, 3.17",
        (At("move_compound_mapcount", "if ... > 0 and ..."), At("move_compound_mapcount", "if TestClearPageDoubleMap(page)"),
         At("page_remove_anon_compound_rmap", "if TestClearPageDoubleMap(head)")), ("I20", "Q5"),
        (
            Variant("R29a", "the offset is added after the pmd's own mapcount has gone, and no page lock keeps others out",
                    (Move("move_compound_mapcount", "old = ...", before="if ... > 0 and ..."),
                     Rewrite("move_compound_mapcount", "if ... > 0 and ...", "0", "-1"), NO_PAGE_LOCK),
                    "pmd_split_vs_pmd_split", ("Q5", "I20"), ("2 mms",)),
            Variant("R29b", "the bit is not cleared with the last pmd",
                    (Force("move_compound_mapcount", "if TestClearPageDoubleMap(page)", False),
                     Force("page_remove_anon_compound_rmap", "if TestClearPageDoubleMap(head)", False)),
                    "pmd_split_vs_pmd_split", ("Q5", "I20", "outcome", "bug: bad page"), ("2 mms",)),
            Variant("R29c", "the bit is cleared, but the offset stays",
                    (Delete("move_compound_mapcount", "tail_page(page, i)._mapcount.sub(1)"),),
                    "pmd_split_vs_pmd_split", ("Q5", "bug: bad page"), ("2 mms",)),
            Variant("R29d", "test and set are two steps, and no page lock keeps others out: two splitters add the offset twice",
                    (Rewrite("move_compound_mapcount", "if ... > 0 and ...", "TestSetPageDoubleMap(page)",
                             "PageDoubleMap(page)"),
                     Insert("move_compound_mapcount", "TestSetPageDoubleMap(page)",
                            before="for i in range(HPAGE_PMD_NR) in if ... > 0 and ..."), NO_PAGE_LOCK),
                    "pmd_split_vs_pmd_split", ("Q5",), ("2 mms",)),
            Variant("R29e", "the last pmd that is zapped clears the bit and leaves the offset",
                    (Replace("page_remove_anon_compound_rmap", "nr = sub_one_everywhere(cpu, head)", "nr = 0"),),
                    "fork_split_one", ("Q5", "Q11", "Q16"), ("2 mms",)),
        ),
    ),
    Rule("R30", "Of a file's huge page PG_double_map is set by the first pte that maps it, and goes with the page cache.",
         f"{REFCOUNTS}, 'File pages get PG_double_map'", "1.3, 3.17, 3.31",
         (At("page_add_file_rmap", "TestSetPageDoubleMap(head)"),), ("I21",), out_of_scope=NO_FILE_THP),
)

