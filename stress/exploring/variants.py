"""The broken code that a job runs."""

from concur_thp.errors import Misuse
from concur_thp.rules.table import VARIANTS
from concur_thp.rules.variant import Variant
from stress.exploring.job import Job


def variant_of(job: Job, build: str = "") -> Variant | None:
    """The broken code of a job, in its build or another."""
    if not job.variant:
        return None
    if job.variant not in VARIANTS:
        raise Misuse(f"the token is of the broken variant {job.variant}, which this version does not have")
    return Variant(VARIANTS[job.variant][1].edits, job.variant, build or job.build)


__all__ = ["variant_of"]
