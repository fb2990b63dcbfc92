"""A task's huge page, and a second CPU to split it with.

CPU 0 runs the task and CPU 1 splits, in turns: one is parked while the other works.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from concur_thp.arch.irq import cpu_park, cpu_resume
from concur_thp.config import HPAGE_PMD_NR, PAGE_SIZE, PMD_SIZE
from concur_thp.mm.mm_types import Page, mem_map
from concur_thp.mm.page_flags import tail_page
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import get_page, page_ref_count
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.pgtable import entry_pfn, pmd_trans_huge
from concur_thp.mm.put_page import put_page
from concur_thp.mm.rmap import total_mapcount
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.try_to_unmap import TTU_RMAP_LOCKED, remove_migration_ptes, try_to_unmap


class Thp:
    """One huge page of numbered words, the number `k` of a task; `cpu` is the one that splits."""

    def __init__(self, task: Any, k: int = 0):
        self.t, self.cpu, self.n = task, task.machine.cpu(1), int(HPAGE_PMD_NR)
        self.addr = (4 + 2 * k) * int(PMD_SIZE)
        set_switch("enabled", "always")
        task.mmap(self.addr, self.n)
        for i in range(self.n):
            assert task.store(self.at(i), 1000 + i) == 0
        assert pmd_trans_huge(task.pmd(self.addr))
        set_switch("enabled", "never")
        self.head = Page(int(mem_map[entry_pfn(task.pmd(self.addr))]))

    @contextmanager
    def splitter(self) -> Iterator[None]:
        """CPU 1's turn."""
        cpu_park(self.t.cpu)
        cpu_resume(self.cpu)
        yield
        lru_add_drain(self.cpu)
        drain_pcp(self.cpu)
        cpu_park(self.cpu)
        cpu_resume(self.t.cpu)

    @contextmanager
    def task(self) -> Iterator[None]:
        """Within CPU 1's turn, CPU 0's."""
        cpu_park(self.cpu)
        cpu_resume(self.t.cpu)
        yield
        cpu_park(self.t.cpu)
        cpu_resume(self.cpu)

    def at(self, i: int) -> int:
        return int(self.addr + i * PAGE_SIZE)

    def piece(self, i: int) -> Page:
        return Page(int(tail_page(self.head, i)))

    def refs(self) -> list[int]:
        return [int(page_ref_count(self.piece(i))) for i in range(self.n)]

    def data_is_there(self) -> None:
        assert [self.t.load(self.at(i)) for i in range(self.n)] == [1000 + i for i in range(self.n)]

    @contextmanager
    def held(self, i: int = 0) -> Iterator[Page]:
        """CPU 1's turn, with a reference and the page lock, by way of subpage i."""
        with self.splitter():
            page = self.piece(i)
            get_page(self.cpu, page)
            lock_page(self.cpu, page)
            yield page
            unlock_page(self.cpu, page)
            put_page(self.cpu, page)

    def split(self, i: int = 0) -> int:
        with self.held(i) as page:
            return int(split_huge_page(self.cpu, page))

    @contextmanager
    def unmapped(self, flags: int) -> Iterator[None]:
        """The task's turn between try_to_unmap() and remove_migration_ptes()."""
        with self.held():
            assert try_to_unmap(self.cpu, self.head, flags & ~TTU_RMAP_LOCKED) == 1
            assert page_ref_count(self.head) == 1 and total_mapcount(self.head) == 0
            with self.task():
                yield
            remove_migration_ptes(self.cpu, self.head, self.head, 0)
