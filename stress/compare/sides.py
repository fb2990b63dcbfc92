"""The two sides as processes: a program goes to both at once, and each says what was seen."""

import contextlib
import faulthandler
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stress.compare.kernel_server import SECONDS, receive, seen_from, send
from stress.compare.observed import Run
from stress.compare.steps import Program

ROOT = Path(__file__).resolve().parents[2]
MEMORY = "64M"
START_KERNEL = """
import sys
sys.path.insert(0, sys.argv[1])
from stress.compare.kernel_server import main
main(int(sys.argv[2]))
"""


def open_memory() -> Any:
    """A file in memory for what a process says on standard error."""
    return os.fdopen(os.memfd_create("stderr"), "w+b")


class Side:
    """One side. When its process dies that is said, and the next program gets a new one."""

    name = ""

    def __init__(self) -> None:
        self.channel: socket.socket | None = None

    def start(self) -> None:
        """A new process."""

    def stop(self) -> str:
        """End it; what it said on standard error."""
        return ""

    def ask(self, program: Program, detail: bool = False, audited: bool = True) -> None:
        """`audited`: the emulator's whole machine is looked at behind it."""
        if self.channel is None:
            self.start()
        assert self.channel is not None
        with contextlib.suppress(OSError):
            send(self.channel, ([tuple(step) for step in program], detail, audited))

    def answer(self) -> tuple[Run, str]:
        """What was seen, as far as it got, and what broke it, if anything did."""
        if self.channel is None:
            return [], f"{self.name}: it is gone"
        try:
            raw, broken = receive(self.channel)
            return seen_from(raw), broken
        except (EOFError, OSError) as error:
            said = self.stop() or ("no answer" if isinstance(error, TimeoutError) else "it died")
            return [], f"{self.name}: {said}"


class KernelSide(Side):
    """The running kernel: a small process that forks a task for each program."""

    name = "kernel"

    def __init__(self) -> None:
        super().__init__()
        self.process: subprocess.Popen[bytes] | None = None
        self.errors: Any = None

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(2 * SECONDS)
        self.errors = open_memory()
        self.process = subprocess.Popen([sys.executable, "-I", "-S", "-c", START_KERNEL, str(ROOT), str(theirs.fileno())],
                                        stdin=subprocess.DEVNULL, stderr=self.errors, pass_fds=[theirs.fileno()])
        theirs.close()
        self.channel = ours

    def answer(self) -> tuple[Run, str]:
        run, broken = super().answer()
        return run, broken or self._said()

    def _said(self) -> str:
        self.errors.seek(0)
        text = self.errors.read().decode(errors="replace")
        self.errors.truncate(0)
        return " ".join(text.split())

    def stop(self) -> str:
        if self.channel is None or self.process is None:
            return ""
        self.channel.close()
        self.channel = None
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        said = self._said()
        self.errors.close()
        return said


class EmulatorSide(Side):
    """The emulator: a machine in a forked child, because a broken rule ends the process that runs into it.

    `prepare` runs in the child before the machine boots: tests put broken code in place there.
    """

    name = "emulator"

    def __init__(self, prepare: Callable[[], None] | None = None, forget: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.prepare, self.forget = prepare, forget
        self.pid = 0
        self.errors: Any = None

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        self.errors = open_memory()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(ours, theirs)
        theirs.close()
        ours.settimeout(2 * SECONDS)
        self.channel = ours

    def _child(self, ours: socket.socket, theirs: socket.socket) -> None:
        status = 1
        try:
            ours.close()
            os.dup2(self.errors.fileno(), 2)
            faulthandler.disable()  # bug() aborts the process, and our parent tells what it said
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if self.forget:
                self.forget()
            from stress.compare.emulator_server import serve

            serve(theirs, MEMORY, self.prepare)
            status = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(status)

    def stop(self) -> str:
        if self.channel is None:
            return ""
        self.channel.close()
        self.channel = None
        self._wait()
        self.errors.seek(0)
        said = " ".join(self.errors.read().decode(errors="replace").split())
        self.errors.close()
        return said.partition(" native kernel code")[0]

    def _wait(self) -> None:
        """It ends with its channel; one that does not is ended."""
        deadline = time.monotonic() + SECONDS
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return
            time.sleep(0.005)
