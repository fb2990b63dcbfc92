"""Where the shadow accounting of mm/page_account.py begins: with what a machine at rest has."""

import numpy as np

from concur_thp.check.audit_counts import expected_references
from concur_thp.check.facts import Facts
from concur_thp.check.views import view
from concur_thp.config import MachineConfig
from concur_thp.mm.page_account import CACHE, MAP, PIN, page_accounts


def open_accounts(config: MachineConfig) -> None:
    """Write every page's account from its references, mappings, cache slots and declared pins; all CPUs are at rest."""
    facts = Facts(config)
    parts = expected_references(facts)
    maps, cache = parts["pmds"] + parts["ptes"], parts["page cache"] + parts["swap cache"]
    words = np.where(facts.is_tail, 0, facts.refcount) + maps * MAP + cache * CACHE + parts["pins"] * PIN
    view(page_accounts, config.frames)["word"] = words
