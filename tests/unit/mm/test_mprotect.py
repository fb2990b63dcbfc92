"""mprotect of memory that is locked: a page that may be written is the program's own, before it asks."""

from concur_thp.config import PAGE_SIZE
from concur_thp.mm.do_mlock import do_mlock
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE
from concur_thp.mm.mmap import vm_mmap
from concur_thp.mm.mprotect import do_mprotect
from concur_thp.mm.page_flags import PG_mlocked
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.vmstat import vmstat

ADDR = 1 << 26


def test_locked_memory_that_becomes_writable_gets_its_own_pages(new_task):
    """Found by `compare`: they were still zero pages, and each first store faulted."""
    task = new_task()
    task.mmap(ADDR, 4, prot=PROT_READ)
    assert do_mlock(task.cpu, task.mm, ADDR, 3 * PAGE_SIZE) == 0
    assert do_mprotect(task.cpu, task.mm, ADDR, 4 * PAGE_SIZE, PROT_READ | PROT_WRITE) == 0
    lru_add_drain(task.cpu)
    assert all(task.page(ADDR + n * PAGE_SIZE).flags.read() >> PG_mlocked & 1 for n in range(3))
    assert task.pte(ADDR + 3 * PAGE_SIZE).val.read() == 0
    before = vmstat()["pgfault"]
    for page in range(3):
        assert task.store(ADDR + page * PAGE_SIZE, 7) == 0
    assert vmstat()["pgfault"] == before


def test_memory_that_is_not_locked_waits_for_its_faults(new_task):
    task = new_task()
    task.mmap(ADDR, 4, prot=PROT_READ)
    assert task.load(ADDR) == 0
    zero = task.pte(ADDR).val.read()
    assert do_mprotect(task.cpu, task.mm, ADDR, 4 * PAGE_SIZE, PROT_READ | PROT_WRITE) == 0
    assert task.pte(ADDR).val.read() >> 12 == zero >> 12


def test_what_was_writable_once_does_not_merge_with_what_never_was(new_task):
    """Found by `compare`: VM_ACCOUNT stays behind, and vmas with and without it are different ones."""
    task = new_task()
    task.mmap(ADDR, 4)
    assert task.store(ADDR, 1) == 0
    task.mmap(ADDR + 2 * PAGE_SIZE, 1, prot=PROT_READ)
    assert do_mprotect(task.cpu, task.mm, ADDR, 4 * PAGE_SIZE, PROT_NONE) == 0
    assert task.mm.map_count == 3
    assert do_mprotect(task.cpu, task.mm, ADDR, 4 * PAGE_SIZE, PROT_READ | PROT_WRITE) == 0
    assert task.mm.map_count == 1


def test_without_reserve_nothing_is_accounted(new_task):
    """As heaps of threads are: mapped for nobody, then opened from the front."""
    task = new_task()
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
    assert vm_mmap(task.cpu, task.mm, ADDR, 4 * PAGE_SIZE, PROT_NONE, flags, 0, 0) == ADDR
    assert do_mprotect(task.cpu, task.mm, ADDR, PAGE_SIZE, PROT_READ | PROT_WRITE) == 0 and task.mm.map_count == 2
    assert do_mprotect(task.cpu, task.mm, ADDR, PAGE_SIZE, PROT_NONE) == 0 and task.mm.map_count == 1
