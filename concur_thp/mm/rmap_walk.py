"""From a page to every vma that may map it. (Linux: mm/rmap.c rmap_walk)

    if rmap_walk_lock(cpu, page):                  # or the caller has the rmap lock: split has it for write
        rmap_walk_begin(cpu, page, PVMW_SYNC)
        while rmap_walk_next(cpu):                 # the next vma, in tree order
            while page_vma_mapped_walk(cpu):       # its entries, each with its ptl held
                ...
            if done: break
        rmap_walk_unlock(cpu, page)

Linux hands a function to rmap_walk(); here the caller has the loop. The state is two rows of the CPU: where the walk is
among the vmas (RmapWalk), and where in the vma (Pvmw). A pass over the vmas is complete only in tree order: fork copies
entries from the parent's vma to the child's, which stands behind it, so an entry that we missed in the child as not yet
copied was copied after we had converted the parent's (semantics 3.12).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.config import NR_CPUS, PAGE_SHIFT
from concur_thp.mm.anon_vma_ref import (
    anon_vma_root,
    anon_vma_unlock_read,
    page_lock_anon_vma_read,
)
from concur_thp.mm.anon_vma_tree import anon_vma_first, anon_vma_next
from concur_thp.mm.i_mmap import vma_interval_tree_first, vma_interval_tree_next
from concur_thp.mm.mm_types import MAPPING_SHIFT, Page, Vma, anon_vmas, avcs, files, mem_map, vmas
from concur_thp.mm.page_flags import PageAnon, PageTail, PG_locked, TestFlag, hpage_nr_pages, page_anon_vma_nr, page_to_pfn
from concur_thp.mm.page_vma_mapped import (
    PVMW_MIGRATION,
    PVMW_SYNC,
    page_mapped_in_vma,
    page_vma_mapped_walk,
    page_vma_mapped_walk_done,
    pvmw_address,
    pvmw_init,
    pvmw_pmd,
    pvmw_pte,
    pvmw_vma,
)
from concur_thp.mm.vma_tree import __vma_address
from concur_thp.sync.rwsem import assert_held, down_read, up_read


class RmapWalk(Struct, size=64):
    """struct rmap_walk_control, and the place in the tree that Linux keeps in local variables."""

    page = field(I32, "cpu", "pfn of the page, a head or small page")
    target = field(I32, "cpu", "pfn of the first page whose entries are wanted; not `page` after a migration")
    nr = field(I32, "cpu", "pages from `target` on")
    flags = field(I32, "cpu", "PVMW_* bits for each vma")
    anon_vma = field(I32, "cpu", "the anon_vma walked, 0 when it is a file")
    file = field(I32, "cpu", "the file walked, 0 when it is an anon_vma")
    at = field(I32, "cpu", "the chain (anon) or vma (file) last given out, 0 at the start")
    locked = field(I32, "cpu", "anon_vma that rmap_walk_lock() has locked, and that is walked; 0: the caller has, or a file")
    first = field(I64, "cpu", "the page's first offset in the mapping")
    last = field(I64, "cpu", "its last")


rmap_walks = SharedArray("rmap_walks", RmapWalk, lambda config: NR_CPUS)


@kernel
def rmap_walk_lock(cpu: Cpu, page: Page):
    """Take the rmap lock of a page for reading.

    Context: may sleep. The caller has a reference of the page; of a file page also the page lock.
    Return: 1 when taken; 0 when the page is not mapped, or (file) not in the page cache any more.
    Linux: mm/rmap.c rmap_walk_anon_lock, rmap_walk_file
    """
    walk = rmap_walks[cpu.id]
    if PageAnon(page):
        anon_vma = page_lock_anon_vma_read(cpu, page)
        if not anon_vma:
            return 0
        walk.locked = anon_vmas.index(anon_vma)
        return 1
    bug_on(cpu, not TestFlag(page, PG_locked), "rmap_walk: file page not locked (value: pfn)", page_to_pfn(page), 0)
    file = page.mapping >> MAPPING_SHIFT
    if file == 0:
        return 0
    down_read(cpu, files[file].i_mmap_rwsem)
    walk.locked = 0
    return 1


@kernel
def rmap_walk_unlock(cpu: Cpu, page: Page):
    """Release what rmap_walk_lock() has taken.

    Context: as it.
    Linux: mm/rmap.c rmap_walk_anon, rmap_walk_file
    """
    walk = rmap_walks[cpu.id]
    if walk.locked != 0:
        anon_vma_unlock_read(cpu, anon_vmas[walk.locked])
        walk.locked = 0
    else:
        up_read(cpu, files[page.mapping >> MAPPING_SHIFT].i_mmap_rwsem)


@kernel
def rmap_walk_begin(cpu: Cpu, page: Page, flags: int):
    """Begin to walk the vmas of a page; `flags` are the PVMW_* bits of the walk in each.

    Context: as rmap_walk_begin_range(): the rmap lock held, in any mode; a head or small page. This CPU is in no other walk.
    Linux: mm/rmap.c rmap_walk_locked
    """
    rmap_walk_begin_range(cpu, page, page, hpage_nr_pages(page), flags)


@kernel
def rmap_walk_begin_range(cpu: Cpu, page: Page, target: Page, nr: int, flags: int):
    """Begin to walk the vmas of `nr` pages with successive indices from `page` on, in search of entries that name the
    pages from `target` on.

    Context: as rmap_walk_begin(); `page` tells mapping and index. Page lock held, unless the lock is rmap_walk_lock()'s.
    Linux: mm/migrate.c remove_migration_ptes; mm/rmap.c rmap_walk_anon, its choice of anon_vma
    """
    bug_on(cpu, PageTail(page), "rmap_walk: a tail (value: pfn)", page_to_pfn(page), page.compound_head)
    walk = rmap_walks[cpu.id]
    walk.page = page_to_pfn(page)
    walk.target = page_to_pfn(target)
    walk.nr = nr
    walk.flags = flags
    walk.at = 0
    walk.first = page.index
    walk.last = page.index + nr - 1
    if PageAnon(page):
        # The anon_vma that was locked. Without the page lock `mapping` may since have become that of a child that wrote to
        # the page (still found from here: a child's vma is in its ancestors' anon_vmas too), and when the child is gone,
        # that of nobody, or of a stranger whose rwsem we do not have: the struct is used again.
        walk.anon_vma = walk.locked
        if walk.locked == 0:  # Locked by the caller, who has the page lock too.
            walk.anon_vma = page_anon_vma_nr(page)
        assert_held(cpu, anon_vma_root(anon_vmas[walk.anon_vma]).rwsem)
        walk.file = 0
    else:
        walk.anon_vma = 0
        walk.file = page.mapping >> MAPPING_SHIFT
        if walk.file != 0:
            assert_held(cpu, files[walk.file].i_mmap_rwsem)


@inline
def next_anon(walk: RmapWalk) -> Vma:
    """The next vma of the anon_vma, NULL at the end."""
    if walk.at != 0:
        avc = anon_vma_next(avcs[walk.at], walk.first, walk.last)
    else:
        avc = anon_vma_first(anon_vmas[walk.anon_vma], walk.first, walk.last)
    vma = Vma(0)
    if avc:
        walk.at = avcs.index(avc)
        vma = vmas[avc.vma]
    return vma


@inline
def next_file(walk: RmapWalk) -> Vma:
    """The next vma of the file, NULL at the end."""
    if walk.at != 0:
        vma = vma_interval_tree_next(vmas[walk.at], walk.first, walk.last)
    else:
        vma = vma_interval_tree_first(files[walk.file], walk.first, walk.last)
    if vma:
        walk.at = vmas.index(vma)
    return vma


@kernel
def rmap_walk_next(cpu: Cpu):
    """Go to the next vma that may map the page and prepare page_vma_mapped_walk() for it.

    Context: rmap_walk_begin() was called; the rmap lock still held, no ptl held.
    Return: 1, or 0 after the last.
    Linux: mm/rmap.c rmap_walk_anon, rmap_walk_file: their loops
    """
    walk = rmap_walks[cpu.id]
    vma = Vma(0)
    if walk.anon_vma != 0:
        vma = next_anon(walk)
    elif walk.file != 0:
        vma = next_file(walk)
    if not vma:
        return 0
    start = __vma_address(mem_map[walk.page], vma)
    bug_on(cpu, start >= vma.vm_end or start + (walk.nr << PAGE_SHIFT) <= vma.vm_start,
           "rmap_walk: page not in the vma (values: pfn, vma)", walk.page, vmas.index(vma))
    pvmw_init(cpu, mem_map[walk.target], walk.nr, vma, start, walk.flags)
    return 1


@kernel
def rmap_count(cpu: Cpu, page: Page, flags: int):
    """How many entries does a walk from this page find? Without PVMW_MIGRATION and with nobody else moving, that is
    total_mapcount() (Q6).

    Context: the rmap lock held; a head or small page.
    Return: the count.
    Emulator: for the audit, and for tests of the walk.
    """
    count = 0
    rmap_walk_begin(cpu, page, flags)
    while rmap_walk_next(cpu):
        while page_vma_mapped_walk(cpu):
            count += 1
    return count


__all__ = [
    "PVMW_MIGRATION",
    "PVMW_SYNC",
    "page_mapped_in_vma",
    "page_vma_mapped_walk",
    "page_vma_mapped_walk_done",
    "pvmw_address",
    "pvmw_pmd",
    "pvmw_pte",
    "pvmw_vma",
    "rmap_count",
    "rmap_walk_begin",
    "rmap_walk_begin_range",
    "rmap_walk_lock",
    "rmap_walk_next",
    "rmap_walk_unlock",
]
