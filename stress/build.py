"""The progress bar of the first start, when kernel functions are compiled. Silent without a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class CompileProgress:
    """Called with (compiled, to compile); draws a bar from the first call on."""

    def __init__(self, out: Console):
        self._bar = RichProgress(TextColumn("compiling kernel functions"), BarColumn(), MofNCompleteColumn(),
                                 TimeElapsedColumn(), console=out, transient=True)
        self._task = self._bar.add_task("compile", total=None)
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        if not self._shown and sys.stderr.isatty():
            self._bar.start()
            self._shown = True
        self._bar.update(self._task, completed=done, total=total)

    def finish(self) -> None:
        """Take the bar away; the terminal belongs to somebody else now."""
        if self._shown:
            self._bar.stop()
            self._shown = False


@contextmanager
def compile_progress(out: Console) -> Iterator[CompileProgress]:
    """A progress to hand to Machine()."""
    progress = CompileProgress(out)
    try:
        yield progress
    finally:
        progress.finish()
