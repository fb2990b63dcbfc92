"""Who is who in a recording: tids become tasks, and every task runs in an mm, alone or with others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from stress.recordings.calls import Action, ForkKind

KINDS = {ForkKind.FORK: "fork", ForkKind.VFORK: "vfork", ForkKind.THREAD: "thread"}
ROOT = "root"


class Forkable(Protocol):
    """Whatever a pass over the actions keeps for an mm."""

    def copy(self) -> Self: ...


M = TypeVar("M", bound=Forkable)


@dataclass
class Task(Generic[M]):
    """`parent` is an index, -1 for a root. Tasks that share an mm share the object."""

    index: int
    tid: int
    pid: int
    comm: str
    parent: int
    kind: str
    mm: M
    gone: bool = False


Step = tuple[Task[M], Action, Task[M] | None]


def walk(actions: Iterable[Action], new_mm: Callable[[], M]) -> Iterator[Step[M]]:
    """Each action with its task, and the child for a fork. A root's first action is an exec, recorded or not.

    Tasks are numbered as they appear, so that every pass over the same actions sees the same ones. A thread
    that no fork announced is cloned from its process when it is first seen. The mm of an exec step is already
    the new one.
    """
    tasks: list[Task[M]] = []
    by_tid: dict[int, Task[M]] = {}

    def add(tid: int, action: Action, parent: int, kind: str, mm: M) -> Task[M]:
        pid = action.pid if kind in (ROOT, KINDS[ForkKind.THREAD]) else tid
        task = Task(len(tasks), tid, pid, action.comm, parent, kind, mm)
        tasks.append(task)
        by_tid[tid] = task
        return task

    for action in actions:
        task = by_tid.get(action.tid)
        if task is None or task.gone:
            process = next((t for t in reversed(tasks) if t.pid == action.pid and not t.gone), None)
            if process is None:
                task = add(action.tid, action, -1, ROOT, new_mm())
                yield task, action._replace(what="exec", args=(action.tid,)), None
                if action.what == "exec":
                    continue
            else:
                task = add(action.tid, action, process.index, KINDS[ForkKind.THREAD], process.mm)
                yield process, action._replace(what="fork", args=(action.tid, ForkKind.THREAD)), task
        task.comm = action.comm
        child = None
        if action.what == "fork":
            tid, kind = action.args
            mm = task.mm.copy() if kind == ForkKind.FORK else task.mm
            child = add(tid, action, task.index, KINDS[kind], mm)
        elif action.what == "exec":
            task.mm = new_mm()
            task.tid = task.pid = action.args[0]
            by_tid[task.tid] = task
        elif action.what == "exit":
            task.gone = True
        yield task, action, child
