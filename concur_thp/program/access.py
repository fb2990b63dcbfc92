"""Steps that load and store as a program does, and steps that look: what is where, how much of it."""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import PAGE_SIZE
from concur_thp.mm.errno import ESRCH
from concur_thp.mm.fork import mmput
from concur_thp.mm.huge_zero import is_huge_zero_pfn
from concur_thp.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, pgdat
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.mm.pgtable import (
    entry_pfn,
    is_hwpoison_entry,
    is_migration_entry,
    is_pmd_migration_entry,
    mm_pmd,
    pmd_table,
    pmd_trans_huge,
    pte_dirty,
    pte_none,
    pte_offset,
    pte_present,
    pte_write,
)
from concur_thp.mm.uaccess import user_load, user_store
from concur_thp.program.physical import noted_page, page_at
from concur_thp.program.spaces import current_mm, get_space, in_mm
from concur_thp.program.table import (
    LOOK_DIRTY,
    LOOK_HUGE,
    LOOK_HUGE_ZERO,
    LOOK_MIGRATION,
    LOOK_NONE,
    LOOK_POISON,
    LOOK_PTE,
    LOOK_SWAP,
    LOOK_WRITE,
    LOOK_ZERO,
)
from concur_thp.sync.rwsem import down_read, up_read


@kernel
def step_load(cpu: Cpu, addr: int):
    """Load a word.

    Context: user mode.
    Return: as user_load(); -ESRCH in no mm.
    Emulator: a step.
    """
    return user_load(cpu, addr) if in_mm(cpu) else -ESRCH


@kernel
def step_store(cpu: Cpu, addr: int, value: int):
    """Store a word.

    Context: user mode.
    Return: as user_store(); -ESRCH in no mm.
    Emulator: a step.
    """
    return user_store(cpu, addr, value) if in_mm(cpu) else -ESRCH


@kernel
def step_expect(cpu: Cpu, addr: int, value: int):
    """Load a word that must be there.

    Context: user mode.
    Return: as step_load().
    Emulator: a step, and the simplest data oracle.
    """
    status = step_load(cpu, addr)
    bug_on(cpu, status == 0 and cpu.scratch[0] != value,
           "a program loaded a word that it does not expect (values: word, expected)", cpu.scratch[0], value)
    return status


@kernel
def step_fill(cpu: Cpu, addr: int, length: int, value: int):
    """Store numbers into pages: the first gets `value`, the next the number behind it.

    Context: user mode.
    Return: 0, or the first error.
    Emulator: a step.
    """
    for page in range(length // PAGE_SIZE):
        status = step_store(cpu, addr + page * PAGE_SIZE, value + page)
        if status != 0:
            return status
    return 0


@kernel
def step_count(cpu: Cpu, addr: int, length: int, value: int):
    """Look for what step_fill() stored.

    Context: user mode.
    Return: how many pages have their number, or the first error; in cpu.scratch[0] how many have zero.
    Emulator: a step.
    """
    there = 0
    zero = 0
    for page in range(length // PAGE_SIZE):
        status = step_load(cpu, addr + page * PAGE_SIZE)
        if status != 0:
            return status
        there += cpu.scratch[0] == value + page
        zero += cpu.scratch[0] == 0
    cpu.scratch[0] = zero
    return there


@inline
def kind_of_pte(pte: int):
    """LOOK_* of a pte."""
    if pte_none(pte):
        return LOOK_NONE
    if pte_present(pte):
        return LOOK_ZERO if entry_pfn(pte) == pgdat.zero_pfn else LOOK_PTE
    if is_hwpoison_entry(pte):
        return LOOK_POISON
    return LOOK_MIGRATION if is_migration_entry(pte) else LOOK_SWAP


@kernel
def look_at(cpu: Cpu, number: int, addr: int):
    """What is at an address of a space's mm?

    Context: user mode; takes mmap_sem read, but no ptl: at rest, to mean anything.
    Return: LOOK_*, in cpu.scratch[0] LOOK_WRITE and LOOK_DIRTY; -ESRCH when the space has no mm.
    Emulator: a step, like /proc/PID/pagemap.
    """
    mm = get_space(cpu, number)
    if not mm:
        return -ESRCH
    down_read(cpu, mm.mmap_sem)
    pmd = mm_pmd(mm, addr)
    entry = pmd.val.load() if pmd else 0
    kind = LOOK_NONE
    if pmd_table(entry):
        entry = pte_offset(entry, addr).val.load()
        kind = kind_of_pte(entry)
    elif pmd_trans_huge(entry):
        kind = LOOK_HUGE_ZERO if is_huge_zero_pfn(entry_pfn(entry)) else LOOK_HUGE
    elif is_pmd_migration_entry(entry):
        kind = LOOK_MIGRATION
    present = kind in (LOOK_PTE, LOOK_HUGE)
    up_read(cpu, mm.mmap_sem)
    mmput(cpu, mm)
    cpu.scratch[0] = (LOOK_WRITE if present and pte_write(entry) else 0) | (LOOK_DIRTY if present and pte_dirty(entry) else 0)
    return kind


@kernel
def space_rss(cpu: Cpu, number: int):
    """How many anonymous pages a space's mm has.

    Context: user mode.
    Return: pages; in cpu.scratch[0] how many are swapped out; -ESRCH when the space has no mm.
    Emulator: a step, like /proc/PID/status.
    """
    mm = get_space(cpu, number)
    if not mm:
        return -ESRCH
    pages = mm.rss[MM_ANONPAGES].read()
    swapped = mm.rss[MM_SWAPENTS].read()
    mmput(cpu, mm)
    cpu.scratch[0] = swapped
    return pages


@kernel
def same_frame(cpu: Cpu, number: int, addr: int):
    """Is a noted frame what is mapped at an address?

    Context: user mode.
    Return: 1 or 0; -ESRCH in no mm.
    Emulator: a step.
    """
    if not in_mm(cpu):
        return -ESRCH
    page = page_at(current_mm(cpu), addr)
    noted = noted_page(number)
    return page and noted and page_to_pfn(page) == page_to_pfn(noted)


__all__ = ["look_at", "same_frame", "space_rss", "step_count", "step_expect", "step_fill", "step_load", "step_store"]
