"""Statements counted by the runs and by the CPUs that come by."""

from concur_thp.machine import Machine
from stress.breaking.coverage import visits
from stress.breaking.cuts import Cut, all_cuts
from stress.exploring.job import Job


def cut(function: str, what: str) -> Cut:
    Machine._import_kernel()
    return next(c for c in all_cuts() if c.function == function and what in c.what)


def test_statements_are_counted_by_runs_and_by_cpus():
    zap, swap = cut("zap_pte_range", "spin_lock(cpu, ptl)"), cut("swap_duplicate", "spin_lock")
    shared, runs = visits(Job("mix_dontneeds", build="traced"))[zap.site]
    assert 0 < shared <= runs, "two CPUs come by in some runs"
    alone, runs = visits(Job("partial_dontneed", build="traced"))[zap.site]
    assert alone == 0 and runs > 0, "there is one CPU only"
    assert swap.site not in visits(Job("partial_dontneed", build="traced"))
