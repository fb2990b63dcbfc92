"""`concur-thp compare`: rows and random programs on both sides, the verdict, and what was compared."""

import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from concur_thp.arch import native
from concur_thp.config import Param
from concur_thp.errors import Misuse
from concur_thp.machine import Machine
from concur_thp.output import CompileProgress, compile_progress, console, result_console, write_json
from stress.compare.abilities import lacking, missing, what_helps
from stress.compare.differences import DIFFERENCES
from stress.compare.facts import LETTERS, Verdict
from stress.compare.interrupt import heard_ctrl_c
from stress.compare.judge import Judge
from stress.compare.recordings import compare_recordings
from stress.compare.report import describe, facts_of
from stress.compare.rows import ROWS, Row
from stress.compare.search import Search
from stress.compare.sides import EmulatorSide, KernelSide
from stress.compare.steps import BLOCK, Program, parse
from stress.compare.switches import NotNow, Switches

AGREE, DIFFER, NOT_HERE, INTERRUPTED = 0, 1, 4, 4
STATUS = {"agree": AGREE, "differ": DIFFER, "interrupted": INTERRUPTED}


@dataclass(frozen=True)
class CompareOptions:
    """What was asked for."""

    programs: int = 200
    seed: int = 1
    program: tuple[str, ...] = ()
    """Programs as text; then there are no rows and no random ones."""
    recordings: tuple[str, ...] = ()
    json: str = ""
    quiet: bool = False


@dataclass
class Result:
    """What came of it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    differ: list[tuple[str, Verdict, str]] = field(default_factory=list)
    """Where it comes from, the verdict, both sides step by step."""
    agree: int = 0
    interrupted: bool = False

    @property
    def verdict(self) -> str:
        return "differ" if self.differ else "interrupted" if self.interrupted else "agree"


def run_compare(options: CompareOptions) -> int:
    """Compare, print, return the exit status."""
    if options.recordings:
        return compare_recordings(options.recordings, options.json, options.quiet)
    given = [_parse(text) for text in options.program]
    lacks = missing()
    if lacks:
        return _not_here(options, lacks)
    out = console(options.quiet)
    with compile_progress(out) as progress:
        _link(progress)
    try:
        data, result = _run(options, given, out)
    except NotNow as why:
        return _not_here(options, [str(why), *what_helps()])
    write_json(options.json, data)
    _say(result_console(options.quiet, options.json), data, result)
    return STATUS[data["verdict"]]


def _not_here(options: CompareOptions, why: list[str]) -> int:
    write_json(options.json, {"verdict": "not possible here", "missing": why})
    for line in why:
        print(f"concur-thp: compare is not possible here: {line}", file=sys.stderr)
    return NOT_HERE


def _run(options: CompareOptions, given: list[Program], out: Console) -> tuple[dict[str, Any], Result]:
    """All that was asked for, with the kernel's switches as they have to be."""
    started = time.monotonic()
    result = Result()
    switches = Switches(wait=lambda: out.print("waiting for another comparison to end: it has the kernel's switches"))
    with switches, Judge(EmulatorSide(forget=switches.close_inherited), KernelSide()) as judge:
        judge.start()
        cannot = lacking()
        try:
            with heard_ctrl_c() as check:
                _all(judge, result, options, given, cannot, _ticker(options, out, check))
        except KeyboardInterrupt:
            result.interrupted = True  # What was compared up to here is told all the same.
        return _data(options, judge, result, cannot, time.monotonic() - started), result


def _all(judge: Judge, result: Result, options: CompareOptions, given: list[Program], cannot: dict[str, str],
         tick: Callable[[int], None]) -> None:
    """The programs that were given; else all rows, and random ones."""
    for program in given:
        _one(judge, result, "given", program)
    if not given:
        for row in ROWS:
            _row(judge, result, row, cannot)
        _random(judge, result, options, frozenset(cannot), tick)


def _parse(text: str) -> Program:
    try:
        program = parse(text)
    except ValueError as error:
        raise Misuse(f"--program: {error}") from None
    if not program:
        raise Misuse("--program: pass steps with semicolons between, such as '0 mmap 0 512 rw; 0 store 0 1'")
    return program


def _link(progress: CompileProgress) -> None:
    """Here, so that the process of the machine, and its successors, find it done."""
    Param.order = BLOCK.bit_length() - 1
    Machine._import_kernel()
    import stress.compare.emulator_server  # noqa: F401  Its kernel functions are to be linked.

    native.link(progress=progress)


