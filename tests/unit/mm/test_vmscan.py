"""Reclaim: what goes, what stays, and what a program sees when nothing can go."""

import pytest

from concur_thp.config import PAGE_SIZE
from concur_thp.mm.buddy import ZONE_MOVABLE
from concur_thp.mm.errno import ENOMEM
from concur_thp.mm.file_table import file_alloc
from concur_thp.mm.filemap import find_get_page
from concur_thp.mm.flags import GFP_KERNEL, MADV_FREE, MAP_SHARED
from concur_thp.mm.khugepaged import khugepaged_do_scan
from concur_thp.mm.kswapd import balance_pgdat
from concur_thp.mm.lru import LRU_ACTIVE_ANON
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, Page, mem_map, pgdat, zones
from concur_thp.mm.page_flags import PageHead, PageSwapCache, PG_swapbacked, TestFlag, tail_page
from concur_thp.mm.page_ref import get_page
from concur_thp.mm.pcp import drain_pcp
from concur_thp.mm.pgtable import entry_pfn, is_swap_entry, pmd_table, pmd_trans_huge, table_entry
from concur_thp.mm.put_page import put_page
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.swap_map import percpu_clusters, scan_swap_map, swap_info, swap_map
from concur_thp.mm.swapfile import __swap_entry_free
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vmscan import do_try_to_free_pages, shrink_active_list, try_to_free_pages
from concur_thp.mm.vmstat import vmstat
from concur_thp.sync.spinlock import spin_lock, spin_unlock

ADDR = 1 << 24
SWAP = {9: "16M", 3: "1M"}


@pytest.fixture
def order(request):
    return 9 if "order9" in request.node.name else 3


@pytest.fixture
def task(new_task, order):
    return new_task(swap=SWAP[order])


def fill(task, addr: int, pages: int) -> None:
    task.mmap(addr, pages)
    for i in range(pages):
        assert task.store(addr + i * PAGE_SIZE, i + 1) == 0


def reclaim(task, pages: int) -> int:
    """Twice: the first time finds everything used."""
    lru_add_drain(task.cpu)
    got = do_try_to_free_pages(task.cpu, pages, 0)
    return got + (do_try_to_free_pages(task.cpu, pages - got, 0) if got < pages else 0)


def rss(task) -> tuple[int, int]:
    return task.mm.rss[MM_ANONPAGES].read(), task.mm.rss[MM_SWAPENTS].read()


def huge(task, addr: int) -> Page:
    value = task.pmd(addr)
    assert pmd_trans_huge(value)
    return Page(int(mem_map[entry_pfn(value)]))


def test_small_pages_go_and_come_back(task):
    fill(task, ADDR, 40)
    assert reclaim(task, 40) == 40
    assert rss(task) == (0, 40) and vmstat()["pswpout"] == 40
    for i in range(40):
        assert task.load(ADDR + i * PAGE_SIZE) == i + 1
    assert rss(task) == (40, 0)


def test_without_a_device_anon_pages_stay(new_task):
    task = new_task()
    fill(task, ADDR, 20)
    assert reclaim(task, 20) == 0 and rss(task) == (20, 0)


def test_a_thp_goes_whole(task, order):
    set_switch("enabled", "always")
    nr = 1 << order
    fill(task, ADDR, nr)
    assert PageHead(huge(task, ADDR))
    assert reclaim(task, nr) == nr
    counts = vmstat()
    assert (counts["thp_swpout"], counts["thp_swpout_fallback"], counts["thp_split_page"]) == (1, 0, 0)
    assert rss(task) == (0, nr)
    assert all(task.load(ADDR + i * PAGE_SIZE) == i + 1 for i in range(nr))


def test_split_first_when_whole_pages_may_not(task, order):
    """C.4."""
    set_switch("enabled", "always")
    set_switch("swap_whole_thp", 0)
    nr = 1 << order
    fill(task, ADDR, nr)
    assert reclaim(task, nr) == nr
    counts = vmstat()
    assert (counts["thp_swpout"], counts["thp_swpout_fallback"], counts["thp_split_page"]) == (0, 1, 1)
    assert all(task.load(ADDR + i * PAGE_SIZE) == i + 1 for i in range(nr))


def take_a_slot_of_each_cluster(cpu) -> list[int]:
    """No cluster is wholly free afterwards."""
    taken = []
    spin_lock(cpu, swap_info.lock)
    while swap_info.free_clusters_head:
        percpu_clusters[cpu.id].index = 0
        taken.append(int(scan_swap_map(cpu)))
    spin_unlock(cpu, swap_info.lock)
    return taken


