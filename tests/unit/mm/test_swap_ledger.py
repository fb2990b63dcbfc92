"""The worked ledger A4 (semantics, Appendix A): a THP is swapped out whole, number by number. N is 512 and 8."""

from contextlib import nullcontext

import pytest

from concur_thp.arch.linker import interpreted
from concur_thp.config import PMD_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.huge_split_pmd import split_huge_pmd_address
from concur_thp.mm.lru import isolate_lru_page
from concur_thp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Page, mem_map
from concur_thp.mm.page_flags import PageHead, PG_active, PG_dirty, PG_swapcache, PG_writeback, TestFlag, page_to_pfn, tail_page
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.page_ref import page_ref_count
from concur_thp.mm.pgtable import entry_pfn, is_swap_entry, pmd_trans_huge, table_entry
from concur_thp.mm.remove_mapping import PAGE_SUCCESS, __remove_mapping, pageout
from concur_thp.mm.shrink_page_list import free_reclaimed
from concur_thp.mm.swap_map import SWAP_HAS_CACHE, swap_info, swap_map
from concur_thp.mm.swap_state import add_to_swap, swap_cached_pfn
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.tlb_batch import try_to_unmap_flush_dirty
from concur_thp.mm.try_to_unmap import TTU_BATCH_FLUSH, TTU_IGNORE_ACCESS, try_to_unmap
from concur_thp.mm.vmstat import vmstat
from tests.unit.mm.conftest import SMALLEST, Task


@pytest.mark.parametrize(("order", "plain"), [(9, False), (3, False), (3, True)])
def test_a4(order: int, plain: bool) -> None:
    n = 1 << order
    with (
        Machine(memory=SMALLEST[order], order=order, cpus=1, swap=8 * int(n) * 4096) as machine,
        interpreted() if plain else nullcontext(),
    ):
        task = Task(machine)
        set_switch("enabled", "always")
        addr, cpu, rss = 4 * int(PMD_SIZE), task.cpu, task.mm.rss
        task.mmap(addr, n)
        assert task.store(addr, 7) == 0
        assert pmd_trans_huge(task.pmd(addr))
        page = Page(int(mem_map[entry_pfn(task.pmd(addr))]))
        assert page_ref_count(page) == 1
        assert isolate_lru_page(cpu, page) == 1
        page.flags.and_(~(1 << PG_active))
        assert page_ref_count(page) == 2
        lock_page(cpu, page)

        assert add_to_swap(cpu, page) == 1
        entry = page.private
        assert page_ref_count(page) == 2 + n and entry % n == 0
        assert TestFlag(page, PG_swapcache) and TestFlag(page, PG_dirty)
        assert all(swap_map[entry + i].count == SWAP_HAS_CACHE for i in range(n))
        assert [swap_cached_pfn(entry + i) for i in range(n)] == [page_to_pfn(page) + i for i in range(n)]
        assert [tail_page(page, i).private for i in range(n)] == [entry + i for i in range(n)]

        split_huge_pmd_address(cpu, task.vma(addr), addr, 0, page)
        assert page_ref_count(page) == 2 * n + 1

        assert try_to_unmap(cpu, page, TTU_BATCH_FLUSH | TTU_IGNORE_ACCESS) == 1
        assert page_ref_count(page) == 1 + n
        assert all(swap_map[entry + i].count == SWAP_HAS_CACHE | 1 for i in range(n))
        table = entry_pfn(task.pmd(addr))
        ptes = [table_entry(table, i).val.read() for i in range(n)]
        assert all(is_swap_entry(pte) for pte in ptes) and [entry_pfn(pte) for pte in ptes] == list(range(entry, entry + n))
        assert (rss[MM_ANONPAGES].read(), rss[MM_SWAPENTS].read()) == (0, n)

        try_to_unmap_flush_dirty(cpu)
        assert pageout(cpu, page) == PAGE_SUCCESS
        assert not TestFlag(page, PG_dirty) and not TestFlag(page, PG_writeback)
        assert vmstat()["thp_swpout"] == 1 and vmstat()["pswpout"] == n

        assert __remove_mapping(cpu, page) == 1
        assert page_ref_count(page) == 0 and not TestFlag(page, PG_swapcache) and PageHead(page)
        assert all(swap_map[entry + i].count == 1 for i in range(n)) and swap_info.inuse_pages == n
        unlock_page(cpu, page)
        free_reclaimed(cpu, page)
        assert not PageHead(page)
        assert task.load(addr) == 7 and task.load(addr + 4096) == 0
        task.finish()
