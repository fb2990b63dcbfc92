"""The kernel's switches come back whatever ends the run. On files of our own: the machine's are left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from concur_thp.errors import EmulatorError
from stress.compare.abilities import missing
from stress.compare.switches import LOCK, THP, NotNow, Switches, changes
from tests.processes import hears_ctrl_c, is_running, wait_for

ROOT = Path(__file__).resolve().parents[4]
HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from stress.compare.switches import Switches
with Switches(Path(sys.argv[2]), wait=lambda: print("waits", flush=True)):
    print("in", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def root(tmp_path):
    """What /sys/kernel/mm/transparent_hugepage may look like."""
    texts = {"enabled": "[always] madvise never\n", "defrag": "always defer defer+madvise [madvise] never\n",
             "use_zero_page": "0\n", "khugepaged/scan_sleep_millisecs": "10000\n", "hpage_pmd_size": "2097152\n",
             "hugepages-64kB/enabled": "always inherit madvise [never]\n",
             "hugepages-128kB/enabled": "always [inherit] madvise never\n",
             "hugepages-2048kB/enabled": "always [inherit] madvise never\n"}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


INSIDE = {"enabled": "madvise", "use_zero_page": "1", "khugepaged/scan_sleep_millisecs": "600000",
          "hugepages-128kB/enabled": "never"}
BEHIND = {"enabled": "always", "use_zero_page": "0", "khugepaged/scan_sleep_millisecs": "10000",
          "hugepages-128kB/enabled": "inherit"}


def texts(root):
    return {name: (root / name).read_text() for name in INSIDE}


def test_only_what_differs_is_changed(root):
    assert changes(root) == INSIDE
    (root / "khugepaged/scan_sleep_millisecs").write_text("700000\n")
    assert "khugepaged/scan_sleep_millisecs" not in changes(root)


def test_they_are_set_and_come_back(root):
    with Switches(root):
        assert texts(root) == INSIDE
    assert texts(root) == BEHIND


def test_they_come_back_after_an_exception(root):
    with pytest.raises(ZeroDivisionError), Switches(root):
        raise ZeroDivisionError
    assert texts(root) == BEHIND


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_they_come_back_after_a_signal(root, number):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(ROOT), str(root)], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True, preexec_fn=hears_ctrl_c)
    with process:
        assert process.stdout.readline() == "in\n" and texts(root) == INSIDE
        os.kill(process.pid, number)
    deadline = time.monotonic() + 200
    while texts(root) != BEHIND and time.monotonic() < deadline:
        time.sleep(0.01)
    assert texts(root) == BEHIND


def test_two_runs_wait_for_each_other(root):
    """The second finds the switches as it wants them, but the first will take them back."""
    with Switches(root):
        second = subprocess.Popen([sys.executable, "-c", HOLD, str(ROOT), str(root)], stdout=subprocess.PIPE)
        assert second.stdout.readline() == b"waits\n"
    assert second.stdout.readline() == b"in\n" and texts(root) == INSIDE
    second.kill()
    second.communicate()
    deadline = time.monotonic() + 200
    while texts(root) != BEHIND and time.monotonic() < deadline:
        time.sleep(0.01)
    assert texts(root) == BEHIND


def test_one_that_is_ended_while_it_waits_leaves_nobody_behind(root):
    with Switches(root) as first:
        second = subprocess.Popen([sys.executable, "-c", HOLD, str(ROOT), str(root)], stdout=subprocess.PIPE)
        assert second.stdout.readline() == b"waits\n"
        watchdog = int(Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()[0])
        second.kill()
        second.communicate()
        wait_for(lambda: not is_running(watchdog), "its end")
        assert texts(root) == INSIDE and first.process.poll() is None
    assert texts(root) == BEHIND


def watchdog_with(change):
    """Command line of a watchdog that is not quite itself."""
    return ("-c", f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom stress.compare import watchdog\n{change}\n"
                  "sys.exit(watchdog.main(*sys.argv[1:]))")


def test_who_may_not_write_is_told_so(root, monkeypatch):
    """Also when nothing had to be written at first: another run had it as it has to be, and took it back."""
    refuse = "def refuse(path, value):\n raise PermissionError(13, 'no', path)\nwatchdog.write = refuse"
    monkeypatch.setattr("stress.compare.switches.WATCHDOG", watchdog_with(refuse))
    before = texts(root)
    with pytest.raises(NotNow, match="cannot be written"), Switches(root):
        pass
    assert texts(root) == before


def test_who_waits_too_long_is_told_so(root, monkeypatch):
    monkeypatch.setattr("stress.compare.switches.WATCHDOG", watchdog_with("watchdog.SECONDS = 0.2"))
    with Switches(root):
        with pytest.raises(NotNow, match="another run has held"), Switches(root):
            pass
        assert texts(root) == INSIDE


def test_a_switch_that_is_refused_is_said_and_the_others_come_back(root, monkeypatch):
    monkeypatch.setattr("stress.compare.switches.wanted", lambda root: {"enabled": "madvise", "nowhere": "1"})
    with pytest.raises(EmulatorError, match="nowhere: No such file"), Switches(root):
        pass
    assert texts(root)["enabled"] == "always"


def test_what_is_missing_is_said_exactly(root, tmp_path):
    assert "CONFIG_TRANSPARENT_HUGEPAGE" in missing(tmp_path / "nothing")[0]
    (root / "hpage_pmd_size").write_text("33554432\n")
    assert "33554432 bytes" in missing(root)[0]
    (root / "hpage_pmd_size").write_text("2097152\n")
    (root / "enabled").unlink()
    assert missing(root)


def test_the_lock_is_khugepageds_own_file():
    assert LOCK.relative_to(THP) == Path("khugepaged/scan_sleep_millisecs")
