"""Native loops of the bench: what is timed on the emulator's side, and the stores of the running kernel's side.

Most do something to `blocks` huge pages from `addr` on and return how often it was done, so that a row can tell that it
measured what it says.
"""

from concur_thp.arch.builtins import cycles
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, Struct, field
from concur_thp.config import HPAGE_PMD_ORDER, HPAGE_PMD_SIZE, NR_CPUS, PAGE_SIZE
from concur_thp.mm.collapse_check import Scan
from concur_thp.mm.compound import free_compound_tails, prep_compound_page
from concur_thp.mm.flags import (
    FOLL_GET,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
)
from concur_thp.mm.gup import follow_page, get_user_pages_unlocked
from concur_thp.mm.gup_fast import get_user_pages_fast
from concur_thp.mm.highmem import clear_huge_page
from concur_thp.mm.huge_memory import split_huge_pmd
from concur_thp.mm.khugepaged import khugepaged_scan_pmd
from concur_thp.mm.migrate import NEW_PAGE
from concur_thp.mm.mm_types import Mm, Page, Slot, mem_map
from concur_thp.mm.move_pages import move_page
from concur_thp.mm.page_flags import compound_head
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.pgtable import mm_pmd, pmd_trans_huge
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import put_page
from concur_thp.mm.syscall import sys_madvise, sys_mmap, sys_mprotect, sys_munmap
from concur_thp.mm.uaccess import user_store
from concur_thp.mm.vma_tree import find_vma
from concur_thp.program.pressure import reclaim_some, swap_out_address
from concur_thp.sync.rwsem import down_read, down_write, up_read, up_write
from concur_thp.sync.spinlock import spin_lock, spin_unlock

READ_WRITE = PROT_READ | PROT_WRITE
ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED


class HostWord(Struct, size=4, align=4):
    """A word of this process's own memory, not of the segment."""

    value = field(I32, "owner", "the word")


pinned = SharedArray("bench_pinned", Slot, lambda config: 32 * NR_CPUS)
"""One pin of each CPU, each in cache lines of its own."""

handed = SharedArray("bench_handed", Slot, lambda config: 32)
"""The word of bench_hand_over(), alone in its cache line."""
HAND_OVERS = 64
HAND_OVER_SPINS = 100_000
HAND_OVER_MASK = (1 << 30) - 1


@kernel
def host_store(addr: int, step: int, times: int):
    """Store to `times` places of this process's own memory, `step` bytes apart.

    Context: no machine: the running kernel takes the faults.
    Emulator: the touching loop of the rows measured on the running kernel; threads run it at once.
    """
    for i in range(times):
        HostWord(addr + i * step).value = 1


@kernel
def bench_atomic_add(cpu: Cpu, mm: Mm, times: int):
    """`times` atomic adds on one word of the segment.

    Context: any.
    Emulator: bench row atomic_add.
    """
    for _ in range(times):
        mm.faults.add(1)


@kernel
def bench_hand_over(cpu: Cpu, batches: int):
    """Hand one cache line to another CPU process and get it back, in batches of HAND_OVERS.

    Context: two CPUs do this at once, with even and odd numbers; who waits for nobody gives up.
    Return: cycles() of the fastest batch: one in which both had a processor. 0 when there was none.
    Emulator: the `line` column of the throughput rows: what a lock costs that the other CPU has had.
    """
    line = handed[0]
    fastest = 0
    for _ in range(batches):
        since = cycles()
        done = 0
        patience = HAND_OVER_SPINS
        while done < HAND_OVERS and patience > 0:
            seen = line.value
            if seen & 1 == cpu.id & 1:
                line.value = (seen + 1) & HAND_OVER_MASK
                done += 1
            patience -= 1
        took = cycles() - since
        if done == HAND_OVERS and (fastest == 0 or took < fastest):
            fastest = took
    return fastest


@kernel
def bench_frame_work(cpu: Cpu, heads: Slot, count: int, rounds: int):
    """What faults and zaps do to the struct pages and contents of huge pages, without any lock or list.

    Context: `heads` are the pfns of `count` compound pages that nobody else knows.
    Return: huge pages made and unmade.
    Emulator: the `private` column of throughput_huge: a ceiling that has the same work to do.
    """
    for _ in range(rounds):
        for i in range(count):
            head = mem_map[Slot(int(heads) + 4 * i).value]
            free_compound_tails(cpu, head, HPAGE_PMD_ORDER)
            clear_huge_page(head)
            prep_compound_page(cpu, head, HPAGE_PMD_ORDER)
    return rounds * count


