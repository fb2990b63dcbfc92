"""Laws about page tables: which entries there may be, which tables, and where (Q7, Q8, I8, COW)."""

import numpy as np

from concur_thp.check.facts import Facts
from concur_thp.check.report import Law, Report, in_sorted
from concur_thp.check.views import Column, words
from concur_thp.check.walk import LEVELS, Entries, present
from concur_thp.config import HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.mm.flags import VM_WRITE
from concur_thp.mm.mm_types import PAGE_MAPPING_ANON, PAGE_TYPE_TABLE, tables
from concur_thp.mm.pgtable import (
    _PAGE_HUGE,
    _PAGE_MIGRATION,
    _PAGE_PRESENT,
    _PAGE_PROTNONE,
    _PAGE_RW,
    PFN_SHIFT,
)
from concur_thp.mm.pgtable_alloc import PTE_LEVEL


def law_migration(facts: Facts, report: Report) -> None:
    """Q7."""
    _no_entries(facts, report, _PAGE_MIGRATION, "migration")


def _no_entries(facts: Facts, report: Report, bit: int, name: str) -> None:
    for entries, kind in ((facts.walked.pmd, "pmd"), (facts.walked.pte, "pte")):
        report.each(entries.val & bit != 0, "{name} entry: {kind} {val:#x} at {addr:#x} of mm {mm}",
                    name=name, kind=kind, val=entries.val, addr=entries.addr, mm=entries.mm)


def law_tables(facts: Facts, report: Report) -> None:
    """Q8, and I5 with it."""
    wild = facts.walked.wild
    report.each(np.ones(len(wild), dtype=bool), "entry {val:#x} at {addr:#x} of mm {mm} leads to no table, or to one "
                "that is linked elsewhere", val=wild.val, addr=wild.addr, mm=wild.mm)
    for level, links in facts.walked.linked.items():
        _table_pages(facts, report, links, level, "")
    pmd = facts.walked.pmd
    huge = (pmd.val & _PAGE_HUGE != 0) & (pmd.val & (_PAGE_PRESENT | _PAGE_PROTNONE) != 0)
    report.each(~huge & (pmd.val & _PAGE_MIGRATION == 0), "pmd {val:#x} at {addr:#x} of mm {mm} is no table and not "
                "huge, or was left in the middle of a split", val=pmd.val, addr=pmd.addr, mm=pmd.mm)
    deposits, errors = facts.deposits
    for wrong in errors:
        report.broken(wrong)
    _table_pages(facts, report, as_links(deposits), PTE_LEVEL, "deposited ")
    _deposited(facts, report, deposits)
    _table_counts(facts, report, deposits)
    _no_lost_tables(facts, report, deposits)


def as_links(deposits: Entries) -> Entries:
    """Deposited tables in the shape of links to them."""
    return Entries(deposits.mm, deposits.addr, deposits.val << PFN_SHIFT, deposits.table)


def _table_pages(facts: Facts, report: Report, links: Entries, level: int, how: str) -> None:
    """Each table's struct page says what it is and whose."""
    pfn = links.pfn
    kind, deep, owner = facts.page_type[pfn], facts.page["pt_level"][pfn], facts.page["pt_mm"][pfn]
    report.each((kind != PAGE_TYPE_TABLE) | (deep != level) | (owner != links.mm),
                "{how}{level} pfn {pfn:#x} of mm {mm}: page type {kind}, level {deep}, belongs to mm {owner}",
                how=how, level=LEVELS[level], pfn=pfn, mm=links.mm, kind=kind, deep=deep, owner=owner)


def _deposited(facts: Facts, report: Report, deposits: Entries) -> None:
    """As many deposited tables behind each PMD table as it has huge pmds; all empty, none linked."""
    links, pmd = facts.walked.linked[2], facts.walked.pmd
    huge = pmd.table[pmd.val & (_PAGE_HUGE | _PAGE_MIGRATION) != 0]
    want = np.bincount(huge, minlength=facts.frames)[links.pfn]
    got = np.bincount(deposits.table, minlength=facts.frames)[links.pfn]
    report.each(got != want, "PMD table pfn {pfn:#x} of mm {mm} has {want} huge pmds and {got} deposited tables",
                pfn=links.pfn, mm=links.mm, want=want, got=got)
    spare = deposits.val
    linked = np.sort(facts.walked.linked[1].pfn)
    report.each(in_sorted(spare, linked), "deposited table pfn {pfn:#x} is linked to a pmd as well", pfn=spare)
    used: Column = words(tables, facts.frames)[spare, : facts.nr].max(axis=1, initial=0) != 0
    report.each(used, "deposited table pfn {pfn:#x} is not empty", pfn=spare)


