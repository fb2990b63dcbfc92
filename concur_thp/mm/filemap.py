"""The page cache: small pages of files, found by index. (Linux: mm/filemap.c)

A file has `file_pages` slots in cache_slots; a slot holds pfn + 1, so that slots never used stay zero and
cost nothing. There is no disk: what a file contains follows from its id and the page's index, and a file with
id 0 (shared anonymous memory, Linux's shmem) starts zeroed and has swapbacked pages.
"""

from concur_thp.arch.bug import bug_on, panic_check
from concur_thp.arch.builtins import smp_wmb
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.futex import sched_yield
from concur_thp.arch.irq import ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import FRAME_WORDS
from concur_thp.mm.errno import EEXIST, ENOMEM
from concur_thp.mm.flags import GFP_HIGHUSER_MOVABLE, VM_FAULT_LOCKED, VM_FAULT_OOM, VM_FAULT_SIGBUS
from concur_thp.mm.mapcount import page_mapped
from concur_thp.mm.mm_types import (
    MAPPING_SHIFT,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    NIL,
    CacheSlot,
    Page,
    Vma,
    cache_slots,
    files,
    frames,
    mem_map,
    mm_globals,
)
from concur_thp.mm.page_account import CACHE, account
from concur_thp.mm.page_alloc import alloc_page
from concur_thp.mm.page_flags import PG_swapbacked, PG_uptodate, SetFlag, TestFlag, compound_head, page_to_pfn
from concur_thp.mm.page_lock import lock_page, trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page, get_page_unless_zero
from concur_thp.mm.swap import lru_cache_add, put_page
from concur_thp.mm.vmstat import Stat, mod_stat
from concur_thp.sync.spinlock import assert_spin_locked, spin_lock_irq, spin_unlock_irq

CONTENT_MARK = 1 << 60
"""In every word of a file page, so that file content is never mistaken for zeroes."""


@inline
def cache_slot(file: int, index: int) -> CacheSlot:
    return cache_slots[file * mm_globals.file_pages + index]


@inline
def cached_pfn(file: int, index: int):
    """The page in a slot, NIL when there is none. Without i_pages or a reference it may be gone at once."""
    return cache_slot(file, index).value - 1


@inline
def page_file_nr(page: Page):
    """The file in `mapping` of a page cache page."""
    return page.mapping >> MAPPING_SHIFT


@inline
def mm_counter_file(page: Page):
    """The rss counter of a page cache page."""
    return MM_SHMEMPAGES if TestFlag(page, PG_swapbacked) else MM_FILEPAGES


@inline
def file_content(id: int, index: int, word: int):
    """What a file has in word `word` of page `index` until somebody writes there."""
    return (CONTENT_MARK | (id << 40) | (index << 8) | word) if id != 0 else 0


@kernel
def find_get_page(cpu: Cpu, file: int, index: int) -> Page:
    """Look a page up without any lock and take a reference.

    Context: any with irqs on; the looked-up page may be truncated or split meanwhile.
    Return: the page, NULL when the slot is empty.
    Linux: mm/filemap.c find_get_entry
    """
    while True:
        pfn = cached_pfn(file, index)
        if pfn == NIL:
            return Page(0)
        page = mem_map[pfn]
        head = compound_head(page)
        if get_page_unless_zero(head):
            # Between the slot's load and the reference the frame may have been freed and used anew, or split:
            # only if both still lead here is it the page of this slot, and from now on it stays.
            if compound_head(page) == head and cached_pfn(file, index) == pfn:
                return page
            put_page(cpu, head)
        # Frozen or being freed: whoever does that is about to change the slot.
        ipi_poll(cpu)
        panic_check(cpu)
        sched_yield()


@kernel
def add_to_page_cache(cpu: Cpu, file: int, page: Page, index: int):
    """Put a page into an empty slot; the slot gets a reference of its own.

    Context: page locked. Takes i_pages, so irqs on before. Never sleeps.
    Return: 0, -EEXIST when another CPU has filled the slot.
    Linux: mm/filemap.c __add_to_page_cache_locked
    """
    mapping = files[file]
    slot = cache_slot(file, index)
    bug_on(cpu, index >= mapping.size, "add_to_page_cache: behind the end (values: file, index)", file, index)
    get_page(cpu, page)
    page.mapping = file << MAPPING_SHIFT
    page.index = index
    spin_lock_irq(cpu, mapping.i_pages)
    if slot.value != 0:
        spin_unlock_irq(cpu, mapping.i_pages)
        page.mapping = 0
        put_page(cpu, page)
        return -EEXIST
    account(cpu, page, CACHE)
    smp_wmb()  # mapping, index and PG_locked before the slot: find_get_page() on another CPU holds no lock.
    slot.value = page_to_pfn(page) + 1
    mapping.nrpages = mapping.nrpages + 1
    mod_stat(cpu, Stat.NR_FILE_PAGES, 1)
    spin_unlock_irq(cpu, mapping.i_pages)
    return 0


