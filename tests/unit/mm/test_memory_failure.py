"""A broken frame: who had it mapped gets SIGBUS and no wrong data, the frame is kept, and given back when it was an error."""

import pytest

from concur_thp.config import HPAGE_PMD_NR, PAGE_SIZE
from concur_thp.mm.do_mlock import do_mlock
from concur_thp.mm.errno import EBUSY, EFAULT, EHWPOISON
from concur_thp.mm.flags import FOLL_WRITE, MADV_FREE
from concur_thp.mm.gup import get_user_pages
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.memory_failure import memory_failure, unpoison_memory
from concur_thp.mm.mm_types import MM_ANONPAGES, Slot, mem_map, pgdat
from concur_thp.mm.mremap import do_mremap
from concur_thp.mm.page_flags import PageHead, PageHWPoison, tail_page
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pgtable import _PAGE_HWPOISON, entry_pfn
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.swap_map import swap_info
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load
from concur_thp.mm.vmstat import vmstat
from concur_thp.sync.rwsem import down_read, up_read
from tests.unit.mm.test_swapin import SWAP, swap_out

ADDR = 1 << 26
N = HPAGE_PMD_NR


@pytest.fixture
def task(new_task, request):
    """A task; what it has poisoned is given back behind the test."""
    task = new_task(swap=SWAP[9 if "order9" in request.node.name else 3])
    task.poisoned = []
    yield task
    while task.mms:
        task.exit(task.mms[0])
    for page in task.poisoned:
        assert unpoison_memory(task.cpu, page) == 0


def poison(task, page) -> int:
    lru_add_drain(task.cpu)
    status = memory_failure(task.cpu, page)
    if status == 0:
        task.poisoned.append(page)
    return status


def access(task, addr: int) -> tuple[int, int]:
    return user_load(task.cpu, addr), task.store(addr, 1)


def test_every_mapper_loses_the_page_and_no_other(task):
    task.mmap(ADDR, 3)
    for i in range(3):
        task.store(ADDR + i * PAGE_SIZE, 5 + i)
    child = task.fork()
    page = task.page(ADDR + PAGE_SIZE)
    assert poison(task, page) == 0 and PageHWPoison(page) and page_ref_count(page) == 1
    for mm in task.mms:
        task.run_in(mm)
        assert access(task, ADDR + PAGE_SIZE) == (-EHWPOISON, -EHWPOISON)
        assert task.mm.rss[MM_ANONPAGES].read() == 2
        assert (task.load(ADDR), task.load(ADDR + 2 * PAGE_SIZE)) == (5, 7)
    assert poison(task, page) == -EHWPOISON, "known"
    task.run_in(child)
    grandchild = task.fork()
    task.run_in(grandchild)
    assert access(task, ADDR + PAGE_SIZE) == (-EHWPOISON, -EHWPOISON), "fork copies the entry"


def test_of_a_huge_page_one_small_page_is_lost(task):
    set_switch("enabled", "always")
    task.mmap(ADDR, int(N))
    for i in range(N):
        task.store(ADDR + i * PAGE_SIZE, 5 + i)
    set_switch("enabled", "never")
    head = mem_map[entry_pfn(task.pmd(ADDR))]
    task.fork()
    assert poison(task, tail_page(head, 3)) == 0 and not PageHead(head)
    assert vmstat()["thp_split_page"] == 1
    assert access(task, ADDR + 3 * PAGE_SIZE) == (-EHWPOISON, -EHWPOISON)
    assert [task.load(ADDR + i * PAGE_SIZE) for i in range(N) if i != 3] == [5 + i for i in range(N) if i != 3]


def test_a_huge_page_that_lost_its_pmd_loses_one_page_too(task):
    """v4.20 looks at the mark of the head, so all N would go when the head is the broken one."""
    set_switch("enabled", "always")
    task.mmap(ADDR, int(N))
    for i in range(N):
        task.store(ADDR + i * PAGE_SIZE, 5 + i)
    set_switch("enabled", "never")
    head = mem_map[entry_pfn(task.pmd(ADDR))]
    assert do_mremap(task.cpu, task.mm, ADDR, int(N) * PAGE_SIZE, int(N) * PAGE_SIZE, 2 * ADDR + PAGE_SIZE) > 0
    assert poison(task, head) == 0
    assert access(task, 2 * ADDR + PAGE_SIZE) == (-EHWPOISON, -EHWPOISON)
    assert [task.load(2 * ADDR + (1 + i) * PAGE_SIZE) for i in range(1, N)] == [5 + i for i in range(1, N)]


