"""The commands of this package, plugged into `concur-thp` by entry points (see pyproject.toml)."""

from pathlib import Path

import click

from concur_thp import options
from concur_thp.errors import Misuse
from stress.bench.options import MOST_PROCESSES, PLOT_KINDS, PROCESSES, ROUNDS, BenchOptions
from stress.options import ENABLED, WORDS_OF_A_PAGE, StressOptions

LOCK_SECONDS = 12.0
"""Longest hunt for one cut of `break --locks`."""

def _recordings(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for path in value:
        if not Path(path).is_file():
            why = "that is a directory" if Path(path).is_dir() else "no such file"
            raise Misuse(f"recording {path}: {why}; pass what `perf script` printed, plain or .xz")
    return value


@click.command()
@click.argument("recordings", nargs=-1, metavar="[RECORDING...]", callback=_recordings)
@click.option("--seconds", type=options.Seconds(), default=20.0, show_default=True,
              help="How long to run; recordings are replayed again until it has passed.")
@options.common_options(cpus=4, cpus_most=WORDS_OF_A_PAGE, memory=None,
                        memory_why="what the recordings need, else 256M",
                        cpus_why="each of a page's eight words belongs to one CPU, so at most 8")
@click.option("--swap", type=options.Size(), default=0, metavar="SIZE",
              help="Size of the swap device. [default: none]")
@click.option("--mix", metavar="NAME=WEIGHT,...", default="",
              help="Weights of the random operations; `only:` in front sets the others to 0.")
@click.option("--enabled", type=click.Choice(ENABLED), default="always", show_default=True,
              help="transparent_hugepage/enabled.")
@click.option("--switch", "switches", metavar="NAME=VALUE", multiple=True,
              help="Write another switch, such as khugepaged/max_ptes_none=0; may be repeated.")
@click.option("--chaos", is_flag=True, help="Delay CPUs at random points, seeded.")
@click.option("--checked", is_flag=True, help="Run the checked build: locking rules of each field are verified at each access,"
              " and chaos may delay before every statement that touches shared memory.")
@click.option("--khugepaged/--no-khugepaged", default=True, show_default=True, help="Run khugepaged beside the CPUs.")
@click.option("--reproduce", type=options.Seconds(or_none=True), default=20.0, show_default=True,
              help="Behind a failure, search so long for a schedule that fails alike; 0: not at all.")
@options.run_dir_option()
def stress(recordings: tuple[str, ...], json_path: str, **given: object) -> int:
    """Race real processes on one machine, and check everything.

    Without a RECORDING the CPUs draw from a mix of operations: they fault, fork, advise, protect, move
    and unmap. With recordings of real programs (perf script output, plain or .xz) they replay what those did.
    """
    from stress.main import run_stress  # The kernel's modules are imported only when they are to run.

    return run_stress(StressOptions(recordings=recordings, json=json_path, **given))  # type: ignore[arg-type]


def _processes(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    numbers = tuple(int(word) if word.strip().isdigit() else 0 for word in value.split(","))
    if not all(1 <= number <= MOST_PROCESSES for number in numbers):
        raise Misuse(f"--processes {value}: pass numbers from 1 to {MOST_PROCESSES} with commas between, such as 1,2,4")
    return tuple(dict.fromkeys(numbers))


def _plot(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value and (Path(value).suffix not in PLOT_KINDS or not Path(value).resolve().parent.is_dir()):
        raise Misuse(f"--plot {value}: pass a file name that ends in {', '.join(PLOT_KINDS)}, in an existing directory")
    return value


@click.command()
@click.option("--only", metavar="NAME", multiple=True, help="Measure this row only; may be repeated.")
@click.option("--processes", metavar="N,N,...", default=",".join(map(str, PROCESSES)), show_default=True,
              callback=_processes, help="How many processes at once; from 2 on in mms of their own, and in one mm.")
@click.option("--rounds", type=options.Count(1, 1_000_000, "each round is one sample"), default=ROUNDS, show_default=True,
              help="Samples of one process in each turn; of more, fewer each.")
@click.option("--growth", is_flag=True, help="Instead: how costs grow with memory, vmas, mms and queue lengths.")
@click.option("--plot", metavar="FILE", default="", callback=_plot, help="Draw the result too, as .svg, .png or .pdf.")
@options.json_option()
@options.quiet_option()
def bench(json_path: str, **given: object) -> int:
    """Measure speed, beside the running kernel and programs' locks.

    The kernel does the same in the same run; multiprocess, pthread and fcntl locks stand beside the emulated ones.
    """
    from stress.bench.main import run_bench

    return run_bench(BenchOptions(json=json_path, **given))  # type: ignore[arg-type]


@click.command()
@click.argument("scenario", required=False, metavar="[SCENARIO]")
@click.option("--strategy", type=click.Choice(("pct", "random", "dfs", "dpor")), default="pct", show_default=True,
              help="Who goes on at a point.")
@click.option("--depth", type=options.Count(0, 1 << 30, "pct takes up to 16"), default=3, show_default=True,
              help="pct: ordered events of the failures sought; dfs: most preemptions of a run; dpor has no bound.")
@click.option("--schedules", type=options.Count(0, 1 << 40, "0 is no limit"), default=0,
              help="How many to run. [default: no limit]")
@click.option("--seconds", type=options.Seconds(), default=10.0, show_default=True, help="How long to run.")
@click.option("--cpus", type=options.Count(0, 8, "0 is what the scenario has"), default=0,
              help="CPUs; those beyond the scenario's are bystanders. [default: the scenario's]")
@click.option("--checks", type=options.Count(0, 1 << 20, "0 checks none"), default=0, show_default=True,
              help="Check instant invariants at one place in so many.")
@click.option("--races", is_flag=True, help="Watch plain fields for accesses that nothing puts in order (slower).")
@click.option("--check-determinism", "repeat", is_flag=True,
              help="Run each schedule twice, the second time from what a token holds: it must pass the same points and end in"
              " the same state. If not, the emulator is at fault (exit 3). Four times slower.")
@options.order_option(3)
@options.seed_option()
@options.json_option()
@options.quiet_option()
@options.run_dir_option()
def explore(scenario: str | None, strategy: str, depth: int, schedules: int, seconds: float, cpus: int, checks: int,
            races: bool, repeat: bool, order: int, seed: int, json_path: str, quiet: bool, run_dir: str) -> int:
    """Run a SCENARIO one CPU at a time, in very many schedules.

    Every end is checked. A failure is shrunk, drawn and kept with a token for `concur-thp replay`. `all` takes every
    scenario in turn; `concur-thp races` lists them.
    """
    from stress.exploring.job import Job
    from stress.exploring.main import ExploreOptions, run_explore

    if scenario is None:
        raise Misuse("pass a SCENARIO, such as fault_vs_collapse, or `all`; `concur-thp races` lists them")
    if strategy == "pct" and not 1 <= depth <= 16:
        raise Misuse(f"--depth {depth}: pass 1 to 16 with --strategy pct, such as 3")
    if races and strategy == "dpor":
        raise Misuse("--races and --strategy dpor both listen to every access: pass one of them")
    build = "traced" if races or strategy == "dpor" else "checked"
    job = Job(scenario, order=order, cpus=cpus, strategy=strategy, depth=depth, seed=seed, checks=checks, races=races,
              repeat=repeat, build=build)
    return run_explore(ExploreOptions(job, schedules, seconds, json=json_path, quiet=quiet, run_dir=run_dir))


@click.command()
@click.argument("token", metavar="TOKEN|FILE")
@click.option("--times", type=options.Count(1, 1_000_000, "each is one replay"), default=1, show_default=True,
              help="How often.")
@click.option("--chart", "draw", is_flag=True, help="Draw what happens, a column for each CPU.")
@options.json_option()
@options.quiet_option()
def replay(token: str, times: int, draw: bool, json_path: str, quiet: bool) -> int:
    """Run again what a token recorded.

    Ends with 0 when the same happens each time.
    """
    from stress.exploring.main import run_replay
    from stress.exploring.token import Token

    return run_replay(Token.parse(token), times, json_path, quiet, draw)


@click.command(name="break")
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--all", "everything", is_flag=True, help="Every broken variant of every rule.")
@click.option("--seconds", type=options.Seconds(), default=60.0, show_default=True, help="Longest hunt for one variant.")
@click.option("--order", type=options.Count(2, 9, "9 is x86-64's huge page"), default=None,
              help="A huge page is 2**ORDER small ones. [default: 3, or what the variant needs]")
@click.option("--free", is_flag=True, help="Let the CPUs race for real instead of one at a time; nothing can be replayed.")
@click.option("--locks", is_flag=True, help="Not the rules' variants, but mm/ without each lock, trylock, flush and second look"
              " in turn, as found in its syntax trees; ID is then a function.")
@options.seed_option()
@options.json_option()
@options.quiet_option()
@options.run_dir_option()
def break_(ids: tuple[str, ...], everything: bool, seconds: float, order: int | None, free: bool, locks: bool, seed: int,
           json_path: str, quiet: bool, run_dir: str) -> int:
    """Break rules on purpose and show how that fails.

    ID is a rule or one of its variants, such as R18 or R18a; `concur-thp rules` lists them.
    """
    from stress.breaking.main import BreakOptions, run_break

    if locks:
        from stress.breaking.wholesale import LocksOptions, run_locks

        return run_locks(LocksOptions(ids, min(seconds, LOCK_SECONDS), seed, json_path, quiet, run_dir))
    asked = BreakOptions(ids, everything, seconds, seed, order, json_path, quiet, run_dir)
    if free:
        from stress.breaking.racing import run_free

        return run_free(asked)
    return run_break(asked)


@click.command()
@click.argument("paths", nargs=-1, metavar="", callback=_recordings)
@click.option("--programs", type=options.Count(0, 10_000_000, "0: the rows of semantics 6 only"), default=200,
              show_default=True, help="Random programs, besides the rows of the table.")
@click.option("--program", metavar="STEPS", multiple=True,
              help="This program only, such as '0 mmap 0 512 rw; 0 huge 0 512; 0 store 0 1'; may be repeated.")
@click.option("--recording", is_flag=True,
              help="Compare the faults of recordings: pass X-never.perf.xz and X-always.perf.xz behind it.")
@options.seed_option()
@options.json_option()
@options.quiet_option()
def compare(paths: tuple[str, ...], programs: int, program: tuple[str, ...], recording: bool, seed: int, json_path: str,
            quiet: bool) -> int:
    """Run the same programs on the running Linux kernel and here.

    After every step both sides must show a program the same. Needs root, and Transparent Hugepages of 2 MiB; switches
    of the kernel are set for the run and restored behind it.
    """
    if bool(paths) != recording:
        raise Misuse("compare: pass --recording with recordings behind it, or neither" if paths else
                     "compare --recording: pass X-never.perf.xz and X-always.perf.xz")
    from stress.compare.main import CompareOptions, run_compare

    return run_compare(CompareOptions(programs, seed, program, paths, json_path, quiet))
