"""The structs of the memory manager. (Linux: include/linux/mm_types.h, mmzone.h, rmap.h, fs.h)

References between structs are numbers: a pfn, or an index into the struct's array; 0 means none for structs (index 0 is
never handed out) and NIL for pfns.
"""

from concur_thp.arch.shared import SharedArray, SharedOne
from concur_thp.arch.struct import I8, I16, I32, I64, Struct, atomic, embed, field
from concur_thp.config import FRAME_WORDS, NR_CPUS, TABLE_WORDS
from concur_thp.sync.rwsem_queue import RwSem
from concur_thp.sync.spinlock import SpinLock

NIL = -1
"""No page, as a pfn in a list."""
PAGE_MAPPING_ANON = 1
"""Low bit of `mapping`: the rest is an anon_vma, else an address_space; both shifted left by MAPPING_SHIFT."""
MAPPING_SHIFT = 2
TAIL_MAPPING = -0x400
"""Poison in a tail's `mapping` (Linux: POISON_POINTER_DELTA + 0x400)."""
PAGE_TYPE_NONE = 0
PAGE_TYPE_BUDDY = 1
PAGE_TYPE_TABLE = 2
PAGE_TYPE_RESERVED = 3
PAGE_TYPE_PCP = 4

MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES, NR_MM_COUNTERS = 0, 1, 2, 3, 4


class Page(Struct, size=64):
    """struct page: one cache line for each frame. Overlays are Linux's unions; the row says which page has which."""

    flags = atomic(I64, "PG_* bits; PG_locked is itself the page lock, so the word must be the first")
    _refcount = atomic(I32, "0 = free, or frozen by page_ref_freeze(); tails stay 0")
    _mapcount = atomic(I32, "starts at -1; +1 for each pte that maps it, +1 more while PG_double_map (anon)")
    mapping = field(I64, "page_lock|racy", "head or small page: anon_vma | 1 or address_space; TAIL_MAPPING in a tail")
    index = field(I64, "page_lock|racy", "head or small page: offset in the mapping, in pages")
    private = field(I64, "page_lock|racy", "swap entry while in the swap cache; order while PageBuddy")
    lru_next = field(I32, "owner", "LRU, free, pcp or private list: next pfn, or NIL")
    lru_prev = field(I32, "owner", "the same list: previous pfn, or NIL")
    compound_head = field(I32, "init|racy", "tail: pfn of the head << 1 | 1; else 0. Unlocked readers look again")
    page_type = field(I8, "zone_lock|racy", "PAGE_TYPE_*: what a page is that nobody maps")
    _free_type = field(I8, "owner", "free or pcp page: the migratetype of the list it is on")
    lock_owner = field(I16, "page_lock|racy", "CPU + 1 that holds PG_locked, for reports")
    free_cpu = field(I16, "zone_lock", "free block: whose lists it is on: the CPU that freed it, + 1, or 0 (boot)")
    compound_mapcount = atomic(I32, "in tail 1: pmds that map the page, -1 for none", overlay="lru_next")
    compound_order = field(I32, "init|racy", "in tail 1: the order, and with it the THP destructor", overlay="lru_prev")
    deferred_next = field(I64, "split_queue_lock|racy", "in tail 2: 0 when on no list, else 1 << 32 | next head's pfn + 1",
                          overlay="mapping")
    deferred_prev = field(I64, "split_queue_lock", "in tail 2: the same with the previous head", overlay="index")
    ptl = embed(SpinLock, "PMD or PTE table page: its page table lock", overlay="mapping")
    pmd_huge_pte = field(I32, "pmd_ptl", "PMD table page: first deposited table (pfn), or NIL", overlay="index")
    pt_mm = field(I32, "init", "table page: the mm it belongs to", overlay="private")
    pt_level = field(I32, "init", "table page: 1 PTE table, 2 PMD table, 3 PUD table, 4 PGD", overlay="lru_prev")


