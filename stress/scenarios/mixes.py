"""Mixes: two or three CPUs do what often has to wait for each other, and nearly any result of a step will do.

They were made for `break --locks`, so that several CPUs meet in every lock, flush and second look of mm/. What is wrong
shows in the data behind them, in the audit and in the instant invariants.
"""

from typing import Any

from concur_thp.program.step import parse_program
from stress.scenarios.scenario import HAS_VALUE, Outcome, Scenario
from stress.scenarios.setups import HUGE, MAPPED, SHARED, SMALL

ANY = range(-(1 << 12), 1 << 62)
"""What any step may return, and find."""
QUIET = {"enter", "leave", "new", "drop", "drain"}
"""Steps that must succeed."""


def labelled(text: str, prefix: str) -> str:
    """The program with a label on every step that may fail and has none."""
    steps = [step.strip() for step in text.split(";")]
    return "; ".join(step if ":" in step or step.split()[0] in QUIET else f"{prefix}{number}: {step}"
                     for number, step in enumerate(steps))


def mix(name: str, meaning: str, rules: tuple[str, ...], setup: str, *cpus: str, check: str = "",
        switches: dict[str, str] | None = None, swap: bool = False, **where: Any) -> Scenario:
    """A scenario whose steps may return anything, but for the labels that `where` speaks of."""
    programs = tuple(labelled(text, f"cpu{number}_") for number, text in enumerate(cpus))
    check = labelled(check, "check") if check else "drain"
    steps = [step for text in (setup, *programs, check) for step in parse_program(text) if step.label]
    always = {step.label: (ANY, ANY) if step.op in HAS_VALUE else ANY for step in steps}
    return Scenario(name, meaning, (), rules, setup, programs, check, (Outcome("done", **(always | where)),),
                    switches=switches or {}, swap=swap)


TWO_HUGE = "new 0; enter 0; map 0 2h rw; fill 0 2h 100; drain; note 0 0; note 1 1h\n"
TWO_SMALL = "new 0; enter 0; map 0 2h rw; advise 0 2h nohuge; fill 0 2h 100; drain; note 0 3; note 1 5\n"
MANY = "new 0; enter 0; map 8h 66h rw; advise 8h 66h nohuge; full: fill 8h 66h 1000; drain\n"
"""More pages than a gather holds, and more tables."""
FAR = "new 0; enter 0; map 0 1200h rw; near: store 0 1; far: store 1100h 2; drain\n"
"""Three PMD tables long, with nothing in the second."""
SWAPPED = SMALL + "out: swap_out 3; too: swap_out 5; in: load 5; drain; note 1 5\n"
"""Page 3 is on the device, page 5 has just come from there and is in the swap cache still."""
PRIVATE_FILE = "new 0; enter 0; file 0 2h; map_file 0 2h rw private 0; warm: load 3; other: load 5; drain; note 0 3\n"
SHARED_FILE = ("new 0; enter 0; file 0 1h; map_file 0 1h rw shared 0; load 3; fork 1; load 5; drain; note 0 3\n")

