"""Pairs sys_enter with sys_exit lines and puts what happened to memory in the order in which it took effect.

A call that gives memory away (munmap, MADV_DONTNEED, execve) has taken effect somewhere after its enter line,
one that obtains some (mmap, brk, mremap, mprotect) before its exit line. Placed there, no other task's line
in between can contradict it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from concur_thp.errors import Misuse
from stress.recordings.perf_script import FAULT, Event, Recording

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
TASK_SIZE = (1 << 47) - PAGE_SIZE
FIRST_ERROR = 0xFFFF_FFFF_FFFF_F001
"""A system call that returns this or more has failed: -MAX_ERRNO as unsigned."""

FAULT_WRITE = 1 << 1
FAULT_INSTRUCTION = 1 << 4

CLONE_VM = 0x100
CLONE_VFORK = 0x4000

AT_ENTER = frozenset({"munmap", "madvise"})


class Action(NamedTuple):
    """`what` a task did to its memory, with its effect at `line`. Sizes are whole pages."""

    line: int
    what: str
    pid: int
    tid: int
    comm: str
    args: tuple[int, ...]


class ForkKind:
    """The third argument of a fork action: what the child shares with its parent."""

    FORK, VFORK, THREAD = range(3)


def page_down(address: int) -> int:
    return address & -PAGE_SIZE


def page_up(address: int) -> int:
    return (address + PAGE_SIZE - 1) & -PAGE_SIZE


def actions(recording: Recording, dropped: Counter[str]) -> list[Action]:
    """All that changed or touched memory; what cannot be replayed is counted by reason in `dropped`."""
    found = list(_pair(recording, dropped))
    found.sort(key=lambda action: action.line)
    return found


def _pair(recording: Recording, dropped: Counter[str]) -> Iterator[Action]:
    pending: dict[int, Event] = {}
    children = _children(recording.events)
    for event in recording.events:
        name, tid = event.name, event.tid
        if name == FAULT:
            address, code = event.args
            write = int(code & FAULT_WRITE != 0)
            execute = int(code & FAULT_INSTRUCTION != 0)
            yield Action(event.line, "touch", event.pid, tid, event.comm, (address, write, execute))
        elif name.startswith("sys_enter_"):
            pending[tid] = event
        elif name == "sched_process_fork":
            kind = _fork_kind(event, pending.get(tid), children[event.line])
            yield Action(event.line, "fork", event.pid, tid, event.comm, (event.args[0], kind))
        elif name == "sched_process_exec":
            yield _exec(event, pending)
        elif name == "sched_process_exit":
            yield Action(event.line, "exit", event.pid, tid, event.comm, ())
        else:
            call = name.removeprefix("sys_exit_")
            enter = pending.pop(tid, None)
            if enter and enter.name == "sys_enter_" + call and call in CALLS:
                yield from _finished(recording, call, enter, event, dropped)


def _exec(event: Event, pending: dict[int, Event]) -> Action:
    """An exec, at its enter line: a vfork parent runs on before sched_process_exec is printed.

    One by a thread other than the leader takes the leader's tid, whose own exit is printed in between.
    """
    tid, old_tid = event.args
    enter = pending.get(old_tid)
    at_enter = tid == old_tid and enter is not None and enter.name == "sys_enter_execve"
    line = enter.line if at_enter and enter else event.line
    return Action(line, "exec", event.pid, old_tid, event.comm, (tid,))


def _finished(
    recording: Recording, call: str, enter: Event, leave: Event, dropped: Counter[str]
) -> Iterator[Action]:
    result = leave.args[0]
    if result >= FIRST_ERROR:
        dropped[f"{call} that failed"] += 1
        return
    args = CALLS[call](enter.args, result)
    if not _in_user_space(call, args):
        raise Misuse(
            f"{recording.path}:{leave.line}: {call} is said to have succeeded outside user space; "
            "pass a recording of an x86-64 program with 4 KiB pages"
        )
    line = enter.line if call in AT_ENTER else leave.line
    yield Action(line, call, leave.pid, leave.tid, leave.comm, args)


def _in_user_space(call: str, args: tuple[int, ...]) -> bool:
    if call == "brk":
        return args[1] < TASK_SIZE
    areas = [(args[0], args[1])] + ([(args[3], args[2])] if call == "mremap" else [])
    return all(a % PAGE_SIZE == 0 and size > 0 and a + size <= TASK_SIZE for a, size in areas)


def _mmap(args: tuple[int, ...], result: int) -> tuple[int, ...]:
    _, length, prot, flags, fd, offset = args
    return (result, page_up(length), prot & 7, flags, fd & 0xFFFF_FFFF, offset >> PAGE_SHIFT)


CALLS: dict[str, Callable[[tuple[int, ...], int], tuple[int, ...]]] = {
    "mmap": _mmap,
    "munmap": lambda a, _: (a[0], page_up(a[1])),
    "mprotect": lambda a, _: (a[0], max(page_up(a[1]), PAGE_SIZE), a[2] & 7),
    "madvise": lambda a, _: (a[0], max(page_up(a[1]), PAGE_SIZE), a[2]),
    "mremap": lambda a, result: (a[0], page_up(a[1]), page_up(a[2]), result, a[3]),
    "brk": lambda a, result: (a[0], result),
}
"""Arguments of the action a finished call becomes, from those printed at its enter and its result."""


def _children(events: list[Event]) -> dict[int, tuple[int, int, int]]:
    """For each fork line: the child's pid (0: it never ran), when it has left the mm, the parent's next
    line."""
    pid_of: dict[int, int] = {}
    gone_at: dict[int, int] = {}
    next_line: dict[int, int] = {}
    found: dict[int, tuple[int, int, int]] = {}
    for event in reversed(events):
        if event.name == "sched_process_fork":
            child = event.args[0]
            found[event.line] = (
                pid_of.pop(child, 0),
                gone_at.pop(child, 0),
                next_line.get(event.tid, 0),
            )
        elif event.name in ("sched_process_exec", "sched_process_exit") or (
            event.name == "sys_enter_execve" and next_line.get(event.tid) == gone_at.get(event.tid)
        ):
            gone_at[event.tid] = event.line
        pid_of[event.tid] = event.pid
        next_line[event.tid] = event.line
    return found


def _fork_kind(fork: Event, enter: Event | None, child: tuple[int, int, int]) -> int:
    """clone3 prints no flags: a thread has its parent's pid, and a vfork parent waits for the child's
    exec."""
    child_pid, gone_at, parent_next = child
    call = enter.name.removeprefix("sys_enter_") if enter else ""
    if call == "vfork":
        return ForkKind.VFORK
    if call == "clone" and enter:
        flags = enter.args[0]
        if flags & CLONE_VM:
            return ForkKind.VFORK if flags & CLONE_VFORK else ForkKind.THREAD
        return ForkKind.FORK
    if child_pid == fork.pid and fork.args[0] != fork.pid:
        return ForkKind.THREAD
    if call == "clone3" and gone_at and (parent_next > gone_at or not parent_next):
        return ForkKind.VFORK
    return ForkKind.FORK
