"""Splits in a mix: of a page found by its frame, as a scanner of physical memory finds it, and of what is queued."""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.arch.random import random_below
from concur_thp.check.oracle import ORACLE_PAGES
from concur_thp.mm.deferred_split_drain import deferred_split_scan
from concur_thp.mm.errno import EAGAIN
from concur_thp.mm.mm_types import Page, mem_map
from concur_thp.mm.page_flags import PageAnon, PageHead, PG_lru, compound_head, tail_page
from concur_thp.mm.page_lock import trylock_page, unlock_page
from concur_thp.mm.page_ref import get_page_unless_zero
from concur_thp.mm.pgtable import (
    entry_pfn,
    mm_pmd,
    pmd_present,
    pmd_table,
    pmd_trans_huge,
    pte_index,
    pte_offset,
    pte_present,
)
from concur_thp.mm.split_huge_page import split_huge_page
from concur_thp.mm.swap import put_page
from stress.mix.state import current_mm, page_addr


@kernel
def page_at(cpu: Cpu, addr: int) -> Page:
    """The frame that an address of this CPU's mm had a moment ago.

    Context: no lock, so the frame may be free or another's when this returns.
    Return: its page, NULL when nothing is mapped.
    Emulator: a way to an interesting pfn.
    """
    pmd = mm_pmd(current_mm(cpu), addr)
    value = pmd.val.load() if pmd else 0
    page = Page(0)
    if pmd_trans_huge(value) and pmd_present(value):
        page = tail_page(mem_map[entry_pfn(value)], pte_index(addr))
    elif pmd_table(value):
        pte = pte_offset(value, addr).val.load()
        if pte_present(pte):
            page = mem_map[entry_pfn(pte)]
    return page


@kernel
def isolate_by_pfn(page: Page) -> Page:
    """Take a reference of the page that a frame belongs to, as somebody may who knows only the frame (R34).

    Context: any.
    Return: the head or small page, NULL when it is free, frozen, or changed under us.
    Linux: mm/page_idle.c page_idle_get_page
    """
    head = compound_head(page)
    if (head.flags.read() >> PG_lru) & 1 and get_page_unless_zero(head):
        return head
    return Page(0)


@kernel
def mix_split_page(cpu: Cpu):
    """Split the huge page at a random address, if there is one.

    Context: user mode.
    Return: 0, -EBUSY, -EAGAIN.
    Emulator: one step of a mix.
    """
    page = page_at(cpu, page_addr(random_below(cpu, ORACLE_PAGES)))
    if not page:
        return -EAGAIN
    head = isolate_by_pfn(page)
    if not head:
        return -EAGAIN
    status = -EAGAIN
    # The reference is the head's: if the page was split or freed in between, it is not the page's that we looked at.
    if compound_head(page) == head and trylock_page(cpu, head):
        if PageHead(head) and PageAnon(head):
            # A split leaves reference and lock with the very page we name.
            status = split_huge_page(cpu, page)
            unlock_page(cpu, page)
            put_page(cpu, page)
            return status
        unlock_page(cpu, head)
    put_page(cpu, head)
    return status


@kernel
def mix_drain(cpu: Cpu):
    """Let the shrinker work on a few pages.

    Context: user mode.
    Return: 0.
    Emulator: one step of a mix.
    """
    deferred_split_scan(cpu, 1 + random_below(cpu, 4))
    return 0