class Frame(Struct, size=64):
    """The contents of a frame: FRAME_WORDS words stand for 4 KiB."""

    word = atomic(I64, "the bytes", count=FRAME_WORDS)


class Entry(Struct, size=8, align=8):
    """One page table entry, of any level (pte_t, pmd_t, ...). See mm/pgtable.py for its bits."""

    val = atomic(I64, "the entry")


class Mm(Struct, align=64):
    """struct mm_struct: an address space."""

    free_next = field(I32, "const", "free list of the pool")
    id = field(I32, "init", "its index, which is also its TLB context")
    mm_users = atomic(I32, "tasks that run in it, and temporary users")
    mm_count = atomic(I32, "references to the struct; all mm_users together hold one")
    mmap_sem = embed(RwSem, "guards the vmas")
    page_table_lock = embed(SpinLock, "guards upper tables and the publication of vma.anon_vma")
    pgd = field(I32, "init", "pfn of the top table")
    map_count = field(I32, "mmap_sem", "vmas; their numbers stand sorted in vma_slots")
    rss = atomic(I64, "pages by MM_* kind", count=NR_MM_COUNTERS)
    nr_ptes = atomic(I64, "PTE tables, linked and deposited")
    nr_pmds = atomic(I64, "PMD tables")
    flags = atomic(I64, "MMF_* bits")
    tlb_flush_pending = atomic(I32, "mmu_gathers and protection changes under way")
    tlb_flush_batched = atomic(I32, "reclaim left an unflushed unmap")
    locked_vm = field(I64, "mmap_sem", "pages of VM_LOCKED vmas")
    start_brk = field(I64, "mmap_sem", "start of the heap")
    brk = field(I64, "mmap_sem", "end of the heap")
    mmap_base = field(I64, "mmap_sem", "where unfixed mappings are looked for, downwards")
    slot_next = field(I32, "khugepaged_mm_lock", "next mm on khugepaged's list, or 0")
    slot_prev = field(I32, "khugepaged_mm_lock", "previous, or 0")
    oracle = field(I32, "init", "row of the data oracle's model, 0 when it has none")
    faults = atomic(I64, "page faults taken in this mm")


class Vma(Struct, align=64):
    """struct vm_area_struct. Everything changes under mmap_sem for write; start, end and pgoff also need the rmap locks."""

    free_next = field(I32, "const", "free list of the pool")
    vm_mm = field(I32, "init", "the mm it belongs to")
    vm_start = field(I64, "mmap_sem+anon_vma_rwsem?+i_mmap_rwsem?", "first byte")
    vm_end = field(I64, "mmap_sem+anon_vma_rwsem?+i_mmap_rwsem?", "first byte behind")
    vm_pgoff = field(I64, "mmap_sem+anon_vma_rwsem?+i_mmap_rwsem?", "offset in the file, or vm_start >> PAGE_SHIFT at birth")
    vm_flags = field(I64, "mmap_sem|racy", "VM_* bits")
    vm_file = field(I32, "init", "address_space it maps, or 0")
    anon_vma = field(I32, "page_table_lock|racy", "its anon_vma, published once")
    avc_head = field(I32, "mmap_sem+page_table_lock?", "newest anon_vma_chain of this vma, or 0")
    shared_next = field(I32, "i_mmap_rwsem", "next vma of the file by pgoff, or 0")
    shared_prev = field(I32, "i_mmap_rwsem", "previous, or 0")


class AnonVma(Struct, size=128):
    """struct anon_vma: the vmas an anonymous page may be mapped in."""

    free_next = field(I32, "const", "free list of the pool")
    root = field(I32, "init", "the anon_vma whose rwsem covers this one")
    rwsem = embed(RwSem, "used in the root only")
    refcount = atomic(I32, "roots: 1 + anon_vmas below; others 1; plus walkers. 0 when free: the struct stays readable")
    degree = field(I32, "anon_vma_rwsem", "vmas whose anon_vma it is + children + 1 if it is a root")
    parent = field(I32, "init", "the parent's, itself for a root")
    rb_root = field(I32, "anon_vma_rwsem", "first anon_vma_chain by pgoff, or 0; equal keys in order of insertion")


