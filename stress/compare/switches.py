"""The running kernel's switches, set for a run and restored whatever happens to it.

A watchdog process changes them and holds the old values; it waits for the end of a pipe that only the run has open, and
then puts everything back: after a normal end, an exception, a signal, a kill. So there is one way back, and it is always
taken. Its lock on khugepaged's own file keeps two runs from restoring each other's values.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from concur_thp.errors import EmulatorError

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


def chosen(text: str) -> str:
    """The value of a switch's text: the word in brackets, or the number."""
    return text.partition("[")[2].partition("]")[0] if "[" in text else text.strip()


def changes(root: Path = THP) -> dict[str, str]:
    """Which files have to be written for a run, and what."""
    wanted = {str(path.relative_to(root)): "never" for path in root.glob(SMALL_SIZES)}
    wanted |= {name: value for name, value in WANTED.items() if (root / name).exists()}
    return {name: value for name, value in wanted.items() if not _is(chosen((root / name).read_text()), value)}


def _is(present: str, wanted: str) -> bool:
    if wanted.isdigit() and present.isdigit() and int(wanted) > 1:
        return int(present) >= int(wanted)
    return present == wanted


class Switches:
    """`with Switches(): ...` runs with the switches as WANTED."""

    def __init__(self, root: Path = THP):
        self.root = root
        self.process: subprocess.Popen[bytes] | None = None
        self.changed: dict[str, str] = {}

    def __enter__(self) -> Self:
        watchdog = Path(__file__).with_name("watchdog.py")
        command = [sys.executable, "-I", "-S", str(watchdog), str(self.root), str(LOCK.relative_to(THP))]
        self.changed = changes(self.root)
        for name, value in self.changed.items():
            command += [name, value]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        start_new_session=True)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"ready\n":
            said = self._end()
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