def _one(judge: Judge, result: Result, origin: str, program: Program, letters: str = "") -> Verdict:
    kinds = frozenset(kind for letter in letters.split() for kind in LETTERS[letter])
    verdict = judge.judge(program, kinds) if letters else judge.judge(program)
    _note(judge, result, origin, verdict)
    return verdict


def _note(judge: Judge, result: Result, origin: str, verdict: Verdict) -> None:
    if verdict.agree:
        result.agree += 1
    else:
        result.differ.append((origin, verdict, describe(verdict, *judge.watch(verdict.program))))


def _row(judge: Judge, result: Result, row: Row, cannot: dict[str, str]) -> None:
    why = row.why_not or next((cannot[step.op] for step in row.program if step.op in cannot), "")
    verdict = None if why else _one(judge, result, f"row {row.number}: {row.name}", row.program, row.cmp)
    says = "not compared" if verdict is None else "agree" if verdict.agree else "differ"
    result.rows.append({"row": row.number, "name": row.name, "cmp": row.cmp, "verdict": says, "why": why,
                        "compared": verdict.compared.total() if verdict else 0})


def _ticker(options: CompareOptions, out: Console, check: Callable[[], None]) -> Callable[[int], None]:
    """Is told behind each random program how many were done."""
    shows = sys.stderr.isatty() and not options.quiet

    def tick(done: int) -> None:
        check()
        if shows and done % 10 == 0:
            out.print(f"{done:,} of {options.programs:,} programs", end="\r")

    return tick


def _random(judge: Judge, result: Result, options: CompareOptions, cannot: frozenset[str], tick: Callable[[int], None]) -> None:
    if not options.programs:
        return
    before = judge.programs
    verdict = None
    try:
        verdict = Search(judge, options.programs, options.seed, cannot, tick).run()
    finally:
        result.agree += judge.programs - before
    if verdict is not None:
        result.agree -= 1
        _note(judge, result, f"random, seed {options.seed}", verdict)


def _data(options: CompareOptions, judge: Judge, result: Result, cannot: dict[str, str], seconds: float) -> dict[str, Any]:
    reasons = Counter[str]()
    for (_, reason), number in judge.skipped.items():
        reasons[reason] += number
    what = {row.id: row for row in DIFFERENCES}
    return {
        "verdict": result.verdict, "programs": judge.programs, "steps": judge.steps,
        "agree": result.agree,
        "differ": [{"origin": origin, "program": [str(step) for step in verdict.program], "broken": verdict.broken,
                    "facts": facts_of(verdict), "text": text} for origin, verdict, text in result.differ],
        "compared": [{"fact": kind, "number": number} for kind, number in judge.compared.most_common()],
        "skipped": judge.skipped.total(),
        "skipped_why": [{"id": reason, "number": number,
                         "what": what[reason].what if reason in what else "the row's column cmp leaves it out",
                         "source": what[reason].reason if reason in what else "semantics 6"}
                        for reason, number in reasons.most_common()],
        "rows": result.rows, "not_possible": cannot, "run_again": judge.again, "seed": options.seed,
        "seconds": round(seconds, 3), "kernel": platform.release(),
    }


def _say(out: Console, data: dict[str, Any], result: Result) -> None:
    """For people."""
    if result.interrupted:
        out.print("interrupted; up to there:")
    for origin, _, text in result.differ:
        out.print(f"differ: {origin}\n{text}", markup=False)
    rows = Counter(row["verdict"] for row in data["rows"])
    if data["rows"]:
        whole = sum(rows.values())
        out.print(f"rows       {rows['agree']} of {whole} agree, {rows['differ']} differ,"
                  f" {rows['not compared']} are not compared:")
        for row in data["rows"]:
            if row["why"]:
                out.print(f"             {row['row']:2} {row['name']}: {row['why']}", markup=False)
    for op, why in data["not_possible"].items():
        out.print(f"without    {op}: {why}", markup=False)
    compared = sum(row["number"] for row in data["compared"])
    out.print(f"programs   {data['programs']:,} with {data['steps']:,} steps in {data['seconds']:.1f} s"
              f" (seed {data['seed']}) on Linux {data['kernel']}: {data['agree']:,} agree, {len(data['differ'])} differ")
    out.print(f"facts      {compared:,} compared, {data['skipped']:,} skipped:", markup=False)
    for row in data["skipped_why"]:
        out.print(f"  {row['number']:>9,}  {row['id']}: {row['what']}", markup=False)


