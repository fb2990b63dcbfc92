"""What `concur-thp bench` was asked to do."""

from dataclasses import dataclass

PROCESSES = (1, 2, 4, 8)
MOST_PROCESSES = 16
ROUNDS = 4
PLOT_KINDS = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class BenchOptions:
    """`only`: names of rows, empty for all; `rounds`: samples of each process, each side, each turn; `processes`: how many."""

    only: tuple[str, ...] = ()
    rounds: int = ROUNDS
    processes: tuple[int, ...] = PROCESSES
    growth: bool = False
    plot: str = ""
    json: str = ""
    quiet: bool = False
