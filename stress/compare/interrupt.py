"""Ctrl-C while programs are drawn and compared."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def heard_ctrl_c() -> Iterator[Callable[[], None]]:
    """KeyboardInterrupt, as ever; and what is yielded raises the one that came to nothing.

    Python drops exceptions in callbacks of the garbage collector, and hypothesis has one that takes its time.
    """
    pressed = False

    def note(*signal_and_frame: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    ours = before is signal.default_int_handler  # Else somebody has asked for something else, such as nohup.
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