def give_back(cpu, entry: int) -> None:
    swap_map[entry].count = 1
    assert __swap_entry_free(cpu, entry) == 0


def test_no_free_cluster_means_split(task, order):
    set_switch("enabled", "always")
    nr = 1 << order
    fill(task, ADDR, nr)
    taken = take_a_slot_of_each_cluster(task.cpu)
    assert reclaim(task, nr) == nr
    for entry in taken:
        give_back(task.cpu, entry)
    counts = vmstat()
    assert (counts["thp_swpout"], counts["thp_swpout_fallback"], counts["pswpout"]) == (0, 1, nr)
    assert all(task.load(ADDR + i * PAGE_SIZE) == i + 1 for i in range(nr))


def test_a_pinned_thp_stays(task, order):
    """R12: it is not even tried."""
    set_switch("enabled", "always")
    nr = 1 << order
    fill(task, ADDR, nr)
    page = huge(task, ADDR)
    get_page(task.cpu, tail_page(page, 3))
    assert reclaim(task, nr) == 0
    assert huge(task, ADDR) == page and not PageSwapCache(page) and rss(task) == (nr, 0)
    put_page(task.cpu, tail_page(page, 3))
    assert reclaim(task, nr) == nr


def test_unused_pieces_of_a_thp_go_without_io(task, order):
    """A THP that no pmd maps is split at once; or the shrinker was faster. Either way nothing is written for the holes."""
    set_switch("enabled", "always")
    nr = 1 << order
    fill(task, ADDR, nr)
    task.dontneed(ADDR + PAGE_SIZE, nr - 2)
    assert vmstat()["thp_deferred_split_page"] == 1 == pgdat.split_queue_len
    reclaim(task, nr)
    assert pgdat.split_queue_len == 0 and vmstat()["thp_split_page"] == 1
    assert rss(task) == (0, 2) and vmstat()["pswpout"] == 2
    assert task.load(ADDR) == 1 and task.load(ADDR + PAGE_SIZE) == 0


def test_lazily_freed_pages_are_discarded(task):
    fill(task, ADDR, 8)
    assert do_madvise(task.cpu, task.mm, ADDR, 8 * PAGE_SIZE, MADV_FREE) == 0
    task.store(ADDR + 3 * PAGE_SIZE, 30)
    assert reclaim(task, 8) >= 7
    assert vmstat()["pglazyfreed"] == 7
    assert [task.load(ADDR + i * PAGE_SIZE) for i in range(8)] == [0, 0, 0, 30, 0, 0, 0, 0]


def test_a_written_page_is_swapbacked_again(task):
    fill(task, ADDR, 1)
    assert do_madvise(task.cpu, task.mm, ADDR, PAGE_SIZE, MADV_FREE) == 0
    lru_add_drain(task.cpu)
    assert not TestFlag(task.page(ADDR), PG_swapbacked)
    task.store(ADDR, 9)
    for _ in range(4):
        do_try_to_free_pages(task.cpu, 1, 0)
    assert task.load(ADDR) == 9 and vmstat()["pglazyfreed"] == 0


def test_clean_pages_of_a_file_go_dirty_ones_stay(new_task):
    task = new_task()
    file = int(file_alloc(task.cpu, 8, 5))
    task.mmap(ADDR, 8, flags=MAP_SHARED, file=file)
    content = [task.load(ADDR + i * PAGE_SIZE) for i in range(8)]
    task.store(ADDR + 2 * PAGE_SIZE, 77)
    task.munmap(ADDR, 8)
    for _ in range(4):
        reclaim(task, 8)
    left = [bool(find_page(task, file, i)) for i in range(8)]
    assert left == [i == 2 for i in range(8)]
    task.mmap(ADDR, 8, flags=MAP_SHARED, file=file)
    content[2] = 77
    assert [task.load(ADDR + i * PAGE_SIZE) for i in range(8)] == content
    task.munmap(ADDR, 8)


def find_page(task, file: int, index: int):
    page = Page(int(find_get_page(task.cpu, file, index)))
    if page:
        put_page(task.cpu, page)
    return page


