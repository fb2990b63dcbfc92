"""Counters under the kernel's names. (Linux: include/linux/vm_event_item.h, mmzone.h; mm/vmstat.c)

Events and statistics are kept per CPU, changed by their own CPU only, and summed when read.
"""

from enum import IntEnum, unique

from concur_thp.arch.cpu import NR_VMSTAT, Cpu, cpus
from concur_thp.arch.linker import inline
from concur_thp.config import NR_CPUS


@unique
class Stat(IntEnum):
    """Rows of cpu.vmstat. Upper case: levels (node statistics). Lower case: events, which only rise."""

    NR_ANON_MAPPED = 0
    NR_ANON_THPS = 1
    NR_FILE_MAPPED = 2
    NR_FILE_PAGES = 3
    NR_SHMEM_THPS = 4
    NR_SHMEM_PMDMAPPED = 5
    NR_MLOCK = 6
    NR_PAGETABLE = 7
    NR_KERNEL_PAGES = 8  # unmovable pages that are no page tables: zero pages
    pgmigrate_success = 10
    pgmigrate_fail = 11
    thp_migration_success = 12
    thp_migration_fail = 13
    thp_migration_split = 14
    compact_stall = 15  # direct compactions, skipped ones not counted
    compact_success = 16
    compact_fail = 17
    compact_migrate_scanned = 18
    compact_free_scanned = 19
    pgfault = 20
    pgmajfault = 21
    pgalloc = 22
    pgfree = 23
    pswpin = 24
    pswpout = 25
    pgactivate = 26
    pgdeactivate = 27
    pglazyfreed = 28
    allocstall = 29  # direct reclaim entered
    thp_fault_alloc = 30
    thp_fault_fallback = 31
    thp_collapse_alloc = 32
    thp_collapse_alloc_failed = 33
    thp_file_alloc = 34
    thp_file_mapped = 35
    thp_split_page = 36
    thp_split_page_failed = 37
    thp_deferred_split_page = 38
    thp_split_pmd = 39
    thp_zero_page_alloc = 40
    thp_zero_page_alloc_failed = 41
    thp_swpout = 42
    thp_swpout_fallback = 43
    nr_tlb_remote_flush = 44
    khugepaged_pages_collapsed = 45
    khugepaged_full_scans = 46
    khugepaged_pages_scanned = 47
    alloc_fallback = 48  # pageblocks or pages stolen from another migratetype
    pglazyfree = 49
    wp_reuse = 50  # write faults that found the page theirs alone
    wp_copy = 51  # write faults that copied
    wp_huge_copy = 52
    wp_huge_fallback_pages = 53  # 3.6.1: COW of a THP into small pages
    mremap_huge = 54  # move_huge_pmd moved one
    pgscan_direct = 55
    pgscan_kswapd = 56
    pgsteal_direct = 57
    pgsteal_kswapd = 58
    pageoutrun = 59  # kswapd set to work
    scan_result = 60  # 60 + SCAN_*: what khugepaged's looks ended with
    memory_failure = 92  # broken frames taken out of use
    memory_unpoisoned = 93  # and given back
    pfn_scan_got = 94  # references that the scanner of frames took
    pfn_scan_missed = 95  # and did not get: free, frozen, or changed while it looked
    deferred_split_drained = 96  # THPs split from the queue
    alloc_failed = 97  # small pages that nobody could find: out of memory, the program gets -ENOMEM


assert max(Stat) < NR_VMSTAT


@inline
def mod_stat(cpu: Cpu, stat: int, delta: int):
    """Change a counter by `delta` on this CPU."""
    cpu.vmstat[stat] = cpu.vmstat[stat] + delta


@inline
def count_vm_event(cpu: Cpu, stat: int):
    cpu.vmstat[stat] = cpu.vmstat[stat] + 1


def vmstat() -> dict[str, int]:
    """The sum over all CPUs, by name."""
    return {stat.name: sum(cpus[n].vmstat[int(stat)] for n in range(NR_CPUS)) for stat in Stat}
