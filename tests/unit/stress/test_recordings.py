"""The reader of perf script text: what it keeps, and that it refuses everything else with one clear line."""

import lzma
from pathlib import Path

import pytest

from concur_thp.errors import Misuse
from stress.recordings.count import main
from stress.recordings.perf_script import Event, read

GOOD = """\
   my prog 22557/22558 [001]  2338.014305:  sched:sched_process_exec: filename=/bin/a b pid=7 old_pid=7
   my prog 22557/22558 [001]  2338.014331:  exceptions:page_fault_user: address=0x7fa5 ip=0x7 error_code=0x14
   my prog 22557/22558 [001]  2338.014371:  syscalls:sys_enter_brk: brk: 0x00000000
   my prog 22557/22558 [001]  2338.014373:  syscalls:sys_exit_brk: 0x556b65f90000
   my prog 22557/22558 [001]  2338.014374:  syscalls:sys_enter_read: fd: 0x00000003, buf: 0x1, count: 0x1
   my prog 22557/22558 [001]  2338.019878:  sched:sched_process_fork: comm=x y pid=7 child_comm=x child_pid=9
"""
FAULT_LINE = GOOD.split("\n")[1] + "\n"
CALL_LINE = GOOD.split("\n")[2] + "\n"


def write(tmp_path: Path, data: str | bytes, name: str = "a.perf") -> Path:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_lines_become_events(tmp_path: Path) -> None:
    recording = read(write(tmp_path, GOOD))
    assert recording.events == [
        Event(1, "sched_process_exec", 22557, 22558, "my prog", (7, 7)),
        Event(2, "page_fault_user", 22557, 22558, "my prog", (0x7FA5, 0x14)),
        Event(3, "sys_enter_brk", 22557, 22558, "my prog", (0,)),
        Event(4, "sys_exit_brk", 22557, 22558, "my prog", (0x556B65F90000,)),
        Event(6, "sched_process_fork", 22557, 22558, "my prog", (9,)),
    ]
    assert (recording.name, recording.lines, recording.faults) == ("a", 6, 1)
    assert recording.skipped == {"syscalls:sys_enter_read": 1}


def test_xz_is_read_like_text(tmp_path: Path) -> None:
    packed = read(write(tmp_path, lzma.compress(GOOD.encode()), "b.perf.xz"))
    assert packed.events == read(write(tmp_path, GOOD)).events
    assert packed.name == "b"


def test_header_comments_are_skipped(tmp_path: Path) -> None:
    assert len(read(write(tmp_path, "# captured on: today\n\n" + GOOD)).events) == 5


XZ = lzma.compress((GOOD * 2000).encode())

BAD = {
    "empty": ("a.perf", b"", "a.perf:1: empty"),
    "empty xz": ("a.perf.xz", lzma.compress(b""), "a.perf.xz:1: empty"),
    "blank": ("a.perf", b"\n\n", "a.perf:1: empty"),
    "last line cut": ("a.perf", GOOD[:-20].encode(), "a.perf:6: the last line is cut off"),
    "xz cut": ("a.perf.xz", XZ[: len(XZ) // 2], "the xz data is cut off"),
    "xz damaged": ("a.perf.xz", XZ[:40] + b"\x55" * 40 + XZ[80:], "damaged xz data"),
    "not xz": ("a.perf.xz", GOOD.encode(), "a.perf.xz:1: named .xz but not xz data"),
    "perf.data": ("perf.data", b"PERFILE2\0\0", "perf.data:1: raw perf.data"),
    "binary": ("a.perf", GOOD.encode() + b"\0\1\2\n", "a.perf:7: binary data"),
    "other bytes": ("a.perf", b"\xff\xfe\x80\n", "a.perf:1: not a line of perf script"),
    "prose": (
        "a.perf",
        GOOD.encode() + b"hello world\n",
        "a.perf:7: not a line of perf script: 'hello world'",
    ),
    "strange trace": (
        "a.perf",
        CALL_LINE.replace("0x0", "what").encode(),
        "a.perf:1: the trace of syscalls:",
    ),
    "too large": ("a.perf", FAULT_LINE.replace("0x7fa5", "0x" + "f" * 17).encode(), "a.perf:1: the trace of"),
    "no faults": ("a.perf", CALL_LINE.encode(), "no exceptions:page_fault_user in it (only sys_enter_brk)"),
    "other events": (
        "a.perf",
        CALL_LINE.replace("syscalls:sys_enter_brk", "kmem:kmalloc").encode(),
        "(only kmem:kmalloc)",
    ),
    "only comments": ("a.perf", b"# nothing\n", "(no event at all)"),
    "only faults": ("a.perf", FAULT_LINE.encode(), "no syscalls: or sched: event"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(tmp_path: Path, case: str) -> None:
    name, data, said = BAD[case]
    with pytest.raises(Misuse) as caught:
        read(write(tmp_path, data, name))
    message = str(caught.value)
    assert said in message
    assert name in message
    assert "\n" not in message
    assert "pass " in message or "record with " in message


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no such file"):
        read(tmp_path / "none.perf")
    with pytest.raises(Misuse, match="is a directory"):
        read(tmp_path)


def test_the_table_refuses_like_any_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path / "none.perf")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 2
