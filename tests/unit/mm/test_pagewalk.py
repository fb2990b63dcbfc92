"""A walker that knows nothing of huge pages (R1, R11): one line makes it right."""

from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.mm.mm_types import mem_map
from concur_thp.mm.page_flags import PageHead
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pagewalk import clear_refs
from concur_thp.mm.pgtable import _PAGE_ACCESSED, entry_pfn, pmd_trans_huge
from concur_thp.mm.put_page import put_page
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.uaccess import user_load
from concur_thp.mm.vmstat import vmstat

ADDR = 1 << 26
N = HPAGE_PMD_NR


def huge(task):
    set_switch("enabled", "always")
    task.mmap(ADDR, 2 * int(N))
    for i in range(2 * N):
        task.store(ADDR + i * PAGE_SIZE, 7 + i)
    set_switch("enabled", "never")
    assert pmd_trans_huge(task.pmd(ADDR))
    return mem_map[entry_pfn(task.pmd(ADDR))]


def walk(task, first: int, pages: int) -> int:
    start = ADDR + first * PAGE_SIZE
    return int(clear_refs(task.cpu, task.mm, start, start + pages * PAGE_SIZE))


def test_every_page_is_found_and_made_old(new_task):
    task = new_task()
    head = huge(task)
    assert walk(task, 0, int(N)) == N and vmstat()["thp_split_pmd"] == 1
    assert not [i for i in range(N) if task.pte(ADDR + i * PAGE_SIZE).val.read() & _PAGE_ACCESSED]
    assert PageHead(head), "the page is huge as before"
    assert pmd_trans_huge(task.pmd(ADDR + int(HPAGE_PMD_SIZE))), "it was not asked about this one"
    assert [task.load(ADDR + i * PAGE_SIZE) for i in range(2 * N)] == [7 + i for i in range(2 * N)]


def test_a_pinned_page_is_no_obstacle(new_task):
    """R37."""
    task = new_task()
    head = huge(task)
    get_page(task.cpu, head)
    assert walk(task, 1, 2) == 2
    put_page(task.cpu, head)


def test_holes_the_huge_zero_page_and_what_is_not_mapped(new_task):
    task = new_task()
    set_switch("enabled", "always")
    task.mmap(ADDR, 2 * int(N))
    assert user_load(task.cpu, ADDR) == 0
    assert walk(task, 0, 4 * int(N)) == N, "N ptes of the small zero page"
    task.store(ADDR + int(N) * PAGE_SIZE, 1)
    assert task.munmap(ADDR, int(N)) == 0
    assert walk(task, 0, 4 * int(N)) == N
