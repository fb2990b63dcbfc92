"""What `concur-thp stress` was asked to do."""

from dataclasses import dataclass

ENABLED = ("always", "madvise", "never")
WORDS_OF_A_PAGE = 8
"""Each of the eight words that stand for a page's contents belongs to one CPU: the oracle knows who wrote it."""


@dataclass(frozen=True)
class StressOptions:
    """The options of one stress run."""

    recordings: tuple[str, ...] = ()
    """Paths of recordings to replay; none: a random mix."""
    seconds: float = 20.0
    cpus: int = 4
    seed: int = 1
    memory: int | None = None
    """Bytes; None: what the recordings need, or 256M."""
    swap: int = 0
    """Bytes of the swap device; 0: none."""
    order: int = 9
    mix: str = ""
    """Weights as `--mix` takes them, '' for the default."""
    enabled: str = "always"
    switches: tuple[str, ...] = ()
    """NAME=VALUE: more files of /sys/kernel/mm/transparent_hugepage."""
    chaos: bool = False
    checked: bool = False
    khugepaged: bool = True
    reproduce: float = 20.0
    """Seconds of controlled search behind a failure; 0: none."""
    run_dir: str = "runs"
    json: str = ""
    """Where the result goes as JSON: a path, '-' for standard output, '' for nowhere."""
    quiet: bool = False
