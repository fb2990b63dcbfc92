"""The directory of a run: runs/<time>-<name>/, with `runs/latest` pointing at it. Files appear whole or not at all."""

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loguru import logger

from concur_thp.errors import Misuse
from concur_thp.output import write_text


def make_run_dir(root: Path, name: str) -> Path:
    """A new directory under `root`; says clearly when that cannot be."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=f"{stamp}-{name}-", dir=root))
        path.chmod(0o755)
        latest = root / "latest"
        link = path / ".latest"
        link.symlink_to(path.name)
        os.replace(link, latest)
    except OSError as error:
        raise Misuse(f"--run-dir {root}: {error.strerror}; pass a directory that can be written") from error
    return path


@contextmanager
def log_in(run_dir: Path) -> Iterator[None]:
    """What is logged inside goes to the run's log.txt, too."""
    log = logger.add(run_dir / "log.txt", level="DEBUG", catch=True)
    try:
        yield
    finally:
        logger.remove(log)


@contextmanager
def log_for_later() -> Iterator[Callable[[Path], None]]:
    """The same for a run that has a directory only when it finds something: called with it, writes log.txt."""
    text = io.StringIO()
    log = logger.add(text, level="DEBUG")
    try:
        yield lambda run_dir: write_text(run_dir / "log.txt", text.getvalue())
    finally:
        logger.remove(log)
