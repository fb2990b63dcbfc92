"""The first thing that a process of an exploration does: it ends with its parent, and leaves Ctrl-C to it."""

import faulthandler

from concur_thp.arch.parent import end_with_parent


def settle(parent: int) -> None:
    """Call it behind the fork, with the number of the process that forked."""
    faulthandler.disable()  # A crash here is a finding, told by the parent.
    end_with_parent(parent)


__all__ = ["settle"]
