"""The commands `stress` and `bench`, plugged into `concur-thp` (see pyproject.toml)."""

from pathlib import Path

import click

from concur_thp import options
from concur_thp.errors import Misuse
from stress.options import ENABLED, WORDS_OF_A_PAGE, StressOptions


def _recordings(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for path in value:
        if not Path(path).is_file():
            raise Misuse(f"recording {path}: no such file; pass what `perf script` printed, plain or .xz")
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
@click.option("--khugepaged/--no-khugepaged", default=True, show_default=True, help="Run khugepaged beside the CPUs.")
@click.option("--run-dir", metavar="DIR", default="runs", show_default=True, help="Where runs keep what they found.")
def stress(recordings: tuple[str, ...], json_path: str, **given: object) -> int:
    """Let real processes fault, fork and unmap on one machine, and check everything.

    Without a RECORDING the CPUs draw from a mix of operations. With recordings of real programs (perf script output,
    plain or .xz) they replay what those did.
    """
    from stress.main import run_stress  # The kernel's modules are imported only when they are to run.

    return run_stress(StressOptions(recordings=recordings, json=json_path, **given))  # type: ignore[arg-type]


@click.command()
@click.option("--only", metavar="NAME", multiple=True, help="Measure this one only; may be repeated.")
@click.option("--rounds", type=options.Count(1, 1_000_000, "each round is one sample"), default=10, show_default=True,
              help="Samples of each side in each turn; the median is shown.")
@options.json_option()
@options.quiet_option()
def bench(only: tuple[str, ...], rounds: int, json_path: str, quiet: bool) -> int:
    """Measure speed, side by side with the running kernel and plain multiprocess locks."""
    from stress.bench.main import BenchOptions, run_bench

    return run_bench(BenchOptions(only=only, rounds=rounds, json=json_path, quiet=quiet))