UNMAPS = (
    mix("mix_unmap_many", "an unmapping that fills its gather while a thread goes on reading", ("X27", "I15", "R16"), MANY,
        "enter 0; unmap 8h 66h", "enter 0; load 8h; load 9h; load 8h; load 9h+3; load 8h+1; load 9h",
        check="enter 0; gone: load 8h; pages: rss 0", gone=(-14, 0), pages=(0, 0)),
    mix("mix_unmap_far", "a mapping with nothing in most of its tables goes while a thread uses its end", ("X27", "I15"), FAR,
        "enter 0; advise 0 1200h dontneed; unmap 0 1200h", "enter 0; load 1100h; store 1100h 3; load 0",
        check="enter 0; gone: load 1100h; first: load 0; pages: rss 0", gone=(-14, 0), first=(-14, 0), pages=(0, 0)),
    mix("mix_two_unmaps", "two threads map and unmap beside each other", ("X17", "R25"), HUGE,
        "enter 0; map 8h 1h rw; store 8h 1; unmap 8h 1h; unmap 0 4",
        "enter 0; map 9h 1h rw; store 9h 2; unmap 9h 1h; unmap 4 4",
        check="enter 0; gone: load 3; pages: rss 0", gone=(-14, 0), pages=(0, 0)),
    mix("mix_dontneeds", "two threads throw the same small pages away while a third stores", ("X8", "R18"), SMALL,
        "enter 0; advise 0 1h dontneed; store 3 7", "enter 0; advise 2 4 dontneed; store 5 8", "enter 0; store 4 9; load 4",
        check="enter 0; old: count 0 1h 100", old=(0, range(3, 9))),
    mix("mix_dontneed_vs_protect", "MADV_DONTNEED while the same pages become read-only and writable again", ("X8", "X10"),
        SMALL, "enter 0; advise 0 1h dontneed; first: load 3", "enter 0; protect 0 1h ro; protect 0 1h rw; load 5",
        check="enter 0; old: count 0 1h 100", first=(0, 0), old=(0, "1h")),
    mix("mix_zero_pages", "two threads read where nothing is, a third stores and throws away", ("R1", "X7"),
        MAPPED + "advise 0 1h nohuge\n", "enter 0; load 3; load 5", "enter 0; load 3; load 5",
        "enter 0; store 3 7; advise 0 1h dontneed; store 5 8", check="enter 0; third: load 3; fifth: load 5",
        third=(0, {0}), fifth=(0, 8)),
)
PROTECTIONS = (
    mix("mix_protects", "two threads change the protection of parts, a third stores", ("X10", "X20"), HUGE,
        "enter 0; protect 0 1h ro; protect 0 1h rw", "enter 0; protect 0 4 ro; protect 0 4 rw", "enter 0; store 3 103; load 5",
        check="enter 0; old: count 0 1h 100; pages: rss 0", old=("1h", 0), pages=("1h", 0)),
    mix("mix_protects_small", "the same, of small pages", ("X10", "X20"), SMALL,
        "enter 0; protect 0 1h ro; protect 0 1h rw", "enter 0; protect 0 4 ro; protect 0 4 rw", "enter 0; store 3 103; load 5",
        check="enter 0; old: count 0 1h 100; pages: rss 0", old=("1h", 0), pages=("1h", 0)),
    mix("mix_hints", "entries lose their rights to NUMA balancing while threads use them", ("X10", "X3"), HUGE,
        "enter 0; hint 0 1h; load 3; hint 0 1h; load 5", "enter 0; store 3 103; load 5; store 5 105; load 3",
        "enter 0; split_pmd 5", check="enter 0; old: count 0 1h 100", old=("1h", 0)),
    mix("mix_hint_vs_dontneed", "a hinting fault while the huge page is thrown away", ("X10", "X8"),
        HUGE + "hinted: hint 0 1h\n", "enter 0; load 3; hint 0 1h; load 5", "enter 0; advise 0 1h dontneed; store 5 9",
        check="enter 0; third: load 3; fifth: load 5", third=(0, 0), fifth=(0, 9)),
    mix("mix_hint_faults", "two hinting faults, and the pmd is split", ("X10",), HUGE + "hinted: hint 0 1h\n",
        "enter 0; store 3 7", "enter 0; load 3; store 5 8", "enter 0; split_pmd 0; hint 0 1h",
        check="enter 0; old: count 0 1h 100", old=("1h-2", 0)),
)
MOVES = (
    mix("mix_moves", "a huge page moves there and back while a thread uses both places", ("X9", "X12", "R13"), HUGE,
        "enter 0; move 0 1h 1g; move 1g 1h 0", "enter 0; store 3 103; load 1g+3; store 3 103; load 1g+5; load 5",
        "enter 0; load 3",
        check="enter 0; old: count 0 1h 100; pages: rss 0", old=("1h", 0), pages=("1h", 0)),
    mix("mix_moves_small", "small pages move while a thread that has read them reclaims them", ("X9", "X12", "K11"), SMALL,
        "enter 0; move 0 1h 1g", "enter 0; load 3; swap_out 3; load 1g+3; swap_out 1g+3; load 3",
        check="enter 0; old: count 1g 1h 100", old=("1h", 0), swap=True),
    mix("mix_move_vs_migrate", "small pages move away while a thread that has read one migrates it", ("X9", "X13"), SMALL,
        "enter 0; move 0 1h 1g", "enter 0; load 3; migrate_frame 0 whole; load 3",
        check="enter 0; old: count 1g 1h 100", old=("1h", 0)),
    mix("mix_move_vs_split", "ptes of a huge page move while it is split and read", ("X9", "X12"), HUGE + "split_pmd 0\n",
        "enter 0; move 0 1h 1g+1", "enter 0; load 3; split_frame 0; load 3; migrate_frame 0 whole",
        check="enter 0; old: count 1g+1 1h 100", old=("1h", 0)),
    mix("mix_move_of_lazyfree", "lazily free pages move while reclaim takes them down", ("X9", "K11"),
        MAPPED + "advise 0 1h nohuge; fill 0 1h 100; drain; advise 0 1h free; drain; note 0 3\n",
        "enter 0; move 0 1h 1g; load 1g+3; store 1g+5 9", "enter 0; load 3; swap_out 3; swap_out 5; load 3",
        check="enter 0; fifth: load 1g+5", fifth=(0, 9)),
    mix("mix_move_of_file", "private pages of a file move while one of them is migrated", ("X9", "X12"), PRIVATE_FILE,
        "enter 0; move 0 1h 1g; move 1g 1h 0; protect 2 2 ro", "migrate_frame 0 whole; drop_caches 0; migrate_frame 0 whole",
        "enter 0; store 4 8; load 1g+3", check="enter 0; load 3"),
)
FORKS = (
    mix("mix_forks", "two threads fork while a third stores", ("X11", "X13"), HUGE,
        "enter 0; fork 1", "enter 0; fork 2", "enter 0; store 3 7; load 3; store 5 8",
        check="enter 1; one: count 0 1h 100; enter 2; two: count 0 1h 100; enter 0; third: load 3; fifth: load 5",
        third=(0, 7), fifth=(0, 8), one=({"1h", "1h-1", "1h-2"}, 0), two=({"1h", "1h-1", "1h-2"}, 0)),
    mix("mix_forks_small", "the same, of small pages, one of which is migrated, in two vmas of a block", ("X11", "X13"),
        SMALL + "protect 6 2 ro\n",
        "enter 0; fork 1", "enter 0; fork 2; drop 2", "enter 0; store 3 7; load 3; store 5 8", "migrate_frame 0 whole",
        check="enter 1; one: count 0 1h 100; enter 0; third: load 3; fifth: load 5",
        third=(0, 7), fifth=(0, 8), one=({"1h", "1h-1", "1h-2"}, 0)),
    mix("mix_exits", "parent and child end while their page is split and migrated", ("X17", "X13"), SHARED,
        "drop 0", "drop 1", "split_frame 0; migrate_frame 0 whole"),
    mix("mix_exits_small", "parent and child end while one of their pages is migrated", ("X17", "X13"),
        SMALL + "fork 1; leave\n", "drop 0", "drop 1", "migrate_frame 0 whole; migrate_frame 0 whole"),
    mix("mix_fork_of_file", "a mapping of a file is forked while its pages are migrated and dropped", ("X13",), PRIVATE_FILE,
        "enter 0; fork 1; drop 1", "migrate_frame 0 whole; drop_caches 0", "enter 0; store 3 7; protect 2 2 ro; load 3",
        check="enter 0; third: load 3", third=(0, 7)),
)
CALLS = (
    mix("mix_stacks", "two threads let one stack grow while a third forks, and one of its pages is migrated", ("R25", "X17"),
        "new 0; enter 0; stack 60h 1h; store 60h 9; drain\n",
        "enter 0; store 59h 1; load 58h+3; migrate 59h whole", "enter 0; store 58h+5 2; store 59h 3; swap_out 58h+5",
        "enter 0; fork 1; drop 1; store 57h 4",
        check="enter 0; top: load 60h; one: load 59h; two: load 58h+5; four: load 57h; pages: rss 0",
        top=(0, 9), one=(0, {1, 3}), two=(0, 2), four=(0, 4)),
    mix("mix_brk", "two threads move the program break, a third maps and forks", ("X17",), MAPPED,
        "enter 0; brk 4; brk 1h; brk 0", "enter 0; brk 2; brk 0; brk 2h", "enter 0; map 8h 1h rw; fork 1; drop 1; unmap 8h 1h",
        check="enter 0; brk 0; pages: rss 0", pages=(0, 0)),
    mix("mix_clear_refs", "pages become old by one who knows nothing of huge pages, while they are thrown away and reclaimed",
        ("R11", "X3"), HUGE, "enter 0; clear_refs 0 1h", "enter 0; store 3 7; advise 0 4 dontneed; store 3 9",
        "enter 0; load 5; swap_out 5; clear_refs 0 4", check="enter 0; third: load 3; old: count 4 4 104", third=(0, 9),
        old=(4, 0), swap=True),
    mix("mix_clear_refs_vs_zap", "pages become old while the pmd comes and goes", ("R11", "R18"), HUGE,
        "enter 0; clear_refs 0 1h; clear_refs 0 1h", "enter 0; advise 0 1h dontneed; store 3 9", "enter 0; split_pmd 0; load 5",
        check="enter 0; third: load 3", third=(0, 9)),
)
SCENARIOS = (*CALLS, *UNMAPS, *PROTECTIONS, *MOVES, *FORKS)
