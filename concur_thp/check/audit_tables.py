"""Laws about page tables: which entries there may be, which tables, and where (Q7, Q8, Q10, I8, COW)."""

import numpy as np

from concur_thp.check.facts import Facts
from concur_thp.check.report import Law, Report, in_sorted
from concur_thp.check.views import words
from concur_thp.check.walk import LEVELS, Entries, present
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SHIFT
from concur_thp.mm.flags import VM_WRITE
from concur_thp.mm.mm_types import PAGE_MAPPING_ANON, PAGE_TYPE_TABLE, tables
from concur_thp.mm.pgtable import (
    _PAGE_HUGE,
    _PAGE_MIGRATION,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    _PAGE_SWAP,
    PFN_SHIFT,
)
from concur_thp.mm.pgtable_alloc import PTE_LEVEL


def law_migration(facts: Facts, report: Report) -> None:
    """Q7."""
    _no_entries(facts, report, _PAGE_MIGRATION, "migration")


def law_swap(facts: Facts, report: Report) -> None:
    """Q10: there is no swap device, so no entry may say that something is there."""
    _no_entries(facts, report, _PAGE_SWAP, "swap")


def _no_entries(facts: Facts, report: Report, bit: int, name: str) -> None:
    for entries, kind in ((facts.walked.pmd, "pmd"), (facts.walked.pte, "pte")):
        bad = entries.val & bit != 0
        report.each(
            bad,
            lambda i, e=entries, k=kind: f"{name} entry: {k} {e.val[i]:#x} at {e.addr[i]:#x} of mm {e.mm[i]}",  # type: ignore[misc]
            mm=entries.mm,
            addr=entries.addr,
        )


def law_tables(facts: Facts, report: Report) -> None:
    """Q8, and I5 with it."""
    walked = facts.walked
    wild = walked.wild
    report.each(
        np.ones(len(wild), dtype=bool),
        lambda i: (
            f"mm {wild.mm[i]}: entry {wild.val[i]:#x} at {wild.addr[i]:#x} leads to no table, or to one that "
            "is linked elsewhere"
        ),
        mm=wild.mm,
        addr=wild.addr,
    )
    for level, links in walked.linked.items():
        _table_pages(facts, report, links, level, "")
    pmd = walked.pmd
    settled = (pmd.val & _PAGE_MIGRATION != 0) | (
        (pmd.val & _PAGE_HUGE != 0) & (pmd.val & (_PAGE_PRESENT | _PAGE_PROTNONE) != 0)
    )
    report.each(
        ~settled,
        lambda i: (
            f"pmd {pmd.val[i]:#x} at {pmd.addr[i]:#x} of mm {pmd.mm[i]} is no table and not huge, or "
            "was left in the middle of a split"
        ),
        mm=pmd.mm,
        addr=pmd.addr,
    )
    deposits, errors = facts.deposits
    for wrong in errors:
        report.broken(wrong)
    _table_pages(facts, report, deposits_as_links(deposits), PTE_LEVEL, "deposited ")
    _deposit_counts(facts, report, deposits)
    _table_counts(facts, report, deposits)
    _no_lost_tables(facts, report, deposits)


def deposits_as_links(deposits: Entries) -> Entries:
    """Deposited tables in the shape of links to them."""
    return Entries(deposits.mm, deposits.addr, deposits.val << PFN_SHIFT, deposits.table)


def _table_pages(facts: Facts, report: Report, links: Entries, level: int, how: str) -> None:
    """Each table's struct page says what it is and whose."""
    pfn = links.pfn
    kind, deep = facts.page_type[pfn], facts.page["pt_level"][pfn]
    owner = facts.page["pt_mm"][pfn]
    bad = (kind != PAGE_TYPE_TABLE) | (deep != level) | (owner != links.mm)
    report.each(
        bad,
        lambda i: (
            f"{how}{LEVELS[level]} pfn {pfn[i]:#x} of mm {links.mm[i]}: page type {kind[i]}, "
            f"level {deep[i]}, belongs to mm {owner[i]}"
        ),
        pfn=pfn,
        mm=links.mm,
    )


def _deposit_counts(facts: Facts, report: Report, deposits: Entries) -> None:
    """As many deposited tables behind each PMD table as it has huge pmds; all empty, none linked."""
    pmd_tables = facts.walked.linked[2]
    pfn = pmd_tables.pfn
    huge = facts.walked.pmd.where(facts.walked.pmd.val & (_PAGE_HUGE | _PAGE_MIGRATION) != 0)
    want = np.bincount(huge.table, minlength=facts.frames)[pfn]
    got = np.bincount(deposits.table, minlength=facts.frames)[pfn]
    report.each(
        got != want,
        lambda i: (
            f"PMD table pfn {pfn[i]:#x} of mm {pmd_tables.mm[i]} has {want[i]} huge pmds and "
            f"{got[i]} deposited tables"
        ),
        pfn=pfn,
        mm=pmd_tables.mm,
    )
    spare = deposits.val
    linked = np.sort(facts.walked.linked[1].pfn)
    report.each(
        in_sorted(spare, linked),
        lambda i: f"deposited table pfn {spare[i]:#x} is linked to a pmd as well",
        pfn=spare,
    )
    if len(spare):
        used = words(tables, facts.frames)[spare, : facts.nr].any(axis=1)
        report.each(used, lambda i: f"deposited table pfn {spare[i]:#x} is not empty", pfn=spare)