def test_a_program_may_use_more_than_there_is(new_task, order):
    """Direct reclaim: every page keeps its word."""
    task = new_task(memory="24M" if order == 9 else "1M", swap="64M" if order == 9 else "2M")
    pages = task.machine.config.frames + task.machine.config.frames // 4
    if order == 3:
        pages = task.machine.config.frames  # A page table for every 8 of them cannot go.
    fill(task, ADDR, pages)
    assert vmstat()["allocstall"] > 0 and vmstat()["pgsteal_direct"] > 0
    step = max(1, pages // 300)
    assert all(task.load(ADDR + i * PAGE_SIZE) == i + 1 for i in range(0, pages, step))


def test_out_of_memory_is_an_answer(new_task, order):
    task = new_task(memory="24M" if order == 9 else "1M")
    pages = task.machine.config.frames
    task.mmap(ADDR, pages)
    results = [task.store(ADDR + i * PAGE_SIZE, 1) for i in range(pages)]
    assert set(results) == {0, -ENOMEM} and results[-1] == -ENOMEM
    task.munmap(ADDR, pages)


def test_a_kernel_page_is_not_looked_for_where_it_cannot_be(new_task, order):
    """The oldest pages are in ZONE_MOVABLE, and their frames would be of no use (R4)."""
    task = new_task(memory="64M" if order == 9 else "1M", kernelcore="32M" if order == 9 else "512K",
                    swap="64M" if order == 9 else "2M")
    fill(task, ADDR, task.machine.config.frames * 3 // 4)
    lru_add_drain(task.cpu)
    mapped = [int(mem_map.index(task.page(ADDR + i * PAGE_SIZE))) for i in range(16)]
    assert min(mapped) >= zones[ZONE_MOVABLE].start_pfn
    shrink_active_list(task.cpu, pgdat.lru[LRU_ACTIVE_ANON].size, LRU_ACTIVE_ANON)
    drain_pcp(task.cpu)
    before = [zones[zone].nr_free_pages for zone in range(pgdat.nr_zones)]
    assert try_to_free_pages(task.cpu, 0, GFP_KERNEL) > 0
    drain_pcp(task.cpu)
    grown = [zones[zone].nr_free_pages - before[zone] for zone in range(pgdat.nr_zones)]
    assert grown[ZONE_MOVABLE] == 0 and sum(grown) > 0


def test_kswapd_brings_memory_back_above_the_high_mark(new_task, order):
    task = new_task(memory="24M" if order == 9 else "1M", swap="64M" if order == 9 else "2M")
    config = task.machine.config
    fill(task, ADDR, config.frames * 3 // 4)
    for zone in range(3):
        zones[zone].watermark[2] = config.frames // 2
    balance_pgdat(task.cpu)
    assert max(zones[zone].nr_free_pages for zone in range(pgdat.nr_zones)) > config.frames // 2
    assert vmstat()["pgsteal_kswapd"] > 0


def test_khugepaged_swaps_in(task, order):
    """3.28.3.3: a few swapped pages do not keep a range from being collapsed."""
    nr = 1 << order
    fill(task, ADDR, nr)
    set_switch("khugepaged/max_ptes_swap", nr // 2)
    set_switch("k5_young_half", 0)
    reclaim(task, max(1, nr // 8))
    swapped = rss(task)[1]
    assert 0 < swapped <= nr // 2
    set_switch("enabled", "always")
    do_madvise(task.cpu, task.mm, ADDR, nr * PAGE_SIZE, 14)  # Registers the mm.
    for i in range(nr):
        if not is_swap_entry(task.pte(ADDR + i * PAGE_SIZE).val.read()):
            task.store(ADDR + i * PAGE_SIZE, i + 1)
    lru_add_drain(task.cpu)
    for _ in range(3):
        khugepaged_do_scan(task.cpu, 16 * nr)
    assert pmd_trans_huge(task.pmd(ADDR)) and rss(task) == (nr, 0)
    assert all(task.load(ADDR + i * PAGE_SIZE) == i + 1 for i in range(nr))


def test_too_many_swapped_ptes_keep_khugepaged_away(task, order):
    nr = 1 << order
    fill(task, ADDR, nr)
    set_switch("khugepaged/max_ptes_swap", 0)
    reclaim(task, 1)
    assert rss(task)[1] > 0
    set_switch("enabled", "always")
    do_madvise(task.cpu, task.mm, ADDR, nr * PAGE_SIZE, 14)
    khugepaged_do_scan(task.cpu, 16 * nr)
    value = task.pmd(ADDR)
    assert pmd_table(value) and any(is_swap_entry(table_entry(entry_pfn(value), i).val.read()) for i in range(nr))
