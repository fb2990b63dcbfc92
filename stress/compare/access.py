"""What a program of the emulator does many times at once, natively: loads, stores, accesses of another's memory, collapse."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.mm.collapse_check import Scan, hugepage_vma_check
from concur_thp.mm.flags import FOLL_WRITE
from concur_thp.mm.gup import get_user_pages_unlocked
from concur_thp.mm.khugepaged import khugepaged_scan_pmd
from concur_thp.mm.mm_types import Mm, Slot, frames, mem_map
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.uaccess import user_load, user_store, word_index
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.rwsem import down_read, up_read

compare_pin = SharedArray("compare_pin", Slot, lambda c: 1)


@kernel
def compare_store(cpu: Cpu, addr: int, pages: int, value: int):
    """Store into `pages` pages, value after value; returns how many could be stored to.

    Context: user mode.
    Emulator: a program's stores.
    """
    done = 0
    while done < pages and user_store(cpu, addr + done * PAGE_SIZE, value + done) == 0:
        done += 1
    return done


@kernel
def compare_load(cpu: Cpu, addr: int, pages: int):
    """Load from `pages` pages; returns how many could be loaded from.

    Context: user mode.
    Emulator: a program's loads.
    """
    done = 0
    while done < pages and user_load(cpu, addr + done * PAGE_SIZE) == 0:
        done += 1
    return done


@kernel
def compare_remote(cpu: Cpu, mm: Mm, addr: int, pages: int, value: int):
    """Pin page after page, for writing when `value` is not 0, access its frame, let it go; returns how many there were.

    Context: nothing held.
    Linux: mm/process_vm_access.c process_vm_rw
    """
    done = 0
    while done < pages:
        at = addr + done * PAGE_SIZE
        if get_user_pages_unlocked(cpu, mm, at, 1, FOLL_WRITE if value else 0, compare_pin[0]) != 1:
            break
        pfn = compare_pin[0].value
        if value:
            frames[pfn].word[word_index(at)].store(value + done)
        put_page(cpu, mem_map[pfn])
        done += 1
    return done


@kernel
def compare_collapse(cpu: Cpu, mm: Mm, addr: int):
    """Collapse one huge range now; returns SCAN_*.

    Context: nothing held.
    Linux: mm/khugepaged.c madvise_collapse
    Differs: by v4.20's own rules.
    """
    lru_add_drain(cpu)
    down_read(cpu, mm.mmap_sem)
    vma = find_vma(mm, addr)
    result = Scan.SCAN_VMA_CHECK
    released = 0
    if vma and vma.vm_start <= addr and vma.vm_end >= addr + HPAGE_PMD_SIZE and hugepage_vma_check(mm, vma):
        result = khugepaged_scan_pmd(cpu, mm, addr)
        released = cpu.scratch[0]
    if not released:
        up_read(cpu, mm.mmap_sem)
    return result
