"""Named places in kernel code where a CPU says where it stands, and where a scheduler may hold it.

Points sit at every lock operation and at the places where a race of Appendix B is decided. When nobody listens a point
is one store and one untaken branch.
"""

from enum import IntEnum, unique


@unique
class Point(IntEnum):
    """Where a CPU is. The comment says what has just happened or is about to."""

    NONE = 0
    USER = 1  # outside the kernel
    SPIN_LOCK = 2  # about to take a spinlock
    SPIN_UNLOCK = 3  # just released a spinlock; to checks: about to be released
    DOWN_READ = 4  # about to take a rwsem for reading
    UP_READ = 5  # just released; to checks: about to be released
    DOWN_WRITE = 6
    UP_WRITE = 7
    LOCK_PAGE = 8  # about to take a page lock
    UNLOCK_PAGE = 9
    FAULT_ENTRY = 20  # handle_mm_fault: the pmd has not been read yet
    HUGE_FAULT_CLEARED = 21  # the huge page is ready, pmd ptl not yet taken
    HUGE_FAULT_LOCKED = 22  # pmd ptl held, pmd about to be tested
    PTE_FAULT_ALLOCATED = 23  # a small page is ready, ptl not yet taken
    PTE_FAULT_LOCKED = 24
    WP_HUGE_COPIED = 25  # huge COW: copy made, pmd ptl not yet retaken
    WP_HUGE_FLUSHED = 26  # huge COW: old entry cleared and flushed, new one not yet set
    WP_PTE_COPIED = 27
    WP_PTE_FLUSHED = 28
    REUSE_TEST = 29  # page lock held, mapcounts about to be summed
    SPLIT_PMD_ENTRY = 30  # __split_huge_pmd: before the pmd ptl
    SPLIT_PMD_INVALIDATED = 31  # present bit off and flushed, ptes not yet written
    SPLIT_PMD_REFS = 32  # references and mapcounts moved, table not yet visible
    SPLIT_PMD_POPULATED = 33
    ZAP_PMD_LOOKED = 40  # zap_pmd_range: pmd was read without the lock
    ZAP_HUGE_CLEARED = 41  # zap_huge_pmd: pmd taken down, ptl still held
    ZAP_PTE_CLEARED = 42
    ZAP_FLUSHED = 43  # tlb_finish_mmu: flushed, pages not yet put
    FORK_VMA_LINKED = 50  # child vma in the rmap trees, no entry copied yet
    FORK_PMD_LOCKED = 51  # both pmd ptls held
    FORK_BEFORE_FLUSH = 52  # everything copied, parent's TLBs not yet flushed
    MREMAP_CLEARED = 60  # source entry taken down, destination not yet set
    MREMAP_SET = 61  # destination set, not yet flushed
    MPROTECT_INVALIDATED = 62
    MADV_FREE_LOCKED = 63
    MUNMAP_UNLINKED = 64  # vmas out of the tree, nothing zapped yet
    COLLAPSE_UNLOCKED = 70  # mmap_sem released, allocating
    COLLAPSE_WRITE = 71  # mmap_sem held for write, revalidated
    COLLAPSE_ANON_VMA = 72
    COLLAPSE_FLUSHED = 73  # pmd none and flushed, ptes not yet looked at
    COLLAPSE_ISOLATED = 74  # all source pages locked and isolated
    COLLAPSE_COPIED = 75
    COLLAPSE_DONE = 76
    SCAN_PMD = 77  # khugepaged_scan_pmd: mmap_sem read held
    EXIT_MMAP = 80  # mm_users is 0, nothing unmapped yet
    KHUGEPAGED_EXIT = 81
    ANON_VMA_PREPARE = 82
    TLB_FLUSH = 90  # entry changed, request not yet sent
    TLB_FLUSHED = 91  # all acks seen
    PUT_PAGE_ZERO = 92  # the last reference is gone, page not yet freed
    HUGE_ZERO_GET = 93
    DEFERRED_SPLIT_QUEUE = 94
    SPLIT_PAGE_LOCKED = 100  # split_huge_page: anon_vma held for write, nothing unmapped yet
    SPLIT_PAGE_UNMAPPED = 101  # migration entries everywhere, not yet frozen
    SPLIT_PAGE_FROZEN = 102  # no references, still a compound page; irqs off
    SPLIT_PAGE_SPLIT = 103  # N small pages, migration entries not yet replaced
    SPLIT_PAGE_REMAPPED = 104  # mapped again, the pieces still locked
    MIGRATION_ENTRY_WAIT = 105  # a reference taken, the ptl released, about to wait for the page lock
    DEFERRED_SCAN_PINNED = 106  # pages pinned on the private list, split_queue_lock released
    GUP_FAST_READ = 107  # irqs off: entry read, no reference yet
    GUP_FAST_GOT = 108  # irqs off: reference taken, entry not yet looked at again
    FOLLOW_PAGE = 109  # follow_page: the pmd has not been read yet
    SWAP_CACHE_ADDED = 110  # in the swap cache, its ptes still there
    SWAP_CACHE_DELETED = 111  # out of the swap cache, its slots not yet given up
    SWAP_WRITEBACK = 112  # page unlocked, PG_writeback set, the device not yet asked
    SWAP_READ = 113  # in the swap cache and locked, contents not yet there
    SWAPIN_LOCKED = 114  # do_swap_page: page lock held, pte ptl not yet taken
    RECLAIM_ISOLATED = 115  # shrink_inactive_list: pages off the LRU, none looked at
    RECLAIM_UNMAPPED = 116  # nothing maps the page any more, TLBs not yet flushed
    RECLAIM_FROZEN = 117  # references frozen, about to leave its mapping
    LRU_PUTBACK = 118  # move_pages_to_lru: PG_lru set, PG_mlocked not yet looked at; irqs off
    RECLAIM_CLEAN = 119  # unmapped, seen clean, about to be taken out of its cache
    MIGRATE_UNMAPPED = 120  # migration entries in place of every mapping, references not yet looked at
    MIGRATE_FROZEN = 121  # a cached page: references frozen, its slots not yet replaced; irqs off
    MIGRATE_MOVED = 122  # moved, or found to be in use; the entries still stand
    MIGRATE_REMAPPED = 123  # mapped again, both pages still locked
    COMPACT_ISOLATED = 124  # pages taken off the LRU by the migrate scanner
    MIGRATE_PFN_HEAD = 125  # migrate_pfn: the frame's head has been read, no reference yet
    MEMORY_FAILURE_UNMAPPED = 126  # a broken page is mapped nowhere any more, still locked
    GUP_PINNED = 130  # get_user_pages: a page is pinned and about to be handed out
    PAGE_FROZEN = 131  # page_ref_freeze() has just succeeded
    PAGE_THAW = 132  # frozen references about to be given back; of a split the tail is one no more
    HUGE_PMD_SET = 133  # a huge pmd was just written; its ptl held
    TABLE_SEEN = 134  # mmap_sem held, a pmd was found to be a table and is about to be used
    ANON_RMAP_MOVED = 135  # reuse: the page is about to get this vma's own anon_vma
    LRU_ISOLATED = 136  # off the LRU, with a reference; whoever isolates
    RECLAIM_UNFLUSHED = 138  # a batch is unmapped and out of its caches, TLBs not yet flushed
    EXIT_MMAP_DONE = 137  # exit_mmap: no table left
    HUNG = 127  # set by nobody: the watcher's word for "did not move"
