"""The vmas of an mm. (Linux: mm/mmap.c, mm/internal.h, kernel/fork.c)

Linux keeps them in a list and a tree; here they are one sorted array of numbers for each mm, in vma_slots: an mm has
tens of vmas, is searched at every fault and changed seldom. `map_count` is the length of the array.
"""

from concur_thp.arch.bug import bug_on, panic_check
from concur_thp.arch.builtins import cpu_relax, smp_rmb
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import sched_yield, spins
from concur_thp.arch.irq import ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PAGE_SHIFT
from concur_thp.mm.flags import VM_GROWSDOWN
from concur_thp.mm.i_mmap import (
    unlink_file_vma,
    vma_interval_tree_first,
    vma_interval_tree_insert,
    vma_interval_tree_insert_after,
    vma_interval_tree_next,
    vma_interval_tree_remove,
    vma_last_pgoff,
)
from concur_thp.mm.mm_types import Mm, Page, Slot, Vma, mem_map, mm_globals, mms, vma_slots, vmas
from concur_thp.mm.page_flags import compound_head, hpage_nr_pages

SPINS = 60

# -- where in a vma ---------------------------------------------------------------------------------------------------


@inline
def vma_pages(vma: Vma):
    return (vma.vm_end - vma.vm_start) >> PAGE_SHIFT


@inline
def linear_page_index(cpu: Cpu, vma: Vma, addr: int):
    """The page offset that `addr` maps. mmap_sem or the rmap locks held."""
    if vma.vm_flags & VM_GROWSDOWN:
        return stack_page_index(cpu, vma, addr)
    return ((addr - vma.vm_start) >> PAGE_SHIFT) + vma.vm_pgoff


@kernel
def stack_page_index(cpu: Cpu, vma: Vma, addr: int):
    """linear_page_index() of a stack: expand_stack() on another CPU may be between its new start and its new pgoff.

    Context: as linear_page_index(), a ptl may be held; not page_table_lock, under which a stack grows.
    Return: the page offset.
    Linux: include/linux/pagemap.h linear_page_index
    Differs: looks again until both belong together. v4.20 may give the page a wrong index; since v6.5 stacks grow under
    mmap_sem write.
    """
    lock = mms[vma.vm_mm].page_table_lock
    tries = 0
    while True:
        if lock.word.load() == 0:
            start = vma.vm_start
            pgoff = vma.vm_pgoff
            smp_rmb()
            # Only ever downwards: if it is still the same, none that began meanwhile had changed either of the two.
            if lock.word.load() == 0 and vma.vm_start == start:
                return ((addr - start) >> PAGE_SHIFT) + pgoff
        ipi_poll(cpu)
        panic_check(cpu)
        tries += 1
        if tries > spins(SPINS):
            sched_yield()
        else:
            cpu_relax()


@inline
def page_to_pgoff(page: Page):
    """The offset of this very subpage in its mapping; only the head has an index (R6)."""
    head = compound_head(page)
    return head.index + mem_map.index(page) - mem_map.index(head)


@inline
def __vma_address(page: Page, vma: Vma):
    """Where the vma would map the page; may be outside of the vma."""
    return vma.vm_start + ((page_to_pgoff(page) - vma.vm_pgoff) << PAGE_SHIFT)


@kernel
def vma_address(cpu: Cpu, page: Page, vma: Vma):
    """The first address in the vma at which it maps (some of) the page.

    Context: an rmap lock that covers the vma.
    Return: the address.
    Linux: mm/internal.h vma_address
    """
    start = __vma_address(page, vma)
    end = start + ((hpage_nr_pages(page) - 1) << PAGE_SHIFT)
    bug_on(cpu, end < vma.vm_start or start >= vma.vm_end, "vma_address: page not in vma (values: pfn, vma)",
           mem_map.index(page), vmas.index(vma))
    return max(start, vma.vm_start)


# -- the vmas of an mm ------------------------------------------------------------------------------------------------


@inline
def vma_slot(mm: Mm, k: int) -> Slot:
    """Room for the number of the k-th vma by address."""
    return vma_slots[mm.id * mm_globals.max_map_count + k]


@inline
def vma_at(mm: Mm, k: int) -> Vma:
    """The k-th vma of an mm by address, NULL if there is none."""
    return vmas[vma_slot(mm, k).value] if k >= 0 and k < mm.map_count else Vma(0)


