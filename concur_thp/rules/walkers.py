"""R11, R15-R20: how page tables are walked, and what keeps khugepaged out. (transhuge.rst: Locking in hugepage aware code)"""

from concur_thp.rules.edit import Delete, Force, Insert, Move, Replace
from concur_thp.rules.rule import At, Rule, Variant

LOCKING = "transhuge.rst, Locking in hugepage aware code"

RULES = (
    Rule(
        "R11", "Code that does not know huge pages calls split_huge_pmd(vma, pmd, addr) once it has the pmd.",
        "transhuge.rst, Graceful fallback, first paragraph", "3.1, 3.25",
        (At("change_pmd", "__split_huge_pmd(...)"), At("move_whole_pmd", "split_huge_pmd(...)"),
         At("wp_huge_pmd", "split_huge_pmd(...)")), ("Q19", "outcome"),
        (
            Variant("R11a", "mremap of a part does not split the pmd: nothing moves, and the old place is unmapped",
                    (Delete("move_whole_pmd", "split_huge_pmd(...)"),), "mremap_part", ("Q19", "outcome")),
            Variant("R11b", "mprotect of a part does not split the pmd: the split of the vma has done so already",
                    (Delete("change_pmd", "__split_huge_pmd(...)"),), "mprotect_part", ("none",)),
        ),
    ),
    Rule(
        "R15", "Whoever walks page tables holds mmap_sem, for reading at least: under it khugepaged cannot make a huge pmd of a"
        " table.", f"{LOCKING}, 'You must hold the mmap_sem'", "3.1, 3.28.3 step 4",
        (At("collapse_into", "down_write(...)"), At("do_user_addr_fault", "down_read(...)"),
         At("do_madvise", "down_read(...)")),
        ("I9", "I22", "Q19"),
        (
            Variant("R15a", "khugepaged collapses with mmap_sem held for reading",
                    (Replace("collapse_into", "down_write(...)", "down_read(cpu, mm.mmap_sem)"),
                     Replace("collapse_into", "up_write(...)", "up_read(cpu, mm.mmap_sem)")),
                    "fault_vs_collapse", ("Q19", "Q5", "Q8", "bug: collapse", "bug: page_vma_mapped_walk", "crash")),
            Variant("R15b", "a page fault walks the tables without mmap_sem",
                    (Delete("do_user_addr_fault", "down_read(...)"), Delete("do_user_addr_fault", "up_read(...)")),
                    "fault_vs_collapse", ("lockdep", "Q19", "Q5", "crash")),
            Variant("R15c", "DONTNEED walks the tables without mmap_sem",
                    (Delete("do_madvise", "down_read(...)"), Delete("do_madvise", "up_read(...)"),
                     Delete("zap_page_range", "assert_held(...)")), "collapse_vs_dontneed",
                    ("Q19", "Q5", "Q8", "Q9", "bug: collapse", "crash")),
        ),
    ),
    Rule(
        "R16", "Collapse holds mmap_sem for writing, and the anon_vma lock too: rmap walkers have no mmap_sem.",
        f"{LOCKING}, 'in addition to the anon_vma lock'", "3.28.3 steps 4, 5 and 8",
        (At("collapse_pmd", "anon_vma_lock_write(...)"), At("collapse_pmd", "anon_vma_unlock_write(...) #2")),
        ("I22", "Q5", "Q6"),
        (
            Variant("R16a", "collapse does not take the anon_vma lock: reclaim, migration and split walk into the detached"
                            " table",
                    (Delete("collapse_pmd", "anon_vma_lock_write(...)"),
                     Delete("collapse_pmd", "anon_vma_unlock_write(...) #2"),
                     Delete("collapse_pmd", "anon_vma_unlock_write(...)")),
                    "collapse_vs_migrate", ("Q5", "Q6", "Q7", "Q9", "bug: collapse", "bug: page_vma_mapped_walk", "crash")),
            Variant("R16b", "collapse drops the anon_vma lock as soon as the pmd is none, before the pages are locked",
                    (Delete("collapse_pmd", "anon_vma_unlock_write(...) #2"),
                     Delete("collapse_pmd", "anon_vma_unlock_write(...)"),
                     Insert("collapse_pmd", "anon_vma_unlock_write(cpu, anon_vma)", after="spin_unlock(cpu, pmd_ptl)")),
                    "collapse_vs_migrate", ("Q5", "Q6", "Q7", "Q19", "bug: collapse", "bug: page_vma_mapped_walk", "crash")),
        ),
    ),
    Rule(
        "R17", "pmd_trans_huge() says no: the old code path, with the ptes, is the right one.",
        f"{LOCKING}, 'you just fallback in the old code paths'", "3.1.4",
        (At("zap_pmd", "zap_pte_range(...)"), At("change_pmd", "return change_pte_range(...)"),
         At("follow_page_mask", "page = follow_page_pte(...)"), At("madvise_free_pmd", "madvise_free_pte_range(...)")),
        ("Q19", "outcome"),
        (
            Variant("R17a", "DONTNEED passes over what ptes map", (Delete("zap_pmd", "zap_pte_range(...)"),),
                    "partial_dontneed", ("Q19", "outcome", "Q9", "bug: __mmdrop")),
            Variant("R17b", "mprotect passes over what ptes map",
                    (Replace("change_pmd", "return change_pte_range(...)", "return 0"),), "mprotect_part", ("outcome", "I8")),
            Variant("R17c", "follow_page finds nothing where ptes map",
                    (Replace("follow_page_mask", "page = follow_page_pte(...)", "page = 0"),),
                    "pin_after_split_pmd", ("outcome", "livelock")),
        ),
    ),
    Rule(
        "R18", "pmd_trans_huge() says yes: take the page table lock and ask again, for split_huge_pmd runs beside the walk.",
        f"{LOCKING}, 're-run pmd_trans_huge'", "3.1.3",
        (At("__pmd_trans_huge_lock", "if pmd_huge_or_swap(...)"), At("follow_huge_pmd", "if not pmd_trans_huge(pmdval)"),
         At("copy_huge_pmd", "if not pmd_trans_huge(pmd)"), At("huge_pmd_set_accessed",
                                                               "if pmd.val.load() == orig_pmd and ...")),
        ("I2", "I6"),
        (
            Variant("R18a", "the lock is taken, but nobody asks again",
                    (Force("__pmd_trans_huge_lock", "if pmd_huge_or_swap(...)", True),),
                    "dontneed_vs_split_pmd", ("I2", "I6", "Q5", "Q9", "bug: page_remove_rmap", "bug: withdraw", "crash")),
            Variant("R18b", "follow_page does not ask again: DONTNEED or a split was faster",
                    (Delete("follow_huge_pmd", "if pmd_none(pmdval)"),
                     Delete("follow_huge_pmd", "if not pmd_trans_huge(pmdval)")),
                    "pin_vs_dontneed", ("bug: huge pmd of a page that is no head", "outcome", "Q4", "crash")),
            Variant("R18c", "fork does not ask again: split_huge_page was faster, and needs no mmap_sem",
                    (Force("copy_huge_pmd", "if not pmd_trans_huge(pmd)", False),),
                    "split_vs_fork", ("bug: huge pmd of a page that is no head", "Q4", "Q5", "crash"), ("2 mms",)),
            Variant("R18d", "neither lock nor second look: the caller works on a pmd that others change",
                    (Delete("__pmd_trans_huge_lock", "spin_lock(...)"),), "dontneed_vs_split_pmd", ("lockdep",)),
        ),
    ),
    Rule(
        "R19", "The second pmd_trans_huge() says no: drop the lock, and go the old way.",
        f"{LOCKING}, 'drop the page table lock and fallback'", "3.1.3, 3.20",
        (At("zap_huge_pmd", "return 0"), At("change_huge_pmd", "return 0"), At("move_huge_pmd", "return 0 #3"),
         At("__pmd_trans_huge_lock", "spin_unlock(...)")), ("Q19", "Q9"),
        (
            Variant("R19a", "a zap that finds the pmd split meanwhile thinks that it is done: the ptes stay",
                    (Replace("zap_huge_pmd", "return 0", "return 1"),), "dontneed_vs_split_pmd", ("Q19", "outcome")),
            Variant("R19b", "mprotect that finds the pmd split meanwhile thinks that it is done",
                    (Replace("change_huge_pmd", "return 0", "return 1"),), "reclaim_vs_mprotect", ("outcome", "I8")),
            Variant("R19c", "mremap that finds the pmd split meanwhile thinks that it is moved",
                    (Replace("move_huge_pmd", "return 0 #3", "return 1"),), "mremap_huge_vs_split", ("Q19", "outcome")),
            Variant("R19d", "the lock is not dropped", (Delete("__pmd_trans_huge_lock", "spin_unlock(...)"),),
                    "dontneed_vs_split_pmd", ("lockdep", "deadlock", "Q18")),
        ),
    ),
    Rule(
        "R20", "The second pmd_trans_huge() says yes: all the work is done before the lock is dropped.",
        f"{LOCKING}, 'Once finished you can drop the page table lock'", "3.13, 3.20, 3.23",
        (At("zap_huge_pmd", "spin_unlock(cpu, ptl) #2"), At("change_huge_pmd", "spin_unlock(cpu, ptl)"),
         At("huge_pmd_set_accessed", "spin_unlock(cpu, ptl)")), ("I5", "I6"),
        (
            Variant("R20a", "a zap takes the pmd down and drops the lock before it has counted",
                    (Move("zap_huge_pmd", "spin_unlock(cpu, ptl) #2", after="mapped = pmd_present(old)"),),
                    "dontneed_vs_huge_fault", ("lockdep", "I5", "Q8")),
            Variant("R20b", "a fault drops the lock between its look at the pmd and the store of the new value",
                    (Move("huge_pmd_set_accessed", "spin_unlock(cpu, ptl)", before="if pmd.val.load() == orig_pmd and ..."),),
                    "late_fault_vs_dontneed", ("I6", "Q4", "Q8", "Q9", "Q19", "crash")),
            Variant("R20c", "mprotect drops the lock before it writes the new entry",
                    (Move("change_huge_pmd", "spin_unlock(cpu, ptl)", before="set_entry(pmd, entry)"),),
                    "split_vs_mprotect", ("I6", "Q5", "Q8", "lockdep", "crash")),
        ),
    ),
)

