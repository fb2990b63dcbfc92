"""The bench rows measured on the running Linux kernel: ns per operation, from an ordinary program.

Every row works on regions of its own, asks for huge pages with madvise (no sysfs switch is written), and proves from
smaps, the fault count or vmstat that the kernel did what the row says. What the program adds (the call, the loop, the
store) is measured beside it and subtracted. A row that cannot be measured here says why.

`ROWS[name](stack)` prepares what the row needs, to be taken down with `stack`, and returns a function that takes one
sample. N processes run it in N children; "one mm" runs it in N threads of one child.
"""

import ctypes
import fcntl
import mmap
import os
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from concur_thp.errors import Misuse
from stress.bench.children import Measured, NotHere, check_counts, measured, sampled
from stress.bench.host_memory import (
    HPAGE,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MAP_FAILED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE,
    PROT_READ,
    PROT_RW,
    Floor,
    IoVec,
    Region,
    faults,
    libc,
    map_memory,
    need_memory,
    need_swap,
    need_thp,
    ns,
    proc_figure,
    refused,
)

#: How many huge pages one sample covers. Enough that a syscall is small beside them. A fork costs hundreds of
#: microseconds whatever is mapped, and a huge pmd well under one, so that row needs many more.
SAMPLE_HPAGES = 8
FORK_HPAGES = 96
PINS = 16
"""Pages of one vmsplice or process_vm_readv: as many as fit a pipe, and one batch of the kernel."""
MAPPINGS = 100

Sample = Callable[[], float]
Row = Callable[[ExitStack], Sample]


def _region(stack: ExitStack, hpages: int, *, huge: bool) -> Region:
    if huge:
        need_thp()
    return stack.enter_context(Region(hpages, huge=huge))


def _fault(huge: bool) -> Row:
    def row(stack: ExitStack) -> Sample:
        region = _region(stack, SAMPLE_HPAGES, huge=huge)
        expected = region.length // region.step
        stores = Floor()

        def one() -> float:
            region.drop()
            before = faults()
            cold = ns(region.touch)
            # Fewer means that one fault brought several pages; a few more are the interpreter's own.
            if (took := faults() - before) < expected:
                raise NotHere(f"the stores took {took} faults where {expected} were expected")
            region.need_huge(region.hpages if huge else 0)
            return (cold - stores(region.touch)) / expected

        return one

    return row


