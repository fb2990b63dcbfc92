"""Every law of the audit, broken by one word (or the fewest that stay consistent): exactly that law speaks."""

import sys
from types import SimpleNamespace

import pytest

from concur_thp.check.audit import LAWS, audit
from concur_thp.mm.deferred_split import undefer_split_huge_page
from concur_thp.mm.flags import __GFP_MOVABLE, MIGRATE_MOVABLE_OR_NOTHING  # noqa: F401