def _table_counts(facts: Facts, report: Report, deposits: Entries) -> None:
    """nr_ptes and nr_pmds of each mm."""
    mms, size = facts.live_mms, facts.config.mms + 1
    ptes = np.bincount(facts.walked.linked[1].mm, minlength=size) + np.bincount(deposits.mm, minlength=size)
    pmds = np.bincount(facts.walked.linked[2].mm, minlength=size)
    for name, want in (("nr_ptes", ptes[mms]), ("nr_pmds", pmds[mms])):
        got = facts.mm[name][mms]
        report.each(got != want, "mm {mm}: {name} is {got}, there are {want}", mm=mms, name=name, got=got, want=want)


def _no_lost_tables(facts: Facts, report: Report, deposits: Entries) -> None:
    """Every table page belongs somewhere."""
    reached = np.zeros(facts.frames, dtype=bool)
    for links in (*facts.walked.linked.values(), as_links(deposits)):
        reached[links.pfn] = True
    pages = np.flatnonzero(facts.page_type == PAGE_TYPE_TABLE)
    owner = facts.page["pt_mm"][pages]
    report.each(~reached[pages], "table pfn {pfn:#x} of mm {mm} is linked nowhere", pfn=pages, mm=owner)


def law_inside_vma(facts: Facts, report: Report) -> None:
    """I8."""
    walked = facts.walked
    for entries, size, name in ((walked.pmd, int(HPAGE_PMD_SIZE), "huge pmd"), (walked.pte, PAGE_SIZE, "pte")):
        vma = facts.find_vma(entries.mm, entries.addr)
        outside = (vma == 0) | (entries.addr + size > facts.vma["vm_end"][vma])
        writable = present(entries.val) & (entries.val & _PAGE_RW != 0)
        more = (vma != 0) & writable & (facts.vma["vm_flags"][vma] & VM_WRITE == 0)
        for bad, what in ((outside, "is not inside one vma"), (more, "is writable, its vma is not")):
            report.each(bad, "{name} {val:#x} at {addr:#x} of mm {mm} {what}",
                        name=name, val=entries.val, addr=entries.addr, mm=entries.mm, what=what)
    _vma_slots(facts, report)


def _vma_slots(facts: Facts, report: Report) -> None:
    """The vmas of an mm: sorted, apart from each other, its own, as many as it says."""
    vma, mm, start, end = facts.vma_list, facts.vma_mm, facts.vma_start, facts.vma_end
    owner = facts.vma["vm_mm"][vma]
    report.each(owner != mm, "vma {vma} stands in mm {mm} and says mm {owner}", vma=vma, mm=mm, owner=owner)
    report.each(start >= end, "vma {vma} of mm {mm}: {start:#x}..{end:#x}", vma=vma, mm=mm, start=start, end=end)
    clash = (mm[1:] == mm[:-1]) & (start[1:] < end[:-1])
    report.each(clash, "vmas {vma} and {other} of mm {mm} overlap or are not sorted",
                vma=vma[:-1], other=vma[1:], mm=mm[1:])
    mms = facts.live_mms
    count, said = np.bincount(mm, minlength=facts.config.mms + 1)[mms], facts.mm["map_count"][mms]
    report.each(count != said, "mm {mm}: map_count {said}, {count} vmas in its slots", mm=mms, said=said, count=count)


def law_cow(facts: Facts, report: Report) -> None:
    """An anonymous page that one entry may write is mapped by no other entry."""
    maps = facts.pte_maps + facts.pmd_maps[facts.head_of]
    thp = facts.thp.where(facts.thp.pfn + facts.nr <= facts.frames)
    most_of_thp = maps[facts.subpages(thp.pfn)].max(axis=1, initial=0)
    for entries, count, name in ((facts.pte, maps[facts.pte.pfn], "pte"), (thp, most_of_thp, "huge pmd")):
        anon = facts.mapping[facts.head_of[entries.pfn]] & PAGE_MAPPING_ANON != 0
        bad: Column = anon & (entries.val & _PAGE_RW != 0) & (count > 1)
        report.each(bad, "{name} at {addr:#x} of mm {mm} may write pfn {pfn:#x}, which {count} entries map",
                    name=name, addr=entries.addr, mm=entries.mm, pfn=entries.pfn, count=count)


LAWS = (
    Law("Q7", "migration entries", "no migration entry is left", law_migration),
    Law("Q8", "tables", "tables are linked once or deposited, counted, and deposited ones are empty", law_tables),
    Law("I8", "inside a vma", "every entry lies inside one vma and allows no more than it", law_inside_vma),
    Law("COW", "copy on write", "a page that one entry may write is mapped by no other", law_cow),
)
