"""The audit: every law of a machine at rest, over all of its memory. (semantics 4b)

All CPUs must stand outside the kernel. Pagevecs and per-CPU lists need not be drained: they are counted. One function
for each law, in the tables of the modules below; each gets the gathered facts and reports what is wrong.
"""

import time
from collections.abc import Mapping

from concur_thp.check import (
    accounts,
    audit_counts,
    audit_frames,
    audit_lists,
    audit_misc,
    audit_mlock,
    audit_rmap,
    audit_swap,
    audit_tables,
    audit_tlb,
)
from concur_thp.check.facts import Facts
from concur_thp.check.report import AuditResult, Law, Report, Violation
from concur_thp.config import MachineConfig


def _number(law: Law) -> tuple[int, int]:
    """Q laws in their order, the others behind."""
    return (0, int(law.id[1:])) if law.id[0] == "Q" else (1, 0)


_MODULES = (accounts, audit_frames, audit_counts, audit_tables, audit_tlb, audit_rmap, audit_swap, audit_lists, audit_misc,
            audit_mlock)
LAWS: tuple[Law, ...] = tuple(sorted((law for module in _MODULES for law in module.LAWS), key=_number))


def audit(
    config: MachineConfig,
    *,
    pins: Mapping[int, int] | None = None,
    expect_empty: bool = False,
    only: set[str] | None = None,
) -> AuditResult:
    """Check every law (or `only` some) of the booted machine.

    `pins`: references the caller itself holds, pfn -> number. `expect_empty`: everything has exited and the caches are
    dropped, so that every frame has to be free.
    """
    begin = time.perf_counter()
    facts = Facts(config, pins, expect_empty)
    checks = 0
    violations: list[Violation] = []
    for law in LAWS:
        if only is None or law.id in only:
            report = Report(law.id)
            try:
                law.check(facts, report)
            except (ArithmeticError, LookupError, MemoryError, ValueError) as error:
                # Corrupt beyond what the law can read: that is a finding, and the other laws go on.
                report.broken(f"{law.name} cannot be checked: {type(error).__name__}: {error}")
            checks += report.checks
            violations += report.finish()
    return AuditResult(checks, violations, time.perf_counter() - begin)


__all__ = ["LAWS", "AuditResult", "Law", "Violation", "audit"]
