"""Steps that stand for memory pressure: reclaim, swap out, the shrinkers, compaction, khugepaged, caches."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.check.pins import PINS
from concur_thp.mm.collapse_check import Scan, hugepage_vma_revalidate
from concur_thp.mm.compaction import COMPACT_COMPLETE, COMPACT_SUCCESS, compact_zone
from concur_thp.mm.errno import EBUSY, EFAULT, EINVAL, ESRCH
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.fork import mmput
from concur_thp.mm.isolate_lru import move_pages_to_lru
from concur_thp.mm.khugepaged import khugepaged_do_scan, khugepaged_scan_pmd
from concur_thp.mm.lru import LRU_ACTIVE
from concur_thp.mm.migrate import MIGRATE_SYNC
from concur_thp.mm.mm_types import Slot, pgdat
from concur_thp.mm.page_flags import PG_active, PG_referenced, PG_unevictable, TestFlag, compound_head, hpage_nr_pages
from concur_thp.mm.page_list import LIST_PAGES, LIST_RET, list_add_tail, page_list
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_referenced import page_referenced
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.shrink_page_list import shrink_page_list
from concur_thp.mm.swap import isolate_lru_page, lru_add_drain, put_page, putback_lru_page
from concur_thp.mm.truncate import invalidate_mapping_pages
from concur_thp.mm.vmscan import shrink_active_list, shrink_inactive_list
from concur_thp.program.physical import get_mapped
from concur_thp.program.spaces import current_mm, get_space, in_mm
from concur_thp.program.table import NR_SLOTS
from concur_thp.sync.rwsem import down_read, up_read

step_files = SharedArray("step_files", Slot, lambda c: NR_SLOTS)
"""Files that programs made; they stay, only their pages go."""

assert PINS == NR_SLOTS, "a program's pins are numbered like its slots"


@inline
def reclaim_some(cpu: Cpu, number: int, count: int):
    """Age `count` pages and reclaim `count` of an inactive list, by its number; returns pages reclaimed."""
    shrink_active_list(cpu, count, number + LRU_ACTIVE)
    return shrink_inactive_list(cpu, count, number)


@kernel
def swap_out_address(cpu: Cpu, addr: int):
    """Reclaim the page at an address.

    Context: user mode. Sleeps.
    Return: pages reclaimed; -EFAULT: nothing is mapped there; -EBUSY: on no LRU list, or mlocked; -ESRCH in no mm.
    Emulator: MADV_PAGEOUT of later kernels: what was used before now does not count, what is used meanwhile does.
    """
    if not in_mm(cpu):
        return -ESRCH
    lru_add_drain(cpu)
    page = get_mapped(cpu, current_mm(cpu), addr)
    if not page:
        return -EFAULT
    head = compound_head(page)
    pages = page_list(cpu, LIST_PAGES)
    reclaimed = -EBUSY
    isolated = isolate_lru_page(cpu, head)
    if isolated and TestFlag(head, PG_unevictable):
        putback_lru_page(cpu, head)  # mlocked: reclaim does not come across it
        isolated = 0
    if isolated:
        lock_page(cpu, head)
        page_referenced(cpu, head, 1)
        unlock_page(cpu, head)
        head.flags.and_(~(1 << PG_active | 1 << PG_referenced))
        pgdat.isolated.add(hpage_nr_pages(head))
        list_add_tail(pages, head)
    put_page(cpu, page)
    if isolated:
        taken = hpage_nr_pages(head)
        reclaimed = shrink_page_list(cpu, pages)
        move_pages_to_lru(cpu, page_list(cpu, LIST_RET))
        pgdat.isolated.sub(taken)
    return reclaimed


@kernel
def collapse_space(cpu: Cpu, number: int, addr: int):
    """Have khugepaged look at one block of a space's mm, and collapse it if it is worth it.

    Context: kernel thread or user mode; no lock. Sleeps.
    Return: SCAN_*; -ESRCH when the space has no mm.
    Emulator: MADV_COLLAPSE of later kernels, with khugepaged's own rules; a user of the mm, so it does not exit meanwhile.
    """
    mm = get_space(cpu, number)
    if not mm:
        return -ESRCH
    lru_add_drain(cpu)  # Pages in a pagevec have a reference too many.
    down_read(cpu, mm.mmap_sem)
    result = hugepage_vma_revalidate(cpu, mm, addr)
    released = 0
    if result == Scan.SCAN_SUCCEED:
        result = khugepaged_scan_pmd(cpu, mm, addr)
        released = cpu.scratch[0]
    if not released:
        up_read(cpu, mm.mmap_sem)
    lru_add_drain(cpu)
    mmput(cpu, mm)
    return result


@kernel
def scan_once(cpu: Cpu, pages: int):
    """One round of khugepaged.

    Context: no lock; the only CPU that does so: khugepaged's cursor is one thread's.
    Return: progress.
    Emulator: a step.
    """
    lru_add_drain(cpu)
    progress = khugepaged_do_scan(cpu, pages)
    lru_add_drain(cpu)
    return progress


@kernel
def compact_all(cpu: Cpu):
    """Compact every zone as far as it goes.

    Context: user mode. Sleeps.
    Return: 0, or -EBUSY when it came to nothing in one of them.
    Emulator: a write to compact_memory, with a result.
    """
    result = 0
    for zone in range(pgdat.nr_zones):
        if compact_zone(cpu, zone, -1, MIGRATE_SYNC) not in (COMPACT_COMPLETE, COMPACT_SUCCESS):
            result = -EBUSY
    return result


@kernel
def make_file(cpu: Cpu, number: int, pages: int):
    """Make the file of a slot, unless there is one.

    Context: any; one CPU at a time for one slot.
    Return: 0 or an error.
    Emulator: a step.
    """
    if step_files[number].value != 0:
        return 0
    file = file_alloc(cpu, pages, number + 1)
    if file < 0:
        return file
    step_files[number].value = file
    return 0


@kernel
def drop_file_caches(cpu: Cpu, number: int):
    """Drop the pages of a slot's file that nobody maps.

    Context: may sleep.
    Return: how many; -EINVAL when there is no file.
    Emulator: a step.
    """
    file = step_files[number].value
    return invalidate_mapping_pages(cpu, file) if file != 0 else -EINVAL


@kernel
def drain_cpu(cpu: Cpu):
    """Drain this CPU's pagevecs and free lists.

    Context: no lock.
    Emulator: a step.
    """
    lru_add_drain(cpu)
    drain_pcp(cpu)


__all__ = ["collapse_space", "compact_all", "drain_cpu", "drop_file_caches", "make_file", "reclaim_some", "scan_once",
           "step_files", "swap_out_address"]
