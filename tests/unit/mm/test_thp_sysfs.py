"""The switches: defaults, texts, and what the kernel refuses with -EINVAL."""

import pytest

from concur_thp.errors import Misuse
from concur_thp.machine import Machine
from concur_thp.mm.flags import MMF_DISABLE_THP, VM_HUGEPAGE, VM_NOHUGEPAGE
from concur_thp.mm.mm_types import mms, vmas
from concur_thp.mm.thp_sysfs import (
    READ_ONLY,
    SWITCHES,
    read_switch,
    set_switch,
    transparent_hugepage_enabled,
)


@pytest.mark.parametrize("order", [9, 3])
def test_defaults(order: int) -> None:
    with Machine(memory="64M", order=order, cpus=1):
        found = {name: read_switch(name) for name in (*SWITCHES, *READ_ONLY)}
    n = 1 << order
    assert found == {
        "enabled": "[always] madvise never",
        "defrag": "always defer defer+madvise [madvise] never",
        "use_zero_page": "1",
        "khugepaged/defrag": "1",
        "khugepaged/pages_to_scan": str(8 * n),
        "khugepaged/scan_sleep_millisecs": "10000",
        "khugepaged/alloc_sleep_millisecs": "60000",
        "khugepaged/max_ptes_none": str(n - 1),
        "khugepaged/max_ptes_swap": str(n // 8),
        "mremap_split": "0",
        "force_split_pmd": "0",
        "k5_young_half": "1",
        "swap_whole_thp": "1",
        "hpage_pmd_size": str(4096 * n),
        "khugepaged/pages_collapsed": "0",
        "khugepaged/full_scans": "0",
    }


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("enabled", ["never", "madvise\n", "always"], ["", "yes", "1", "[always]", "always madvise"]),
        ("defrag", ["always", "defer", "defer+madvise", "madvise", "never"], ["0", "defer madvise"]),
        ("use_zero_page", ["0", "1"], ["2", "-1", "yes", ""]),
        ("khugepaged/defrag", [0, 1], ["2"]),
        ("khugepaged/pages_to_scan", ["1", str(2**32 - 1)], ["0", str(2**32), "-1", "x"]),
        ("khugepaged/scan_sleep_millisecs", ["0", "5"], ["-5", str(2**32)]),
        ("khugepaged/max_ptes_none", ["0", "7"], ["8", "-1", "1.5"]),
        ("khugepaged/max_ptes_swap", ["0", "7"], ["8"]),
    ],
)
def test_writing(name: str, good: list[str], bad: list[str]) -> None:
    with Machine(memory="16M", order=3, cpus=1):
        for text in good:
            set_switch(name, text)
            word = str(text).strip()
            assert read_switch(name) == word or f"[{word}]" in read_switch(name)
        before = read_switch(name)
        for text in bad:
            with pytest.raises(Misuse, match="-EINVAL"):
                set_switch(name, text)
            assert read_switch(name) == before


def test_unknown_and_read_only_names() -> None:
    with Machine(memory="16M", order=3, cpus=1):
        with pytest.raises(Misuse, match="did you mean enabled"):
            set_switch("enable", "always")
        with pytest.raises(Misuse, match="read-only"):
            set_switch("hpage_pmd_size", "4096")
        with pytest.raises(Misuse, match="no switch"):
            read_switch("scan")


def test_eligibility() -> None:
    """3.35: by switch, vma and mm, in every combination."""
    with Machine(memory="16M", order=3, cpus=1):
        mm, vma = mms[1], vmas[1]
        for word in ("always", "madvise", "never"):
            set_switch("enabled", word)
            for flags in (0, VM_HUGEPAGE, VM_NOHUGEPAGE):
                for disabled in (0, 1):
                    vma.vm_flags = flags
                    mm.flags.write(disabled << MMF_DISABLE_THP)
                    wanted = word == "always" or (word == "madvise" and flags == VM_HUGEPAGE)
                    expected = wanted and flags != VM_NOHUGEPAGE and not disabled
                    assert bool(transparent_hugepage_enabled(mm, vma)) == expected
