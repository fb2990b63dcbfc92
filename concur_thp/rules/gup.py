"""R5-R10, R12: what get_user_pages and follow_page promise. (transhuge.rst: get_user_pages and follow_page)"""

from concur_thp.rules.edit import Delete, Force, Replace, Rewrite
from concur_thp.rules.rule import At, Rule, Variant

GUP = "transhuge.rst, get_user_pages and follow_page"

RULES = (
    Rule(
        "R5", "On a huge page get_user_pages and follow_page return the head or the tail that the address asks for.",
        f"{GUP}, first sentence", "3.14 step 6, 3.15 step 3",
        (At("follow_trans_huge_pmd", "page = tail_page(...)"), At("gup_huge_pmd", "first = ...")), ("outcome",),
        (
            Variant("R5a", "follow_page returns the head for every address",
                    (Replace("follow_trans_huge_pmd", "page = tail_page(...)", "page = head"),),
                    "pin_of_tail", ("outcome", "Q19")),
            Variant("R5b", "gup-fast returns pages counted from the head, whatever the address",
                    (Replace("gup_huge_pmd", "first = ...", "first = entry_pfn(orig)"),), "pin_of_tail", ("outcome", "Q19")),
        ),
    ),
    Rule(
        "R6", "What is meaningful on the head only is read from the head: mapping, flags, lists.",
        f"{GUP}, 'jump to check head page'", "1.1, 1.2",
        (At("PageAnon", "return ..."), At("TestFlag", "return ..."),
         At("page_move_anon_rmap", "compound_head(page).mapping = ...")),
        ("Q5", "Q16"),
        (
            Variant("R6a", "PageAnon looks at the subpage's own mapping, which is poison in a tail",
                    (Rewrite("PageAnon", "return ...", "compound_head(page)", "page"),),
                    "partial_dontneed", ("Q5", "Q9", "Q16", "bug: page_remove_rmap", "bug: __mmdrop")),
            Variant("R6b", "flags are read from the subpage itself: a locked huge page looks unlocked by its tails",
                    (Rewrite("TestFlag", "return ...", "compound_head(page)", "page"),),
                    "split_vs_fault", ("bug: migration entry of an unlocked page", "bug: page_add_anon_rmap: not locked")),
            Variant("R6c", "the reuse of one subpage writes the anon_vma into the subpage's own mapping",
                    (Rewrite("page_move_anon_rmap", "compound_head(page).mapping = ...", "compound_head(page)", "page"),),
                    "reuse_last_subpage", ("bug: bad compound page", "bug: bad tail", "Q6", "Q2")),
        ),
    ),
    Rule(
        "R7", "A reference on any subpage keeps anybody from splitting the page.", f"{GUP}, last sentence of the first part",
        "3.9, 3.18.3, 3.18.9",
        (At("get_page", "head = compound_head(page)"), At("freeze_and_split", "frozen = ..."),
         At("can_split_huge_page", "return ...")),
        ("I1", "Q4", "I25"),
        (
            Variant("R7a", "get_page counts on the subpage itself",
                    (Rewrite("get_page", "head = compound_head(page)", "compound_head(page)", "page"),),
                    "pin_of_tail", ("bug: get_page: page has no reference",)),
            Variant("R7b", "the references are frozen whatever they are, and nobody asks before",
                    (Force("split_huge_page_to_list", "if can_split_huge_page(...)", True),
                     Rewrite("freeze_and_split", "frozen = ...", "page_ref_freeze(head, 1 + extra_pins(head))",
                             "page_ref_freeze(head, page_ref_count(head))")),
                    "split_vs_get", ("Q4", "outcome", "bug: put_page: page has no reference", "bug: a pinned page")),
        ),
    ),
    Rule(
        "R8", "A huge page is handled by GUP's users as any other compound page: put_page() takes any of its subpages.",
        f"{GUP}, the note", "3.14, 3.9",
        (At("put_page", "head = compound_head(page)"), At("release_pages", "head = compound_head(...)")),
        ("I1", "Q4"),
        (
            Variant("R8a", "put_page drops the subpage's own count",
                    (Rewrite("put_page", "head = compound_head(page)", "compound_head(page)", "page"),),
                    "pin_of_tail", ("bug: put_page: page has no reference",)),
            Variant("R8b", "the gather drops the subpages' own counts",
                    (Rewrite("release_pages", "head = ...", "compound_head(mem_map[slot_at(pages, i).value])",
                             "mem_map[slot_at(pages, i).value]"),),
                    "partial_dontneed", ("bug: put_page: page has no reference",)),
        ),
    ),
    Rule(
        "R9", "FOLL_SPLIT makes follow_page split the huge page before it returns anything of it.", f"{GUP}, FOLL_SPLIT",
        "3.14 step 5",
        (At("follow_huge_pmd", "if flags & FOLL_SPLIT"), At("follow_page_pte", "if flags & FOLL_SPLIT and ...")), ("outcome",),
        (
            Variant("R9a", "the flag is ignored where a pmd maps the page",
                    (Force("follow_huge_pmd", "if flags & FOLL_SPLIT", False),),
                    "migrate_small", ("bug: FOLL_SPLIT gave a compound page",)),
            Variant("R9b", "the flag is ignored where ptes map the page",
                    (Force("follow_page_pte", "if flags & FOLL_SPLIT and ...", False),),
                    "migrate_small_of_split_pmd", ("bug: FOLL_SPLIT gave a compound page",)),
        ),
    ),
    Rule(
        "R10", "Migration that knows small pages only gets small pages only, by FOLL_SPLIT.", f"{GUP}, 'Migration for example'",
        "3.26",
        (At("move_small_page", "return ..."), At("get_new_page", "new = Page(0)"),
         At("migrate_pages", "if result == -ENOMEM and ...")), ("Q4", "Q5"),
        (
            Variant("R10a", "move_pages() of small pages does not ask for the split, and isolates the tail that it got",
                    (Rewrite("move_small_page", "return ...", "FOLL_SPLIT", "0"),
                     Rewrite("add_page_for_migration", "result = isolate_movable(...)", "compound_head(page)", "page")),
                    "migrate_small", ("Q4", "Q5", "outcome", "bug: isolate", "crash")),
            Variant("R10b", "a huge page gets a small one to move to",
                    (Rewrite("get_new_page", "if not PageHead(page)", "not PageHead(page)",
                             "not PageHead(page) or how == NEW_SMALL_PAGE"),),
                    "migrate_small_target", ("bug: migration to a page of another size",)),
        ),
    ),
    Rule(
        "R12", "split_huge_page() fails when the page is pinned, and who calls it has to live with that.",
        "transhuge.rst, Graceful fallback, second paragraph", "3.18.3, 3.21, 3.30",
        (At("split_mapped_page", "return result == 0"), At("split_for_migration", "return result == 0"),
         At("follow_split_pmd", "if error != 0"), At("give_swap_space", "if not PageTransHuge(page) or ...")),
        ("livelock", "Q10"),
        (
            Variant("R12a", "MADV_FREE takes a failed split for a success and tries the pte again, for ever",
                    (Replace("split_mapped_page", "return result == 0", "return 1"),), "lazyfree_of_pinned", ("livelock",)),
            Variant("R12b", "migration takes a failed split for a success and tries the page again, for ever",
                    (Replace("split_for_migration", "return result == 0", "return 1"),),
                    "migrate_of_pinned", ("livelock",)),
            Variant("R12c", "follow_page forgets that the split failed and says that nothing is mapped",
                    (Delete("follow_split_pmd", "if error != 0"),), "migrate_of_pinned", ("outcome", "livelock")),
        ),
    ),
)
