"""A process that was forked to help ends with the one that forked it, however that ends; nobody else would ever end it."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Call it behind the fork, with the number of the process that forked. Leaves Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # It died before it could be watched.


__all__ = ["end_with_parent"]
