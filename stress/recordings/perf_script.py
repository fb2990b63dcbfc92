"""Reads the text `perf script -F comm,pid,tid,cpu,time,event,trace` prints, plain or compressed with xz.

One line is one event. Everything a program's memory depends on becomes an `Event`; other events are counted
and skipped. A file that is not such a recording, or not the whole of one, is refused as a whole.
"""

import lzma
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from concur_thp.errors import Misuse

FIELDS = "perf script -F comm,pid,tid,cpu,time,event,trace"
FAULT = "page_fault_user"

XZ_MAGIC = b"\xfd7zXZ\x00"
PERF_DATA_MAGIC = b"PERFILE2"


class Event(NamedTuple):
    """One line: `name` without its subsystem, the task, and the numbers of its trace in printed order."""

    line: int
    name: str
    pid: int
    tid: int
    comm: str
    args: tuple[int, ...]


@dataclass(frozen=True)
class Recording:
    """The events of one file in recorded order, and how often each event outside `ARGUMENTS` was skipped."""

    name: str
    path: str
    lines: int
    events: list[Event]
    faults: int
    skipped: Counter[str]


HEAD = r"[ \t]*(\S.*?)[ \t]+(-?\d+)/(-?\d+)[ \t]+\[\d+\][ \t]+\d+\.\d+:[ \t]+"
FAULT_LINE = re.compile(
    HEAD + r"exceptions:page_fault_user:[ ]+"
    r"address=0x([0-9a-f]{1,16}) ip=\S+ error_code=0x([0-9a-f]{1,16})[ \t]*$"
)
EVENT_LINE = re.compile(HEAD + r"([A-Za-z0-9_-]+):([A-Za-z0-9_-]+):(.*)$")


def _syscall(*names: str) -> re.Pattern[str]:
    """The first arguments of a sys_enter event, printed as `name: 0x...` with commas between."""
    return re.compile(r"\s*" + r",\s*".join(rf"{name}: 0x([0-9a-f]{{1,16}})" for name in names))


NO_ARGUMENTS = re.compile("")
RESULT = re.compile(r"\s*0x([0-9a-f]{1,16})\s*$")

CALLS = ("mmap", "munmap", "mremap", "madvise", "mprotect", "brk", "clone", "clone3", "vfork")

ARGUMENTS: dict[str, re.Pattern[str]] = {
    "sys_enter_mmap": _syscall("addr", "len", "prot", "flags", "fd", "off"),
    "sys_enter_munmap": _syscall("addr", "len"),
    "sys_enter_mremap": _syscall("addr", "old_len", "new_len", "flags", "new_addr"),
    "sys_enter_madvise": _syscall("start", "len_in", "behavior"),
    "sys_enter_mprotect": _syscall("start", "len", "prot"),
    "sys_enter_brk": _syscall("brk"),
    "sys_enter_clone": _syscall("clone_flags"),
    "sys_enter_clone3": NO_ARGUMENTS,
    "sys_enter_vfork": NO_ARGUMENTS,
    "sys_enter_execve": NO_ARGUMENTS,
    "sys_enter_exit_group": NO_ARGUMENTS,
    "sched_process_fork": re.compile(r"\s*comm=.*? pid=\d+ child_comm=.* child_pid=(\d+)\s*$"),
    "sched_process_exec": re.compile(r"\s*filename=.* pid=(\d+) old_pid=(\d+)\s*$"),
    "sched_process_exit": NO_ARGUMENTS,
} | {f"sys_exit_{call}": RESULT for call in (*CALLS, "execve", "exit_group")}
"""Of each event we use, the pattern of its trace: decimal numbers in sched events, hexadecimal in calls."""


