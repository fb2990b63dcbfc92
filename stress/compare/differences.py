"""What v4.20 and later kernels do differently on purpose, as data: which facts are then not compared, and why.

A row holds in a situation: a step, and what was seen of it and before it on both sides. What it `skips` is passed over in
this step; with `lasts` IN_BLOCK also from it on, in the blocks that it is about (see doubts.py); with IN_PROGRAM to the end.
Everything else is compared. Where a `reason` names a commit, its message was looked up, or "not confirmed" stands behind it.
"""

from collections.abc import Callable
from typing import NamedTuple

from stress.compare.doubts import Place, blocks_of
from stress.compare.mappings import copied_otherwise, grown, huge_across, not_merged, unaccounted
from stress.compare.situation import Situation
from stress.compare.steps import BLOCK

IN_BLOCK, IN_PROGRAM = "block", "program"


class Difference(NamedTuple):
    """One row."""

    id: str
    what: str
    reason: str
    """Why it is so, and where that stands: kernel source, changelog, semantics."""
    holds: Callable[[Situation], bool]
    skips: tuple[str, ...]
    lasts: str = ""
    where: Callable[[Situation], list[Place]] | None = None
    """The blocks it is about; those that the step touches if nothing says more."""
    behind: bool = False
    """They are as the step leaves them: that it unmapped or mapped them anew does not clear them."""


SIZES = ("AnonHugePages", "Rss", "Shared", "Private", "places")
COUNTERS = ("F", "S", "P", "D", "failed")
ALL_BUT_DATA = (*SIZES, *COUNTERS)
EVERYTHING = ("result", "data", "mappings", *ALL_BUT_DATA)
MAPPED = "Hts"
EFAULT = -14


