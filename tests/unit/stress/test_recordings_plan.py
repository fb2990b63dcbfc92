"""From recording to programs: tasks, derived mappings, waits; and the count of faults with THP on."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from concur_thp.errors import Misuse
from concur_thp.ops import Op
from stress.recordings.count import expected_faults, main, recorded_by_region
from stress.recordings.layout import Layout
from stress.recordings.model import LINUX_4_20, LINUX_6_18
from stress.recordings.perf_script import read
from stress.recordings.plan import Plan, plan
from stress.recordings.verify import verify

TEXT, DATA, HEAP = 0x555555554000, 0x55555555A000, 0x555555560000
LINKER, STACK = 0x7FFFF7FC0000, 0x7FFFFFFFD000
ANON, BLOCK = 0x7FFFF6000000, 0x200000
FAILED = 0xFFFF_FFFF_FFFF_FFF4
RW, MAP_ANON, MAP_STACK = 3, 0x22, 0x20022


class Script:
    """Lines of perf script, one call each."""

    def __init__(self) -> None:
        self.text = ""

    def event(self, name: str, trace: str = "", tid: int = 1, pid: int = 0) -> "Script":
        self.text += f"  prog {pid or tid}/{tid} [000]  1.000000:  {name}: {trace}\n"
        return self

    def call(self, call: str, args: Iterable[int], result: int, tid: int = 1, pid: int = 0) -> "Script":
        names = ARGUMENTS[call]
        trace = ", ".join(f"{name}: {value:#x}" for name, value in zip(names, args, strict=True))
        self.event(f"syscalls:sys_enter_{call}", trace, tid, pid)
        return self.event(f"syscalls:sys_exit_{call}", f"{result:#x}", tid, pid)

    def mmap(
        self, at: int, length: int, prot: int = RW, flags: int = MAP_ANON, fd: int = 0xFFFFFFFF, off: int = 0
    ) -> "Script":
        return self.call("mmap", (at if flags & 0x10 else 0, length, prot, flags, fd, off), at)

    def touch(self, address: int, code: int = 6, tid: int = 1, pid: int = 0) -> "Script":
        return self.event(
            "exceptions:page_fault_user", f"address={address:#x} ip=0x1 error_code={code:#x}", tid, pid
        )

    def exec(self, tid: int = 1) -> "Script":
        self.event("sched:sched_process_exec", f"filename=/bin/x pid={tid} old_pid={tid}", tid)
        return self.event("syscalls:sys_exit_execve", "0x0", tid)

    def start(self) -> "Script":
        """A program as execve leaves it, with one touch of each of its mappings."""
        self.exec().touch(TEXT, 0x14).touch(DATA, 7).touch(LINKER, 0x14).touch(STACK)
        return self.call("brk", (0,), HEAP)

    def fork(self, child: int, call: str = "vfork", parent: int = 1, pid: int = 0) -> "Script":
        args = "clone_flags: 0x1200011" if call == "clone" else ""
        self.event(f"syscalls:sys_enter_{call}", args, parent, pid)
        trace = f"comm=prog pid={parent} child_comm=prog child_pid={child}"
        return self.event("sched:sched_process_fork", trace, parent, pid)

    def exit(self, tid: int = 1, pid: int = 0) -> "Script":
        trace = f"comm=prog pid={tid} prio=120 group_dead=true"
        return self.event("sched:sched_process_exit", trace, tid, pid)


ARGUMENTS = {
    "mmap": ("addr", "len", "prot", "flags", "fd", "off"),
    "munmap": ("addr", "len"),
    "mremap": ("addr", "old_len", "new_len", "flags", "new_addr"),
    "madvise": ("start", "len_in", "behavior"),
    "mprotect": ("start", "len", "prot"),
    "brk": ("brk",),
}


Planned = Callable[[Script], Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    def make(script: Script) -> Plan:
        path = tmp_path / "x.perf"
        path.write_text(script.text)
        made = plan(read(path))
        assert verify(made) == []
        return made

    return make


def ops(made: Plan, task: int = 0) -> list[Op]:
    return [Op(int(op)) for op in made.tasks[task].rows[:, 0]]


def rows(made: Plan, op: Op, task: int = 0) -> list[list[int]]:
    return [row[1:7] for row in made.tasks[task].rows.tolist() if row[0] == op]


def test_execve_mappings_are_derived(planned: Planned) -> None:
    made = planned(Script().start().exit())
    assert rows(made, Op.EXEC) == [[HEAP, 0, 0, 0, 0, 0]]
    assert {row[0]: (row[2], row[3]) for row in rows(made, Op.MMAP)} == {
        STACK: (3, 0x132),
        TEXT: (5, 0x12),
        DATA: (3, 0x12),
        LINKER: (5, 0x12),
    }
    assert ops(made)[-6:] == [Op.LOAD, Op.STORE, Op.LOAD, Op.STORE, Op.EXIT, Op.END]
    assert recorded_by_region(made) == {"image": 3, "stack": 1}
    assert made.dropped == {}


def test_relro_of_the_image_exists_before_its_mprotect(planned: Planned) -> None:
    script = Script().start().call("mprotect", (DATA + 0x1000, 0x2000, 1), 0)
    made = planned(script)
    assert [DATA, 0x3000, 3, 0x12] in [row[:4] for row in rows(made, Op.MMAP)]


def test_the_stack_grows_as_it_was_touched(planned: Planned) -> None:
    low = STACK - 0x40000
    made = planned(Script().start().touch(low).exit())
    stack = [row[:2] for row in rows(made, Op.MMAP) if row[3] & 0x100]
    assert stack == [[STACK - 0x20000, 0x21000], [low, 0x20000]]


def test_a_library_is_one_file(planned: Planned) -> None:
    script = Script().start().mmap(ANON, 0x9000, 1, 0x2, 3)
    script.mmap(ANON + 0x2000, 0x3000, 5, 0x12, 3, 0x2000).mmap(ANON + 0x10000, 0x1000, 1, 0x2, 3)
    made = planned(script)
    assert [row[4:6] for row in rows(made, Op.MMAP)[-3:]] == [[4, 0], [4, 2], [5, 0]]
    assert made.files == 5


def test_failed_calls_and_calls_without_exit_are_left_out(planned: Planned) -> None:
    script = Script().start().call("munmap", (TEXT, 0x1000), FAILED)
    script.event("syscalls:sys_enter_munmap", f"addr: {TEXT:#x}, len: 0x1000")
    made = planned(script)
    assert Op.MUNMAP not in ops(made)
    assert made.dropped == {"munmap that failed": 1}
    assert ops(made)[-2:] == [Op.EXIT, Op.END]


def test_heap_mremap_and_unmapped_touches(planned: Planned) -> None:
    script = Script().start().call("brk", (HEAP + 0x2000,), HEAP + 0x2000).touch(HEAP + 0x1000)
    script.mmap(ANON, 0x2000).touch(ANON)
    script.call("mremap", (ANON, 0x2000, 0x4000, 1, 0), ANON + 0x100000).touch(ANON + 0x103000)
    made = planned(script.touch(ANON))
    assert rows(made, Op.BRK)[0][0] == HEAP + 0x2000
    assert rows(made, Op.MREMAP)[0][:4] == [ANON, 0x2000, 0x4000, ANON + 0x100000]
    assert made.dropped == {"touch outside every mapping": 1}
    assert made.touches == made.faults_recorded - 1


def test_a_forked_child_starts_with_a_copy(planned: Planned) -> None:
    script = Script().start().fork(2, "clone").event("syscalls:sys_exit_clone", "0x2")
    script.call("munmap", (DATA, 0x1000), 0).touch(DATA, 7, 2).exit(2).exit()
    made = planned(script)
    assert [(t.kind, t.parent, t.tid) for t in made.tasks] == [("root", -1, 1), ("fork", 0, 2)]
    assert rows(made, Op.FORK) == [[1, 0, 0, 0, 0, 0]]
    assert ops(made, 1) == [Op.STORE, Op.EXIT, Op.END]


def test_a_vfork_parent_waits_for_the_exec(planned: Planned) -> None:
    script = Script().start().fork(2).touch(STACK, 7, 2).event("syscalls:sys_enter_execve", "", 2)
    script.event("syscalls:sys_exit_vfork", "0x2").touch(DATA, 7).exec(2).touch(TEXT, 0x14, 2).exit(2)
    made = planned(script.exit())
    assert made.tasks[1].kind == "vfork"
    assert ops(made, 1)[:2] == [Op.STORE, Op.EXEC]
    assert ops(made)[-5:] == [Op.VFORK, Op.WAIT, Op.STORE, Op.EXIT, Op.END]
    assert rows(made, Op.WAIT)[0][:2] == [1, 1]


@pytest.mark.parametrize(("pid", "kind"), [(1, "thread"), (2, "fork")])
def test_clone3_is_told_by_the_pid_of_the_child(planned: Planned, pid: int, kind: str) -> None:
    script = Script().start().fork(2, "clone3").event("syscalls:sys_exit_clone3", "0x2")
    made = planned(script.touch(DATA, 7, 2, pid).exit(2, pid).exit())
    assert made.tasks[1].kind == kind


def test_clone3_that_blocks_until_the_exec_is_a_vfork(planned: Planned) -> None:
    script = Script().start().fork(2, "clone3").exec(2).event("syscalls:sys_exit_clone3", "0x2")
    assert planned(script.touch(TEXT, 0x14, 2)).tasks[1].kind == "vfork"


def test_threads_wait_for_what_made_a_touch_legal_and_no_more(planned: Planned) -> None:
    script = Script().start().fork(2, "clone3").event("syscalls:sys_exit_clone3", "0x2")
    script.mmap(ANON, 0x4000).touch(DATA, 7, 2, 1)
    script.touch(ANON, 6, 2, 1).touch(ANON + 0x1000, 6, 2, 1)
    script.touch(ANON + 0x3000).call("munmap", (ANON, 0x2000), 0)
    made = planned(script.exit(2, 1).exit())
    assert ops(made, 1) == [Op.STORE, Op.WAIT, Op.STORE, Op.STORE, Op.EXIT, Op.END]
    mmap_row = ops(made).index(Op.CLONE) + 1
    assert rows(made, Op.WAIT, 1) == [[0, mmap_row, 0, 0, 0, 0]]
    assert ops(made)[mmap_row:] == [Op.MMAP, Op.STORE, Op.WAIT, Op.MUNMAP, Op.EXIT, Op.END]
    assert rows(made, Op.WAIT) == [[1, 3, 0, 0, 0, 0]]


def replay(made: Plan, seed: int) -> list[str]:
    """Runs the tasks in an order drawn at random that heeds starts and waits; the touches nothing maps."""
    rng, ready = random.Random(seed), [i for i, task in enumerate(made.tasks) if task.kind == "root"]
    programs, at = [task.rows.tolist() for task in made.tasks], [0] * len(made.tasks)
    mms: dict[int, Layout] = {}
    wrong = []
    while ready:
        task = rng.choice(ready)
        row = programs[task][at[task]]
        op = Op(row[0])
        if op == Op.WAIT and at[row[1]] <= row[2]:
            continue
        at[task] += 1
        if op == Op.END:
            ready.remove(task)
        elif op == Op.EXEC:
            mms[task] = Layout(row[1])
        elif op in (Op.FORK, Op.VFORK, Op.CLONE):
            mms[row[1]] = mms[task].copy() if op == Op.FORK else mms[task]
            ready.append(row[1])
        elif op in (Op.LOAD, Op.STORE):
            vma = mms[task].space.find(row[1])
            if vma is None or not vma.allows(op == Op.STORE):
                wrong.append(f"task {task} row {at[task] - 1}")
        else:
            mms[task].apply(row)
    return wrong


@pytest.mark.parametrize("seed", range(20))
def test_any_order_the_waits_allow_is_legal(planned: Planned, seed: int) -> None:
    """Three threads map, touch, protect and unmap the same few places, one after the other as recorded."""
    rng, script, mapped = random.Random(seed), Script().start(), set[int]()
    for tid in (2, 3):
        script.fork(tid, "clone3").event("syscalls:sys_exit_clone3", f"{tid:#x}")
    for _ in range(200):
        tid, page = rng.randrange(1, 4), ANON + rng.randrange(6) * 0x1000
        if page not in mapped:
            script.call("mmap", (0, 0x1000, RW, MAP_ANON, 0xFFFFFFFF, 0), page, tid, 1)
            mapped.add(page)
        elif rng.random() < 0.2:
            script.call("munmap", (page, 0x1000), 0, tid, 1)
            mapped.remove(page)
        else:
            script.touch(page, 6, tid, 1)
        if rng.random() < 0.05:
            heap = HEAP + rng.randrange(1, 9) * 0x1000
            script.call("brk", (heap,), heap, tid, 1)
    made = planned(script)
    assert made.dropped == {}
    assert [wrong for order in range(20) for wrong in replay(made, order)] == []


def test_verify_sees_a_touch_outside(planned: Planned) -> None:
    made = planned(Script().start().exit())
    made.tasks[0].rows[-3, 1] = ANON
    assert [found.why for found in verify(made)] == ["STORE outside every mapping"]


def test_a_call_outside_user_space_is_misuse(planned: Planned) -> None:
    with pytest.raises(Misuse, match=r"x\.perf:10: mmap is said to have succeeded outside user space"):
        planned(Script().start().mmap(ANON + 1, 0x1000))


def counts(made: Plan) -> tuple[int, int]:
    """Faults of the anonymous mapping with THP off and on."""
    base = 4
    return expected_faults(made, False) - base, expected_faults(made, True) - base


def touched(script: Script, *pages: int) -> Script:
    for page in pages:
        script.touch(ANON + page * 0x1000)
    return script


def test_a_block_inside_the_vma_is_one_fault(planned: Planned) -> None:
    script = touched(Script().start().mmap(ANON, 2 * BLOCK), 0, 1, 511, 512)
    assert counts(planned(script)) == (4, 2)


def test_the_vma_at_the_moment_of_the_fault_decides(planned: Planned) -> None:
    half = BLOCK // 2
    script = touched(Script().start().mmap(ANON, half), 0)
    made = planned(touched(script.mmap(ANON + half, half), 256, 300))
    assert counts(made) == (3, 3)


def test_neighbours_merge_before_the_first_fault(planned: Planned) -> None:
    half = BLOCK // 2
    script = Script().start().mmap(ANON, half).mmap(ANON + half, half)
    assert counts(planned(touched(script, 0, 300))) == (2, 1)


def test_map_stack_and_nohugepage_stay_small(planned: Planned) -> None:
    stack = planned(touched(Script().start().mmap(ANON, BLOCK, flags=MAP_STACK), 0, 1))
    assert counts(stack) == (2, 2)
    assert expected_faults(stack, True, LINUX_4_20) == 5
    advised = Script().start().mmap(ANON, BLOCK).call("madvise", (ANON, BLOCK, 15), 0)
    assert counts(planned(touched(advised, 0, 1))) == (2, 2)


def test_dontneed_of_a_part_leaves_the_table(planned: Planned) -> None:
    script = touched(Script().start().mmap(ANON, BLOCK), 0).call("madvise", (ANON, 0x2000, 4), 0)
    assert counts(planned(touched(script, 0, 1, 2))) == (4, 3)


def test_a_write_after_fork_splits_now_and_copied_then(planned: Planned) -> None:
    script = touched(Script().start().mmap(ANON, BLOCK), 0, 1, 2)
    script.fork(2, "clone").event("syscalls:sys_exit_clone", "0x2")
    script.touch(ANON, 7).touch(ANON + 0x1000, 7)
    made = planned(script.exit(2))
    assert counts(made) == (5, 3)
    assert expected_faults(made, True, LINUX_6_18) - expected_faults(made, True, LINUX_4_20) == 1


def test_frames_cover_the_huge_pages(planned: Planned) -> None:
    made = planned(touched(Script().start().mmap(ANON, 4 * BLOCK), 0, 512, 1024, 1536))
    assert 4 * 512 < made.frames_needed < 4 * 512 + 200


def test_the_table_compares_with_the_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    never, always = tmp_path / "x-never.perf", tmp_path / "x-always.perf"
    never.write_text(touched(Script().start().mmap(ANON, BLOCK), 0, 1).text)
    always.write_text(touched(Script().start().mmap(ANON, BLOCK), 0).text)
    assert main([str(never)]) == 0
    assert "x-never        all                6         6         5         5         5    1.000" in (
        capsys.readouterr().out
    )