def read(path: str | Path) -> Recording:
    """The recording in the file `path`, `.perf` or `.perf.xz`."""
    path = Path(path)
    lines = _text(path).split("\n")
    if lines.pop():
        raise Misuse(
            f"{path}:{len(lines) + 1}: the last line is cut off; pass the whole of what {FIELDS} printed"
        )
    events: list[Event] = []
    skipped: Counter[str] = Counter()
    faults = 0
    for number, text in enumerate(lines, 1):
        match = FAULT_LINE.match(text)
        if match:
            comm, pid, tid, address, code = match.groups()
            event = Event(number, FAULT, int(pid), int(tid), comm, (int(address, 16), int(code, 16)))
            faults += 1
        else:
            other = _other(path, number, text, skipped)
            if other is None:
                continue
            event = other
        events.append(event)
    _require_event_set(path, faults, events, skipped)
    return Recording(_name(path), str(path), len(lines), events, faults, skipped)


def _name(path: Path) -> str:
    return path.name.removesuffix(".xz").removesuffix(".perf")


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Misuse(f"{path}: no such file; pass a recording (.perf or .perf.xz)") from None
    except IsADirectoryError:
        raise Misuse(f"{path} is a directory; pass one recording in it (.perf or .perf.xz)") from None
    except (OSError, ValueError) as error:
        raise Misuse(f"{path} cannot be read ({error}); pass a readable recording") from None
    if data.startswith(XZ_MAGIC):
        data = _decompress(path, data)
    elif path.suffix == ".xz":
        raise Misuse(f"{path}:1: named .xz but not xz data; pass the output of xz, or the text as .perf")
    if data.startswith(PERF_DATA_MAGIC):
        raise Misuse(f"{path}:1: raw perf.data, not text; pass what {FIELDS} prints for it")
    if not data.strip():
        raise Misuse(f"{path}:1: empty; pass what {FIELDS} printed")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise Misuse(f"{path}:{line}: binary data, not text; pass what {FIELDS} printed")
    return data.decode("utf-8", "backslashreplace")


def _decompress(path: Path, data: bytes) -> bytes:
    try:
        return lzma.decompress(data, lzma.FORMAT_XZ)
    except lzma.LZMAError as error:
        cut = "ended before" in str(error)
        what = "the xz data is cut off" if cut else f"damaged xz data ({str(error).lower()})"
        raise Misuse(f"{path}:{_lines_intact(data) + 1}: {what}; pass the whole file again") from None


def _lines_intact(data: bytes) -> int:
    """How many lines come out of damaged xz data before the damage."""
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    count = 0
    try:
        for start in range(0, len(data), 4096):
            count += decompressor.decompress(data[start : start + 4096]).count(b"\n")
            if decompressor.eof:
                break
    except lzma.LZMAError:
        pass
    return count


def _other(path: Path, number: int, text: str, skipped: Counter[str]) -> Event | None:
    """The event of a line that is not a page fault; None if it is one nobody needs."""
    if not text.strip() or text.startswith("#"):
        return None
    match = EVENT_LINE.match(text)
    if not match:
        raise Misuse(f"{path}:{number}: not a line of perf script: {_quote(text)}; pass what {FIELDS} prints")
    comm, pid, tid, system, name, trace = match.groups()
    pattern = ARGUMENTS.get(name) if system in ("syscalls", "sched") else None
    if name != FAULT and pattern is None:
        skipped[f"{system}:{name}"] += 1
        return None
    args = pattern.match(trace) if pattern else None
    if not args:
        raise Misuse(
            f"{path}:{number}: the trace of {system}:{name} is not as the kernel prints it: {_quote(trace)}; "
            f"pass what {FIELDS} printed"
        )
    base = 10 if system == "sched" else 16
    return Event(number, name, int(pid), int(tid), comm, tuple(int(a, base) for a in args.groups()))


def _quote(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _require_event_set(path: Path, faults: int, events: list[Event], skipped: Counter[str]) -> None:
    if faults == 0:
        seen = sorted({e.name for e in events} | set(skipped))
        found = f"only {', '.join(seen[:3])}" if seen else "no event at all"
        raise Misuse(
            f"{path}:1: no exceptions:page_fault_user in it ({found}); "
            "record with the events the workloads README lists"
        )
    if len(events) == faults:
        raise Misuse(
            f"{path}:1: page faults but no syscalls: or sched: event; "
            "record with the events the workloads README lists"
        )
