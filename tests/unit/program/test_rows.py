"""Programs run natively and as plain Python: what each step does, on one CPU; what they leave is audited."""

from contextlib import ExitStack

import pytest

from concur_thp.arch.cpu import CpuState, cpus
from concur_thp.arch.linker import interpreted
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_NR
from concur_thp.errors import KernelBug, Misuse
from concur_thp.machine import Machine
from concur_thp.mm.collapse_check import Scan
from concur_thp.mm.huge_zero import shrink_huge_zero_page
from concur_thp.mm.mm_types import percpu
from concur_thp.mm.swap_state import drop_swap_cache
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.truncate import drop_caches
from concur_thp.program.physical import unpoison_all
from concur_thp.program.pinning import unpin_all
from concur_thp.program.pressure import drain_cpu
from concur_thp.program.rows import MAX_ROWS, load_programs, results, run_program
from concur_thp.program.spaces import init_spaces, replace_space
from concur_thp.program.step import parse_program
from concur_thp.program.table import (
    LOOK_DIRTY,
    LOOK_HUGE,
    LOOK_HUGE_ZERO,
    LOOK_NONE,
    LOOK_POISON,
    LOOK_PTE,
    LOOK_SWAP,
    LOOK_WRITE,
    LOOK_ZERO,
    NR_SPACES,
)

EBUSY, ESRCH, EFAULT, EINVAL, EHWPOISON = -16, -3, -14, -22, -133
START = "new 0; enter 0; map 0 2h rw\n"
HUGE = START + "fill 0 1h 100\n"
SMALL = START + "advise 0 1h nohuge; fill 0 1h 100; advise 0 1h huge\n"


@pytest.fixture(params=[(9, False), (3, False), (3, True)], ids=["order9", "order3", "interpreted"])
def run(request):
    """`run(text)`: run a program, return (status, value) by label."""
    order, plain = request.param
    with ExitStack() as stack:
        machine = stack.enter_context(Machine(memory="64M" if order == 9 else "4M", order=order, cpus=2, swap="8M"))
        set_switch("k5_young_half", 0)
        init_spaces()
        if plain:
            stack.enter_context(interpreted())
        cpu = machine.cpu(0)

        def run_text(text):
            steps = parse_program(text)
            load_programs({0: steps})
            run_program(cpu)
            assert cpu.state.load() == CpuState.PARKED and percpu[0].mm == 0 and all(results(len(steps))["ran"])
            rows = results(len(steps))
            return {s.label: (int(rows["status"][i]), int(rows["value"][i])) for i, s in enumerate(steps) if s.label}

        yield run_text
        assert audit(machine.config).violations == []
        unpin_all(cpu)
        for number in range(NR_SPACES):
            replace_space(cpu, number, 0)
        drop_swap_cache(cpu)
        unpoison_all(cpu)
        drop_caches(cpu)
        shrink_huge_zero_page(cpu)
        drain_cpu(cpu)
        assert audit(machine.config, expect_empty=True).violations == []


def test_a_program_stores_and_loads(run):
    n = int(HPAGE_PMD_NR)
    seen = run(HUGE + "a: load 3\nb: count 0 1h 100\nc: look 0 0\nd: load 1h\nw: look 0 1h\ne: load 9h\nf: rss 0\n"
               "x: expect 3 103")
    assert seen["a"] == (0, 103) and seen["b"] == (n, 0) and seen["c"] == (LOOK_HUGE, LOOK_WRITE | LOOK_DIRTY)
    assert seen["d"] == (0, 0) and seen["w"] == (LOOK_HUGE_ZERO, 0) and seen["e"] == (EFAULT, 0) and seen["f"] == (n, 0)


