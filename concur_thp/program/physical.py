"""Steps that begin with a frame: scanners of physical memory, splits and migrations by pfn. They know no mapping."""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.check.pins import PINS, declare_pin, pin_row
from concur_thp.mm.errno import EAGAIN, EBUSY, EFAULT, ESRCH
from concur_thp.mm.flags import FOLL_DUMP, FOLL_GET
from concur_thp.mm.gup import follow_page
from concur_thp.mm.huge_split_pmd import split_huge_pmd_address
from concur_thp.mm.mapcount import total_mapcount
from concur_thp.mm.memory_failure import memory_failure, unpoison_memory
from concur_thp.mm.migrate import NEW_PAGE, NEW_SMALL_PAGE
from concur_thp.mm.mm_types import Mm, Page, Slot, mem_map
from concur_thp.mm.move_pages import migrate_pfn, move_page, move_small_page
from concur_thp.mm.page_flags import PageAnon, PageHead, PG_active, PG_lru, compound_head, page_to_pfn, tail_page
from concur_thp.mm.page_lock import lock_page, trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page_unless_zero, page_ref_count
from concur_thp.mm.pgtable import (
    entry_pfn,
    mm_pmd,
    pmd_present,
    pmd_table,
    pmd_trans_huge,
    pte_index,
    pte_offset,
    pte_present,
)
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import put_page
from concur_thp.mm.vma_tree import find_vma
from concur_thp.program.spaces import current_mm, in_mm
from concur_thp.program.table import MOVE_SMALL, MOVE_SPLIT, NR_SLOTS
from concur_thp.sync.rwsem import down_read, up_read

noted_frames = SharedArray("noted_frames", Slot, lambda c: NR_SLOTS)
"""Frames that programs remember: pfn + 1, 0 for none. Written by `note`, at rest or by one CPU."""
poisoned_frames = SharedArray("poisoned_frames", Slot, lambda c: NR_SLOTS)
"""Frames that `poison` took out of use, by the slot of the note: pfn + 1."""


@kernel
def page_at(mm: Mm, addr: int) -> Page:
    """The frame that an address of an mm had a moment ago.

    Context: a user of the mm; no lock, so the frame may be free or another's when this returns.
    Return: its page, NULL when nothing is mapped.
    Emulator: a way to an interesting pfn.
    """
    pmd = mm_pmd(mm, addr)
    value = pmd.val.load() if pmd else 0
    page = Page(0)
    if pmd_trans_huge(value) and pmd_present(value):
        page = tail_page(mem_map[entry_pfn(value)], pte_index(addr))
    elif pmd_table(value):
        pte = pte_offset(value, addr).val.load()
        if pte_present(pte):
            page = mem_map[entry_pfn(pte)]
    return page


@kernel
def isolate_by_pfn(page: Page) -> Page:
    """Take a reference of the page that a frame belongs to, as somebody may who knows only the frame (R34).

    Context: any.
    Return: the head or small page, NULL when it is free, frozen, or changed under us.
    Linux: mm/page_idle.c page_idle_get_page
    """
    head = compound_head(page)
    if (head.flags.read() >> PG_lru) & 1 and get_page_unless_zero(head):
        return head
    return Page(0)


@kernel
def split_frame(cpu: Cpu, page: Page):
    """Split the huge page that a frame is a part of.

    Context: no lock held, and no reference: the frame may be anything. Sleeps.
    Return: 0, -EBUSY: pinned; -EAGAIN: no huge page, or not now.
    Emulator: what memory failure does before it takes a frame out of use (3.36), with trylock.
    """
    head = isolate_by_pfn(page)
    if not head:
        return -EAGAIN
    status = -EAGAIN
    # The reference is the head's: if the page was split or freed in between, it is not the page's that we looked at.
    if compound_head(page) == head and trylock_page(cpu, head):
        if PageHead(head) and PageAnon(head):
            # A split leaves reference and lock with the very page we name.
            status = split_huge_page(cpu, page)
            unlock_page(cpu, page)
            put_page(cpu, page)
            return status
        unlock_page(cpu, head)
    put_page(cpu, head)
    return status


@inline
def noted_page(number: int) -> Page:
    """The page of a noted frame, NULL when none is noted."""
    pfn = noted_frames[number].value - 1
    return mem_map[pfn] if pfn >= 0 else Page(0)


@kernel
def note_frame(cpu: Cpu, number: int, addr: int):
    """Remember the frame of an address.

    Context: user mode.
    Return: 0; -ESRCH in no mm; -EFAULT when nothing is mapped there.
    Emulator: a step.
    """
    noted_frames[number].value = 0
    if not in_mm(cpu):
        return -ESRCH
    page = page_at(current_mm(cpu), addr)
    if not page:
        return -EFAULT
    noted_frames[number].value = page_to_pfn(page) + 1
    return 0


@kernel
def get_frame(cpu: Cpu, pin: int, number: int):
    """Take a reference of a noted frame's page as a scanner does, and hold it as one of this CPU's pins.

    Context: user mode.
    Return: 1, or 0 when there is none to be had; -EBUSY when the pin is in use.
    Emulator: a step.
    """
    page = noted_page(number)
    if pin >= PINS or pin_row(cpu, pin).pinned != 0:
        return -EBUSY
    head = isolate_by_pfn(page) if page else Page(0)
    if not head:
        return 0
    declare_pin(cpu, pin, page_to_pfn(head))
    return 1


@kernel
def split_noted(cpu: Cpu, number: int):
    """Split the huge page that a noted frame is a part of.

    Context: as split_frame().
    Return: as split_frame(); -EFAULT when none is noted.
    Emulator: a step.
    """
    page = noted_page(number)
    return split_frame(cpu, page) if page else -EFAULT


