"""Both sides run programs; broken emulator code is found by a short one. Without THP or root: it is said why not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from concur_thp.rules.edit import Delete, Edit, Replace
from concur_thp.rules.variant import Variant
from stress.compare import main
from stress.compare.abilities import missing
from stress.compare.judge import Judge
from stress.compare.rows import ROWS
from stress.compare.search import Search
from stress.compare.sides import EmulatorSide, KernelSide
from stress.compare.steps import parse
from stress.compare.switches import THP, WANTED, Switches

needs_kernel = pytest.mark.skipif(bool(missing()), reason=f"compare is not possible here: {missing()}")
"""Where it is not, test_cli.py tests that this is said."""


def emulator_only(prepare: Callable[[], None] | None = None) -> EmulatorSide:
    main._link(lambda done, total: None)
    return EmulatorSide(prepare)


def run(side, text):
    program = parse(text)
    side.ask(program)
    return side.answer()


def test_the_emulator_runs_every_row_and_the_machine_is_clean_behind_it():
    side = emulator_only()
    for row in ROWS:
        seen, broken = run(side, row.text)
        assert len(seen) == len(row.program) and not broken, (row, broken)
    assert side.stop() == ""


def test_a_broken_rule_is_said_and_the_next_program_gets_a_new_machine():
    first = "0 mmap 0 512 rw; 0 huge 0 512; 0 store 0 512; 0 dontneed 7 1"
    side = emulator_only(lambda: Variant([Delete("split_huge_anon_pmd", "tail_page(page, i)._mapcount.add(1)")]).put())
    assert "mapcount" in run(side, first)[1]
    assert run(side, "0 mmap 0 512 rw; 0 load 0 5")[1] == ""
    side.stop()


def test_what_is_shared_private_and_there():
    side = emulator_only()
    seen, broken = run(side, "0 mmap 0 512 rw; 0 huge 0 512; 0 store 0 512; 0 fork 1; 0 dontneed 7 1; 1 exit")
    assert not broken
    looks = [(one.looks[0].anon_huge, one.looks[0].rss, one.looks[0].shared, one.looks[0].present) for one in seen[2:]]
    assert looks == [(2048, 2048, 0, 512), (2048, 2048, 2048, 512), (0, 2044, 2044, 511), (0, 2044, 0, 511)]
    assert [one.blocks[0] for one in seen[2:]] == ["H...", "H...", "t...", "t..."] and set(seen[4].looks) == {0, 1}
    side.stop()


def test_unreadable_pages_are_there_and_say_nothing():
    side = emulator_only()
    seen, _ = run(side, "0 mmap 0 4 rw; 0 store 0 4; 0 mprotect 1 2 none; 0 load 0 4")
    assert [one.looks[0].present for one in seen] == [0, 4, 4, 4] and seen[1].looks[0].data != seen[2].looks[0].data
    assert seen[3].result == 1
    side.stop()


@needs_kernel
def test_rows_agree_and_the_switches_are_as_before(tmp_path):
    with Switches():
        pass  # Another comparison, if there is one, has put them back.
    before = {name: (THP / name).read_text() for name in WANTED if (THP / name).exists()}
    path = tmp_path / "compare.json"
    assert main.run_compare(main.CompareOptions(programs=20, seed=3, json=str(path), quiet=True)) == 0
    data = json.loads(path.read_text())
    assert data["verdict"] == "agree" and data["differ"] == [] and data["agree"] == data["programs"]
    assert {row["verdict"] for row in data["rows"]} <= {"agree", "not compared"}
    assert all(row["why"] for row in data["rows"] if row["verdict"] == "not compared")
    assert {row["fact"] for row in data["compared"]} >= {"data", "AnonHugePages", "Rss", "F", "S", "result"}
    assert data["skipped"] == sum(row["number"] for row in data["skipped_why"]) > 0
    assert {name: Path(THP / name).read_text() for name in before} == before


QUICK = "fork leaves the parent its write bit"
BROKEN: dict[str, Edit] = {
    "the offset of DoubleMap is forgotten": Delete("move_compound_mapcount", "tail_page(page, i)._mapcount.add(1)"),
    "DONTNEED passes over whole blocks": Replace(
        "unmap_page_range", "zap_pmd(...)",
        "if following - addr != HPAGE_PMD_SIZE:\n    zap_pmd(cpu, vma, mm_pmd(mm, addr), addr, following)"),
    QUICK: Delete("copy_anon_pmd", "pmd = ptep_set_wrprotect(src_pmd)"),
}


FOUND_BY_RANDOM_PROGRAMS = {
    "mlock up to a hole locks what is before it; RLIMIT_MEMLOCK is not root's":
        "0 mmap 0 1024 rw; 0 mlock 0 1; 0 mlock 512 1024; 0 free 512 1",
    "a collapse of one page, for which v4.20 allocates a huge page too, and gives up":
        "0 mmap 0 512 rw; 0 store 0 1; 0 huge 0 512; 0 dontneed 57 1; 0 collapse 0 512",
    "pages that three had are copied, v4.20 reuses them":
        "0 mmap 0 512 rw; 0 huge 0 512; 0 store 0 1; 0 nohuge 255 1; 0 fork 1; 0 fork 2; 0 exit; 1 mmap 0 512 rw; 2 store 0 1",
    "MADV_FREE of the first page, which the child has a copy of":
        "0 mmap 0 512 rw; 0 huge 0 512; 0 store 0 1; 0 fork 1; 1 mlock 0 1; 0 free 0 1",
    "of a huge entry's pages pagemap knows the first":
        "0 mmap 0 1024 rw; 0 huge 0 1024; 0 store 0 1024; 0 fork 1; 0 store 512 1; 0 mlock 0 1",
    "a split that fails where another CPU's queue has the page":
        "0 mmap 0 512 rw; 0 huge 0 512; 0 store 0 512; 0 munmap 0 338; 0 free 255 287; 0 load 884 1",
    "vmas that merge although one has no anon_vma, and what a fork copies of them":
        "0 mmap 100 1500 rw; 0 mmap 0 1 r; 0 load 401 1; 0 mlock 799 1; 0 munlock 512 512; 0 fork 2",
    "VM_ACCOUNT stays when memory is no longer writable":
        "0 mmap 0 512 rw; 0 store 0 1; 0 mmap 510 1 r; 0 mprotect 0 512 none",
    "and goes, since v6.7, where nothing was written":
        "0 mmap 0 512 rw; 0 mprotect 0 512 r; 0 mmap 512 512 r; 0 mprotect 0 1024 rw",
    "MADV_FREE of a shared huge page that is pinned":
        "0 mmap 0 512 rw; 0 huge 0 512; 0 store 0 1; 0 fork 1; 1 nohuge 7 306; 0 pin 0 1; 0 mlock 63 413; 1 free 0 512",
    "MADV_FREE of a whole huge page that is mapped by a table":
        "0 mmap 0 512 rw; 0 huge 0 512; 0 store 0 1; 0 mprotect 388 1 none; 0 mprotect 0 512 rw; 0 free 0 512",
    "a collapse that ends with the first of several vmas":
        "0 mmap 0 1024 rw; 0 store 0 1024; 0 huge 0 1024; 0 mremap 417 1 2047 1; 0 collapse 247 1023",
    "a collapse of two blocks, one of which is not there":
        "0 mmap 0 512 rw; 0 store 0 1; 0 huge 0 512; 0 dontneed 57 1; 0 dontneed 512 1; 0 collapse 0 1024",
}


@needs_kernel
def test_what_random_programs_found_agrees():
    main._link(lambda done, total: None)
    with Switches() as switches, Judge(EmulatorSide(forget=switches.close_inherited), KernelSide()) as judge:
        for name, text in FOUND_BY_RANDOM_PROGRAMS.items():
            assert judge.judge(parse(text)).agree, name


@needs_kernel
def test_blocks_and_smaps_say_the_same():
    kernel = KernelSide()
    text = ("0 mmap 0 1536 rw; 0 huge 0 1536; 0 store 0 512; 0 load 512 1; 0 nohuge 1024 512; 0 store 1030 9; 0 fork 1;"
            "0 dontneed 7 1; 0 load 1024 3; 1 mprotect 1 1 r; 1 store 600 1")
    seen, broken = run(kernel, text)
    assert len(seen) == 11 and not broken
    looks = [look for one in seen for look in one.looks.values() if look.blocks]
    assert len(looks) in (0, 16)  # None: before v6.7
    for look in looks:
        known = [figure for figure in range(4) if all(block[figure] >= 0 for block in look.blocks)]
        assert [sum(block[figure] for block in look.blocks) for figure in known] == [look[figure] for figure in known]
        assert len(known) == 4
    kernel.stop()


@needs_kernel
def test_a_bug_put_in_on_purpose_is_found_quickly():
    """The one that random programs find first. The others are slow."""
    variant = Variant([BROKEN[QUICK]])
    main._link(lambda done, total: None)
    variant.compile()
    with Switches() as switches, Judge(EmulatorSide(variant.put, switches.close_inherited), KernelSide()) as judge:
        verdict = Search(judge, 100, 1, frozenset(("drop_caches",)), lambda done: None).run()
    assert verdict is not None and not verdict.agree and len(verdict.program) <= 6, verdict


@needs_kernel
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mistake", BROKEN)
def test_a_bug_put_in_on_purpose_is_found_by_at_most_six_steps(mistake):
    main._link(lambda done, total: None)
    variant = Variant([BROKEN[mistake]])
    variant.compile()
    with Switches() as switches, Judge(EmulatorSide(variant.put, switches.close_inherited), KernelSide()) as judge:
        verdict = Search(judge, 1000, 1, frozenset(("drop_caches",)), lambda done: None).run()
    assert verdict is not None and not verdict.agree and len(verdict.program) <= 6, verdict


@needs_kernel
def test_a_side_that_is_killed_is_said_and_replaced():
    kernel = KernelSide()
    text = "0 mmap 0 8 rw; 0 store 0 9; 0 munmap 3 1; 0 load 2 4"
    seen, broken = run(kernel, text)
    assert [one.result for one in seen] == [0, 8, 0, 1] and not broken
    kernel.process.kill()
    assert run(kernel, text) == ([], "kernel: it died")
    assert run(kernel, text) == (seen, "")
    assert kernel.stop() == "" and kernel.answer()[1] == "kernel: it is gone"
