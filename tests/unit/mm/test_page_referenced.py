"""Who used a page lately: one count for each vma, entries old behind it, a locked vma first of all."""

import pytest

from concur_thp.config import PAGE_SIZE
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.filemap import filemap_get_page
from concur_thp.mm.flags import MAP_SHARED, PROT_EXEC, PROT_READ, VM_EXEC, VM_LOCKED
from concur_thp.mm.mm_types import Page, mem_map
from concur_thp.mm.page_flags import PG_locked
from concur_thp.mm.page_lock import lock_page, trylock_page, unlock_page
from concur_thp.mm.page_referenced import page_referenced
from concur_thp.mm.pgtable import _PAGE_ACCESSED, entry_pfn
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch

ADDR = 1 << 24


def asked(task, page: Page, *, locked: bool = True) -> tuple[int, int]:
    """What it returns: how many, and the flags."""
    if locked:
        lock_page(task.cpu, page)
    found = int(page_referenced(task.cpu, page, int(locked)))
    flags = int(task.cpu.scratch[0])
    if locked:
        unlock_page(task.cpu, page)
    return found, flags


def test_an_entry_counts_once_and_is_old_then(new_task):
    task = new_task()
    task.mmap(ADDR, 1)
    task.store(ADDR, 1)
    page = task.page(ADDR)
    assert asked(task, page)[0] == 1
    assert task.pte(ADDR).val.load() & _PAGE_ACCESSED == 0
    assert asked(task, page) == (0, 0)


def test_vmas_are_counted_not_entries(new_task, request):
    """A THP that ptes map is young through all of them, and one vma has used it."""
    nr = 1 << (9 if "order9" in request.node.name else 3)
    task = new_task()
    set_switch("enabled", "always")
    task.mmap(ADDR, nr)
    for i in range(nr):
        task.store(ADDR + i * PAGE_SIZE, i)
    head = Page(int(mem_map[entry_pfn(task.pmd(ADDR))]))
    task.munmap(ADDR, 1)
    assert task.pte(ADDR + PAGE_SIZE).val.load() & _PAGE_ACCESSED
    assert asked(task, head)[0] == 1
    child = task.fork()
    task.load(ADDR + PAGE_SIZE)
    task.run_in(child)
    task.load(ADDR + 2 * PAGE_SIZE)
    assert 1 <= asked(task, head)[0] <= 2
    assert asked(task, head)[0] == 0


def test_a_locked_vma_says_only_that(new_task):
    """Its other flags, and that its entry is young, are no reason to keep the page where it is."""
    task = new_task()
    task.mmap(ADDR, 1, prot=PROT_READ | PROT_EXEC)
    task.load(ADDR)
    file = file_alloc(task.cpu, 1, 3)
    task.mmap(ADDR + 16 * PAGE_SIZE, 1, prot=PROT_READ | PROT_EXEC, file=file, flags=MAP_SHARED)
    task.load(ADDR + 16 * PAGE_SIZE)
    page = task.page(ADDR + 16 * PAGE_SIZE)
    vma = task.vma(ADDR + 16 * PAGE_SIZE)
    vma.vm_flags = vma.vm_flags | VM_LOCKED
    assert asked(task, page) == (0, VM_LOCKED)
    assert task.pte(ADDR + 16 * PAGE_SIZE).val.load() & _PAGE_ACCESSED
    vma.vm_flags = vma.vm_flags & ~VM_LOCKED
    found, flags = asked(task, page)
    assert found == 1 and flags & VM_EXEC


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_page_that_another_has_locked(new_task, mapped):
    """Mapped, it counts as used: waiting is not worth it. Unmapped nobody can have used it, locked or not."""
    task = new_task()
    file = file_alloc(task.cpu, 1, 3)
    task.mmap(ADDR, 1, file=file, flags=MAP_SHARED)
    page = Page(int(filemap_get_page(task.cpu, file, 0)))
    if mapped:
        task.load(ADDR)
        assert task.page(ADDR) == page
    assert trylock_page(task.cpu, page)
    assert asked(task, page, locked=False) == (1 if mapped else 0, 0)
    unlock_page(task.cpu, page)
    put_page(task.cpu, page)
    lru_add_drain(task.cpu)
    assert asked(task, page, locked=False)[0] == (1 if mapped else 0)
    assert page.flags.read() >> PG_locked & 1 == 0