@kernel
def bench_spin_lock(cpu: Cpu, mm: Mm, times: int):
    """Take and release one spinlock `times` times.

    Context: no lock held.
    Emulator: bench row spin_lock_pair.
    """
    for _ in range(times):
        spin_lock(cpu, mm.page_table_lock)
        spin_unlock(cpu, mm.page_table_lock)


@kernel
def bench_rwsem_read(cpu: Cpu, mm: Mm, times: int):
    """Take and release mmap_sem for reading `times` times.

    Context: no lock held.
    Emulator: bench row rwsem_read_pair.
    """
    for _ in range(times):
        down_read(cpu, mm.mmap_sem)
        up_read(cpu, mm.mmap_sem)


@kernel
def bench_rwsem_write(cpu: Cpu, mm: Mm, times: int):
    """Take and release mmap_sem for writing `times` times.

    Context: no lock held.
    Emulator: bench row rwsem_write_pair.
    """
    for _ in range(times):
        down_write(cpu, mm.mmap_sem)
        up_write(cpu, mm.mmap_sem)


@kernel
def bench_page_lock(cpu: Cpu, mm: Mm, times: int):
    """Take and release one page lock `times` times: that of the mm's top table, which nothing else ever locks.

    Context: no lock held.
    Emulator: bench row page_lock_pair.
    """
    page = mem_map[mm.pgd]
    for _ in range(times):
        lock_page(cpu, page)
        unlock_page(cpu, page)


@kernel
def bench_touch(cpu: Cpu, addr: int, step: int, times: int):
    """Store to `times` addresses, `step` bytes apart.

    Context: user mode.
    Return: the first error, or 0.
    Emulator: what a program's first touches are.
    """
    for i in range(times):
        status = user_store(cpu, addr + i * step, i + 1)
        if status < 0:
            return status
    return 0


@kernel
def bench_split_pmd(cpu: Cpu, mm: Mm, addr: int, blocks: int):
    """Split the huge pmds of `blocks` blocks.

    Context: user mode; takes mmap_sem read.
    Return: how many were huge.
    Emulator: bench row split_huge_pmd.
    """
    split = 0
    down_read(cpu, mm.mmap_sem)
    for i in range(blocks):
        haddr = addr + i * HPAGE_PMD_SIZE
        pmd = mm_pmd(mm, haddr)
        if pmd and pmd_trans_huge(pmd.val.load()):
            split_huge_pmd(cpu, find_vma(mm, haddr), pmd, haddr)
            split += 1
    up_read(cpu, mm.mmap_sem)
    return split


@kernel
def bench_split_page(cpu: Cpu, mm: Mm, addr: int, blocks: int):
    """Split the huge pages of `blocks` blocks, as FOLL_SPLIT does: reference, page lock, split.

    Context: user mode; takes mmap_sem read, page locks.
    Return: how many were split.
    Emulator: bench row split_huge_page.
    """
    split = 0
    for i in range(blocks):
        down_read(cpu, mm.mmap_sem)
        found = follow_page(cpu, find_vma(mm, addr + i * HPAGE_PMD_SIZE), addr + i * HPAGE_PMD_SIZE, FOLL_GET)
        up_read(cpu, mm.mmap_sem)
        if found > 0:
            page = Page(found)
            lock_page(cpu, page)
            split += split_huge_page(cpu, page) == 0
            unlock_page(cpu, page)
            put_page(cpu, page)
    return split


@kernel
def bench_collapse(cpu: Cpu, mm: Mm, addr: int, blocks: int):
    """Scan and collapse `blocks` blocks of small pages, as khugepaged does.

    Context: user mode; takes mmap_sem.
    Return: how many were collapsed.
    Emulator: bench row collapse.
    """
    done = 0
    for i in range(blocks):
        down_read(cpu, mm.mmap_sem)
        result = khugepaged_scan_pmd(cpu, mm, addr + i * HPAGE_PMD_SIZE)
        if cpu.scratch[0] == 0:
            up_read(cpu, mm.mmap_sem)
        if result == Scan.SCAN_SUCCEED:
            done += 1
    return done


@kernel
def bench_migrate(cpu: Cpu, mm: Mm, addr: int, blocks: int):
    """Move the huge pages of `blocks` blocks to other frames.

    Context: user mode; takes mmap_sem read, then page locks.
    Return: how many were moved.
    Emulator: bench row migrate_huge.
    """
    moved = 0
    for i in range(blocks):
        moved += move_page(cpu, mm, addr + i * HPAGE_PMD_SIZE, NEW_PAGE) == 0
    return moved