def _table_counts(facts: Facts, report: Report, deposits: Entries) -> None:
    """nr_ptes and nr_pmds of each mm."""
    mms = facts.live_mms
    size = facts.config.mms + 1
    ptes = np.bincount(facts.walked.linked[1].mm, minlength=size) + np.bincount(deposits.mm, minlength=size)
    pmds = np.bincount(facts.walked.linked[2].mm, minlength=size)
    for name, want in (("nr_ptes", ptes[mms]), ("nr_pmds", pmds[mms])):
        got = facts.mm[name][mms]
        report.each(
            got != want,
            lambda i, n=name, g=got, w=want: f"mm {mms[i]}: {n} is {g[i]}, there are {w[i]}",
            mm=mms,
        )  # type: ignore[misc]


def _no_lost_tables(facts: Facts, report: Report, deposits: Entries) -> None:
    """Every table page belongs somewhere."""
    reached = np.zeros(facts.frames, dtype=bool)
    for links in (*facts.walked.linked.values(), deposits_as_links(deposits)):
        reached[links.pfn] = True
    pages = np.flatnonzero(facts.page_type == PAGE_TYPE_TABLE)
    report.each(
        ~reached[pages],
        lambda i: f"table pfn {pages[i]:#x} (mm {facts.page['pt_mm'][pages[i]]}) is linked nowhere",
        pfn=pages,
    )


def law_inside_vma(facts: Facts, report: Report) -> None:
    """I8, and what follows from COW: who may write an anonymous page is the only one to map it."""
    for entries, size, name in (
        (facts.walked.pmd, int(HPAGE_PMD_SIZE), "huge pmd"),
        (facts.walked.pte, 1 << PAGE_SHIFT, "pte"),
    ):
        vma = facts.find_vma(entries.mm, entries.addr)
        end = np.where(vma > 0, facts.vma["vm_end"][vma], 0)
        report.each(
            entries.addr + size > end,
            lambda i, e=entries, n=name: (
                f"{n} {e.val[i]:#x} at {e.addr[i]:#x} of mm {e.mm[i]} is not inside one vma"
            ),  # type: ignore[misc]
            mm=entries.mm,
            addr=entries.addr,
        )
        writable = present(entries.val) & (entries.val & _PAGE_RW != 0)
        allowed = (facts.vma["vm_flags"][vma] & VM_WRITE != 0) | (vma == 0)
        report.each(
            writable & ~allowed,
            lambda i, e=entries, n=name: (
                f"{n} {e.val[i]:#x} at {e.addr[i]:#x} of mm {e.mm[i]} is writable, its vma "  # type: ignore[misc]
                "is not"
            ),
            mm=entries.mm,
            addr=entries.addr,
        )
    _vma_slots(facts, report)


def _vma_slots(facts: Facts, report: Report) -> None:
    """The vmas of an mm: sorted, apart from each other, its own, as many as it says."""
    vma, mm = facts.vma_list, facts.vma_mm
    start, end = facts.vma_start, facts.vma_end
    owner = facts.vma["vm_mm"][vma]
    report.each(
        owner != mm, lambda i: f"vma {vma[i]} stands in mm {mm[i]} and says mm {owner[i]}", mm=mm, vma=vma
    )
    report.each(
        start >= end, lambda i: f"vma {vma[i]} of mm {mm[i]}: {start[i]:#x}..{end[i]:#x}", mm=mm, vma=vma
    )
    if len(vma) > 1:
        clash = (mm[1:] == mm[:-1]) & (start[1:] < end[:-1])
        report.each(
            clash,
            lambda i: f"vmas {vma[i]} and {vma[i + 1]} of mm {mm[i]} overlap or are not sorted",
            mm=mm[1:],
        )
    count = np.bincount(mm, minlength=facts.config.mms + 1)[facts.live_mms]
    said = facts.mm["map_count"][facts.live_mms]
    report.each(
        count != said,
        lambda i: f"mm {facts.live_mms[i]}: map_count {said[i]}, {count[i]} vmas in its slots",
        mm=facts.live_mms,
    )


def law_cow(facts: Facts, report: Report) -> None:
    """An anonymous page that one entry may write is mapped by no other entry."""
    maps = facts.pte_maps + facts.pmd_maps[facts.head_of]
    for entries, name in ((facts.pte, "pte"), (facts.thp, "huge pmd")):
        pfn = entries.pfn
        anon = facts.mapping[facts.head_of[pfn]] & PAGE_MAPPING_ANON != 0
        others = maps[pfn] - 1
        if name == "huge pmd" and len(pfn):
            others = maps[np.minimum(facts.tails_of(pfn), facts.frames - 1)].max(axis=1) - 1
        bad = anon & (entries.val & _PAGE_RW != 0) & (others > 0)
        report.each(
            bad,
            lambda i, e=entries, n=name, o=others: (
                f"{n} at {e.addr[i]:#x} of mm {e.mm[i]} may write pfn "  # type: ignore[misc]
                f"{e.pfn[i]:#x}, which {o[i]} other entries map"
            ),
            mm=entries.mm,
            addr=entries.addr,
            pfn=pfn,
        )


LAWS = (
    Law("Q7", "migration entries", "no migration entry is left", law_migration),
    Law(
        "Q8",
        "tables",
        "tables are linked once or deposited, counted, and deposited ones are empty",
        law_tables,
    ),
    Law("Q10", "swap", "no swap entry without a swap device", law_swap),
    Law("I8", "inside a vma", "every entry lies inside one vma and allows no more than it", law_inside_vma),
    Law("COW", "copy on write", "a page that one entry may write is mapped by no other", law_cow),
)
