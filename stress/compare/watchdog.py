"""Sets switches, says `ready`, waits for the end of its standard input, and restores them. A program of its own, so that
it starts in no time and outlives whoever started it. Arguments: root, file to lock, then name and value of each switch.
Says `busy` first when it has to wait for another run."""

import fcntl
import os
import select
import signal
import sys
import time

SECONDS = 600.0
"""How long to wait for another run's lock."""


def lock(path: str) -> bool:
    """Until the lock is ours; False when another run keeps it, or nobody waits for us any more."""
    fd = os.open(path, os.O_RDONLY)
    deadline = time.monotonic() + SECONDS
    said = False
    while time.monotonic() < deadline:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not said:
                os.write(1, b"busy\n")
                said = True
        if select.select([0], [], [], 0.05)[0]:  # Nothing is ever written there: it is its end.
            return False
    return False


def chosen(text: str) -> str:
    """The value of a switch's text: the word in brackets, or the number."""
    return text.partition("[")[2].partition("]")[0] if "[" in text else text.strip()


def enough(present: str, wanted: str) -> bool:
    """Need a switch not be written? A time may be longer than wanted."""
    if wanted.isdigit() and present.isdigit() and int(wanted) > 1:
        return int(present) >= int(wanted)
    return present == wanted


def write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


def main(root: str, locked: str, *pairs: str) -> int:
    """Exit status: 0 restored, 1 not, 4 another run is at it, or may set what we may not."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    if not lock(os.path.join(root, locked)):
        print(f"another run has held {locked} for {SECONDS:.0f} s", file=sys.stderr)
        return 4
    old: list[tuple[str, str]] = []
    status = 0
    try:
        for name, value in zip(pairs[::2], pairs[1::2], strict=True):
            path = os.path.join(root, name)
            with open(path) as file:
                was = chosen(file.read())
            if not enough(was, value):
                write(path, value)
                old.append((path, was))
        os.write(1, b"ready\n")
        while os.read(0, 4096):
            pass
    except PermissionError as error:
        print(f"{error.filename} cannot be written", file=sys.stderr)
        status = 4
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        status = 1
    for path, was in reversed(old):
        try:
            write(path, was)
        except OSError as error:
            print(f"{path} should be {was!r}: {error.strerror}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
