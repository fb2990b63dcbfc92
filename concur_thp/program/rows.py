"""Programs in the segment, and the CPU that runs one.

The rows of all programs stand in one array; a header for each program says where its rows are. Programs 0 to NR_CPUS-1
belong to the CPUs of those numbers, SETUP and CHECK to whoever prepares and looks (CPU 0). Running a program is one
native call; what it does depends on nothing but the machine, the rows, and on what other CPUs do meanwhile.
"""

from collections.abc import Iterable, Mapping

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.irq import cpu_park, cpu_resume, ipi_poll
from concur_thp.arch.linker import kernel
from concur_thp.arch.listen import check_point, point
from concur_thp.arch.points import Point
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.check.views import Column, view
from concur_thp.config import NR_CPUS, PAGE_SHIFT
from concur_thp.errors import Misuse
from concur_thp.mm.deferred_split_drain import deferred_split_scan
from concur_thp.mm.errno import EINVAL, ESRCH
from concur_thp.mm.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_GROWSDOWN, MAP_PRIVATE, PROT_READ, PROT_WRITE
from concur_thp.mm.huge_zero import shrink_huge_zero_page
from concur_thp.mm.lru import LRU_INACTIVE_ANON
from concur_thp.mm.mm_types import pgdat
from concur_thp.mm.pagewalk import clear_refs
from concur_thp.mm.swap_map import swap_info
from concur_thp.mm.syscall import sys_brk, sys_madvise, sys_mlock, sys_mmap, sys_mprotect, sys_mremap, sys_munlock, sys_munmap
from concur_thp.program.access import (
    look_at,
    same_frame,
    space_rss,
    step_count,
    step_expect,
    step_fill,
    step_load,
    step_store,
)
from concur_thp.program.hinting import change_prot_numa
from concur_thp.program.physical import (
    frame_active,
    frame_counts,
    get_frame,
    migrate_address,
    migrate_noted,
    note_frame,
    poison_noted,
    split_address,
    split_noted,
    split_pmd_at,
)
from concur_thp.program.pinning import step_pin, step_pin_load, step_pin_run, step_pin_store, step_unpin
from concur_thp.program.pressure import (
    collapse_space,
    compact_all,
    drain_cpu,
    drop_file_caches,
    make_file,
    reclaim_some,
    scan_once,
    step_files,
    swap_out_address,
)
from concur_thp.program.spaces import current_mm, enter_space, fork_space, in_mm, leave_space, renew_space, replace_space
from concur_thp.program.step import Step
from concur_thp.program.table import MAX_ARGUMENTS, STEP_BASE, StepOp

SETUP, CHECK = NR_CPUS, NR_CPUS + 1
"""Numbers of the programs that run before and after those of the CPUs."""
MAX_ROWS = 1024
STACK = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN


class StepSlot(Struct, size=72):
    """One step of a program, and what came of it."""

    op = field(I64, "const", "StepOp")
    arg = field(I64, "const", "its arguments", count=MAX_ARGUMENTS)
    status = field(I32, "owner", "what it returned, see its row of STEP_TABLE")
    ran = field(I32, "owner", "1 once it has run")
    value = field(I64, "owner", "what it found")


class StepProgram(Struct, size=32):
    """Where a program's rows are."""

    first = field(I64, "const", "its first row")
    count = field(I64, "const", "how many it has")
    done = field(I64, "owner", "how many have run")


step_rows = SharedArray("step_rows", StepSlot, lambda c: MAX_ROWS)
step_programs = SharedArray("step_programs", StepProgram, lambda c: NR_CPUS + 2)


def load_programs(programs: Mapping[int, Iterable[Step]]) -> dict[int, slice]:
    """Put programs, by number, into the segment; returns where the rows of each are. Others have no rows afterwards."""
    places: dict[int, slice] = {}
    at = 0
    for number in range(NR_CPUS + 2):
        steps = list(programs.get(number, ()))
        if at + len(steps) > MAX_ROWS:
            raise Misuse(f"the programs have more than {MAX_ROWS} steps together: pass shorter ones")
        header = step_programs[number]
        header.first, header.count, header.done = at, len(steps), 0
        places[number] = slice(at, at + len(steps))
        for step in steps:
            row = step_rows[at]
            row.op = int(step.op)
            for i, word in enumerate(step.words()):
                row.arg[i] = word
            row.status = row.ran = row.value = 0
            at += 1
    return places


