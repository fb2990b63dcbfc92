"""The shadow accounting of mm/page_account.py at rest: where it begins, and the law that it is right (I25)."""

import numpy as np

from concur_thp.arch.listen import LISTEN_ACCOUNT
from concur_thp.arch.system import system
from concur_thp.check.audit_counts import expected_references
from concur_thp.check.facts import Facts
from concur_thp.check.pins import declared_pins
from concur_thp.check.report import Law, Report
from concur_thp.check.views import Column, view
from concur_thp.config import MachineConfig
from concur_thp.mm.page_account import CACHE, MAP, PIN, REFS_MASK, page_accounts


def counted(facts: Facts) -> Column:
    """What every page's account has to say: its references, and by a count of everything, what they are for."""
    parts = expected_references(facts)
    maps, cache = parts["pmds"] + parts["ptes"], parts["page cache"] + parts["swap cache"]
    words: Column = np.where(facts.is_tail, 0, facts.refcount & REFS_MASK) + maps * MAP + cache * CACHE
    for pfn, count in declared_pins().items():
        words[facts.head_of[pfn]] += count * PIN
    return words


def open_accounts(config: MachineConfig) -> None:
    """Write every page's account; all CPUs are at rest."""
    view(page_accounts, config.frames)["word"] = counted(Facts(config))


def law_accounts(facts: Facts, report: Report) -> None:
    """I25 at rest: what was noted change by change is what there is. Only of a machine that keeps accounts."""
    if system.listen.read() & LISTEN_ACCOUNT == 0:
        return
    kept, want = view(page_accounts, facts.frames)["word"], counted(facts)
    report.each(kept != want, "pfn {pfn:#x}: its account is {kept:#x}, counted it is {want:#x}", pfn=np.arange(facts.frames),
                kept=kept, want=want)


LAWS = (Law("I25", "accounts", "references noted one by one are what is counted at rest", law_accounts),)
