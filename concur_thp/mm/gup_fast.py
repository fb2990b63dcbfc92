"""get_user_pages_fast: pin pages of the running task without a lock. (Linux: mm/gup.c, arch/x86)

With irqs off this CPU acknowledges no flush. Tables are freed, pmds invalidated and pages collapsed only behind a flush
that waits for every CPU of the mm: so what was read stays a table until irqs are on again (I26). The pages themselves
may go at any moment. Hence the protocol for each entry: read it once, take a reference of the head unless it has
none, then look at the entry again. Unchanged, the page was still mapped when we had our reference; changed, the
reference may be of a page that has a new life already: give it back (X28).
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import local_irq_disable, local_irq_enable
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.config import HPAGE_PMD_NR, PAGE_MASK, PAGE_SHIFT, TASK_SIZE
from concur_thp.mm.errno import EFAULT
from concur_thp.mm.flags import FOLL_WRITE
from concur_thp.mm.gup import get_user_pages_unlocked
from concur_thp.mm.mm_types import Entry, Mm, Page, Slot, mem_map, mms
from concur_thp.mm.page_account import account_get
from concur_thp.mm.page_flags import PG_referenced, SetFlag, compound_head, page_to_pfn
from concur_thp.mm.page_ref import get_page_unless_zero
from concur_thp.mm.pgtable import (
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    entry_pfn,
    mm_pmd,
    pmd_table,
    pmd_trans_huge,
    pte_offset,
    pte_special,
)
from concur_thp.mm.pte import pmd_addr_end
from concur_thp.mm.put_page import put_page, slot_at


@kernel
def get_user_pages_fast(cpu: Cpu, start: int, nr_pages: int, write: int, pages: Slot):
    """Pin pages of the task that this CPU runs; `pages` gets their pfns.

    Context: user context, irqs on, no lock held. May sleep in the slow half.
    Return: pages pinned, perhaps fewer than asked for; an error if there was none.
    Linux: mm/gup.c get_user_pages_fast
    """
    if nr_pages <= 0:
        return 0
    start = start & PAGE_MASK
    if start < 0 or start + (nr_pages << PAGE_SHIFT) > TASK_SIZE:
        return -EFAULT
    done = __get_user_pages_fast(cpu, start, nr_pages, write, pages)
    if done < nr_pages:  # 3.15.5
        rest = get_user_pages_unlocked(cpu, mms[cpu.context], start + (done << PAGE_SHIFT), nr_pages - done,
                                       FOLL_WRITE if write else 0, slot_at(pages, done))
        if rest > 0 or done == 0:
            done += rest
    return done


@kernel
def __get_user_pages_fast(cpu: Cpu, start: int, nr_pages: int, write: int, pages: Slot):
    """The lockless half: pin what is mapped and allows the use right now.

    Context: any; needs no lock. Never sleeps, never faults.
    Return: pages pinned from `start` on, 0 to nr_pages.
    Linux: mm/gup.c __get_user_pages_fast
    Differs: reads the upper levels once for each pmd, not once for each of their own ranges.
    """
    addr = start & PAGE_MASK
    end = addr + (nr_pages << PAGE_SHIFT)
    need = _PAGE_PRESENT | _PAGE_RW if write else _PAGE_PRESENT
    mm = mms[cpu.context]
    done = 0
    local_irq_disable(cpu)  # 3.15.1
    while addr < end:
        up_to = pmd_addr_end(addr, end)
        asked = (up_to - addr) >> PAGE_SHIFT
        got = gup_pmd(cpu, mm, addr, asked, need, slot_at(pages, done))
        done += got
        if got < asked:
            break
        addr = up_to
    local_irq_enable(cpu)
    return done


@inline
def gup_pmd(cpu: Cpu, mm: Mm, addr: int, asked: int, need: int, pages: Slot):
    """Pin up to `asked` pages under one pmd, which is read here and nowhere else. Returns how many."""
    pmdp = mm_pmd(mm, addr)
    if not pmdp:
        return 0
    pmd = pmdp.val.load()
    if pmd_table(pmd):
        return gup_pte_range(cpu, pmd, addr, asked, need, pages)
    # 3.15.2: none, a migration entry or, in the middle of a split, without its present bit: no.
    if pmd_trans_huge(pmd) and access_permitted(pmd, need):
        return gup_huge_pmd(cpu, pmd, pmdp, addr, asked, pages)
    return 0


@inline
def access_permitted(entry: int, need: int):
    """Does the entry have the bits that the access needs? Protnone is for the slow half, which takes hinting faults."""
    return entry & (need | _PAGE_PROTNONE) == need


@inline
def page_cache_add_speculative(head: Page, refs: int):
    """Take references unless there are none; 1 when taken. (Linux: include/linux/pagemap.h)"""
    seen = head._refcount.read()
    taken = 0
    while seen > 0 and not taken:
        now = head._refcount.cas(seen, seen + refs)
        taken = now == seen
        seen = now
    if taken:
        account_get(head, refs)
    return taken


@kernel
def gup_huge_pmd(cpu: Cpu, orig: int, pmdp: Entry, addr: int, refs: int, pages: Slot):
    """Pin `refs` subpages of the huge page in the pmd value `orig`.

    Context: irqs off.
    Return: `refs`, or 0.
    Linux: mm/gup.c gup_huge_pmd
    """
    point(cpu, Point.GUP_FAST_READ)
    first = entry_pfn(orig) + ((addr >> PAGE_SHIFT) & (HPAGE_PMD_NR - 1))
    for i in range(refs):
        slot_at(pages, i).value = first + i  # The very pages asked for, tails and all (R5).
    head = compound_head(mem_map[entry_pfn(orig)])
    if not page_cache_add_speculative(head, refs):
        return 0
    point(cpu, Point.GUP_FAST_GOT)
    # 3.15.3: a split or zap on another CPU cleared the pmd before it dropped any reference. The same value: the page is
    # still the one that was mapped. Another: `head` may be anybody's.
    if pmdp.val.load() != orig:
        for _ in range(refs):
            put_page(cpu, head)
        return 0
    check_point(cpu, Point.GUP_PINNED, head)
    SetFlag(head, PG_referenced)
    return refs


@kernel
def gup_pte_range(cpu: Cpu, pmd: int, addr: int, asked: int, need: int, pages: Slot):
    """Pin the pages of up to `asked` ptes from `addr` on, in the table of the pmd value `pmd`.

    Context: irqs off: the table cannot be freed or collapsed. (v4.20 does not look at the pmd again: X14.)
    Return: how many, 0 to `asked`: it ends at the first pte that cannot be pinned.
    Linux: mm/gup.c gup_pte_range
    """
    done = 0
    while done < asked:
        ptep = pte_offset(pmd, addr + (done << PAGE_SHIFT))
        pte = ptep.val.load()
        if not access_permitted(pte, need) or pte_special(pte):
            break
        point(cpu, Point.GUP_FAST_READ)
        page = mem_map[entry_pfn(pte)]
        head = compound_head(page)
        if not get_page_unless_zero(head):
            break
        point(cpu, Point.GUP_FAST_GOT)
        if ptep.val.load() != pte:  # 3.15.4: as in gup_huge_pmd()
            put_page(cpu, head)
            break
        # A split of the page freezes only after its unmap has flushed, so waited for us.
        bug_on(cpu, compound_head(page) != head, "gup_fast: split under a mapped pte (values: pfn, pte)",
               page_to_pfn(page), pte)
        check_point(cpu, Point.GUP_PINNED, page)
        SetFlag(head, PG_referenced)
        slot_at(pages, done).value = page_to_pfn(page)
        done += 1
    return done
