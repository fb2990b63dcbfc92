"""The running kernel's switches, set for a run and restored whatever happens to it.

A watchdog process changes them and holds the old values; it waits for the end of a pipe that only the run has open, and
then puts everything back: after a normal end, an exception, a signal, a kill. So there is one way back, and it is always
taken. Its lock on khugepaged's own file keeps two runs from restoring each other's values.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from concur_thp.errors import EmulatorError
from stress.compare.watchdog import chosen, enough

THP = Path("/sys/kernel/mm/transparent_hugepage")
LOCK = THP / "khugepaged/scan_sleep_millisecs"
WANTED = {
    "khugepaged/scan_sleep_millisecs": "600000",  # it collapsed a half-unmapped region during one measurement
    "enabled": "madvise",  # the regions that ask for it, and nothing of the processes around them
    "defrag": "madvise",
    "use_zero_page": "1",
    "hugepages-2048kB/enabled": "inherit",
}
SMALL_SIZES = "hugepages-*kB/enabled"
"""Of every other size: never, so that 2M is the only one (6.1)."""


def wanted(root: Path = THP) -> dict[str, str]:
    """Switches that this kernel has, and what they have to be during a run."""
    small = {str(path.relative_to(root)): "never" for path in root.glob(SMALL_SIZES)}
    return small | {name: value for name, value in WANTED.items() if (root / name).exists()}


def changes(root: Path = THP) -> dict[str, str]:
    """Which of them would have to be written now."""
    return {name: value for name, value in wanted(root).items() if not enough(chosen((root / name).read_text()), value)}


class NotNow(Exception):
    """Another run has the switches and keeps them, or had set what has to be and took it back; we may not set it."""


NOT_NOW = 4
"""The watchdog's exit status then."""
WATCHDOG = (str(Path(__file__).with_name("watchdog.py")),)


class Switches:
    """`with Switches(): ...` runs with the switches as WANTED. `wait` is told when another run has to end first."""

    def __init__(self, root: Path = THP, wait: Callable[[], None] = lambda: None):
        self.root, self.wait = root, wait
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-I", "-S", *WATCHDOG, str(self.root), str(LOCK.relative_to(THP))]
        for name, value in wanted(self.root).items():  # All: another run may have them set now and restore them yet.
            command += [name, value]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        start_new_session=True)
        assert self.process.stdout is not None
        said_first = self.process.stdout.readline()
        if said_first == b"busy\n":
            self.wait()
            said_first = self.process.stdout.readline()
        if said_first != b"ready\n":
            said = self._end()
            if self.process.returncode == NOT_NOW:
                raise NotNow(said)
            raise EmulatorError(f"compare: the switches could not be set: {said}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        said = self._end()
        if said:
            raise EmulatorError(f"compare: switches were not restored: {said}")

    def _end(self) -> str:
        assert self.process is not None
        _, said = self.process.communicate()
        return said.decode(errors="replace").strip()

    def close_inherited(self) -> None:
        """In a forked child: only the run itself may hold the pipe."""
        if self.process is not None and self.process.stdin is not None:
            os.close(self.process.stdin.fileno())
