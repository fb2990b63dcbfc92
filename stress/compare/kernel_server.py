"""The kernel's side: programs come in on standard input, what was seen goes out. A small process, cheap to fork.

Each program runs in a task forked for it, with one more for each fork in it. While one task is alone it runs its steps by
itself; when there are more, they take turns, and everybody looks after each step. A task ends when its socket does, so
none outlives this process, and this one ends with its standard input.
"""

import contextlib
import marshal
import os
import signal
import socket
import struct
import sys
from typing import Any

from stress.compare.kernel_calls import Calls, vmstat
from stress.compare.observed import Block, Look, Seen
from stress.compare.steps import Program, Step

SECONDS = 30.0
HEAD = struct.Struct("I")
RUN, LOOK = "run", "look"
ALONE = ("fork", "exit")
"""Steps that are asked for one at a time."""


def send(channel: socket.socket, message: Any) -> None:
    data = marshal.dumps(message)
    channel.sendall(HEAD.pack(len(data)) + data)


def receive(channel: socket.socket) -> Any:
    """The next message; EOFError when the other side is gone."""
    return marshal.loads(_exactly(channel, HEAD.unpack(_exactly(channel, HEAD.size))[0]))


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = channel.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


class Task:
    """What a task process does."""

    def __init__(self, channel: socket.socket, calls: Calls):
        self.channel, self.calls = channel, calls

    def serve(self) -> None:
        """Until the socket ends, or the program says exit."""
        while True:
            kind, steps, first, detail = receive(self.channel)
            if kind == LOOK:
                send(self.channel, plain(self.calls.look(detail)))
            else:
                send(self.channel, [self._run(Step(*step), first + i, detail) for i, step in enumerate(steps)])

    def _run(self, step: Step, index: int, detail: bool) -> Any:
        if step.op == "exit":
            os._exit(0)  # The server hears it from the socket, which closes when the address space is gone.
        before = vmstat(self.calls.vmstat_fd)
        result = self._fork() if step.op == "fork" else self.calls.perform(step, index)
        after = vmstat(self.calls.vmstat_fd)
        return result, _moved(before, after), plain(self.calls.look(detail))

    def _fork(self) -> int:
        """The child answers at a socket of its own, which nobody else may keep open."""
        _, fds, _, _ = socket.recv_fds(self.channel, 1, 1)
        theirs = socket.socket(fileno=fds[0])
        if os.fork() == 0:
            self.channel.close()
            self.channel = theirs
            self.calls.begin()
            self.serve()
        theirs.close()
        return 0


class Server:
    """Runs programs, one after the other."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.staging = os.memfd_create("words")
        self.vmstat_fd = os.open("/proc/vmstat", os.O_RDONLY)
        self.drop_caches = _open_to_write("/proc/sys/vm/drop_caches")
        self.tasks: dict[int, socket.socket] = {}

    def run(self, program: Program, detail: bool) -> list[Any]:
        """What was seen after each step; ends early when a task died of one."""
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            self.channel.close()
            _task_main(theirs, Calls(self.staging, self.vmstat_fd, self.drop_caches))
        theirs.close()
        ours.settimeout(SECONDS)
        self.tasks = {0: ours}
        try:
            return self._steps(program, detail)
        finally:
            self._end()

    def _steps(self, program: Program, detail: bool) -> list[Any]:
        seen: list[Any] = []
        while len(seen) < len(program):
            first = len(seen)
            task = program[first].task
            part = self._stretch(program, first)
            before = vmstat(self.vmstat_fd)
            try:
                done = self._run_part(part, first, detail)
            except (EOFError, ConnectionError):
                self.tasks.pop(task).close()
                if part[0].op != "exit":
                    return seen
                done = [(0, _moved(before, vmstat(self.vmstat_fd)), None)]
            looks = {}
            for other, channel in self.tasks.items():
                if other != task:
                    send(channel, (LOOK, [], 0, detail))
                    looks[other] = receive(channel)
            for result, moved, look in done:
                seen.append((result, moved, {**looks, **({} if look is None else {task: look})}))
        return seen

    def _stretch(self, program: Program, first: int) -> Program:
        """Steps that one task can run without anybody else looking."""
        upto = first + 1
        while (len(self.tasks) == 1 and upto < len(program) and program[upto - 1].op not in ALONE
               and program[upto].op not in ALONE):
            upto += 1
        return program[first:upto]

    def _run_part(self, part: Program, first: int, detail: bool) -> list[Any]:
        channel = self.tasks[part[0].task]
        send(channel, (RUN, [tuple(step) for step in part], first, detail))
        if part[0].op != "fork":
            return list(receive(channel))
        ours, theirs = socket.socketpair()
        ours.settimeout(SECONDS)
        socket.send_fds(channel, [b"f"], [theirs.fileno()])
        theirs.close()
        done = list(receive(channel))
        self.tasks[part[0].arg] = ours
        return done

    def _end(self) -> None:
        """Close every task's socket and wait until each is gone: the next program begins on a quiet system."""
        for channel in self.tasks.values():
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_WR)
        for channel in self.tasks.values():
            with contextlib.suppress(OSError):
                while channel.recv(1 << 16):
                    pass
            channel.close()
        self.tasks = {}


def plain(look: Look) -> tuple[Any, ...]:
    """Without names, for the socket."""
    return tuple(look._replace(blocks=tuple(map(tuple, look.blocks))))  # type: ignore[arg-type]


def _moved(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(b - a for a, b in zip(before, after, strict=True))


def _task_main(channel: socket.socket, calls: Calls) -> None:
    try:
        Task(channel, calls).serve()
    except (EOFError, ConnectionError):
        pass
    except BaseException as error:
        os.write(2, f"kernel side: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(0)


def _open_to_write(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY)
    except OSError:
        return -1


def main(fd: int) -> None:
    """Serve the socket `fd` until it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Tasks are not waited for: their sockets say when they are gone.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # The one who asks decides, by closing the socket.
    cpu = min(os.sched_getaffinity(0), key=lambda number: (number + os.getpid()) % 64)
    os.sched_setaffinity(0, {cpu})  # A page that waits in another CPU's queue for the LRU lists has a reference too many.
    channel = socket.socket(fileno=fd)
    server = Server(channel)
    try:
        while True:
            steps, detail, _ = receive(channel)
            send(channel, (server.run(tuple(Step(*step) for step in steps), detail), ""))
    except (EOFError, ConnectionError):
        sys.exit(0)


def seen_from(raw: list[Any]) -> list[Seen]:
    """What came over the socket, as what it was."""
    return [Seen(result, tuple(moved), {task: _look_from(*look) for task, look in looks.items()}, *more)
            for result, moved, looks, *more in raw]


def _look_from(*fields: Any) -> Look:
    look = Look(*fields)
    return look._replace(blocks=tuple(Block(*block) for block in look.blocks))
