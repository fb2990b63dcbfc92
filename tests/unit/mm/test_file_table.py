"""Files: handed out, kept by the vmas that map them, and gone with the last mapping when nothing else knows them."""

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.config import PAGE_SIZE
from concur_thp.errors import KernelBug
from concur_thp.machine import Machine
from concur_thp.mm.errno import EINVAL, ENOMEM
from concur_thp.mm.file_table import file_alloc, file_free, file_refs, fput, get_file
from concur_thp.mm.filemap import cached_pfn, filemap_get_page
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_SHARED
from concur_thp.mm.mm_types import NIL, POOL_FILE, Page, files, pools
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.truncate import invalidate_mapping_pages

A = 0x40000


def test_files_run_out_and_come_back(new_task) -> None:
    task = new_task(files=3, file_pages=64)
    cpu = task.cpu
    assert file_alloc(cpu, 0, 1) == file_alloc(cpu, 65, 1) == -EINVAL
    numbers = [file_alloc(cpu, 64, 1) for _ in range(3)]
    assert sorted(numbers) == [1, 2, 3] and file_alloc(cpu, 1, 1) == -ENOMEM
    put_page(cpu, Page(int(filemap_get_page(cpu, numbers[0], 63))))
    file_free(cpu, numbers[0])
    assert file_alloc(cpu, 5, 2) == numbers[0] and cached_pfn(numbers[0], 63) == NIL


def test_shared_anonymous_memory_goes_with_its_last_mapping(new_task) -> None:
    """The second mapping is a part that mprotect or munmap has cut off, or a child's."""
    task = new_task()
    task.mmap(A, 4, flags=MAP_SHARED | MAP_ANONYMOUS)
    file = task.vma(A).vm_file
    assert files[file].id == 0 and file_refs[file].f_count.load() == 1
    task.store(A, 7)
    child = task.fork()
    task.munmap(A + PAGE_SIZE, 1)
    assert file_refs[file].f_count.load() == 3, "two parts and the child's"
    task.munmap(A, 4)
    assert file_refs[file].f_count.load() == 1 and files[file].nrpages == 1
    task.run_in(child)
    assert task.load(A) == 7
    task.munmap(A, 4)
    assert file_refs[file].f_count.load() == 0 and pools[POOL_FILE].in_use.load() == 0


def test_a_file_with_a_name_outlives_its_mappings(new_task) -> None:
    task = new_task()
    file = file_alloc(task.cpu, 4, 3)
    task.mmap(A, 4, file=file)
    task.load(A)
    task.munmap(A, 4)
    assert (file_refs[file].f_count.load(), files[file].nrpages, pools[POOL_FILE].in_use.load()) == (0, 1, 1)


def test_no_file_needs_no_reference(new_task) -> None:
    cpu = new_task().cpu
    get_file(0)
    assert fput(cpu, 0) == 0 and file_refs[0].f_count.load() == 0


def test_one_fput_too_many(new_task) -> None:
    task = new_task()
    with interpreted(), pytest.raises(KernelBug, match="fput: file has no reference"):
        fput(task.cpu, file_alloc(task.cpu, 1, 1))


def test_a_file_is_not_free_while_another_cpu_takes_its_last_page_out() -> None:
    """That CPU has counted nrpages down to 0 and still has i_pages: a new file in the same place would find its lock held,
    or lose it."""
    with Machine(cpus=2, memory="4M", order=3) as machine:
        cpu = machine.cpu(0)
        file = file_alloc(cpu, 1, 0)
        put_page(cpu, Page(int(filemap_get_page(cpu, file, 0))))
        lru_add_drain(cpu)
        machine.program(lambda cpu: invalidate_mapping_pages(cpu, file), name="drop_caches")

        @machine.program
        def last_mapping(cpu):
            file_free(cpu, file)
            assert file_alloc(cpu, 1, 0) == file

        machine.explore(strategy="dfs", depth=1, schedules=20_000).check()
