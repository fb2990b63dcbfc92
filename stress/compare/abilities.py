"""What comparing needs of this machine, and what can be done without. Nothing here changes anything."""

import ctypes
import errno
import mmap
import os
import platform
import resource
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stress.compare import kernel_calls
from stress.compare.steps import BLOCK, PAGE
from stress.compare.switches import THP, changes

VMSTAT = Path("/proc/vmstat")
DROP_CACHES = "/proc/sys/vm/drop_caches"


def missing(root: Path = THP) -> list[str]:
    """Why programs cannot be run on this kernel; empty when they can."""
    if platform.machine() != "x86_64" or mmap.PAGESIZE != PAGE:
        return [f"{platform.machine()} with pages of {mmap.PAGESIZE} bytes: the programs are for x86-64's 4096"]
    if not (root / "enabled").is_file():
        return [f"this kernel has no Transparent Hugepages ({root} is not there: CONFIG_TRANSPARENT_HUGEPAGE is off)"]
    size = root / "hpage_pmd_size"
    if size.is_file() and int(size.read_text()) != BLOCK * PAGE:
        return [f"huge pages have {size.read_text().strip()} bytes here: the programs are for {BLOCK * PAGE}"]
    found = []
    text = VMSTAT.read_text() if VMSTAT.is_file() else ""
    if "thp_split_pmd" not in text:
        found.append("/proc/vmstat has no thp_ counters")
    for name in ("smaps", "pagemap"):
        if not _opens(f"/proc/self/{name}", os.O_RDONLY):
            found.append(f"/proc/self/{name} cannot be read")
    found += [f"{root / name} cannot be written, and it has to be {value!r} during the run"
              for name, value in changes(root).items() if not _opens(str(root / name), os.O_WRONLY)]
    return found + what_helps() if found else []


def what_helps() -> list[str]:
    """To whoever may not set the switches."""
    return ["run it as root, or have root write those values first"] if os.geteuid() != 0 else []


def _opens(path: str, how: int) -> bool:
    try:
        os.close(os.open(path, how))
    except OSError:
        return False
    return True


class Ability(NamedTuple):
    """Something that only some programs need."""

    op: str
    why_not: Callable[[], str]
    """'' when this machine has it."""


def _drop_caches() -> str:
    return "" if _opens(DROP_CACHES, os.O_WRONLY) else f"{DROP_CACHES} cannot be written"


def _advice(number: int, name: str) -> Callable[[], str]:
    def why_not() -> str:
        area = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        at = ctypes.addressof(ctypes.c_char.from_buffer(area))
        refused = kernel_calls.libc.madvise(at, 0, number) and ctypes.get_errno() == errno.EINVAL
        return f"this kernel has no {name}" if refused else ""

    return why_not


def _remote() -> str:
    mine = kernel_calls.Iovec(0, 0)
    got = kernel_calls.libc.process_vm_readv(os.getpid(), ctypes.byref(mine), 1, ctypes.byref(mine), 1, 0)
    return "" if got == 0 else f"process_vm_readv: {os.strerror(ctypes.get_errno())}"


def _mlock() -> str:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    enough = os.geteuid() == 0 or limit == resource.RLIM_INFINITY or limit >= 8 * BLOCK * PAGE
    return "" if enough else f"RLIMIT_MEMLOCK is {limit} bytes"


ABILITIES = (
    Ability("drop_caches", _drop_caches),
    Ability("collapse", _advice(25, "MADV_COLLAPSE")),
    Ability("free", _advice(8, "MADV_FREE")),
    Ability("remote_load", _remote),
    Ability("remote_store", _remote),
    Ability("mlock", _mlock),
    Ability("munlock", _mlock),
)


def lacking() -> dict[str, str]:
    """Operations that this machine cannot do, and why."""
    return {ability.op: why for ability in ABILITIES if (why := ability.why_not())}



