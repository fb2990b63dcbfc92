"""When is a process stuck? When it has used processor time without a sign of movement, not when others took the processor."""

import time

STOPPED = 20
"""So many times as long on the clock: a process that gets no processor at all is given up, too."""


def processor_seconds(pid: int) -> float:
    """What a process has used so far, by the kernel's account; 0.0 when it is gone."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # The clock that clock_getcpuclockid(3) makes of a pid.
    except OSError:
        return 0.0


class Patience:
    """With one process, for so many seconds of its own time behind each sign of movement."""

    def __init__(self, pid: int, seconds: float):
        self.pid, self.seconds, self._sign = pid, seconds, b""
        self._began()

    def _began(self) -> None:
        self._used, self._clock = processor_seconds(self.pid), time.monotonic()

    def over(self, sign: bytes) -> bool:
        """Whether it has shown the same sign for too long."""
        if sign != self._sign:
            self._sign = sign
            self._began()
            return False  # Whatever passes until the next line is not what was asked for.
        return (processor_seconds(self.pid) - self._used > self.seconds
                or time.monotonic() - self._clock > STOPPED * self.seconds)


__all__ = ["Patience", "processor_seconds"]
