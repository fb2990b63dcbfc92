"""Tokens: everything that a run needs to happen again, in one line.

A token holds the scenario, the geometry, the variant, the programs if they were shrunk, the schedule, what was found and a
fingerprint of the code. It is JSON, compressed, in letters that a shell leaves alone; longer ones are kept in files.
"""

import base64
import binascii
import functools
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concur_thp.arch.native import PACKAGE
from concur_thp.errors import Misuse
from stress.exploring.job import Failure, Job, Stretch

PREFIX = "thp1-"


@dataclass(frozen=True)
class Token:
    """A run, as it is handed over."""

    job: Job
    kind: str
    symptom: str
    code: str
    """fingerprint() where it was recorded."""

    @classmethod
    def of(cls, job: Job, failure: Failure) -> "Token":
        """The token of a failure."""
        made = Job(**{**vars(job), "plan": failure.schedule, "strategy": "replay", "seed": failure.seed})
        return cls(made, failure.kind, failure.symptom, fingerprint())

    def __str__(self) -> str:
        job = {name: value for name, value in vars(self.job).items() if name != "plan" and value != getattr(Job, name, None)}
        plan = [list(stretch) for stretch in self.job.plan]
        data = {"job": job, "plan": plan, "kind": self.kind, "symptom": self.symptom, "code": self.code}
        packed = zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 9)
        return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "Token":
        """From what str() gave, or from a file that has it."""
        text = text.strip()
        if not text.startswith(PREFIX):
            path = Path(text)
            if not path.is_file():
                raise Misuse(f"{text[:60]!r} is neither a token ({PREFIX}...) nor a file with one: pass the token that a "
                             "failure printed, or the file token.txt of its run")
            text = path.read_bytes().decode("ascii", "replace").strip()
            if not text.startswith(PREFIX):
                raise Misuse(f"{path}: no token ({PREFIX}...) is in that file; pass the file token.txt of a failure's run")
        try:
            packed = base64.urlsafe_b64decode(text.removeprefix(PREFIX) + "==")
            data: dict[str, Any] = json.loads(zlib.decompress(packed))
            plan = tuple(Stretch(*map(int, row)) for row in data["plan"])
            programs = tuple(map(str, data["job"].pop("programs", ())))
            job = Job(**data["job"], programs=programs, plan=plan)
            if any(value is not None and type(value) is not type(vars(job)[name]) for name, value in vars(Job("")).items()):
                raise ValueError
            return cls(job, str(data["kind"]), str(data["symptom"]), str(data["code"]))
        except (ValueError, KeyError, TypeError, zlib.error, binascii.Error) as error:
            raise Misuse("the token is damaged: copy it whole, or pass the file token.txt of its run") from error


@functools.cache
def fingerprint() -> str:
    """A number for all of the kernel's code."""
    digest = hashlib.sha256()
    for folder in ("arch", "sync", "mm", "check", "program"):
        for path in sorted((PACKAGE / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


__all__ = ["PREFIX", "Token", "fingerprint"]