def results(rows: int) -> Column:
    """The first `rows` rows of the segment: columns `status`, `ran` and `value` say what came of them."""
    return view(step_rows, max(rows, 1))[:rows]


@kernel
def run_program(cpu: Cpu):
    """Run this CPU's program.

    Context: user mode, parked, in no mm; ends so.
    Emulator: one CPU of a race.
    """
    run_rows(cpu, cpu.id)


@kernel
def run_rows(cpu: Cpu, number: int):
    """Run the rows of one program, each whatever came of those before it.

    Context: user mode, parked, in no mm; ends so.
    Emulator: a program's life.
    """
    cpu_resume(cpu)
    program = step_programs[number]
    program.done = 0
    for i in range(program.count):
        row = step_rows[program.first + i]
        cpu.row = program.first + i
        cpu.op = STEP_BASE + row.op
        cpu.scratch[0] = 0
        row.status = run_step(cpu, row)
        row.value = cpu.scratch[0] if returns_value(row.op) else 0
        row.ran = 1
        program.done = i + 1
        cpu.ops = cpu.ops + 1
        ipi_poll(cpu)
        check_point(cpu, Point.USER, 0)
    if in_mm(cpu):
        leave_space(cpu)
    point(cpu, Point.USER)
    cpu_park(cpu)


@kernel
def returns_value(op: int):
    """Does a step leave a value in cpu.scratch[0]?

    Context: any.
    Emulator: the column `value` of STEP_TABLE.
    """
    return op in (StepOp.load, StepOp.expect, StepOp.count, StepOp.pin_load, StepOp.look, StepOp.rss, StepOp.frame)


@kernel
def run_step(cpu: Cpu, row: StepSlot):
    """Do one step.

    Context: user mode.
    Return: its status; the value, if it has one, in cpu.scratch[0].
    Emulator: the first of five groups: what a program does by itself.
    """
    op = row.op
    a0 = row.arg[0]
    if op == StepOp.store:
        return step_store(cpu, a0, row.arg[1])
    if op == StepOp.load:
        return step_load(cpu, a0)
    if op == StepOp.expect:
        return step_expect(cpu, a0, row.arg[1])
    if op == StepOp.fill:
        return step_fill(cpu, a0, row.arg[1], row.arg[2])
    if op == StepOp.count:
        return step_count(cpu, a0, row.arg[1], row.arg[2])
    if op == StepOp.new:
        return renew_space(cpu, a0)
    if op == StepOp.enter:
        return enter_space(cpu, a0)
    if op == StepOp.leave:
        if in_mm(cpu):
            leave_space(cpu)
        return 0
    if op == StepOp.fork:
        return fork_space(cpu, a0)
    if op == StepOp.drop:
        replace_space(cpu, a0, 0)
        return 0
    if op <= StepOp.advise or op in (StepOp.lock, StepOp.unlock, StepOp.stack, StepOp.brk, StepOp.clear_refs):
        return run_call(cpu, row, op, a0)
    return run_physical(cpu, row, op, a0)


@kernel
def run_call(cpu: Cpu, row: StepSlot, op: int, a0: int):
    """A system call on the address space.

    Context: user mode.
    Return: its status.
    Emulator: the second group.
    """
    if op == StepOp.file:
        return make_file(cpu, a0, row.arg[1] >> PAGE_SHIFT)
    if not in_mm(cpu):
        return -ESRCH
    status = -EINVAL
    if op == StepOp.map:
        status = sys_mmap(cpu, a0, row.arg[1], row.arg[2], MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0, 0)
    elif op == StepOp.map_file:
        file = step_files[row.arg[4]].value
        if file != 0:
            status = sys_mmap(cpu, a0, row.arg[1], row.arg[2], row.arg[3] | MAP_FIXED, file, 0)
    elif op == StepOp.unmap:
        status = sys_munmap(cpu, a0, row.arg[1])
    elif op == StepOp.move:
        status = sys_mremap(cpu, a0, row.arg[1], row.arg[1], row.arg[2])
    elif op == StepOp.protect:
        status = sys_mprotect(cpu, a0, row.arg[1], row.arg[2])
    elif op == StepOp.advise:
        status = sys_madvise(cpu, a0, row.arg[1], row.arg[2])
    elif op == StepOp.lock:
        status = sys_mlock(cpu, a0, row.arg[1])
    elif op == StepOp.unlock:
        status = sys_munlock(cpu, a0, row.arg[1])
    elif op == StepOp.stack:
        status = sys_mmap(cpu, a0, row.arg[1], PROT_READ | PROT_WRITE, STACK, 0, 0)
    elif op == StepOp.brk:
        status = sys_brk(cpu, current_mm(cpu).start_brk + a0)
    elif op == StepOp.clear_refs:
        return clear_refs(cpu, current_mm(cpu), a0, a0 + row.arg[1])
    return status if status < 0 else 0


