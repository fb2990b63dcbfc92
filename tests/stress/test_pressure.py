"""Mixes in too little memory: reclaim, swap and fallback at work; without swap, out of memory, which is a result and no end."""

import pytest

from tests.stress.test_runs import stress_until


@pytest.mark.parametrize("geometry", [("--order", "3", "--memory", "3M", "--swap", "16M"),
                                      ("--order", "9", "--memory", "24M", "--swap", "64M")])
@pytest.mark.parametrize("chaos", [(), ("--chaos",)], ids=["free", "chaos"])
def test_everything_happens(tmp_path, geometry, chaos):
    must = ("thp_fault_alloc", "thp_fault_fallback", "thp_split_pmd", "thp_split_page", "thp_deferred_split_page",
            "pageoutrun", "pgsteal_kswapd", "pswpout", "pswpin", "pgmigrate_success", "pfn_scan_got", "pfn_scan_missed")
    stress_until(lambda data: all(data["vmstat"][name] for name in must), tmp_path, "--cpus", "4", "--seed", "3", *geometry,
                 *chaos)


def test_out_of_memory_is_an_answer(tmp_path):
    """No swap, and programs that want more than there is: they get -ENOMEM and go on, nothing waits for ever."""
    def done(data):
        return data["vmstat"]["alloc_failed"] and data["vmstat"]["allocstall"] and data["operations"]["read"]

    stress_until(done, tmp_path, "--cpus", "4", "--order", "3", "--memory", "2M")


def test_walkers_that_know_nothing_of_huge_pages(tmp_path):
    """R14 in parallel: every walker splits first, and all laws hold."""
    data = stress_until(lambda data: data["vmstat"]["thp_split_pmd"], tmp_path, "--cpus", "3", "--order", "3", "--switch",
                        "force_split_pmd=1")
    assert data["vmstat"]["mremap_huge"] == 0
