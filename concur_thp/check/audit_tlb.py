"""The law about what CPUs remember of page tables (Q15, I14)."""

import numpy as np

from concur_thp.arch.cpu import cpus
from concur_thp.arch.tlb import tlb_contexts
from concur_thp.check.facts import ADDRESS_BITS, Facts
from concur_thp.check.report import Law, Report
from concur_thp.check.views import Column, view
from concur_thp.check.walk import Entries
from concur_thp.config import HPAGE_PMD_MASK, PAGE_SHIFT
from concur_thp.mm.pgtable import _PAGE_DIRTY, _PAGE_PRESENT, _PAGE_PROTNONE, _PAGE_RW, PFN_SHIFT
from concur_thp.mm.tlb_batch import tlb_ubcs


class Translations:
    """Current entries by mm and address, to compare a TLB with."""

    def __init__(self, entries: Entries):
        keys = (entries.mm << ADDRESS_BITS) | entries.addr
        order = np.argsort(keys)
        self.keys, self.values = keys[order], entries.val[order]

    def find(self, mm: int, addr: Column) -> Column:
        """The entry of each address, 0 where there is none."""
        if not len(self.keys):
            return np.zeros(len(addr), dtype=np.int64)
        wanted = (mm << ADDRESS_BITS) | addr
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, self.values[at], 0)


def law_tlb(facts: Facts, report: Report) -> None:
    """Q15 and I14, for CPUs that are up to date; what a CPU that is behind remembers is void. Nobody owes a flush (I16)."""
    owed = view(tlb_ubcs, facts.config.cpus)["nr"]
    report.each(owed != 0, "cpu {cpu} took entries of {count} mms down in a batch and never flushed",
                cpu=np.arange(facts.config.cpus), count=owed)
    live = set(facts.live_mms.tolist())
    current = {"small": Translations(facts.walked.pte), "huge": Translations(facts.walked.pmd)}
    rows, contexts = view(cpus, facts.config.cpus), view(tlb_contexts, facts.config.mms + 1)
    for cpu in range(facts.config.cpus):
        mm = int(rows["context"][cpu])
        if not 0 < mm <= facts.config.mms:
            report.check(mm == 0, "cpu {cpu} runs in context {mm}, which does not exist", cpu=cpu, mm=mm)
            continue
        member = int(contexts["cpumask"][mm]) >> cpu & 1
        report.check(member == 1, "cpu {cpu} runs in mm {mm} and is not in its cpumask", cpu=cpu, mm=mm)
        if int(rows["generation"][cpu]) != int(contexts["generation"][mm]):
            continue
        held = {name: _held(rows[f"tlb_{name}"][cpu]) for name in current}
        if mm not in live:
            nothing = not any(len(addr) for addr, _ in held.values())
            report.check(nothing, "cpu {cpu} remembers translations of dead mm {mm}", cpu=cpu, mm=mm)
            continue
        for name, entries in current.items():
            _compare(report, cpu, mm, name, held[name], entries)
        addr = held["small"][0]
        both = np.isin(addr & int(HPAGE_PMD_MASK), held["huge"][0])
        report.each(both, "cpu {cpu} holds {addr:#x} small and huge at once", cpu=cpu, addr=addr)


def _held(entries: Column) -> tuple[Column, Column]:
    """Address and entry of each translation in a TLB."""
    used = entries[entries["tag"] != 0]
    return (used["tag"] - 1) << PAGE_SHIFT, used["entry"]


def _compare(report: Report, cpu: int, mm: int, name: str, held: tuple[Column, Column], current: Translations) -> None:
    """Same frame, same size, and nothing allowed that the entry does not allow (or has not noted: Dirty)."""
    addr, cached = held
    now = current.find(mm, addr)
    walks = (now & (_PAGE_PRESENT | _PAGE_PROTNONE)) == _PAGE_PRESENT
    more = cached & ~now & (_PAGE_RW | _PAGE_DIRTY)
    bad = ~walks | (cached >> PFN_SHIFT != now >> PFN_SHIFT) | (more != 0)
    report.each(bad, "cpu {cpu} holds {name} {addr:#x} of mm {mm} as {cached:#x}, the entry is {now:#x}",
                cpu=cpu, name=name, addr=addr, mm=mm, cached=cached, now=now)


LAWS = (Law("Q15", "TLB", "what a CPU remembers is what the entry says, or less", law_tlb),)
