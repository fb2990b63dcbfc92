"""get_user_pages, under mmap_sem: from an address to the page behind it, with a reference. (Linux: mm/gup.c)

The page handed out is the very one that was asked for, head or tail (R5). The reference is nothing but a count on the
head (R21): while it is held nobody can split, free, migrate or collapse the page, but its mapping may change in any way
and vanish (R7, R37, K12). Any put_page() on any subpage drops it (R8).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from concur_thp.mm.errno import EFAULT, ENOENT, ENOMEM
from concur_thp.mm.flags import (
    FAULT_FLAG_WRITE,
    FOLL_COW,
    FOLL_FORCE,
    FOLL_GET,
    FOLL_MLOCK,
    FOLL_NUMA,
    FOLL_POPULATE,
    FOLL_TOUCH,
    FOLL_WRITE,
    VM_FAULT_ERROR,
    VM_FAULT_OOM,
    VM_FAULT_WRITE,
    VM_GROWSDOWN,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from concur_thp.mm.follow_page import follow_page_mask
from concur_thp.mm.memory import handle_mm_fault
from concur_thp.mm.mm_types import Mm, Page, Slot, Vma
from concur_thp.mm.mmap import expand_stack
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.mm.put_page import slot_at
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.rwsem import assert_held, down_read, up_read


@kernel
def follow_page(cpu: Cpu, vma: Vma, addr: int, flags: int):
    """The page mapped at an address, as it is now: nothing is faulted in.

    Context: mmap_sem held; sleeps with FOLL_SPLIT and FOLL_MIGRATION.
    Return: the page's address (with a reference if FOLL_GET), 0 for no page, or an error.
    Linux: mm/gup.c follow_page
    """
    return follow_page_mask(cpu, vma, addr & PAGE_MASK, flags)


@kernel
def get_user_pages(cpu: Cpu, mm: Mm, start: int, nr_pages: int, flags: int, pages: Slot):
    """Pin what is mapped from `start` on, faulting in what is not there. `pages` gets the pfns; NULL: only touch them.

    Context: mmap_sem of `mm` held for read. May sleep.
    Return: pages done, which may be fewer than asked for; an error if there was none.
    Linux: mm/gup.c __get_user_pages
    """
    assert_held(cpu, mm.mmap_sem)
    flags = flags | FOLL_TOUCH
    if pages:
        flags = flags | FOLL_GET
    # With FORCE no full fault: hinting faults tell about a task's own use of its memory.
    if flags & FOLL_FORCE == 0:
        flags = flags | FOLL_NUMA
    addr = start & PAGE_MASK
    vma = Vma(0)
    done = 0
    while done < nr_pages:
        if not vma or addr >= vma.vm_end:
            vma = find_extend_vma(cpu, mm, addr)
            if not vma or check_vma_flags(vma, flags) != 0:
                return done if done else -EFAULT
        page = get_user_page(cpu, vma, addr, flags)
        step = cpu.scratch[0] + 1  # What follow_page_mask() left there.
        if page < 0 and page != -ENOENT:
            return done if done else page
        if pages:
            bug_on(cpu, page <= 0, "get_user_pages: no page (values: address, flags)", addr, flags)
            slot_at(pages, done).value = page_to_pfn(Page(page))
        if pages or page == -ENOENT:
            step = 1
        else:
            step -= (addr >> PAGE_SHIFT) & (step - 1)
        done += step
        addr += step * PAGE_SIZE
    return nr_pages


@kernel
def get_user_page(cpu: Cpu, vma: Vma, addr: int, flags: int):
    """The page at one address, by as many faults as it takes.

    Context: as get_user_pages(); rights of the vma checked.
    Return: the page's address, cpu.scratch[0] as follow_page_mask() leaves it; -ENOENT: go on without it; an error.
    Linux: mm/gup.c __get_user_pages, its retry loop
    """
    while True:
        ipi_poll(cpu)
        page = follow_page_mask(cpu, vma, addr, flags)
        if page != 0:
            return page
        # Faulted in, the page may be gone again before we look (DONTNEED, reclaim): then once more.
        flags = faultin_page(cpu, vma, addr, flags)
        if flags < 0:
            return flags


@kernel
def faultin_page(cpu: Cpu, vma: Vma, addr: int, flags: int):
    """Fault in the page at an address for this kind of use.

    Context: mmap_sem read. May sleep.
    Return: the flags to go on with; -ENOENT: not to be faulted in; -EFAULT, -ENOMEM.
    Linux: mm/gup.c faultin_page
    """
    if flags & (FOLL_POPULATE | FOLL_MLOCK) == FOLL_MLOCK:
        return -ENOENT  # mlock of what is there already
    fault = handle_mm_fault(cpu, vma, addr, FAULT_FLAG_WRITE if flags & FOLL_WRITE else 0)
    if fault & VM_FAULT_ERROR:
        return -ENOMEM if fault & VM_FAULT_OOM else -EFAULT
    # COW is broken and the entry still read-only: the page is ours now, FORCE may write it. Taking FOLL_WRITE away
    # instead would write to the shared page if DONTNEED and a read fault came in between.
    if fault & VM_FAULT_WRITE and vma.vm_flags & VM_WRITE == 0:
        flags = flags | FOLL_COW
    return flags


@kernel
def find_extend_vma(cpu: Cpu, mm: Mm, addr: int) -> Vma:
    """The vma that has `addr`, or the stack above it, grown down to there.

    Context: mmap_sem held.
    Return: the vma, NULL if there is none.
    Linux: mm/mmap.c find_extend_vma
    """
    vma = find_vma(mm, addr)
    if not vma or vma.vm_start <= addr:
        return vma
    if vma.vm_flags & VM_GROWSDOWN == 0 or expand_stack(cpu, vma, addr) != 0:
        return Vma(0)
    return vma


@inline
def check_vma_flags(vma: Vma, flags: int):
    """Does the vma allow this use? 0 or -EFAULT."""
    if flags & FOLL_WRITE:
        if vma.vm_flags & VM_WRITE:
            return 0
        # A forced write goes to a private copy only, never to a shared mapping.
        forced = flags & FOLL_FORCE != 0 and vma.vm_flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE
        return 0 if forced else -EFAULT
    if vma.vm_flags & VM_READ:
        return 0
    return 0 if flags & FOLL_FORCE != 0 and vma.vm_flags & VM_MAYREAD != 0 else -EFAULT


@kernel
def get_user_pages_unlocked(cpu: Cpu, mm: Mm, start: int, nr_pages: int, flags: int, pages: Slot):
    """get_user_pages() for those who do not hold mmap_sem.

    Context: no lock held; takes mmap_sem read. May sleep.
    Return: as get_user_pages().
    Linux: mm/gup.c get_user_pages_unlocked
    Differs: holds mmap_sem to the end; there a fault that has to wait may give it up.
    """
    down_read(cpu, mm.mmap_sem)
    done = get_user_pages(cpu, mm, start, nr_pages, flags, pages)
    up_read(cpu, mm.mmap_sem)
    return done


__all__ = ["follow_page", "get_user_pages", "get_user_pages_unlocked"]
