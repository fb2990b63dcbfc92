"""Writes the rows of all tasks in one pass over the actions, in recorded order."""

from collections import Counter
from collections.abc import Callable

from concur_thp.ops import Op
from stress.recordings.calls import PAGE_SHIFT, TASK_SIZE, Action, ForkKind, page_down, page_up
from stress.recordings.image import Image, Mapping, images
from stress.recordings.layout import ADVICE, Layout
from stress.recordings.order import MmOrder, Program, Span
from stress.recordings.tasks import Task, walk
from stress.recordings.vmas import MAP_ANONYMOUS, MAP_FIXED, MAP_GROWSDOWN, MAP_PRIVATE, PROT_READ, PROT_WRITE

MADV_DONTNEED, MADV_DONTNEED_LOCKED = 4, 24
MREMAP_DONTUNMAP = 4
STACK_FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN
IMAGE_FLAGS = MAP_PRIVATE | MAP_FIXED
FORK_OPS = {ForkKind.FORK: Op.FORK, ForkKind.VFORK: Op.VFORK, ForkKind.THREAD: Op.CLONE}


class Mm:
    """One mm while its programs are written. `files` remembers what each fd was last mapped as."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.layout = Layout(image.heap_start)
        self.order = MmOrder()
        self.files: dict[int, tuple[int, int, int]] = {}
        self.stack: Mapping | None = next((m for m in image.mappings if m.stack), None)
        self.stack_low = self.stack.start if self.stack else 0

    def copy(self) -> "Mm":
        twin = Mm(self.image)
        twin.layout = self.layout.copy()
        twin.files = dict(self.files)
        twin.stack_low = self.stack_low
        return twin


class Planner:
    def __init__(self, recorded: list[Action], dropped: Counter[str]) -> None:
        self.tasks: list[Task[Mm]] = []
        self.programs: list[Program] = []
        self.sequence: list[tuple[int, int]] = []
        self.region_names: list[str] = []
        self.files = 0
        self.touches = 0
        self.lowest, self.highest = TASK_SIZE, 0
        self._recorded = recorded
        self._dropped = dropped
        self._regions: dict[str, int] = {}

    def run(self) -> None:
        found = iter(images(self._recorded))
        for task, action, child in walk(self._recorded, lambda: Mm(next(found))):
            if task.index == len(self.programs):
                self._new_program(task)
            program = self.programs[task.index]
            program.wait_for_vfork(action.line)
            if child:
                self._fork(task, action, child)
            else:
                self._ACTIONS[action.what](self, task, program, action)
        last = self._recorded[-1].line if self._recorded else 0
        for task, program in zip(self.tasks, self.programs, strict=True):
            if not task.gone:
                program.wait_for_vfork(last)
                program.append(Op.EXIT, line=0)
            program.append(Op.END, line=0)

    def _new_program(self, task: Task[Mm]) -> Program:
        self.tasks.append(task)
        self.programs.append(Program(task.index, self.sequence))
        return self.programs[-1]

    def _region(self, name: str) -> int:
        if name not in self._regions:
            self._regions[name] = len(self.region_names)
            self.region_names.append(name)
        return self._regions[name]

    def _new_file(self) -> int:
        self.files += 1
        return self.files

    def _fork(self, task: Task[Mm], action: Action, child: Task[Mm]) -> None:
        program = self.programs[task.index]
        started = self._new_program(child)
        op = FORK_OPS[action.args[1]]
        if op == Op.FORK:
            task.mm.order.before_fork(program, action.line)
        program.append(op, child.index, line=action.line)
        started.starts_after(program)
        child.mm.order.join(started)
        if op == Op.VFORK:
            program.vfork = started

    def _exec(self, task: Task[Mm], program: Program, action: Action) -> None:
        mm = task.mm
        mm.order.join(program)
        program.leaves_mm()
        program.append(Op.EXEC, mm.image.heap_start, line=action.line)
        for mapping in mm.image.mappings:
            if mapping.stack:
                self._grow_stack(task, program, mapping.start, mapping.end, action.line)
            else:
                length = mapping.end - mapping.start
                args = (mapping.start, length, mapping.prot, IMAGE_FLAGS, self._new_file(), 0)
                spans = ((mapping.start, mapping.end),)
                self._change(task, program, Op.MMAP, args, spans, action.line, "image")

    def _grow_stack(self, task: Task[Mm], program: Program, start: int, end: int, line: int) -> None:
        args = (start, end - start, PROT_READ | PROT_WRITE, STACK_FLAGS, 0, 0)
        self._change(task, program, Op.MMAP, args, ((start, end),), line, "stack")
        task.mm.stack_low = start

    def _exit(self, task: Task[Mm], program: Program, action: Action) -> None:
        program.leaves_mm()
        program.append(Op.EXIT, line=action.line)

    def _touch(self, task: Task[Mm], program: Program, action: Action) -> None:
        address, write, _ = action.args
        mm = task.mm
        vma = mm.layout.space.find(address)
        if vma is None and mm.stack and mm.stack.lowest <= address < mm.stack_low:
            self._grow_stack(task, program, page_down(address), mm.stack_low, action.line)
            vma = mm.layout.space.find(address)
        if vma is None:
            self._dropped["touch outside every mapping"] += 1
        elif not vma.allows(write):
            self._dropped["touch the mapping forbids"] += 1
        else:
            mm.order.before_touch(program, address, action.line)
            op = Op.STORE if write else Op.LOAD
            program.append(op, address, line=action.line, region=vma.region)
            self.touches += 1

    def _change(
        self,
        task: Task[Mm],
        program: Program,
        op: Op,
        args: tuple[int, ...],
        spans: tuple[Span, ...],
        line: int,
        region: str = "",
    ) -> None:
        mm = task.mm
        creates = op in (Op.MMAP, Op.BRK) and not mm.layout.space.within(*spans[0])
        mm.order.before_change(program, spans, line, op == Op.BRK, creates)
        row = program.append(op, *args, line=line)
        if not mm.layout.apply(row, self._region(region) if region else 0):
            self._take_back(program, op)
            return
        mm.order.changed(program, spans, op == Op.BRK)
        for start, end in spans:
            self.lowest, self.highest = min(self.lowest, start), max(self.highest, end)

    def _take_back(self, program: Program, op: Op) -> None:
        """A call on something older than the recording, or of a kind no line of it prints."""
        self._dropped[f"{op.name.lower()} of what is not mapped"] += 1
        program.rows.pop()
        program.regions.pop()
        self.sequence.pop()

    def _mmap(self, task: Task[Mm], program: Program, action: Action) -> None:
        start, length, prot, flags, fd, pgoff = action.args
        file, region = 0, "[anon]"
        if not flags & MAP_ANONYMOUS:
            file = self._file(task.mm, fd, start, length, flags)
            region = f"file:{file}"
        args = (start, length, prot, flags | MAP_FIXED, file, 0 if flags & MAP_ANONYMOUS else pgoff)
        self._change(task, program, Op.MMAP, args, ((start, start + length),), action.line, region)

    def _file(self, mm: Mm, fd: int, start: int, length: int, flags: int) -> int:
        """ld.so maps a library whole and its segments over that: one file. Else an fd may be a new one."""
        file, low, high = mm.files.get(fd, (0, 0, 0))
        if flags & MAP_FIXED and low <= start < high:
            return file
        file = self._new_file()
        mm.files[fd] = (file, start, start + length)
        return file

    def _munmap(self, task: Task[Mm], program: Program, action: Action) -> None:
        start, length = action.args
        self._change(task, program, Op.MUNMAP, (start, length), ((start, start + length),), action.line)

    def _brk(self, task: Task[Mm], program: Program, action: Action) -> None:
        wanted, result = action.args
        old = task.mm.layout.brk
        if result != wanted or result == old:
            return
        start, end = sorted((page_up(old), page_up(result)))
        self._change(task, program, Op.BRK, (result,), ((start, end),), action.line, "heap")

    def _mprotect(self, task: Task[Mm], program: Program, action: Action) -> None:
        start, length, prot = action.args
        args = (start, length, prot)
        self._change(task, program, Op.MPROTECT, args, ((start, start + length),), action.line)

    def _madvise(self, task: Task[Mm], program: Program, action: Action) -> None:
        start, length, advice = action.args
        advice = MADV_DONTNEED if advice == MADV_DONTNEED_LOCKED else advice
        if advice in ADVICE:
            args = (start, length, advice)
            self._change(task, program, Op.MADVISE, args, ((start, start + length),), action.line)
        else:
            self._dropped[f"madvise {advice}, which changes no page"] += 1

    def _mremap(self, task: Task[Mm], program: Program, action: Action) -> None:
        old, old_length, new_length, new, flags = action.args
        vma = task.mm.layout.space.find(old)
        spans = ((old, old + old_length), (new, new + new_length))
        self._change(task, program, Op.MREMAP, (old, old_length, new_length, new), spans, action.line)
        if flags & MREMAP_DONTUNMAP and vma:
            name = self.region_names[vma.region]
            args = (old, old_length, vma.prot, vma.flags | MAP_FIXED, vma.file, old >> PAGE_SHIFT)
            self._change(task, program, Op.MMAP, args, spans[:1], action.line, name)

    _ACTIONS: dict[str, Callable[["Planner", Task[Mm], Program, Action], None]] = {
        "touch": _touch,
        "exec": _exec,
        "exit": _exit,
        "mmap": _mmap,
        "munmap": _munmap,
        "brk": _brk,
        "mprotect": _mprotect,
        "madvise": _madvise,
        "mremap": _mremap,
    }
