"""Page tables go with the last vma that needs them, not earlier."""

from concur_thp.config import PAGE_SIZE, PMD_SIZE, PUD_SHIFT
from concur_thp.mm.pgtable import mm_pmd
from concur_thp.mm.vmstat import vmstat


def test_table_stays_while_a_neighbour_needs_it(new_task) -> None:
    task = new_task()
    start = 8 * int(PMD_SIZE)
    task.mmap(start, 8)
    for n in range(8):
        task.store(start + n * PAGE_SIZE, n)
    assert (task.mm.nr_ptes.read(), task.mm.nr_pmds.read()) == (1, 1)
    assert task.munmap(start + 2 * PAGE_SIZE, 3) == 0
    assert task.munmap(start, 2) == 0
    assert (task.mm.nr_ptes.read(), task.mm.nr_pmds.read()) == (1, 1)
    assert [task.load(start + n * PAGE_SIZE) for n in (5, 6, 7)] == [5, 6, 7]
    assert task.munmap(start + 5 * PAGE_SIZE, 3) == 0
    assert (task.mm.nr_ptes.read(), task.mm.nr_pmds.read()) == (0, 0)
    assert vmstat()["NR_PAGETABLE"] == 1  # The top table.


def test_all_levels_over_several_upper_tables(new_task) -> None:
    task = new_task()
    size = int(PMD_SIZE)
    border = 3 << int(PUD_SHIFT)  # Between two PMD tables.
    task.mmap(border - 2 * size, 4 * size // PAGE_SIZE)
    task.mmap(border + 6 * size, 1)
    for addr in (border - 2 * size, border - size, border, border + size, border + 6 * size):
        task.store(addr, 1)
    assert (task.mm.nr_ptes.read(), task.mm.nr_pmds.read()) == (5, 2)
    assert task.munmap(border - 2 * size, 3 * size // PAGE_SIZE) == 0
    assert (task.mm.nr_ptes.read(), task.mm.nr_pmds.read()) == (2, 1)
    assert not mm_pmd(task.mm, border - size) and task.pmd(border) == 0
    assert task.munmap(border - size, 20 * size // PAGE_SIZE) == 0
    assert (task.mm.nr_ptes.read(), task.mm.nr_pmds.read()) == (0, 0)


def test_several_vmas_at_once(new_task) -> None:
    task = new_task()
    size = int(PMD_SIZE)
    start = 16 * size
    for n in range(6):
        task.mmap(start + n * size // 2, 1)
        task.store(start + n * size // 2, n)
    assert task.mm.map_count == 6 and task.mm.nr_ptes.read() == 3
    assert task.munmap(start + size // 2, 4 * (size // 2) // PAGE_SIZE) == 0
    assert task.mm.map_count == 2 and task.mm.nr_ptes.read() == 2
    assert [task.load(start), task.load(start + 5 * size // 2)] == [0, 5]
