"""Imports go one way: the contracts of pyproject.toml hold, and the check that says so can fail."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = "from importlinter.cli import lint_imports_command; lint_imports_command()"
COMMAND = [sys.executable, "-c", CODE, "--no-cache"]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True, timeout=280)


def test_the_contracts_hold():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout[-3000:]


def test_an_upward_import_is_seen(tmp_path):
    for package in ("concur_thp", "workers", "stress"):
        (tmp_path / package).symlink_to(ROOT / package)
    (tmp_path / "concur_thp").unlink()
    (tmp_path / "concur_thp").mkdir()
    for path in (ROOT / "concur_thp").iterdir():
        (tmp_path / "concur_thp" / path.name).symlink_to(path)
    (tmp_path / "concur_thp/errors.py").unlink()
    (tmp_path / "concur_thp/errors.py").write_text((ROOT / "concur_thp/errors.py").read_text() + "\nimport workers\n")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    result = lint(tmp_path)
    assert result.returncode == 1 and "stress -> workers -> concur_thp BROKEN" in result.stdout
