"""R1-R4: the design principles, and mremap's one line (R13, R14). (transhuge.rst: Design principles, Graceful fallback)"""

from concur_thp.rules.edit import Delete, Force, Replace, Rewrite
from concur_thp.rules.rule import At, Rule, Variant

PRINCIPLES = "transhuge.rst, Design principles"
FALLBACK = "transhuge.rst, Graceful fallback"

RULES = (
    Rule(
        "R1", "Code that does not know huge pages breaks the huge pmd into ptes, and the page into pages where it must, and"
        " then works as it always did.", f"{PRINCIPLES}, first point", "3.1, 3.16, 3.18",
        (At("zap_pmd", "__split_huge_pmd(...)"), At("change_pmd", "__split_huge_pmd(...)"),
         At("move_whole_pmd", "split_huge_pmd(...)")),
        ("I7", "Q19"),
        (
            Variant("R1a", "a part of a huge page is zapped without splitting its pmd: the part stays mapped",
                    (Delete("zap_pmd", "__split_huge_pmd(...)"),), "partial_dontneed", ("Q19", "outcome")),
            Variant("R1b", "the same, and then the huge pmd is taken for a table: user data is walked as ptes",
                    (Delete("zap_pmd", "__split_huge_pmd(...)"),
                     Rewrite("zap_pmd", "if not done and ...", "not done and not pmd_trans_unstable(pmd)", "not done")),
                    "partial_dontneed", ("crash", "lockdep", "I7")),
        ),
    ),
    Rule(
        "R2", "Where no huge page can be had, small ones take its place in the same vma: no error, no long wait, and the"
        " program does not notice.", f"{PRINCIPLES}, second point", "3.4.5, 3.6.6, 3.34",
        (At("do_huge_pmd_anonymous_page", "return VM_FAULT_FALLBACK in if not page"),
         At("wp_huge_no_page", "result = VM_FAULT_FALLBACK in if result & VM_FAULT_OOM"),
         At("alloc_pages_direct", "if costly(order) or gfp & __GFP_NORETRY")),
        ("Q19",),
        (
            Variant("R2a", "a huge fault without a huge page is out of memory",
                    (Replace("do_huge_pmd_anonymous_page", "return VM_FAULT_FALLBACK in if not page", "return VM_FAULT_OOM"),),
                    "fault_without_huge_pages", ("outcome",)),
            Variant("R2b", "a huge copy without a huge page is out of memory, although small ones are there",
                    (Replace("do_huge_pmd_wp_page", "return wp_huge_no_page(...)", "if page:\n    put_page(cpu, page)\n"
                             "return VM_FAULT_OOM"),), "cow_without_huge_pages", ("outcome",), ("2 mms",)),
            Variant("R2c", "a write to the huge zero page without a huge page falls back and does not split: the fault comes"
                    " for ever", (Delete("wp_huge_no_page", "split_huge_pmd(...) in if not page"),),
                    "zero_without_huge_pages", ("livelock", "bug: fault loop")),
            Variant("R2d", "after a failed copy into small pages the huge pmd is not split: the fault comes for ever",
                    (Delete("wp_huge_no_page", "split_huge_pmd(...) in if result & VM_FAULT_OOM"),),
                    "cow_without_pages", ("livelock", "bug: fault loop"), ("2 mms",)),
        ),
    ),
    Rule(
        "R3", "When huge pages become free later, khugepaged moves small pages onto them by itself.",
        f"{PRINCIPLES}, third point", "3.28",
        (At("__khugepaged_enter", "_list_add_tail(mm)"), At("khugepaged_fork", "return ..."),
         At("khugepaged_scan_mm_slot", "khugepaged_scan.address = 0 #2"),
         At("khugepaged_scan_vma", "khugepaged_scan.address = khugepaged_scan.address + HPAGE_PMD_SIZE")),
        ("Q14",),
        (
            Variant("R3a", "a registered mm is not put on khugepaged's list",
                    (Delete("__khugepaged_enter", "_list_add_tail(mm)"),),
                    "scan_collapses", ("Q14", "outcome", "crash")),
            Variant("R3b", "a forked child is not registered", (Replace("khugepaged_fork", "return ...", "return 0"),),
                    "scan_collapses", ("outcome",)),
            Variant("R3c", "the cursor stays where the last mm ended: lower addresses of the next are passed over",
                    (Delete("khugepaged_scan_mm_slot", "khugepaged_scan.address = 0 #1"),
                     Delete("khugepaged_scan_mm_slot", "khugepaged_scan.address = 0")),
                    "scan_collapses", ("outcome",)),
        ),
    ),
    Rule(
        "R4", "Nothing is reserved. kernelcore= only keeps unmovable memory out of a part of it.",
        f"{PRINCIPLES}, last point", "3.34", (At("highest_zone", "return ..."),), ("outcome",),
        (
            Variant("R4a", "page tables and other kernel pages are taken from ZONE_MOVABLE",
                    (Replace("highest_zone", "return ...", "return alloc_settings.movable_zone"),),
                    "kernelcore", ("outcome",)),
        ),
    ),
    Rule(
        "R13", "mremap becomes correct for huge pages by one added line: split the pmd that was found.",
        f"{FALLBACK}, the example", "3.25",
        (At("move_whole_pmd", "split_huge_pmd(...)"), At("move_huge_pmd",
                                                         "if (old_addr | new_addr) & ~HPAGE_PMD_MASK != 0 or ..."),
         At("move_huge_pmd", "if new_pmd.val.load() != 0")),
        ("I8", "Q19"),
        (
            Variant("R13a", "a huge pmd moves to an address that is not aligned for one",
                    (Force("move_huge_pmd", "if (old_addr | new_addr) & ~HPAGE_PMD_MASK != 0 or ...", False),),
                    "mremap_misaligned", ("Q19", "outcome", "I8", "bug: mremap", "bug: huge pmd reaches out")),
            Variant("R13b", "the huge pmd is not split, and taken for a table: its page's data moves as ptes",
                    (Delete("move_whole_pmd", "split_huge_pmd(...)"),
                     Replace("move_whole_pmd", "return pmd_trans_unstable(old_pmd)", "return 0")),
                    "mremap_misaligned", ("crash", "lockdep", "Q19")),
        ),
    ),
    Rule(
        "R14", "Treating huge pages as huge is worth it for its cost alone: it means the same as splitting them first.",
        "transhuge.rst, Locking in hugepage aware code, first paragraph", "3.20, 3.23, 3.25",
        (At("zap_pmd", "done = zap_huge_pmd(...)"), At("change_pmd", "changed = change_huge_pmd(...)"),
         At("pmd_modify", "return ...")), ("Q4", "Q5", "Q19"),
        (
            Variant("R14a", "a whole huge page is zapped by splitting its pmd first: correct, only slower",
                    (Force("zap_pmd", "if end - addr != HPAGE_PMD_SIZE", True),), "dontneed_vs_dontneed", ("none",)),
            Variant("R14b", "mprotect of a whole huge page forgets that it is dirty, which the way by ptes does not",
                    (Rewrite("pmd_modify", "return ...", "~PROTECTION", "~(PROTECTION | _PAGE_DIRTY)"),),
                    "lazyfree_write_mprotect", ("Q19", "outcome")),
        ),
    ),
)
