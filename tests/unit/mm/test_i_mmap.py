"""The vmas of a file: sorted by their first page, equal ones as they came, fork's child behind its parent."""

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.config import PAGE_SIZE
from concur_thp.errors import KernelBug
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.flags import MAP_SHARED
from concur_thp.mm.i_mmap import (
    vma_interval_tree_first,
    vma_interval_tree_insert_after,
    vma_interval_tree_next,
    vma_interval_tree_remove,
    vma_last_pgoff,
)
from concur_thp.mm.mm_types import files, vmas
from concur_thp.sync.rwsem import down_write, up_write

ADDR = 1 << 24
STEP = 64 * PAGE_SIZE


@pytest.fixture
def task(new_task):
    task = new_task()
    task.file = file_alloc(task.cpu, 32, 3)
    return task


def mapped(task, place: int, pgoff: int, pages: int) -> int:
    task.mmap(ADDR + place * STEP, pages, file=task.file, flags=MAP_SHARED, pgoff=pgoff)
    return int(vmas.index(task.vma(ADDR + place * STEP)))


def found(task, first: int = 0, last: int = 1 << 20) -> list[int]:
    numbers = []
    vma = vma_interval_tree_first(files[task.file], first, last)
    while vma:
        numbers.append(int(vmas.index(vma)))
        vma = vma_interval_tree_next(vma, first, last)
    return numbers


def test_sorted_by_page_and_equal_ones_by_age(task):
    late, early, same, middle = (mapped(task, n, pgoff, 4) for n, pgoff in enumerate((20, 0, 20, 8)))
    assert found(task) == [early, middle, late, same]
    assert vma_last_pgoff(vmas[middle]) == 11


def test_only_those_that_map_a_page_of_the_range(task):
    long, short, behind = mapped(task, 0, 0, 32), mapped(task, 1, 4, 2), mapped(task, 2, 10, 4)
    assert found(task, 5, 5) == [long, short]
    assert found(task, 6, 9) == [long]
    assert found(task, 13, 13) == [long, behind] and found(task, 14, 31) == [long]
    assert found(task, 32, 40) == []


def test_a_child_stands_behind_its_parent(task):
    """Not at the end of its equals: a walk that takes entries down must not meet the child first (1.5)."""
    parent, stranger = mapped(task, 0, 4, 4), mapped(task, 1, 4, 4)
    task.run_in(task.fork())
    child, other = (int(vmas.index(task.vma(ADDR + n * STEP))) for n in range(2))
    assert found(task) == [parent, child, stranger, other]


def test_gone_with_the_mapping(task):
    first, second, third = (mapped(task, n, 2 * n, 2) for n in range(3))
    task.munmap(ADDR + STEP, 2)
    assert found(task) == [first, third] and second not in found(task)
    task.munmap(ADDR, 2)
    task.munmap(ADDR + 2 * STEP, 2)
    assert found(task) == [] and files[task.file].i_mmap == 0


def test_a_cut_vma_is_two(task):
    """The piece behind the hole has a place of its own by its own first page."""
    number = mapped(task, 0, 0, 8)
    between = mapped(task, 1, 4, 1)
    task.munmap(ADDR + 2 * PAGE_SIZE, 3)
    behind = int(vmas.index(task.vma(ADDR + 5 * PAGE_SIZE)))
    assert found(task) == [number, between, behind] and vmas[behind].vm_pgoff == 5 and vma_last_pgoff(vmas[number]) == 1


def test_behind_one_that_starts_elsewhere(task):
    one, other = mapped(task, 0, 0, 2), mapped(task, 1, 4, 2)
    down_write(task.cpu, files[task.file].i_mmap_rwsem)
    with interpreted(), pytest.raises(KernelBug, match="vma_interval_tree_insert_after: not the same place"):
        vma_interval_tree_insert_after(task.cpu, vmas[other], vmas[one])
    up_write(task.cpu, files[task.file].i_mmap_rwsem)


def test_without_the_lock(task):
    number = mapped(task, 0, 0, 2)
    with interpreted(), pytest.raises(KernelBug):
        vma_interval_tree_remove(task.cpu, vmas[number])
