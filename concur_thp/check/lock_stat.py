"""lock_stat: how often each class of locks was taken, waited for and held, over all CPUs, under the kernel's columns.

Times are nanoseconds. Holds are sampled (one acquisition in 64), so holdtime-total is scaled up from the samples and
holdtime-max is the longest one seen.
"""

from typing import Any, NamedTuple

from concur_thp.arch.cpu import NR_LOCK_CLASSES, cpus
from concur_thp.check.clock import ns_per_cycle
from concur_thp.check.views import view
from concur_thp.config import NR_CPUS
from concur_thp.sync.lock_classes import LOCK_CLASSES


class LockStatRow(NamedTuple):
    """One class. Linux: /proc/lock_stat, Documentation/locking/lockstat.txt."""

    name: str
    con_bounces: int
    contentions: int
    waittime_min: float
    waittime_max: float
    waittime_total: float
    waittime_avg: float
    acq_bounces: int
    acquisitions: int
    holdtime_max: float
    holdtime_total: float
    holdtime_avg: float


COLUMNS = tuple(name.replace("_", "-") for name in LockStatRow._fields)


def class_name(number: int) -> str:
    """The name of a lock class, also of one that somebody else declared."""
    return LOCK_CLASSES[number].name if 0 <= number < len(LOCK_CLASSES) else f"class {number}"


def lock_stat(cpus_used: int = NR_CPUS) -> list[LockStatRow]:
    """A row for each class that was ever taken, the most contended first."""
    rows = view(cpus, cpus_used)["lock_stat"]
    unit = ns_per_cycle()
    found = [_row(number, rows[:, number], unit) for number in range(NR_LOCK_CLASSES)]
    used = [row for row in found if row.acquisitions or row.contentions]
    return sorted(used, key=lambda row: (-row.waittime_total, -row.contentions, -row.acquisitions))


def _row(number: int, rows: Any, unit: float) -> LockStatRow:
    total = {name: int(rows[name].sum()) for name in rows.dtype.names}
    shortest = rows["wait_min"][rows["wait_min"] > 0]
    contentions, samples = total["contentions"], total["hold_samples"]
    hold_avg = total["hold_total"] * unit / samples if samples else 0.0
    return LockStatRow(
        class_name(number),
        total["con_bounces"],
        contentions,
        int(shortest.min()) * unit if len(shortest) else 0.0,
        int(rows["wait_max"].max()) * unit,
        total["wait_total"] * unit,
        total["wait_total"] * unit / contentions if contentions else 0.0,
        total["acq_bounces"],
        total["acquisitions"],
        int(rows["hold_max"].max()) * unit,
        hold_avg * total["acquisitions"],
        hold_avg,
    )


def lock_stat_text(rows: list[LockStatRow] | None = None) -> str:
    """The table as text."""
    given = lock_stat() if rows is None else rows
    lines = [[str(COLUMNS[0]), *COLUMNS[1:]]]
    lines += [[row.name, *(f"{value:.0f}" for value in row[1:])] for row in given]
    widths = [max(len(line[n]) for line in lines) for n in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if n == 0 else cell.rjust(w)
            for n, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


__all__ = ["COLUMNS", "LockStatRow", "class_name", "lock_stat", "lock_stat_text"]
