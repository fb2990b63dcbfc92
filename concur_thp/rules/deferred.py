"""R38-R41: huge pages of which a part is unmapped. (transhuge.rst: Partial unmap and deferred_split_huge_page())"""

from concur_thp.rules.edit import Delete, Force, Insert, Replace, Rewrite
from concur_thp.rules.rule import At, Rule, Variant

PARTIAL = "transhuge.rst, Partial unmap and deferred_split_huge_page()"

RULES = (
    Rule(
        "R38", "Unmapping a part frees nothing at once: page_remove_rmap() sees that a subpage is unused and queues the page.",
        f"{PARTIAL}, first paragraph", "3.17, 3.19, 3.20",
        (At("page_remove_rmap", "deferred_split_huge_page(...)"),
         At("page_remove_anon_compound_rmap", "deferred_split_huge_page(...)"),
         At("deferred_split_huge_page", "split_queue_add_tail(head)")), ("Q11",),
        (
            Variant("R38a", "the last pte of a subpage goes and nobody notes it",
                    (Delete("page_remove_rmap", "if PageCompound(page)"),),
                    "partial_dontneed", ("Q11", "outcome")),
            Variant("R38b", "the last pmd goes while ptes of others map a part, and nobody notes it",
                    (Delete("page_remove_anon_compound_rmap", "deferred_split_huge_page(...)"),),
                    "fork_split_one", ("Q11", "outcome"), ("2 mms",)),
        ),
    ),
    Rule(
        "R39", "The split that comes later frees the unused subpages.", f"{PARTIAL}, 'Splitting will free up unused subpages'",
        "3.18.10.i", (At("release_pieces", "put_page(cpu, piece)"),), ("Q4", "Q20"),
        (
            Variant("R39a", "the pieces are unlocked, but the split's references of them are kept",
                    (Delete("release_pieces", "put_page(cpu, piece)"),), "partial_dontneed", ("Q4", "Q20", "outcome")),
        ),
    ),
    Rule(
        "R40", "The page is not split where the unmap is noticed: a page table lock is held there, and at exit it is a waste.",
        f"{PARTIAL}, second paragraph", "3.19", (At("page_remove_rmap", "deferred_split_huge_page(...)"),), ("lockdep",),
        (
            Variant("R40a", "page_remove_rmap() splits the page itself, under the page table lock",
                    (Replace("page_remove_rmap", "deferred_split_huge_page(...)",
                             "lock_page(cpu, page)\nsplit_huge_page(cpu, page)\nunlock_page(cpu, page)"),),
                    "partial_dontneed", ("lockdep", "deadlock")),
        ),
    ),
    Rule(
        "R41", "Pages are queued by deferred_split_huge_page() and split by the shrinker, under memory pressure.",
        f"{PARTIAL}, last paragraph", "3.19",
        (At("pin_queued", "if get_page_unless_zero(head)"), At("deferred_split_scan", "if trylock_page(cpu, page)"),
         At("deferred_split_scan", "splice_back(cpu)"), At("undefer_split_huge_page", "if split_queued(head)")), ("I17", "Q11"),
        (
            Variant("R41a", "the shrinker takes references of pages whose last one has gone",
                    (Rewrite("pin_queued", "if get_page_unless_zero(head)", "get_page_unless_zero(head)",
                             "head._refcount.add(1) >= 0"),
                     Insert("pin_queued", "account_get(head, 1)", before="list_del(head)")),
                    "deferred_vs_free", ("bug: put_page", "bug: bad", "Q1", "Q2", "Q11", "crash")),
            Variant("R41b", "the shrinker works on pages that it has no reference of",
                    (Rewrite("pin_queued", "if get_page_unless_zero(head)", "get_page_unless_zero(head)",
                             "page_ref_count(head) > 0"),
                     Delete("deferred_split_scan", "put_page(cpu, page)")),
                    "deferred_vs_free", ("outcome", "Q2", "Q18", "bug: bad", "bug: split_huge_page", "crash")),
            Variant("R41c", "what could not be split is forgotten on the shrinker's own list",
                    (Delete("deferred_split_scan", "splice_back(cpu)"),),
                    "partial_dontneed_of_pinned", ("Q11", "bug: deferred_split_scan inside of itself")),
            Variant("R41d", "a page already on the shrinker's own list is queued a second time",
                    (Force("deferred_split_huge_page", "if split_queued(head)", False),
                     Force("deferred_split_huge_page", "if not split_queued(head)", True)),
                    "deferred_vs_add", ("Q11", "I17", "crash", "livelock", "Q4")),
            Variant("R41e", "the shrinker does not lock the page",
                    (Force("deferred_split_scan", "if trylock_page(cpu, page)", True),
                                                                    Delete("deferred_split_scan", "unlock_page(cpu, page)")),
                    "partial_dontneed", ("bug: page not locked by this CPU",)),
        ),
    ),
)

