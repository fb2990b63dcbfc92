"""The first thing that a process of an exploration does: it ends with its parent, and leaves Ctrl-C to it."""

import ctypes
import faulthandler
import os
import signal

from workers.launch import PR_SET_PDEATHSIG


def settle(parent: int) -> None:
    """Call it behind the fork, with the number of the process that forked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.disable()  # A crash here is a finding, told by the parent.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


__all__ = ["settle"]
