"""The directory of a run: runs/<time>-<name>/, with `runs/latest` pointing at it. Files appear whole or not at all."""

import os
import tempfile
import time
from pathlib import Path

from concur_thp.errors import Misuse


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
