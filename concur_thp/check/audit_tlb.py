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
        wanted = (np.int64(mm) << ADDRESS_BITS) | addr
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, self.values[at], 0)


def law_tlb(facts: Facts, report: Report) -> None:
    """Q15 and I14, for CPUs that are up to date; what a CPU that is behind remembers is void."""
    live = set(facts.live_mms.tolist())
    small, huge = Translations(facts.walked.pte), Translations(facts.walked.pmd)
    cpu = view(cpus, facts.config.cpus)
    contexts = view(tlb_contexts, facts.config.mms + 1)
    for number in range(facts.config.cpus):
        mm = int(cpu["context"][number])
        if not 0 < mm <= facts.config.mms:
            report.check(mm == 0, f"cpu {number} runs in context {mm}, which does not exist", cpu=number)
            continue
        member = int(contexts["cpumask"][mm]) >> number & 1
        report.check(
            member == 1, f"cpu {number} runs in mm {mm} and is not in its cpumask", cpu=number, mm=mm
        )
        if int(cpu["generation"][number]) != int(contexts["generation"][mm]):
            continue
        held = {name: _held(cpu[f"tlb_{name}"][number]) for name in ("small", "huge")}
        if mm not in live:
            any_held = len(held["small"][0]) + len(held["huge"][0])
            report.check(
                any_held == 0, f"cpu {number} has {any_held} translations of dead mm {mm}", cpu=number, mm=mm
            )
            continue
        for name, current in (("small", small), ("huge", huge)):
            _compare(report, number, mm, name, held[name], current)
        both = np.isin(held["small"][0] & int(HPAGE_PMD_MASK), held["huge"][0])
        report.each(
            both,
            lambda i, n=number, h=held: f"cpu {n} holds {h['small'][0][i]:#x} small and huge at once",  # type: ignore[misc]
            addr=held["small"][0],
        )


def _held(entries: Column) -> tuple[Column, Column]:
    """Address and entry of each translation in a TLB."""
    used = entries[entries["tag"] != 0]
    return (used["tag"] - 1) << PAGE_SHIFT, used["entry"]


def _compare(
    report: Report, cpu: int, mm: int, name: str, held: tuple[Column, Column], current: Translations
) -> None:
    """Same frame, same size, and nothing allowed that the entry does not allow (or has not noted: Dirty)."""
    addr, cached = held
    now = current.find(mm, addr)
    walks = (now & (_PAGE_PRESENT | _PAGE_PROTNONE)) == _PAGE_PRESENT
    more = cached & ~now & (_PAGE_RW | _PAGE_DIRTY)
    bad = ~walks | (cached >> PFN_SHIFT != now >> PFN_SHIFT) | (more != 0)
    report.each(
        bad,
        lambda i: (
            f"cpu {cpu} holds {name} {addr[i]:#x} of mm {mm} as {cached[i]:#x}, the entry is {now[i]:#x}"
        ),
        addr=addr,
    )


LAWS = (Law("Q15", "TLB", "what a CPU remembers is what the entry says, or less", law_tlb),)