@kernel
def bench_swap_out(cpu: Cpu, addr: int, blocks: int):
    """Reclaim the huge pages of `blocks` blocks.

    Context: user mode. Sleeps.
    Return: how many went as a whole or in pieces.
    Emulator: bench row swap_out_huge.
    """
    gone = 0
    for i in range(blocks):
        gone += swap_out_address(cpu, addr + i * HPAGE_PMD_SIZE) > 0
    return gone


@kernel
def bench_reclaim(cpu: Cpu, number: int, count: int):
    """Age and reclaim `count` pages of an inactive list.

    Context: user mode. Sleeps.
    Return: pages reclaimed.
    Emulator: growth row lru_reclaim_batch.
    """
    return reclaim_some(cpu, number, count)


@kernel
def bench_dontneed_part(cpu: Cpu, addr: int, blocks: int):
    """MADV_DONTNEED of one small page in the middle of each block.

    Context: user mode; takes mmap_sem read.
    Return: how many calls succeeded.
    Emulator: bench row dontneed_part; also what fills the deferred split queue.
    """
    done = 0
    for i in range(blocks):
        done += sys_madvise(cpu, addr + i * HPAGE_PMD_SIZE + HPAGE_PMD_SIZE // 2, PAGE_SIZE, MADV_DONTNEED) == 0
    return done


@kernel
def bench_gup_fast(cpu: Cpu, addr: int, times: int):
    """Pin a page without locks and let go of it, `times` times.

    Context: user mode, the page is mapped.
    Return: pins.
    Emulator: bench row gup_fast.
    """
    slot = pinned[32 * cpu.id]
    got = 0
    for _ in range(times):
        if get_user_pages_fast(cpu, addr, 1, 1, slot) == 1:
            put_page(cpu, compound_head(mem_map[slot.value]))
            got += 1
    return got


@kernel
def bench_gup_slow(cpu: Cpu, mm: Mm, addr: int, times: int):
    """Pin a page under mmap_sem and let go of it, `times` times.

    Context: user mode; takes mmap_sem read, a ptl.
    Return: pins.
    Emulator: bench row gup_slow.
    """
    slot = pinned[32 * cpu.id]
    got = 0
    for _ in range(times):
        if get_user_pages_unlocked(cpu, mm, addr, 1, 0, slot) == 1:
            put_page(cpu, compound_head(mem_map[slot.value]))
            got += 1
    return got


@kernel
def bench_map_unmap(cpu: Cpu, addr: int, size: int, times: int):
    """mmap and munmap of memory that nobody touches, `times` times.

    Context: user mode; takes mmap_sem write.
    Return: how many calls of munmap succeeded.
    Emulator: bench row mmap_munmap_pair.
    """
    done = 0
    for _ in range(times):
        if sys_mmap(cpu, addr, size, READ_WRITE, ANONYMOUS, 0, 0) == addr:
            done += sys_munmap(cpu, addr, size) == 0
    return done


@kernel
def bench_fault_zap(cpu: Cpu, addr: int, step: int, size: int, rounds: int):
    """Fill a mapping and empty it again with MADV_DONTNEED, `rounds` times.

    Context: user mode.
    Return: faults, or an error.
    Emulator: bench rows throughput_small and throughput_huge.
    """
    done = 0
    for _ in range(rounds):
        status = bench_touch(cpu, addr, step, size // step)
        if status < 0:
            return status
        sys_madvise(cpu, addr, size, MADV_DONTNEED)
        done += size // step
    return done


@kernel
def bench_life(cpu: Cpu, addr: int, blocks: int, rounds: int):
    """The life of a mapping: mmap, huge faults, a split by mprotect, small faults, DONTNEED, munmap; `rounds` times.

    Context: user mode.
    Return: operations, or an error.
    Emulator: bench row throughput_mix.
    """
    done = 0
    size = blocks * HPAGE_PMD_SIZE
    for _ in range(rounds):
        if sys_mmap(cpu, addr, size, READ_WRITE, ANONYMOUS, 0, 0) != addr:
            return -1
        sys_madvise(cpu, addr, size, MADV_HUGEPAGE)
        status = bench_touch(cpu, addr, HPAGE_PMD_SIZE, blocks)
        if status < 0:
            return status
        sys_mprotect(cpu, addr, PAGE_SIZE, PROT_READ)
        bench_dontneed_part(cpu, addr, blocks)
        status = bench_touch(cpu, addr + HPAGE_PMD_SIZE // 2, HPAGE_PMD_SIZE, blocks)
        if status < 0:
            return status
        sys_munmap(cpu, addr, size)
        done += 4 + 3 * blocks
    return done