class AnonVmaChain(Struct, size=64):
    """struct anon_vma_chain: one vma in one anon_vma."""

    free_next = field(I32, "const", "free list of the pool")
    vma = field(I32, "init", "the vma")
    anon_vma = field(I32, "init", "the anon_vma")
    same_vma = field(I32, "mmap_sem+page_table_lock?", "next older chain of the vma, or 0")
    rb_next = field(I32, "anon_vma_rwsem", "next chain of the anon_vma, or 0")
    rb_prev = field(I32, "anon_vma_rwsem", "previous, or 0")


class AddressSpace(Struct, size=128):
    """struct address_space: a file's page cache. Its slots are in cache_slots."""

    free_next = field(I32, "const", "free list of the pool")
    i_pages = embed(SpinLock, "guards the slots")
    i_mmap_rwsem = embed(RwSem, "guards the list of vmas")
    i_mmap = field(I32, "i_mmap_rwsem", "first vma by pgoff, or 0; equal keys in order of insertion")
    nrpages = field(I64, "i_pages|racy", "filled slots")
    size = field(I64, "init", "length of the file, in pages")
    id = field(I64, "init", "number that its contents are made from")


class Slot(Struct, size=4, align=4):
    """One 32-bit number of an index array."""

    value = field(I32, "owner", "the number")


class CacheSlot(Struct, size=4, align=4):
    """A place of a page cache."""

    value = field(I32, "i_pages|racy", "pfn of the page + 1, 0 for none. Lockless readers take a reference and look again")


NR_ZONES = 3
MIGRATE_UNMOVABLE, MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE, MIGRATE_TYPES = 0, 1, 2, 3
NR_ORDERS = 12


NR_FREE_LISTS = NR_CPUS + 1


class FreeArea(Struct, size=32):
    """Free blocks of one order in one zone, as far as one CPU has freed them (0: as boot left them)."""

    head = field(I32, "zone_lock|racy", "first block (pfn) of each migratetype, or NIL", count=MIGRATE_TYPES)
    nr_free = field(I64, "zone_lock|racy", "blocks, of all types")


class Zone(Struct, align=64):
    """struct zone. What every CPU only reads is apart from what the lock's holder writes."""

    start_pfn = field(I64, "const", "first frame")
    end_pfn = field(I64, "const", "first frame behind")
    watermark = field(I64, "const", "min, low, high: pages", count=3)
    lock = embed(SpinLock, "guards free_areas and pageblock types", apart=True)
    nr_free_pages = field(I64, "zone_lock|racy", "free pages in the buddy lists")
    holders = field(I64, "zone_lock|racy", "for each migratetype, a bit for each list number that may have blocks of it",
                    count=MIGRATE_TYPES)


NR_LRU_LISTS = 5
PAGEVEC_SIZE = 15
NR_PAGEVECS = 5


class LruList(Struct, size=16):
    """One LRU list, newest page first."""

    head = field(I32, "lru_lock", "newest page (pfn), or NIL")
    tail = field(I32, "lru_lock", "oldest page (pfn), or NIL")
    size = field(I64, "lru_lock|racy", "pages, a huge one counts as HPAGE_PMD_NR")


