"""Migrations in a mix: by address as move_pages() does, by frame as memory offlining does, and compaction."""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.random import random_below
from concur_thp.check.oracle import ORACLE_PAGES
from concur_thp.check.pins import PINS, check_pin, pin_page, pin_row
from concur_thp.config import HPAGE_PMD_ORDER, PAGE_SHIFT
from concur_thp.mm.compaction import COMPACT_COMPLETE, COMPACT_SUCCESS, compact_zone
from concur_thp.mm.errno import EBUSY, EFAULT
from concur_thp.mm.migrate import NEW_PAGE, NEW_SMALL_PAGE
from concur_thp.mm.mm_types import pgdat
from concur_thp.mm.move_pages import migrate_pfn, move_page, move_small_page
from concur_thp.mm.page_flags import page_to_pfn
from concur_thp.program.physical import page_at
from concur_thp.program.spaces import current_mm
from stress.mix.state import FILE_PAGES, NR_FILES, file_addr, page_addr


@kernel
def mix_migrate(cpu: Cpu):
    """Move the page at a random address to another frame, in one of the ways there are.

    Context: user mode.
    Return: 0 or the error.
    Emulator: one step of a mix.
    """
    mm = current_mm(cpu)
    addr = page_addr(random_below(cpu, ORACLE_PAGES))
    kind = random_below(cpu, 9)
    if kind == 8:
        return migrate_pinned(cpu, random_below(cpu, PINS))
    if kind == 0:
        return move_small_page(cpu, mm, addr, NEW_PAGE)
    if kind == 1:
        return move_page(cpu, mm, addr, NEW_SMALL_PAGE)
    if kind == 2:
        addr = file_addr(random_below(cpu, NR_FILES)) + (random_below(cpu, FILE_PAGES) << PAGE_SHIFT)
    if kind < 5:
        page = page_at(mm, addr)
        return migrate_pfn(cpu, page, NEW_PAGE) if page else -EFAULT
    return move_page(cpu, mm, addr, NEW_PAGE)


@kernel
def migrate_pinned(cpu: Cpu, number: int):
    """Try to move one of this CPU's own pinned pages: it must not move, and not be split for it (X24, R32).

    Context: user mode.
    Return: -EBUSY or another error; 0 when there is no such pin.
    Emulator: one step of a mix.
    """
    if pin_row(cpu, number).pinned == 0:
        return 0
    page = pin_page(pin_row(cpu, number))
    result = migrate_pfn(cpu, page, NEW_SMALL_PAGE if random_below(cpu, 2) else NEW_PAGE)
    bug_on(cpu, result == 0, "a pinned page was migrated (value: pfn)", page_to_pfn(page), number)
    check_pin(cpu, number)
    return result


@kernel
def mix_compact(cpu: Cpu):
    """Compact one zone, now and then until nothing more can be done.

    Context: user mode.
    Return: 0, or -EBUSY when it did not help.
    Emulator: one step of a mix.
    """
    order = -1 if random_below(cpu, 4) == 0 else HPAGE_PMD_ORDER
    result = compact_zone(cpu, random_below(cpu, pgdat.nr_zones), order, random_below(cpu, 2))
    return 0 if result in (COMPACT_COMPLETE, COMPACT_SUCCESS) else -EBUSY