@kernel
def __delete_from_page_cache(cpu: Cpu, page: Page):
    """Take a page out of its slot. The slot's reference is still to be dropped.

    Context: page locked, unmapped; the file's i_pages held.
    Linux: mm/filemap.c __delete_from_page_cache
    """
    file = page_file_nr(page)
    mapping = files[file]
    assert_spin_locked(cpu, mapping.i_pages)
    slot = cache_slot(file, page.index)
    bug_on(cpu, page_mapped(page), "delete_from_page_cache: mapped (values: pfn, file)", page_to_pfn(page), file)
    bug_on(cpu, slot.value != page_to_pfn(page) + 1, "delete_from_page_cache: not in its slot (values: pfn, file)",
           page_to_pfn(page), file)
    slot.value = 0
    account(cpu, page, -CACHE)
    mapping.nrpages = mapping.nrpages - 1
    page.mapping = 0
    mod_stat(cpu, Stat.NR_FILE_PAGES, -1)


@kernel
def delete_from_page_cache(cpu: Cpu, page: Page):
    """Take a page out of its slot and drop the slot's reference.

    Context: page locked, unmapped, and the caller has a reference. Takes i_pages, so irqs on before.
    Linux: mm/filemap.c delete_from_page_cache
    """
    mapping = files[page_file_nr(page)]
    spin_lock_irq(cpu, mapping.i_pages)
    __delete_from_page_cache(cpu, page)
    spin_unlock_irq(cpu, mapping.i_pages)
    put_page(cpu, page)


@kernel
def readpage(cpu: Cpu, file: int, page: Page):
    """Fill a page with what the file contains there.

    Context: page locked and not uptodate.
    Linux: struct address_space_operations readpage
    Differs: no disk and no waiting.
    """
    frame = frames[page_to_pfn(page)]
    for word in range(FRAME_WORDS):
        frame.word[word].write(file_content(files[file].id, page.index, word))
    smp_wmb()  # Content before PG_uptodate: who sees the bit may map the page.
    SetFlag(page, PG_uptodate)


@kernel
def page_cache_read(cpu: Cpu, file: int, index: int):
    """Bring a page into the cache.

    Context: may sleep.
    Return: 0 when it is there now, whoever brought it; -ENOMEM.
    Linux: mm/filemap.c page_cache_read
    """
    page = alloc_page(cpu, GFP_HIGHUSER_MOVABLE)
    if not page:
        return -ENOMEM
    trylock_page(cpu, page)  # Cannot fail: nobody else can reach the page yet.
    if files[file].id == 0:
        SetFlag(page, PG_swapbacked)
    error = add_to_page_cache(cpu, file, page, index)
    if error == 0:
        lru_cache_add(cpu, page)
        # From the slot on others find the page; its lock makes them wait until it has its content.
        readpage(cpu, file, page)
    unlock_page(cpu, page)
    put_page(cpu, page)
    return 0 if error == -EEXIST else error


@kernel
def filemap_get_page(cpu: Cpu, file: int, index: int) -> Page:
    """Find a page or bring it in, uptodate.

    Context: may sleep.
    Return: the page with a reference, NULL without memory.
    Linux: mm/filemap.c do_read_cache_page
    """
    page = find_get_page(cpu, file, index)
    while not page:
        if page_cache_read(cpu, file, index) != 0:
            return Page(0)
        page = find_get_page(cpu, file, index)
    if not TestFlag(page, PG_uptodate):
        lock_page(cpu, page)
        unlock_page(cpu, page)
    return page


@kernel
def filemap_fault(cpu: Cpu, vma: Vma, pgoff: int):
    """The page of a file that a fault needs: locked, uptodate, with a reference.

    Context: mmap_sem read. May sleep.
    Return: VM_FAULT_LOCKED with the page in cpu.scratch[0]; VM_FAULT_SIGBUS behind the end of the file;
    VM_FAULT_OOM.
    Linux: mm/filemap.c filemap_fault
    Differs: no readahead; never drops mmap_sem to wait.
    """
    file = vma.vm_file
    if pgoff >= files[file].size:
        return VM_FAULT_SIGBUS
    while True:
        page = filemap_get_page(cpu, file, pgoff)
        if not page:
            return VM_FAULT_OOM
        lock_page(cpu, page)
        # Truncated while we waited for its lock? Then it is nobody's page any more.
        if page.mapping == file << MAPPING_SHIFT and page.index == pgoff:
            cpu.scratch[0] = int(page)
            return VM_FAULT_LOCKED
        unlock_page(cpu, page)
        put_page(cpu, page)