class Pgdat(Struct, size=512):
    """struct pglist_data: the one node there is. Each lock has its cache lines, with what it guards."""

    huge_zero_page = atomic(I32, "pfn of the huge zero page, or NIL")
    zero_pfn = field(I32, "const", "pfn of the small zero page")
    nr_zones = field(I32, "const", "zones in use")
    lru_lock = embed(SpinLock, "guards the LRU lists", apart=True)
    lru = embed(LruList, "by LRU_* kind", count=NR_LRU_LISTS)
    split_queue_lock = embed(SpinLock, "guards the deferred split list", apart=True)
    split_queue_head = field(I32, "split_queue_lock", "first THP (pfn of the head), or NIL")
    split_queue_tail = field(I32, "split_queue_lock", "last, or NIL")
    split_queue_len = field(I64, "split_queue_lock|racy", "THPs queued")
    isolated = atomic(I64, "pages taken off the LRU by someone who works on them", apart=True)
    huge_zero_refcount = atomic(I32, "0 none; else 1 for the shrinker + mms that hold a reference")


class PcpList(Struct, size=8):
    """One per-CPU list of free order-0 pages."""

    head = field(I32, "cpu", "first page (pfn), or NIL")
    count = field(I32, "cpu", "pages on it")


class Pagevec(Struct, size=64):
    """A small batch of pages on their way to an LRU list; each holds a reference."""

    nr = field(I32, "cpu", "pages in it")
    pages = field(I32, "cpu", "their pfns", count=PAGEVEC_SIZE)


class PerCpu(Struct, align=64):
    """What the memory manager keeps for each CPU."""

    pcp = embed(PcpList, "by zone * MIGRATE_TYPES + type", count=NR_ZONES * MIGRATE_TYPES)
    pagevec = embed(Pagevec, "by PVEC_* kind", count=NR_PAGEVECS)
    mm = field(I32, "cpu", "the mm it runs in, 0 for none")


class Pool(Struct, size=64):
    """The free list of one kind of struct: a stack without locks."""

    top = atomic(I64, "change count << 32 | index of the first free one, 0 for none")
    in_use = atomic(I64, "structs handed out")
    limit = field(I64, "const", "structs there are")


mem_map = SharedArray("mem_map", Page, lambda c: c.frames)
frames = SharedArray("frames", Frame, lambda c: c.frames)
tables = SharedArray("tables", Entry, lambda c: c.frames, lambda: 8 * int(TABLE_WORDS))
"""The entries of each table page, by pfn; what was never a table is never resident."""
zones = SharedArray("zones", Zone, lambda c: NR_ZONES)
free_areas = SharedArray("free_areas", FreeArea, lambda c: NR_ZONES * NR_FREE_LISTS * NR_ORDERS)
"""struct zone's free_area, by zone, list number and order: what one CPU's lists are made of is in lines of its own."""
pageblock_types = SharedArray("pageblock_types", Slot, lambda c: (c.frames >> c.order) + 1)
percpu = SharedArray("percpu", PerCpu, lambda c: NR_CPUS)
mms = SharedArray("mms", Mm, lambda c: c.mms + 1)
vmas = SharedArray("vmas", Vma, lambda c: c.vmas + 1)
anon_vmas = SharedArray("anon_vmas", AnonVma, lambda c: c.vmas + 1)
avcs = SharedArray("avcs", AnonVmaChain, lambda c: 2 * c.vmas + 1)
files = SharedArray("files", AddressSpace, lambda c: c.files + 1)
vma_slots = SharedArray("vma_slots", Slot, lambda c: (c.mms + 1) * c.max_map_count)
cache_slots = SharedArray("cache_slots", CacheSlot, lambda c: (c.files + 1) * c.file_pages)
pools = SharedArray("pools", Pool, lambda c: 8)
pgdat = SharedOne("pgdat", Pgdat)

POOL_MM, POOL_VMA, POOL_ANON_VMA, POOL_AVC, POOL_FILE = 0, 1, 2, 3, 4


class MmGlobals(Struct, size=128):
    """Sizes that kernel code needs and that are not a matter of the geometry."""

    nr_frames = field(I64, "const", "frames of emulated memory")
    max_map_count = field(I64, "const", "most vmas of one mm")
    file_pages = field(I64, "const", "most pages of one file")
    nr_mms = field(I64, "const", "most mms")


mm_globals = SharedOne("mm_globals", MmGlobals)