@kernel
def run_physical(cpu: Cpu, row: StepSlot, op: int, a0: int):
    """Pins, splits and frames.

    Context: user mode.
    Return: its status.
    Emulator: the third group.
    """
    if op == StepOp.pin:
        return step_pin(cpu, a0, row.arg[1], row.arg[2])
    if op == StepOp.hint:
        return change_prot_numa(cpu, a0, row.arg[1])
    if op == StepOp.pin_run:
        return step_pin_run(cpu, a0, row.arg[1], row.arg[2] >> PAGE_SHIFT, row.arg[3])
    if op == StepOp.pin_load:
        return step_pin_load(cpu, a0)
    if op == StepOp.pin_store:
        return step_pin_store(cpu, a0, row.arg[1])
    if op == StepOp.unpin:
        return step_unpin(cpu, a0)
    if op == StepOp.split_pmd:
        return split_pmd_at(cpu, a0)
    if op == StepOp.split_page:
        return split_address(cpu, a0)
    if op == StepOp.note:
        return note_frame(cpu, a0, row.arg[1])
    if op == StepOp.get:
        return get_frame(cpu, a0, row.arg[1])
    if op == StepOp.split_frame:
        return split_noted(cpu, a0)
    if op == StepOp.poison:
        return poison_noted(cpu, a0)
    if op == StepOp.migrate_frame:
        return migrate_noted(cpu, a0, row.arg[1])
    if op == StepOp.migrate:
        return migrate_address(cpu, a0, row.arg[1])
    return run_pressure(cpu, row, op, a0)


@kernel
def run_pressure(cpu: Cpu, row: StepSlot, op: int, a0: int):
    """What the kernel does by itself.

    Context: user mode.
    Return: its status.
    Emulator: the fourth group.
    """
    if op == StepOp.compact:
        return compact_all(cpu)
    if op == StepOp.reclaim:
        return reclaim_some(cpu, LRU_INACTIVE_ANON, a0)
    if op == StepOp.swap_out:
        return swap_out_address(cpu, a0)
    if op == StepOp.drain_split:
        return deferred_split_scan(cpu, a0)
    if op == StepOp.shrink_zero:
        return shrink_huge_zero_page(cpu)
    if op == StepOp.collapse:
        return collapse_space(cpu, a0, row.arg[1])
    if op == StepOp.scan:
        return scan_once(cpu, row.arg[0] >> PAGE_SHIFT)
    if op == StepOp.drop_caches:
        return drop_file_caches(cpu, a0)
    if op == StepOp.drain:
        drain_cpu(cpu)
        return 0
    return run_look(cpu, row, op, a0)


@kernel
def run_look(cpu: Cpu, row: StepSlot, op: int, a0: int):
    """What a program can find out about the machine, and changes nothing.

    Context: user mode; at rest, to mean anything.
    Return: its status.
    Emulator: the last group.
    """
    if op == StepOp.look:
        return look_at(cpu, a0, row.arg[1])
    if op == StepOp.rss:
        return space_rss(cpu, a0)
    if op == StepOp.queued:
        return pgdat.split_queue_len
    if op == StepOp.frame:
        return frame_counts(cpu, a0)
    if op == StepOp.same:
        return same_frame(cpu, a0, row.arg[1])
    if op == StepOp.slots:
        return swap_info.inuse_pages
    if op == StepOp.active:
        return frame_active(a0)
    return -EINVAL


__all__ = ["CHECK", "SETUP", "load_programs", "results", "run_program", "run_rows", "step_programs",
           "step_rows"]
