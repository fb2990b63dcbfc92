"""What a person sees while a run goes on: one line that is rewritten, on a terminal only."""

import sys
import time
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from concur_thp.arch.cpu import cpus
from concur_thp.config import NR_CPUS
from concur_thp.mm.vmstat import Stat, vmstat

REFRESH_SECONDS = 0.25


class Line:
    """One line on a terminal, rewritten now and then; nothing in a pipe. No thread: processes are forked meanwhile."""

    def __init__(self, out: Console):
        self._live = Live(console=out, transient=True, auto_refresh=False) if sys.stderr.isatty() and not out.quiet else None
        self._next = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live:
            self._live.__exit__(None, None, None)

    def due(self) -> bool:
        """Is it time to redraw?"""
        return self._live is not None and time.monotonic() >= self._next

    def say(self, text: str) -> None:
        """Show this instead of what stands there, if it is time."""
        if self._live and self.due():
            self._next = time.monotonic() + REFRESH_SECONDS
            self._live.update(Text(text, overflow="ellipsis", no_wrap=True), refresh=True)


class Progress(Line):
    """Live figures of a run: operations a second, huge pages, splits, collapses, contended locks."""

    def __init__(self, out: Console, title: str):
        super().__init__(out)
        self._title, self._start = title, time.monotonic()
        self._last = (self._start, operations_done())

    def tick(self) -> None:
        """Called often; redraws now and then."""
        if self.due():
            now = time.monotonic()
            done = operations_done()
            rate = (done - self._last[1]) / max(now - self._last[0], 1e-6)
            self._last = (now, done)
            self.say(f"{self._title}  {now - self._start:5.1f} s  {rate / 1e6:6.2f} M ops/s  {figures()}")


def operations_done() -> int:
    """Operations of all CPUs so far."""
    return sum(int(cpus[n].ops) for n in range(NR_CPUS))


def contended() -> int:
    """Lock acquisitions that had to wait, of all CPUs and classes."""
    return sum(int(cpus[n].lock_stat[c].contentions) for n in range(NR_CPUS) for c in range(24))


def figures() -> str:
    """The counters a person wants to see move."""
    now = vmstat()
    return (f"huge pages {now[Stat.NR_ANON_THPS.name]}  pmd splits {now[Stat.thp_split_pmd.name]}  "
            f"collapses {now[Stat.khugepaged_pages_collapsed.name]}  contended locks {contended()}")