def _all_unmapped(s: Situation) -> bool:
    """May a huge page have lost its last mapping in this step, or the last but for ptes?"""
    if s.step.op == "exit":
        return True
    if s.step.op not in ("munmap", "dontneed", "mmap", "mremap"):
        return False
    after = s.ours.blocks[s.step.task]
    gone = any(was in MAPPED and now in ".e" for was, now in zip(s.before, after, strict=True))
    moved_over = s.step.op == "mremap" and any(
        s.before[block] in MAPPED for block in range(s.step.arg // BLOCK, -(-(s.step.arg + s.step.arg2) // BLOCK)))
    return gone or moved_over


def _unmapped_but_pinned(s: Situation) -> bool:
    """The shrinker tried to split what our side alone has queued: a huge page that only pins keep."""
    more = s.ours.counter("thp_split_page_failed") > s.theirs.counter("thp_split_page_failed")
    return s.step.op == "drop_caches" and more and s.ours.events["pins"] > 0 and any(
        _all_unmapped(s._replace(at=earlier)) for earlier in range(s.at))


def _split_page(s: Situation) -> bool:
    return s.ours.counter("thp_split_page") > 0


def _cow_of_shared_thp(s: Situation) -> bool:
    return s.ours.events["wp_huge_copy"] > 0 or s.ours.events["wp_huge_fallback_pages"] > 0


def _shared_huge_pages(s: Situation) -> list[Place]:
    """Those that the step writes to."""
    looks = s.emulator[s.at - 1].looks if s.at else {}
    shared = {(task, block) for task, look in looks.items() for block, one in enumerate(look.blocks) if one.shared}
    return [(s.step.task, block) for block in blocks_of(s.step.page, s.step.end)
            if s.before[block] == "H" and (s.step.task, block) in shared]


def _reuse_of_pinned(s: Situation) -> bool:
    """A write fault found its page its own alone, while something is pinned."""
    return s.at > 0 and s.emulator[s.at - 1].events["pins"] > 0 and s.ours.events["wp_reuse"] > 0


def _had_three(s: Situation) -> bool:
    """Were there three tasks at once before?"""
    return any(len(seen.looks) > 2 for seen in s.emulator[: s.at])


def _reuse_behind_three(s: Situation) -> bool:
    """A write fault found a page of a block mapped by a table its own alone, after three had been there."""
    return s.ours.events["wp_reuse"] > 0 and "t" in s.before and _had_three(s)


def _reuse_in_part(s: Situation) -> bool:
    """A write fault found its page its own alone, and the other side had one page more to queue: it copied."""
    name = "thp_deferred_split_page"
    return (s.ours.events["wp_reuse"] > 0 and "t" in s.before and len(s.ours.looks) > 1
            and s.theirs.counter(name) > s.ours.counter(name))


def _zero_filled_split(s: Situation) -> bool:
    return _split_page(s) and s.at > 0 and s.emulator[s.at - 1].events["empty"] > 0


def _pages_split(s: Situation) -> list[Place]:
    """drop_caches may split what is mapped by tables, anybody's; another step what it touches."""
    return s.changed("ts", ".ets") if s.step.op == "drop_caches" else []


def _kept_in_part(s: Situation) -> list[Place]:
    """Blocks whose huge page may be mapped in part on the other side only, for what they did differently before."""
    return [(task, block) for task, blocks in s.ours.blocks.items() for block, letter in enumerate(blocks)
            if letter in "Ht" and "AnonHugePages" in s.doubts.of((task, block))]


def _zero_filled_there(s: Situation) -> bool:
    """The shrinker, or MADV_FREE, split one that our side does not have to split."""
    if s.step.op not in ("drop_caches", "free") or not s.at or not s.emulator[s.at - 1].events["empty"]:
        return False
    return s.theirs.counter("thp_split_page") > s.ours.counter("thp_split_page") and bool(_kept_in_part(s))


def _free_of_shared_thp(s: Situation) -> bool:
    """MADV_FREE split a huge page that others map in part, for a page that they do not map."""
    return _free_of_owned(s, "thp_split_page", "thp_split_pmd")


def _free_of_owned(s: Situation, *counters: str) -> bool:
    """MADV_FREE in a huge page that others may have had a part of: ours did more."""
    more = any(s.ours.counter(name) > s.theirs.counter(name) for name in counters)
    return s.step.op == "free" and more and (len(s.ours.looks) > 1 or _had_three(s))


def _tables_of_range(s: Situation) -> list[Place]:
    """Blocks that are mapped by tables and lie in the range as a whole."""
    return [(s.step.task, block) for block in s.whole_blocks() if s.before[block] == "t"]


def _free_of_whole(s: Situation) -> bool:
    """MADV_FREE split a huge page that it was given as a whole, entry by entry."""
    return s.step.op == "free" and s.ours.counter("thp_split_page") > s.theirs.counter("thp_split_page") and bool(
        _tables_of_range(s))


def _huge_zero_forbidden(s: Situation) -> bool:
    """A write to the huge zero page where no new huge pages are allowed."""
    after = s.ours.blocks.get(s.step.task, s.before)
    written = any(was == "z" and now == "t" for was, now in zip(s.before, after, strict=True))
    return written and s.theirs.counter("thp_fault_alloc") > s.ours.counter("thp_fault_alloc")


def _tables_discarded(s: Situation) -> bool:
    """Was a block that a table maps discarded as a whole?"""
    return s.step.op == "dontneed" and any(s.before[block] in "tse" for block in s.whole_blocks())


def _empty_tables_used(s: Situation) -> list[Place]:
    return s.changed("e", ".HZzts")


def _empty_table_used(s: Situation) -> bool:
    """An empty table gets pages, after one was emptied by such a DONTNEED."""
    return bool(_empty_tables_used(s)) and any(_tables_discarded(s._replace(at=earlier)) for earlier in range(s.at))


def _in_one_vma(s: Situation) -> bool:
    before = s.emulator[s.at - 1].looks[s.step.task].mappings if s.at else ()
    return any(first <= s.step.page and s.step.end <= end for first, end in before)


def _collapse_by_other_rules(s: Situation) -> bool:
    """They did not do the same, and the range was not one that both have to collapse."""
    if s.step.op != "collapse" or (_in_one_vma(s) and all(s.before[block] in "s." for block in s.whole_blocks())):
        return False
    same = s.ours.counter("thp_collapse_alloc") == s.theirs.counter("thp_collapse_alloc")
    # v4.20 allocates first, and may still give up; and a range may be refused for what else lies in it.
    same = same and (s.ours.result == 0) == (s.theirs.result == 0)
    same = same and s.ours.looks[s.step.task].anon_huge == s.theirs.looks[s.step.task].anon_huge
    return not same


def _collapse_error(s: Situation) -> bool:
    blocks = list(s.whole_blocks())
    whole = s.step.page % BLOCK == 0 and s.step.end % BLOCK == 0 and blocks
    doubted = any("AnonHugePages" in s.doubts.of((s.step.task, block)) for block in blocks)  # Huge there already, perhaps.
    return s.step.op == "collapse" and (not whole or doubted or any(s.before[block] != "s" for block in blocks))


def _mremap_of_hole(s: Situation) -> bool:
    return s.step.op == "mremap" and s.step.arg == s.step.page and s.theirs.result == EFAULT and s.ours.result == 0


def _mremap_refused(s: Situation) -> bool:
    return s.step.op == "mremap" and s.step.arg != s.step.page and s.ours.result == EFAULT


def _no_huge_page(s: Situation) -> bool:
    return s.theirs.counter("thp_fault_fallback") > s.ours.counter("thp_fault_fallback")


DIFFERENCES: tuple[Difference, ...] = (
    Difference("no-huge-page", "the running kernel had no huge page to give, and took small ones",
               "mm/huge_memory.c counts thp_fault_fallback when the allocation fails: memory is short or in pieces on this"
               " machine, which no program here is about",
               _no_huge_page, ALL_BUT_DATA, lasts=IN_PROGRAM),
    Difference("K6", "a huge page that loses all its mappings at once is queued for a deferred split, and counted",
               "v4.20 page_remove_rmap() queues whatever is unmapped; since f1fe80d4ae33 (\"mm, thp: do not queue fully"
               " unmapped pages for deferred split\", v5.5 by its date) only what stays mapped in part; of pages mapped by"
               " tables since b06dc281aa99 (\"mm/rmap: introduce folio_remove_rmap_[pte|ptes|pmd]()\", v6.8) removes them in"
               " batches, and 7491f3f34891 (\"mm/rmap: do not add fully unmapped large folio to deferred split list\", v6.10)",
               _all_unmapped, ("D",)),
    Difference("K6-failed", "a huge page that only pins keep is on the queue, and its split fails",
               "v4.20 deferred_split_scan() meets what K6 has queued; page_count() of a pinned page is one too many, -EBUSY",
               _unmapped_but_pinned, ("failed",)),
    Difference("K7", "a split queues the very page it splits",
               "v4.20 __split_huge_pmd_locked() with freeze calls page_remove_rmap() for each small page, and each queues; now"
               " folio_remove_rmap_pmd() takes the pmd's away at once, mm/huge_memory.c since 91b2978a3480 (\"mm/huge_memory:"
               " batch rmap operations in __split_huge_pmd_locked()\", v6.8; measured on 6.18: row 27)",
               _split_page, ("D",)),
    Difference("cow", "a write to a shared huge page copies all of it; now its pmd is split and one page is copied",
               "commit 3917c80280c9 \"thp: change CoW semantics for anon-THP\" (v5.8 by its date), do_huge_pmd_wp_page():"
               " row 18. What is there and what is in it still has to agree",
               _cow_of_shared_thp, ("AnonHugePages", "Shared", "Private", *COUNTERS), lasts=IN_BLOCK, where=_shared_huge_pages),
    Difference("pinned", "a write to a page that was shared once and is pinned: v4.20 counts mappings, and writes to it",
               "v4.20 reuse_swap_page() asks for the mapcount; since 09854ba94c6a (\"mm: do_wp_page()"
               " simplification\") page_count() counts, unless the page is known to be its own (6c287605fd56 \"mm: remember"
               " exclusively mapped anonymous pages with PG_anon_exclusive\", v5.19); since 1da190f4d0a6 (v6.15 by its date)"
               " references to a huge page may be the mappings' alone; one too many means a copy: 6.1, K12",
               _reuse_of_pinned, ("AnonHugePages", "Shared", "Private", *COUNTERS), lasts=IN_BLOCK),
    Difference("owners", "a write to a small page of a huge page that three had: v4.20 reuses it when nobody else maps it",
               "v4.20 reuse_swap_page() counts the mappings of the page. v5.8 to v6.14 copied what is part of a huge page;"
               " since v6.15 it is reused when one mm maps the folio (commit 1da190f4d0a6 \"mm: Copy-on-Write (COW) reuse"
               " support for PTE-mapped THP\"), and two owners are tracked (6af8cb80d3a9 \"mm/rmap: basic MM owner tracking for"
               " large folios\"): behind a third it counts as shared. A copy leaves it mapped in part: D+1",
               _reuse_behind_three, ("AnonHugePages", "Shared", "Private", *COUNTERS), lasts=IN_BLOCK),
    Difference("in-part", "a write to a small page that nobody else maps, of a huge page that others map too: v4.20 reuses it",
               "v4.20 reuse_swap_page() counts the mappings of the page; wp_can_reuse_anon_folio() asks whether all of a large"
               " folio is one mm's (1da190f4d0a6, see owners), and copies. That leaves it mapped in part, D+1; nothing else"
               " tells the two",
               _reuse_in_part, ("AnonHugePages", "Shared", "Private", *COUNTERS), lasts=IN_BLOCK),
    Difference("free-shared", "MADV_FREE of a page that is its own, in a huge page that others map too: now left alone",
               "v4.20 madvise_free_huge_pmd() and madvise_free_pte_range() ask page_mapcount() of one page, and split; they ask"
               " of the whole folio since 98b211d6415f (\"madvise: convert madvise_free_pte_range() to use a folio\", v6.1), by"
               " folio_maybe_mapped_shared() since 003fde4492c8 (\"mm: convert folio_likely_mapped_shared() to"
               " folio_maybe_mapped_shared()\", v6.15)",
               _free_of_shared_thp, ALL_BUT_DATA, lasts=IN_BLOCK),
    Difference("free-failed", "the same, of a page that is pinned: v4.20 tries to split it, and counts that it failed",
               "thp_split_page_failed is counted by split_huge_page_to_list(), which now is not called: see free-shared",
               lambda s: _free_of_owned(s, "thp_split_page_failed"), ("failed",)),
    Difference("free-whole", "MADV_FREE of all of a huge page that is mapped by a table: v4.20 splits it, now it stays whole",
               "v4.20 madvise_free_pte_range() splits every PageTransCompound that one maps; since dce7d10be4bb (\"mm/madvise:"
               " optimize lazyfreeing with mTHP in madvise_free\", v6.10) not one whose entries follow each other in the range",
               _free_of_whole, ALL_BUT_DATA, lasts=IN_BLOCK, where=_tables_of_range),
    Difference("huge-zero", "a write to the huge zero page makes a huge page, whatever MADV_NOHUGEPAGE has said since",
               "v4.20 do_huge_pmd_wp_page() asks transparent_hugepage_enabled(vma) and else splits the pmd; since 1ced09e0331f"
               " (\"mm: allocate THP on hugezeropage wp-fault\", v6.13 by its date) do_huge_zero_wp_pmd() does not ask",
               _huge_zero_forbidden, ALL_BUT_DATA, lasts=IN_BLOCK, where=lambda s: s.changed("z", "t")),
    Difference("zero-filled", "a split now maps the zero page in the place of pages full of zeroes",
               "commit b1f202060afe \"mm: remap unused subpages to shared zeropage when splitting isolated thp\""
               " (v6.12): row 28. They are still there, and still zero",
               _zero_filled_split, ("Rss", "Shared", "Private"), lasts=IN_BLOCK, where=_pages_split),
    Difference("zero-filled-there", "the same, of a huge page that only there is mapped in part: it copied one page",
               "see zero-filled; what cow, pinned or owners left mapped in part is on the deferred split queue of one side",
               _zero_filled_there, ("Rss", "Shared", "Private"), lasts=IN_BLOCK, where=_kept_in_part),
    Difference("empty-table", "DONTNEED of a whole block now frees the empty table, so that the next fault may be huge",
               "commit 6375e95f381e \"mm: pgtable: reclaim empty PTE page in madvise(MADV_DONTNEED)\" (v6.14), mm/pt_reclaim.c"
               " reclaim_pt_is_enabled(): row 10. Compared until such a table is used again",
               _empty_table_used, ALL_BUT_DATA, lasts=IN_BLOCK, where=_empty_tables_used),
    Difference("collapse", "MADV_COLLAPSE takes ranges that v4.20's khugepaged would not",
               "mm/khugepaged.c: pages of huge pages (5503fbf2b0b8 \"khugepaged: allow to collapse PTE-mapped compound pages\","
               " v5.8), shared and read-only ones, one page among empty entries, and whatever sysfs says without MADV_HUGEPAGE"
               " (7d8faaf15545 \"mm/madvise: introduce MADV_COLLAPSE sync hugepage collapse\", v6.1): 6.1, rows 37, 38. Ranges"
               " of 512 young, writable, own small pages with MADV_HUGEPAGE are compared, if they are in one vma: of several"
               " the first that fails ends it, and one without a whole block fails (madvise_collapse())",
               _collapse_by_other_rules, ALL_BUT_DATA, lasts=IN_BLOCK),
    Difference("collapse-error", "what MADV_COLLAPSE returns where v4.20 has nothing to compare it with",
               "the call is of v6.1; compared for ranges that both have to collapse", _collapse_error, ("result",)),
    Difference("mremap-hole", "mremap of nothing, in place and not longer: v4.20 says it is done",
               "v4.20 mremap() looks for the vma only when the mapping grows or moves; since commit 550a7d60bd5e (\"mm,"
               " hugepages: add mremap() support for hugepage backed vma\", v5.16 by its date) it does so first: EFAULT",
               lambda s: _mremap_of_hole(s) and s.step.arg2 == s.step.pages, ("result",)),
    Difference("mremap-hole-cut", "the same, and shorter: v4.20 has then unmapped the end of it",
               "v4.20 mremap() calls do_munmap(addr + new_len) without a look at what is mapped at addr;"
               " now EFAULT, see mremap-hole",
               lambda s: _mremap_of_hole(s) and s.step.arg2 != s.step.pages, EVERYTHING, lasts=IN_PROGRAM),
    Difference("mremap-refused", "a refused move: v4.20 has unmapped the destination before it looks at the source",
               "v4.20 mremap_to() calls do_munmap(new_addr) before vma_to_resize(); do_mremap() of today looks the vma up"
               " first, and moves several at once (d23cb648e365 \"mm/mremap: permit mremap() move of multiple VMAs\", v6.17 by"
               " its date). From there on the programs differ",
               _mremap_refused, EVERYTHING, lasts=IN_PROGRAM),
    Difference("anon-merge", "two vmas become one although only one of them has an anon_vma: v4.20 left them two",
               "v4.20 is_mergeable_anon_vma() wants list_is_singular() of the vma that stays, and an empty list is not; since"
               " 879bca0a2c4f (\"mm/vma: fix incorrectly disallowed anonymous VMA merges\", v6.16) only a vma with parents is"
               " refused: mm/vma.c is_mergeable_anon_vma()",
               lambda s: bool(not_merged(s)), ("mappings",), lasts=IN_BLOCK, where=not_merged, behind=True),
    Difference("unaccounted", "memory that was writable and never written merges with what never was; or no more with what was",
               "v4.20 mprotect_fixup() keeps VM_ACCOUNT when it takes VM_WRITE away; since \"mm/mprotect: allow unfaulted VMAs"
               " to be unaccounted on mprotect()\" (October 2023; v6.7 by its date) it goes where there is no anon_vma",
               lambda s: bool(unaccounted(s)), ("mappings",), lasts=IN_BLOCK, where=unaccounted, behind=True),
    Difference("grown", "a vma that mremap makes longer in place becomes one with the next: v4.20 leaves them two",
               "v4.20 mremap() calls vma_adjust(), which only moves the end; today mm/mremap.c asks vma_merge_extend() (since"
               " ca3d76b0aa80 \"mm: add merging after mremap resize\", v5.19: not confirmed)",
               lambda s: bool(grown(s)), ("mappings",), lasts=IN_BLOCK, where=grown, behind=True),
    Difference("vma-fork", "fork copies the tables of a vma that is, or was, two on the other side",
               "copy_page_range() passes over a vma without anon_vma (vma_needs_copy() today): zero pages and empty tables of"
               " one that was merged with one that has some are copied; see anon-merge and unaccounted",
               lambda s: bool(copied_otherwise(s)), ALL_BUT_DATA, lasts=IN_BLOCK, where=copied_otherwise),
    Difference("vma-huge", "a huge page where the other side has two vmas, which it would have to lie across",
               "v4.20 transhuge_vma_suitable() (thp_vma_suitable_order() today): a huge page lies in one vma; see anon-merge"
               " and unaccounted",
               lambda s: bool(huge_across(s)), ALL_BUT_DATA, lasts=IN_BLOCK, where=huge_across, behind=True),
)