def _zap(huge: bool) -> Row:
    def row(stack: ExitStack) -> Sample:
        region = _region(stack, SAMPLE_HPAGES, huge=huge)
        empty = Floor()

        def one() -> float:
            region.touch()
            region.need_huge(region.hpages if huge else 0)
            full = ns(region.drop)
            return (full - empty(region.drop)) / (region.length // region.step)

        return one

    return row


def _split(counter: str, work: Callable[[Region], None]) -> Row:
    """`work` on each huge page, less the same on small pages; vmstat's `counter` must rise by one for each."""

    def row(stack: ExitStack) -> Sample:
        need_thp()
        without = Floor()

        def one() -> float:
            with Region(SAMPLE_HPAGES, huge=True) as huge, Region(SAMPLE_HPAGES, huge=False) as small:
                huge.touch()
                small.touch()
                huge.need_huge(huge.hpages)
                before = proc_figure("/proc/vmstat", counter)
                took = ns(work, huge)
                if (counted := proc_figure("/proc/vmstat", counter) - before) < huge.hpages:
                    raise NotHere(f"vmstat counted {counted} of {counter} where {huge.hpages} were expected")
                huge.need_huge(0)
                return (took - without(work, small)) / huge.hpages

        return one

    return row


def _protect_one_page_each(region: Region) -> None:
    for offset in range(0, region.length, HPAGE):
        region.protect(offset + HPAGE // 2, PAGE, mmap.PROT_READ)


def _cool_one_page_each(region: Region) -> None:
    for offset in range(0, region.length, HPAGE):
        region.advise_part(offset + HPAGE // 2, PAGE, MADV_COLD)


def _fork() -> int:
    """A fork whose child leaves at once; ns of the parent's call."""

    def fork() -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        pids.append(pid)
        return pid

    pids: list[int] = []
    took = ns(fork)
    os.waitpid(pids[0], 0)
    return took


def fork_huge_pmd(stack: ExitStack) -> Sample:
    """Forks that copy the huge pmds, less forks of the same mm that leave them out (MADV_DONTFORK)."""
    need_memory(2 * FORK_HPAGES * HPAGE)
    region = _region(stack, FORK_HPAGES, huge=True)

    def one() -> float:
        region.touch()  # write access again, as fork took it away
        region.need_huge(region.hpages)
        region.advise(MADV_DONTFORK)
        _fork()  # the first fork of a round also finds the pages that the interpreter wrote meanwhile
        without = _fork()
        region.advise(MADV_DOFORK)
        return (_fork() - without) / region.hpages

    return one


def _write_protected(huge: bool, alive: bool) -> Row:
    """Stores after a fork, whose child is still there (copy) or not (reuse)."""

    def row(stack: ExitStack) -> Sample:
        region = _region(stack, SAMPLE_HPAGES, huge=huge)
        expected = region.length // region.step
        stores = Floor()

        def one() -> float:
            region.drop()
            region.touch()
            region.need_huge(region.hpages if huge else 0)
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(writer)
                os.read(reader, 1)  # until the parent closes its end, or dies
                os._exit(0)
            os.close(reader)
            if not alive:
                os.close(writer)
                os.waitpid(pid, 0)
            before = faults()
            took = ns(region.touch)
            count = faults() - before
            if alive:
                os.close(writer)
                os.waitpid(pid, 0)
            if count < expected:
                raise NotHere(f"the stores took {count} faults where {expected} were expected")
            return (took - stores(region.touch)) / expected

        return one

    return row


def collapse(stack: ExitStack) -> Sample:
    """One MADV_COLLAPSE call over several ranges of 512 present small pages each."""
    region = _region(stack, SAMPLE_HPAGES, huge=False)

    def one() -> float:
        region.advise(MADV_NOHUGEPAGE)
        region.drop()
        region.touch()
        region.need_huge(0)
        region.advise(MADV_HUGEPAGE)
        took = ns(region.advise, MADV_COLLAPSE)
        region.need_huge(region.hpages)
        return took / region.hpages

    return one


def mremap_huge_move(stack: ExitStack) -> Sample:
    """There and back between two regions. MREMAP_DONTUNMAP, so that what is left behind stays ours."""
    old, new = (_region(stack, SAMPLE_HPAGES, huge=True) for _ in range(2))
    old.touch()
    places = [new, old]

    def move() -> None:
        here, there = places
        flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
        if libc.mremap(here.base, here.length, here.length, flags, there.base) == MAP_FAILED:
            raise refused("mremap")

    def one() -> float:
        places.reverse()
        took = ns(move)
        places[1].need_huge(SAMPLE_HPAGES)
        return took / SAMPLE_HPAGES

    return one


def mprotect_whole(stack: ExitStack) -> Sample:
    region = _region(stack, SAMPLE_HPAGES, huge=True)
    region.touch()

    def one() -> float:
        took = ns(region.protect, 0, region.length, PROT_READ) + ns(region.protect, 0, region.length, PROT_RW)
        region.need_huge(region.hpages)
        return took / (2 * region.hpages)

    return one


def dontneed_part(stack: ExitStack) -> Sample:
    """MADV_DONTNEED of one small page in the middle of each huge page; whole calls, as on the emulator's side."""
    region = _region(stack, SAMPLE_HPAGES, huge=True)

    def drop_one_page_each() -> None:
        for offset in range(0, region.length, HPAGE):
            region.advise_part(offset + HPAGE // 2, PAGE, MADV_DONTNEED)

    def one() -> float:
        region.drop()
        region.touch()
        region.need_huge(region.hpages)
        took = ns(drop_one_page_each)
        region.need_huge(0)
        return took / region.hpages

    return one


def munmap(stack: ExitStack) -> Sample:
    need_thp()

    def one() -> float:
        with Region(SAMPLE_HPAGES, huge=True) as region:
            region.touch()
            region.need_huge(region.hpages)
            return ns(region.unmap) / region.hpages

    return one


def mmap_munmap_pair(stack: ExitStack) -> Sample:
    length = SAMPLE_HPAGES * HPAGE

    def pairs() -> None:
        for _ in range(MAPPINGS):
            libc.munmap(map_memory(length, PROT_RW), length)

    return lambda: ns(pairs) / MAPPINGS


def gup_fast(stack: ExitStack) -> Sample:
    """vmsplice pins pages without mmap_sem, a pipe full at a time; what the pipe costs is in it."""
    region = _region(stack, 1, huge=True)
    region.touch()
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    null = os.open(os.devnull, os.O_WRONLY)
    stack.callback(os.close, null)
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PINS * PAGE)
    if size < PINS * PAGE:
        raise NotHere(f"the kernel gives a pipe {size} bytes only")
    vector = IoVec(region.base, PINS * PAGE)

    def one() -> float:
        took = ns(lambda: done.append(libc.vmsplice(writer, ctypes.byref(vector), 1, 0)))
        if (got := done.pop()) != PINS * PAGE:
            raise NotHere(f"vmsplice took {got} of {PINS * PAGE} bytes")
        while got > 0:
            got -= os.splice(reader, null, got)
        return took / PINS

    done: list[int] = []
    return one


def gup_slow(stack: ExitStack) -> Sample:
    """process_vm_readv of one byte of each page, our own: it pins under mmap_sem; the copy is in it."""
    region = _region(stack, 1, huge=True)
    region.touch()
    remote = (IoVec * PINS)(*(IoVec(region.base + i * PAGE, 1) for i in range(PINS)))
    buffer = ctypes.create_string_buffer(PINS)
    local = IoVec(ctypes.addressof(buffer), PINS)
    pid = os.getpid()

    def read() -> None:
        if libc.process_vm_readv(pid, ctypes.byref(local), 1, remote, PINS, 0) != PINS:
            raise refused("process_vm_readv")

    return lambda: ns(read) / PINS


def swap_out_huge(stack: ExitStack) -> Sample:
    need_swap()
    region = _region(stack, SAMPLE_HPAGES, huge=True)

    def one() -> float:
        region.drop()
        region.touch()
        region.need_huge(region.hpages)
        took = ns(region.advise, MADV_PAGEOUT)
        region.need_huge(0)
        return took / region.hpages

    return one


def user_store_tlb_hit(stack: ExitStack) -> Sample:
    """One store per cache line of two mapped pages, over and over; two lengths, so the call drops out."""
    pages, short, long = 2, 64, 576
    region = _region(stack, 1, huge=False)
    words = region.bytes[: pages * PAGE].view(np.uint64)
    lines = pages * PAGE // 64

    def again(repeat: int) -> np.ndarray:
        # Stride 0 starts over at the same two pages; 64 bytes apart, so no two stores join in a vector.
        return np.lib.stride_tricks.as_strided(words, shape=(repeat, lines), strides=(0, 64))

    few, many = again(short), again(long)
    start = Floor()
    return lambda: (ns(many.fill, 1) - start(few.fill, 1)) / ((long - short) * lines)


ROWS: dict[str, Row] = {
    "fault_pte": _fault(huge=False),
    "fault_huge": _fault(huge=True),
    "split_huge_pmd": _split("thp_split_pmd", _protect_one_page_each),
    "split_huge_page": _split("thp_split_page", _cool_one_page_each),  # MADV_COLD of a part splits the page
    "zap_pte": _zap(huge=False),
    "zap_huge": _zap(huge=True),
    "fork_huge_pmd": fork_huge_pmd,
    "wp_reuse": _write_protected(huge=False, alive=False),
    "wp_reuse_huge": _write_protected(huge=True, alive=False),
    "wp_copy": _write_protected(huge=False, alive=True),
    "collapse": collapse,
    "mremap_huge_move": mremap_huge_move,
    "mprotect_whole": mprotect_whole,
    "dontneed_part": dontneed_part,
    "munmap": munmap,
    "mmap_munmap_pair": mmap_munmap_pair,
    "gup_fast": gup_fast,
    "gup_slow": gup_slow,
    "swap_out_huge": swap_out_huge,
    "user_store_tlb_hit": user_store_tlb_hit,
}

NOT_FOR_PROGRAMS = {
    "atomic_add": "the kernel's own atomics cannot be reached from a program",
    "spin_lock_pair": "a program cannot take a kernel spinlock",
    "rwsem_read_pair": "a program cannot take mmap_sem without a system call that does more",
    "rwsem_write_pair": "a program cannot take mmap_sem without a system call that does more",
    "page_lock_pair": "a program cannot take a page lock",
    "wp_copy_huge": "since v5.8 Linux copies one small page of a huge one, not all of it",
    "migrate_huge": "move_pages() moves between memory nodes only",
    "deferred_split_drain": "only memory pressure makes the kernel drain its queue",
}


def measure(name: str, processes: int = 1, rounds: int = 30, one_mm: bool = False) -> Measured:
    """ns per operation of row `name` on the running kernel, in `processes` processes, or in threads of one, at once."""
    check_counts(processes, rounds)
    if name in NOT_FOR_PROGRAMS:
        return Measured(name, None, None, NOT_FOR_PROGRAMS[name])
    if name not in ROWS:
        raise Misuse(f"no bench row {name!r}; pass one of {', '.join([*NOT_FOR_PROGRAMS, *ROWS])}")
    if mmap.PAGESIZE != PAGE:
        return Measured(name, None, None, f"pages are {mmap.PAGESIZE} bytes here and the rows are about {PAGE}")
    job = sampled(ROWS[name], processes, rounds, threads=one_mm)
    return measured(name, job, 1 if one_mm else processes)
