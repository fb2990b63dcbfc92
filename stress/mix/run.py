"""One CPU's endless random program, native: draw an operation, do it, tell the oracle."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume, ipi_poll
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.arch.random import random_below
from concur_thp.arch.system import system
from concur_thp.check.oracle import (
    DISCARD_BEGIN,
    DISCARD_END,
    ORACLE_PAGES,
    SCRAMBLE_BEGIN,
    SCRAMBLE_END,
    oracle_birth,
    oracle_count,
    oracle_fork,
    oracle_load,
    oracle_store,
)
from concur_thp.check.pins import PINS
from concur_thp.config import HPAGE_PMD_NR, PAGE_SHIFT, PAGE_SIZE
from concur_thp.mm.flags import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
)
from concur_thp.mm.fork import dup_mm, mm_alloc
from concur_thp.mm.mm_types import Mm
from concur_thp.mm.syscall import sys_brk, sys_madvise, sys_mmap, sys_mprotect, sys_mremap, sys_munmap
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.program.spaces import current_mm, enter_space, leave_space, replace_space
from stress.mix.failure import mix_memory_failure
from stress.mix.migrate import mix_compact, mix_migrate
from stress.mix.mlock import mix_mlock
from stress.mix.physical import mix_drain, mix_split_page
from stress.mix.pins import mix_forks, mix_pin, mix_pin_check, mix_unpin, mix_unpin_all
from stress.mix.pressure import mix_reclaim
from stress.mix.state import (
    FILE_PAGES,
    HALF,
    HEAP_START,
    NR_FILES,
    draw_range,
    file_addr,
    mix,
    mix_cpus,
    page_addr,
    word_addr,
)
from stress.mix.table import OP_BASE, MixOp
from stress.mix.walk import mix_walk

EPISODE = 256
"""Most operations in one mm before the CPU goes elsewhere by itself."""


@inline
def draw(cpu: Cpu):
    """An operation by weight."""
    dice = random_below(cpu, mix.weight_sum)
    op = 0
    while dice >= mix.upto[op]:
        op += 1
    return op


@kernel
def mix_store(cpu: Cpu, page: int):
    """Store the next value of this CPU into a page.

    Context: user mode.
    Return: 0, or the error of the access.
    Emulator: one step of a mix.
    """
    mine = mix_cpus[cpu.id]
    mine.seq = mine.seq + 1
    return oracle_store(cpu, current_mm(cpu).id, page, word_addr(cpu, page), mine.seq)


@kernel
def mix_fill(cpu: Cpu):
    """Store into a run of pages, often a whole block: small pages for khugepaged, or one huge page written everywhere.

    Context: user mode.
    Return: 0, or the error of the last access.
    Emulator: one step of a mix.
    """
    where = draw_range(cpu)
    status = 0
    for i in range(where & 0xFFFFFFFF):
        status = mix_store(cpu, (where >> 32) + i)
    return status


@kernel
def mix_discard(cpu: Cpu, op: int):
    """munmap, fresh mmap or DONTNEED of a range.

    Context: user mode.
    Return: what the system call said.
    Emulator: one step of a mix.
    """
    where = draw_range(cpu)
    page = where >> 32
    pages = where & 0xFFFFFFFF
    addr = page_addr(page)
    mm = current_mm(cpu)
    oracle_count(mm.id, page, pages, DISCARD_BEGIN)
    if op == MixOp.munmap:
        status = sys_munmap(cpu, addr, pages << PAGE_SHIFT)
    elif op == MixOp.mmap:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        status = sys_mmap(cpu, addr, pages << PAGE_SHIFT, PROT_READ | PROT_WRITE, flags, 0, 0)
    else:
        status = sys_madvise(cpu, addr, pages << PAGE_SHIFT, MADV_DONTNEED)
    if status < 0:  # Done in part, or not at all.
        oracle_count(mm.id, page, pages, SCRAMBLE_BEGIN)
        oracle_count(mm.id, page, pages, SCRAMBLE_END)
    oracle_count(mm.id, page, pages, DISCARD_END)
    return status


@kernel
def mix_change(cpu: Cpu, op: int):
    """mprotect and the advices that keep the data, and MADV_FREE.

    Context: user mode.
    Return: what the system call said.
    Emulator: one step of a mix.
    """
    where = draw_range(cpu)
    page = where >> 32
    pages = where & 0xFFFFFFFF
    addr = page_addr(page)
    size = pages << PAGE_SHIFT
    if op == MixOp.protect_ro:
        return sys_mprotect(cpu, addr, size, PROT_READ)
    if op == MixOp.protect_rw:
        return sys_mprotect(cpu, addr, size, PROT_READ | PROT_WRITE)
    if op == MixOp.advise_huge:
        return sys_madvise(cpu, addr, size, MADV_HUGEPAGE)
    if op == MixOp.advise_nohuge:
        return sys_madvise(cpu, addr, size, MADV_NOHUGEPAGE)
    mm = current_mm(cpu)
    oracle_count(mm.id, page, pages, SCRAMBLE_BEGIN)
    status = sys_madvise(cpu, addr, size, MADV_FREE)
    oracle_count(mm.id, page, pages, SCRAMBLE_END)
    return status


@kernel
def mix_mremap(cpu: Cpu):
    """Move a range to another place, aligned alike or not.

    Context: user mode.
    Return: what the system call said.
    Emulator: one step of a mix.
    """
    where = draw_range(cpu)
    page = where >> 32
    pages = where & 0xFFFFFFFF
    target = random_below(cpu, HALF - pages)
    if random_below(cpu, 2):
        target = target & ~(HPAGE_PMD_NR - 1)
    target += HALF * random_below(cpu, 2)
    if target < page + pages and page < target + pages:
        return 0  # Overlaps: Linux refuses it too.
    mm = current_mm(cpu)
    oracle_count(mm.id, page, pages, SCRAMBLE_BEGIN)
    oracle_count(mm.id, target, pages, SCRAMBLE_BEGIN)
    status = sys_mremap(cpu, page_addr(page), pages << PAGE_SHIFT, pages << PAGE_SHIFT, page_addr(target))
    oracle_count(mm.id, page, pages, SCRAMBLE_END)
    oracle_count(mm.id, target, pages, SCRAMBLE_END)
    return status


@kernel
def mix_brk(cpu: Cpu):
    """Move the break to a random place and touch the heap's last page.

    Context: user mode.
    Return: the error of the access, if any.
    Emulator: one step of a mix.
    """
    end = HEAP_START + (random_below(cpu, 3 * HPAGE_PMD_NR) << PAGE_SHIFT)
    sys_brk(cpu, end)
    return user_store(cpu, end - PAGE_SIZE, 1)


@kernel
def mix_fork(cpu: Cpu):
    """Fork the current mm and let the child take one of the spaces.

    Context: user mode.
    Return: 0 or -ENOMEM.
    Emulator: one step of a mix.
    """
    parent = current_mm(cpu)
    mix_forks[parent.id].begun.add(1)
    child = dup_mm(cpu, parent)
    mix_forks[parent.id].ended.add(1)
    if not child:
        return -12
    oracle_fork(cpu, parent.id, child.id)
    replace_space(cpu, random_below(cpu, mix.nr_spaces), child.id)
    return 0


@kernel
def mix_new_mm(cpu: Cpu) -> Mm:
    """An mm with fresh memory in every second block.

    Context: user mode, in no mm or in any; comes back in the same.
    Return: the mm, with a reference for the caller; NULL when there is none to be had.
    Emulator: what exec makes for a mix.
    """
    mm = mm_alloc(cpu)
    if mm:
        mm.start_brk = HEAP_START
        mm.brk = HEAP_START
        oracle_birth(cpu, mm.id, 1)
    return mm


@kernel
def mix_exec(cpu: Cpu):
    """Replace a space's mm by a new one.

    Context: user mode.
    Return: 0 or -ENOMEM.
    Emulator: one step of a mix.
    """
    mm = mix_new_mm(cpu)
    if not mm:
        return -12
    replace_space(cpu, random_below(cpu, mix.nr_spaces), mm.id)
    return 0


@kernel
def mix_file(cpu: Cpu, op: int):
    """Map a file, or use a mapping.

    Context: user mode.
    Return: what the call or the access said.
    Emulator: one step of a mix.
    """
    slot = random_below(cpu, NR_FILES)
    addr = file_addr(slot)
    if op == MixOp.file_map:
        sharing = MAP_SHARED if random_below(cpu, 2) else MAP_PRIVATE
        number = mix.files[random_below(cpu, NR_FILES)]
        return sys_mmap(cpu, addr, FILE_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, sharing | MAP_FIXED, number, 0)
    addr += random_below(cpu, FILE_PAGES * PAGE_SIZE)
    if random_below(cpu, 3) == 0:
        return user_store(cpu, addr, 1)
    return user_load(cpu, addr)


@kernel
def mix_step(cpu: Cpu):
    """One operation.

    Context: user mode, in an mm.
    Emulator: one step of a mix.
    """
    op = draw(cpu)
    cpu.op = OP_BASE + op
    mine = mix_cpus[cpu.id]
    status = 0
    if op == MixOp.read:
        page = random_below(cpu, ORACLE_PAGES)
        status = oracle_load(cpu, current_mm(cpu).id, page, word_addr(cpu, page))
    elif op == MixOp.write:
        status = mix_store(cpu, random_below(cpu, ORACLE_PAGES))
    elif op == MixOp.fill:
        status = mix_fill(cpu)
    elif op in (MixOp.mmap, MixOp.munmap, MixOp.dontneed):
        status = mix_discard(cpu, op)
    elif op == MixOp.mremap:
        status = mix_mremap(cpu)
    elif op == MixOp.brk:
        status = mix_brk(cpu)
    elif op == MixOp.fork:
        status = mix_fork(cpu)
    elif op == MixOp.exec:
        status = mix_exec(cpu)
    elif op == MixOp.switch:
        mine.left = 0
    elif op in (MixOp.file_map, MixOp.file_touch):
        status = mix_file(cpu, op)
    elif op == MixOp.pin:
        status = mix_pin(cpu)
    elif op == MixOp.pin_check:
        status = mix_pin_check(cpu)
    elif op == MixOp.unpin:
        mix_unpin(cpu, random_below(cpu, PINS))
    elif op == MixOp.split_page:
        status = mix_split_page(cpu)
    elif op == MixOp.drain:
        status = mix_drain(cpu)
    elif op == MixOp.migrate:
        status = mix_migrate(cpu)
    elif op == MixOp.compact:
        status = mix_compact(cpu)
    elif op == MixOp.reclaim:
        mix_reclaim(cpu)
    elif op == MixOp.walk:
        mix_walk(cpu)
    elif op == MixOp.memory_failure:
        status = mix_memory_failure(cpu)
    elif op in (MixOp.mlock, MixOp.munlock):
        status = mix_mlock(cpu, op == MixOp.mlock)
    else:
        status = mix_change(cpu, op)
    mine.counts[op] = mine.counts[op] + 1
    if status < 0:
        mine.refused[op] = mine.refused[op] + 1
    cpu.ops = cpu.ops + 1


@kernel
def mix_run(cpu: Cpu, steps: int):
    """Run `steps` operations, fewer when the machine is asked to stop; in and out of mms on the way.

    Context: user mode, in no mm; ends in no mm, parked.
    Return: 0.
    Emulator: the main loop of a mix on one CPU.
    """
    cpu_resume(cpu)
    mine = mix_cpus[cpu.id]
    while steps > 0 and system.stop.read() == 0:
        enter_space(cpu, random_below(cpu, mix.nr_spaces))
        mine.left = 1 + random_below(cpu, EPISODE)
        while mine.left > 0 and system.stop.read() == 0:
            mine.left = mine.left - 1
            steps -= 1
            mix_step(cpu)
            ipi_poll(cpu)
            check_point(cpu, Point.USER, 0)
        leave_space(cpu)
    mix_unpin_all(cpu)
    point(cpu, Point.USER)
    cpu_park(cpu)