@kernel
def poison_noted(cpu: Cpu, number: int):
    """Memory failure of a noted frame.

    Context: as memory_failure().
    Return: as memory_failure(); -EFAULT when none is noted.
    Emulator: a step, as a write to hwpoison's corrupt-pfn.
    """
    page = noted_page(number)
    if not page:
        return -EFAULT
    status = memory_failure(cpu, page)
    if status == 0:
        poisoned_frames[number].value = page_to_pfn(page) + 1
    return status


@kernel
def unpoison_all(cpu: Cpu):
    """Every frame that `poison` took out of use is good again.

    Context: as unpoison_memory(); no mm, pin or swap slot is left that could hold one.
    Emulator: writes to hwpoison's unpoison-pfn.
    """
    for number in range(NR_SLOTS):
        pfn = poisoned_frames[number].value - 1
        if pfn >= 0:
            status = unpoison_memory(cpu, mem_map[pfn])
            bug_on(cpu, status != 0, "a poisoned frame that nobody can use is still held (values: pfn, status)", pfn, status)
            poisoned_frames[number].value = 0


@kernel
def migrate_noted(cpu: Cpu, number: int, moving: int):
    """Migrate what a noted frame belongs to.

    Context: as migrate_pfn().
    Return: as migrate_pfn(); -EFAULT when none is noted.
    Emulator: a step.
    """
    page = noted_page(number)
    return migrate_pfn(cpu, page, NEW_SMALL_PAGE if moving == MOVE_SMALL else NEW_PAGE) if page else -EFAULT


@kernel
def migrate_address(cpu: Cpu, addr: int, moving: int):
    """Migrate the page at an address.

    Context: user mode.
    Return: as do_move_page(); -ESRCH in no mm.
    Emulator: move_pages(2), and its caller of old that knows small pages only (R10).
    """
    if not in_mm(cpu):
        return -ESRCH
    mm = current_mm(cpu)
    if moving == MOVE_SPLIT:
        return move_small_page(cpu, mm, addr, NEW_PAGE)
    return move_page(cpu, mm, addr, NEW_SMALL_PAGE if moving == MOVE_SMALL else NEW_PAGE)


@kernel
def get_mapped(cpu: Cpu, mm: Mm, addr: int) -> Page:
    """The page mapped at an address, with a reference.

    Context: a user of the mm; takes mmap_sem read.
    Return: the very page, head or tail; NULL when there is none, or the zero page, or an entry of swap or migration.
    Emulator: the way from an address to a page that callers of follow_page() go.
    """
    page = 0
    down_read(cpu, mm.mmap_sem)
    vma = find_vma(mm, addr)
    if vma and addr >= vma.vm_start:
        page = follow_page(cpu, vma, addr, FOLL_GET | FOLL_DUMP)
    up_read(cpu, mm.mmap_sem)
    return Page(page) if page > 0 else Page(0)


@kernel
def split_address(cpu: Cpu, addr: int):
    """Split the huge page that the page at an address is a part of.

    Context: user mode. Sleeps.
    Return: 0, -EBUSY: pinned; -EAGAIN: no huge page there; -ESRCH in no mm.
    Emulator: what writes to split_huge_pages (later kernels' debugfs) do.
    """
    if not in_mm(cpu):
        return -ESRCH
    page = get_mapped(cpu, current_mm(cpu), addr)
    if not page:
        return -EAGAIN
    head = compound_head(page)
    lock_page(cpu, head)
    status = -EAGAIN
    locked = head
    # Our reference keeps the page whole: what was a head when we got it still is one.
    if PageHead(head) and PageAnon(head):
        status = split_huge_page(cpu, page)
        locked = page if status == 0 else head
    unlock_page(cpu, locked)
    put_page(cpu, page)
    return status


@kernel
def split_pmd_at(cpu: Cpu, addr: int):
    """Split the huge pmd around an address.

    Context: user mode; takes mmap_sem read. Sleeps.
    Return: 0; -EFAULT outside of any vma; -ESRCH in no mm.
    Emulator: a walker of page tables that knows nothing of huge pmds, made safe by one line (R1, R11).
    """
    if not in_mm(cpu):
        return -ESRCH
    mm = current_mm(cpu)
    status = -EFAULT
    down_read(cpu, mm.mmap_sem)
    vma = find_vma(mm, addr)
    if vma and addr >= vma.vm_start:
        split_huge_pmd_address(cpu, vma, addr, 0, Page(0))
        status = 0
    up_read(cpu, mm.mmap_sem)
    return status


@kernel
def frame_counts(cpu: Cpu, number: int):
    """The counts of the page that a noted frame belongs to.

    Context: at rest, to mean anything.
    Return: references of its head; in cpu.scratch[0] the mappings of all of it.
    Emulator: a step.
    """
    page = noted_page(number)
    if not page:
        return -EFAULT
    head = compound_head(page)
    cpu.scratch[0] = total_mapcount(head)
    return page_ref_count(head)


@kernel
def frame_active(number: int):
    """Is the page that a noted frame belongs to on the active list?

    Context: at rest, and drained, to mean anything.
    Return: 1 or 0; -EFAULT when none is noted.
    Emulator: a step.
    """
    page = noted_page(number)
    if not page:
        return -EFAULT
    return compound_head(page).flags.read() & (1 << PG_lru | 1 << PG_active) == 1 << PG_lru | 1 << PG_active


__all__ = ["frame_active", "frame_counts", "get_frame", "get_mapped", "isolate_by_pfn", "migrate_address", "migrate_noted",
           "note_frame", "noted_frames", "noted_page", "page_at", "poison_noted", "split_address", "split_frame", "split_noted",
           "split_pmd_at", "unpoison_all"]