@inline
def find_vma_index(mm: Mm, addr: int):
    """Which vma is the first that ends above `addr`? map_count if none does. mmap_sem held."""
    base = mm.id * mm_globals.max_map_count
    low = 0
    high = mm.map_count
    while low < high:
        middle = (low + high) >> 1
        if vmas[vma_slots[base + middle].value].vm_end > addr:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def find_vma(mm: Mm, addr: int) -> Vma:
    """The first vma that ends above `addr`.

    Context: mmap_sem held.
    Return: the vma, which may start above `addr` too; NULL if none.
    Linux: mm/mmap.c find_vma
    Differs: no vmacache.
    """
    return vma_at(mm, find_vma_index(mm, addr))


@kernel
def find_vma_intersection(mm: Mm, start: int, end: int) -> Vma:
    """The first vma that has a byte of start .. end-1.

    Context: mmap_sem held.
    Return: the vma, NULL if none.
    Linux: include/linux/mm.h find_vma_intersection
    """
    vma = vma_at(mm, find_vma_index(mm, start))
    if vma and vma.vm_start >= end:
        vma = Vma(0)
    return vma


@inline
def vma_first(mm: Mm) -> Vma:
    """The lowest vma of an mm, NULL if it has none. mmap_sem held. (Linux: mm->mmap)"""
    return vma_at(mm, 0)


@kernel
def vma_next(mm: Mm, vma: Vma) -> Vma:
    """The neighbour above.

    Context: mmap_sem held; the vma is in the mm's array.
    Return: the vma, NULL for the last.
    Linux: vma->vm_next
    """
    return vma_at(mm, find_vma_index(mm, vma.vm_start) + 1)


@kernel
def vma_prev(mm: Mm, vma: Vma) -> Vma:
    """The neighbour below.

    Context: mmap_sem held; the vma is in the mm's array.
    Return: the vma, NULL for the first.
    Linux: vma->vm_prev
    """
    return vma_at(mm, find_vma_index(mm, vma.vm_start) - 1)


@kernel
def vma_link(cpu: Cpu, mm: Mm, vma: Vma):
    """Put a vma into its mm's array; map_count + 1.

    Context: mmap_sem held for write, or nobody else can reach the mm. The caller has checked max_map_count.
    Linux: mm/mmap.c __vma_link
    """
    count = mm.map_count
    bug_on(cpu, count >= mm_globals.max_map_count, "vma_link: too many vmas (value: mm)", mm.id, count)
    base = mm.id * mm_globals.max_map_count
    at = find_vma_index(mm, vma.vm_start)
    for k in range(count, at, -1):
        vma_slots[base + k].value = vma_slots[base + k - 1].value
    vma_slots[base + at].value = vmas.index(vma)
    mm.map_count = count + 1


@kernel
def vma_unlink(cpu: Cpu, mm: Mm, vma: Vma):
    """Take a vma out of its mm's array; map_count - 1.

    Context: mmap_sem held for write, or nobody else can reach the mm.
    Linux: mm/mmap.c __vma_unlink_common
    """
    nr = vmas.index(vma)
    last = mm.map_count - 1
    base = mm.id * mm_globals.max_map_count
    # In the middle of __vma_adjust() the neighbour below may already reach over this vma: then it is found first.
    at = find_vma_index(mm, vma.vm_start)
    while at <= last and vma_slots[base + at].value != nr:
        at += 1
    bug_on(cpu, at > last, "vma_unlink: not a vma of this mm (values: vma, mm)", nr, mm.id)
    for k in range(at, last):
        vma_slots[base + k].value = vma_slots[base + k + 1].value
    mm.map_count = last


@kernel
def vma_unlink_range(cpu: Cpu, mm: Mm, first: int, behind: int):
    """Take the vmas at first .. behind-1 out of the array.

    Context: mmap_sem held for write, or nobody else can reach the mm.
    Linux: mm/mmap.c detach_vmas_to_be_unmapped
    """
    count = mm.map_count
    bug_on(cpu, first < 0 or first > behind or behind > count, "vma_unlink_range: no such vmas (values: first, behind)",
           first, behind)
    base = mm.id * mm_globals.max_map_count
    for k in range(behind, count):
        vma_slots[base + first + k - behind].value = vma_slots[base + k].value
    mm.map_count = count - (behind - first)


__all__ = [
    "find_vma",
    "find_vma_index",
    "find_vma_intersection",
    "linear_page_index",
    "page_to_pgoff",
    "unlink_file_vma",
    "vma_address",
    "vma_at",
    "vma_first",
    "vma_interval_tree_first",
    "vma_interval_tree_insert",
    "vma_interval_tree_insert_after",
    "vma_interval_tree_next",
    "vma_interval_tree_remove",
    "vma_last_pgoff",
    "vma_link",
    "vma_next",
    "vma_pages",
    "vma_prev",
    "vma_unlink",
    "vma_unlink_range",
]
