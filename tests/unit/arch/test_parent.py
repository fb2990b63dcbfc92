"""A process that is killed while it has a helper leaves none behind. (Compilers: test_native.py.)"""

import subprocess
import sys
from pathlib import Path

from tests.processes import wait_for

FORKS = """
import os, time
from concur_thp.arch.parent import end_with_parent
parent = os.getpid()
if os.fork() == 0:
    end_with_parent(parent)
    print("there", flush=True)
    time.sleep(600)
time.sleep(600)
"""


def children(pid):
    """Processes that a process has forked and not yet reaped."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue  # It has just ended.
        if int(rest.split()[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def ended(pid):
    """Has a process ended? One that nobody reaps counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_a_helper_ends_with_who_forked_it():
    parent = subprocess.Popen([sys.executable, "-c", FORKS], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout.readline() == "there\n"
        left = children(parent.pid)
        assert len(left) == 1
    finally:
        parent.kill()
        parent.communicate(timeout=60)
    wait_for(lambda: all(map(ended, left)), "its end")