def test_a_pinned_huge_page_is_not_split(task):
    set_switch("enabled", "always")
    task.mmap(ADDR, int(N))
    task.store(ADDR, 5)
    head = mem_map[entry_pfn(task.pmd(ADDR))]
    get_page(task.cpu, tail_page(head, 2))
    assert poison(task, tail_page(head, 3)) == -EBUSY and not PageHWPoison(tail_page(head, 3)) and PageHead(head)
    put_page(task.cpu, head)
    assert task.load(ADDR) == 5


def test_a_pin_keeps_the_broken_frame(task):
    task.mmap(ADDR, 1)
    task.store(ADDR, 5)
    page = task.page(ADDR)
    get_page(task.cpu, page)
    assert poison(task, page) == 0 and page_ref_count(page) == 2
    assert unpoison_memory(task.cpu, page) == -EBUSY
    put_page(task.cpu, page)
    assert unpoison_memory(task.cpu, page) == 0 and page_ref_count(page) == 0
    task.poisoned.clear()
    assert access(task, ADDR)[0] == -EHWPOISON, "the entry does not know that the frame is good again"


def test_what_is_mapped_anew_is_fresh(task):
    task.mmap(ADDR, 2)
    task.store(ADDR, 5)
    task.store(ADDR + PAGE_SIZE, 6)
    assert poison(task, task.page(ADDR)) == 0 and poison(task, task.page(ADDR + PAGE_SIZE)) == 0
    assert do_madvise(task.cpu, task.mm, ADDR, PAGE_SIZE, MADV_FREE) == 0 and access(task, ADDR)[0] == -EHWPOISON
    assert task.dontneed(ADDR, 1) == 0 and task.load(ADDR) == 0
    moved = ADDR * 2
    assert do_mremap(task.cpu, task.mm, ADDR + PAGE_SIZE, PAGE_SIZE, PAGE_SIZE, moved) == moved
    assert access(task, moved)[0] == -EHWPOISON, "mremap takes it along"


def test_in_the_swap_cache(task):
    task.mmap(ADDR, 1)
    task.store(ADDR, 5)
    swap_out(task, ADDR)
    assert task.load(ADDR) == 5
    page = task.page(ADDR)
    assert poison(task, page) == 0
    assert access(task, ADDR) == (-EHWPOISON, -EHWPOISON) and swap_info.inuse_pages == 1
    assert unpoison_memory(task.cpu, page) == -EBUSY, "the slot leads to it"
    assert task.dontneed(ADDR, 1) == 0 and swap_info.inuse_pages == 0 and task.load(ADDR) == 0


def test_a_mlocked_page_goes_all_the_same(task):
    task.mmap(ADDR, 1)
    assert do_mlock(task.cpu, task.mm, ADDR, PAGE_SIZE) == 0
    assert poison(task, task.page(ADDR)) == 0 and vmstat()["NR_MLOCK"] == 0
    assert access(task, ADDR) == (-EHWPOISON, -EHWPOISON)


def test_gup_of_a_lost_page_is_efault(task):
    task.mmap(ADDR, 1)
    task.store(ADDR, 5)
    assert poison(task, task.page(ADDR)) == 0
    down_read(task.cpu, task.mm.mmap_sem)
    assert get_user_pages(task.cpu, task.mm, ADDR, 1, FOLL_WRITE, Slot(0)) == -EFAULT
    up_read(task.cpu, task.mm.mmap_sem)


def test_frames_that_are_left_alone(task):
    free = next(pfn for pfn in range(task.machine.config.frames) if mem_map[pfn].page_type == 1)
    for pfn in (free, task.mm.pgd, pgdat.zero_pfn):
        before = mem_map[pfn].flags.read(), page_ref_count(mem_map[pfn])
        assert memory_failure(task.cpu, mem_map[pfn]) == -EBUSY
        assert (mem_map[pfn].flags.read(), page_ref_count(mem_map[pfn])) == before


def test_entries_have_the_frame(task):
    task.mmap(ADDR, 1)
    task.store(ADDR, 5)
    page = task.page(ADDR)
    assert poison(task, page) == 0
    assert task.pte(ADDR).val.read() == mem_map.index(page) << 12 | _PAGE_HWPOISON