def test_advice_protection_and_unmapping(run):
    seen = run(HUGE + "advise 0 4e dontneed\na: look 0 0\nb: look 0 4e\nprotect 4e 1 ro\nc: store 4e 1\nd: load 4e\n"
               "e: load 0\nf: look 0 0\nunmap 4e 4e\ng: load 4e\nh: queued")
    assert seen["a"][0] == LOOK_NONE and seen["b"][0] == LOOK_PTE and seen["c"][0] == EFAULT
    assert seen["d"] == (0, 100 + int(HPAGE_PMD_NR) // 2) and seen["e"] == (0, 0) and seen["f"][0] == LOOK_ZERO
    assert seen["g"][0] == EFAULT and seen["h"][0] == 0


def test_fork_and_spaces(run):
    seen = run(HUGE + "fork 1\nstore 0 7\na: load 0\nenter 1\nb: load 0\nc: look 1 0\ndrop 1\nd: enter 1\n"
               "e: look 1 0\nleave\n"
               "f: load 0\ng: fork 2")
    assert seen["a"] == (0, 7) and seen["b"] == (0, 100) and seen["c"][0] == LOOK_HUGE
    assert [seen[x][0] for x in "defg"] == [ESRCH] * 4


def test_moving(run):
    n = int(HPAGE_PMD_NR)
    seen = run(HUGE + "move 0 1h 1g\na: count 1g 1h 100\nb: look 0 1g\nmove 1g 1h 1g+2h+1\nc: count 1g+2h+1 1h 100\n"
               "d: look 0 1g+2h+1\ne: load 0")
    assert seen["a"] == (n, 0) and seen["b"][0] == LOOK_HUGE and seen["c"] == (n, 0) and seen["d"][0] == LOOK_PTE
    assert seen["e"][0] == EFAULT


def test_pins(run):
    seen = run(HUGE + "a: pin 0 3 write\nb: pin_load 0\npin_store 0 9\nc: load 3\nd: split_page 3\ne: unpin 0\n"
               "f: split_page 3\n"
               "g: pin 1 4 fast\nh: pin 1 5 read\ni: pin 2 1h fast_only\nj: unpin 2\nk: pin_load 3\nl: pin 3 5 split_write")
    assert [seen[x][0] for x in "abdefg"] == [1, 0, EBUSY, 0, 0, 1]
    assert seen["b"][1] == 103 and seen["c"] == (0, 9) and seen["h"][0] == EBUSY
    assert seen["i"][0] == 0 and seen["j"][0] == seen["k"][0] == ESRCH and seen["l"][0] == 1


def test_a_run_of_pins(run):
    seen = run(HUGE + "a: pin_run 0 2 3 fast_write\nb: pin_load 2\nc: split_page 0\nd: pin_run 2 0 1 read\n"
               "e: pin_run 7 0 2 read\nunpin 0; unpin 1; f: split_page 0\nunpin 2; g: split_page 0\nh: pin_run 0 0 0 read")
    assert seen["a"][0] == 3 and seen["b"] == (0, 104) and seen["c"][0] == seen["f"][0] == EBUSY and seen["g"][0] == 0
    assert [seen[x][0] for x in "deh"] == [EBUSY] * 3


def test_a_frame_that_fails(run):
    seen = run(HUGE + "drain; note 1 3\na: poison 1\nb: look 0 3\nc: load 3\nd: load 2\ne: poison 1\nf: poison 5")
    assert seen["a"][0] == 0 and seen["b"][0] == LOOK_POISON and seen["c"][0] == EHWPOISON and seen["d"] == (0, 102)
    assert seen["e"][0] == EHWPOISON and seen["f"][0] == EFAULT


def test_frames(run):
    n = int(HPAGE_PMD_NR)
    seen = run(HUGE + "drain\na: note 0 2\nb: get 0 0\nc: split_frame 0\nd: frame 0\nunpin 0\ne: same 0 2\n"
               "f: split_frame 0\n"
               "g: frame 0\nh: migrate_frame 0 whole\ni: same 0 2\nj: count 0 1h 100\nk: note 1 1h\nl: get 0 1\n"
               "m: split_frame 1")
    assert [seen[x][0] for x in "abce"] == [0, 1, EBUSY, 1] and seen["d"] == (2, 1)
    assert seen["f"][0] == 0 and seen["g"] == (1, 1)
    assert seen["h"][0] == 0 and seen["i"][0] == 0 and seen["j"] == (n, 0)
    assert seen["k"][0] == EFAULT and seen["l"][0] == 0 and seen["m"][0] == EFAULT


def test_splits(run):
    seen = run(HUGE + "a: split_pmd 1\nb: look 0 1\nc: frame 0\nd: split_page 1\ne: split_page 1\nf: split_pmd 9h\n"
               "g: split_page 1h\nh: count 0 1h 100")
    assert seen["a"][0] == 0 and seen["b"][0] == LOOK_PTE and seen["d"][0] == 0
    assert seen["e"][0] == seen["g"][0] == -11 and seen["f"][0] == EFAULT and seen["h"][0] == int(HPAGE_PMD_NR)


def test_collapse_by_address_and_by_round(run):
    n = int(HPAGE_PMD_NR)
    seen = run(SMALL + "a: collapse 0 0\nb: look 0 0\nc: count 0 1h 100\nd: collapse 0 0\ne: collapse 1 0\nf: collapse 0 5h\n"
               "split_page 0\nload 0\ng: scan 9h\nh: look 0 0\ni: count 0 1h 100")
    assert seen["a"][0] == Scan.SCAN_SUCCEED and seen["b"][0] == LOOK_HUGE and seen["c"] == (n, 0)
    assert seen["d"][0] == Scan.SCAN_PMD_NULL and seen["e"][0] == ESRCH and seen["f"][0] == Scan.SCAN_VMA_NULL
    assert seen["g"][0] > 0 and seen["h"][0] == LOOK_HUGE and seen["i"] == (n, 0)


def test_migration_and_compaction(run):
    seen = run(HUGE + "note 0 0\na: migrate 0 whole\nb: same 0 0\nc: look 0 0\nd: migrate 1 small\ne: look 0 0\n"
               "f: count 0 1h 100\n"
               "g: migrate 1 split\nh: compact\ni: migrate 1h whole\nj: count 0 1h 100")
    assert seen["a"][0] == 0 and seen["b"][0] == 0 and seen["c"][0] == LOOK_HUGE and seen["d"][0] == 0
    assert seen["e"][0] == LOOK_PTE and seen["f"] == seen["j"] == (int(HPAGE_PMD_NR), 0)
    assert seen["g"][0] == 0 and seen["h"][0] in (0, EBUSY) and seen["i"][0] == EFAULT


def test_swap_out_and_in(run):
    n = int(HPAGE_PMD_NR)
    seen = run(HUGE + "a: swap_out 1\nb: rss 0\nc: look 0 1\nd: count 0 1h 100\ne: swap_out 1h\nf: store 0 1\ng: swap_out 0\n"
               "h: load 0\ni: reclaim 32")
    assert seen["a"][0] == n and seen["b"] == (0, n) and seen["c"][0] == LOOK_SWAP and seen["d"] == (n, 0)
    assert seen["e"][0] == EFAULT and seen["h"] == (0, 1) and seen["i"][0] >= 0


def test_shrinkers_and_files(run):
    seen = run(HUGE + "advise 0 4e dontneed\na: queued\nb: drain_split 4\nc: queued\nd: load 1h\ne: shrink_zero\n"
               "f: file 0 4\ng: map_file 4h 4 rw private 0\nh: load 4h\ni: drop_caches 0\nj: store 4h 3\nk: drop_caches 0\n"
               "l: load 4h\nm: map_file 5h 4 rw shared 1\nn: drop_caches 1")
    assert seen["a"][0] == 1 and seen["b"][0] == 1 and seen["c"][0] == 0 and seen["e"][0] == 0
    assert seen["f"][0] == seen["g"][0] == seen["h"][0] == 0 and seen["h"][1] >> 60 == 1 and seen["i"][0] == 0
    assert seen["k"][0] == 1 and seen["l"] == (0, 3) and seen["m"][0] == EINVAL and seen["n"][0] == EINVAL


def test_locking(run):
    seen = run(HUGE + "a: lock 0 1h\nb: advise 0 1 dontneed\nc: swap_out 0\nd: unlock 0 1h\n"
               "e: advise 0 1 dontneed\nf: lock 9h 1")
    assert seen["a"][0] == 0 and seen["b"][0] == EINVAL and seen["c"][0] == EBUSY and seen["d"][0] == seen["e"][0] == 0
    assert seen["f"][0] < 0


def test_stack_break_and_old_pages(run):
    """A stack grows to what is touched, the heap comes and goes, a huge page is old behind one who splits it to see it."""
    got = run("new 0; enter 0; stack 64h 1h; store 64h 1; store 63h 2; kind: look 0 63h; two: load 63h; gone: load 90h")
    assert got["kind"][0] in (LOOK_PTE, LOOK_HUGE) and got["two"] == (0, 2) and got["gone"] == (EFAULT, 0)
    got = run("new 0; enter 0; more: brk 4; less: brk 1; none: brk 0")
    assert [got[name][0] for name in ("more", "less", "none")] == [0, 0, 0]
    got = run(HUGE + "old: clear_refs 0 1h; kind: look 0 3; all: count 0 1h 100")
    assert got["old"][0] == HPAGE_PMD_NR and got["kind"][0] == LOOK_PTE and got["all"] == (HPAGE_PMD_NR, 0)


def test_slots_of_the_device_and_lists_of_frames_can_be_seen(run):
    got = run(SMALL + "drain; none: active 0; note 0 3; young: active 0; before: slots; out: swap_out 3; used: slots\n"
              "back: load 3; drain; note 0 3; old: active 0; note 1 5; other: active 1; kept: slots\n"
              "advise 3 1 dontneed; after: slots")
    assert [got[name][0] for name in ("before", "out", "used", "kept", "after")] == [0, 1, 1, 1, 0]
    assert got["none"][0] == EFAULT and [got[name][0] for name in ("young", "old", "other")] == [1, 0, 1]


def test_steps_that_need_an_mm_say_so_without_one(run):
    seen = run("a: load 0\nb: store 0 1\nc: map 0 1 rw\nd: pin 0 0 fast\ne: split_pmd 0\nf: split_page 0\ng: migrate 0 whole\n"
               "h: swap_out 0\ni: note 0 0\nj: rss 0\nk: look 0 0\nl: fork 0\nm: same 0 0\nn: leave")
    assert [seen[x][0] for x in "abcdefghijklm"] == [ESRCH] * 13 and seen["n"][0] == 0


def test_too_many_steps_are_refused_before_anything_is_loaded(run):
    with pytest.raises(Misuse, match="pass shorter ones"):
        load_programs({0: parse_program("load 0") * (MAX_ROWS + 1)})


def test_expect_finds_a_wrong_word():
    with Machine(memory="4M", order=3, cpus=1) as machine, interpreted():
        init_spaces()
        load_programs({0: parse_program(START + "store 0 1; expect 0 2")})
        with pytest.raises(KernelBug, match="does not expect"):
            run_program(machine.cpu(0))
        assert cpus[0].row == 4
