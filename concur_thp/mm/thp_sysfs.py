"""The switches of /sys/kernel/mm/transparent_hugepage, and who may have a huge page. (Linux: mm/huge_memory.c)

Kernel code reads `thp`. Users write and read text under the kernel's file names, with its rules for bad values:

    set_switch("enabled", "madvise")
    read_switch("khugepaged/max_ptes_none")
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from concur_thp.arch.linker import inline
from concur_thp.arch.shared import SharedOne
from concur_thp.arch.struct import I32, I64, Struct, field
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE
from concur_thp.errors import Misuse, unknown
from concur_thp.mm.flags import MMF_DISABLE_THP, VM_HUGEPAGE, VM_NOHUGEPAGE
from concur_thp.mm.mm_types import Mm, Vma
from concur_thp.mm.vmstat import vmstat

THP_NEVER, THP_MADVISE, THP_ALWAYS = 0, 1, 2
DEFRAG_NEVER, DEFRAG_MADVISE, DEFRAG_DEFER_MADVISE, DEFRAG_DEFER, DEFRAG_ALWAYS = 0, 1, 2, 3, 4
UINT_MAX = 0xFFFFFFFF

ENABLED_WORDS = {"always": THP_ALWAYS, "madvise": THP_MADVISE, "never": THP_NEVER}
DEFRAG_WORDS = {"always": DEFRAG_ALWAYS, "defer": DEFRAG_DEFER, "defer+madvise": DEFRAG_DEFER_MADVISE,
                "madvise": DEFRAG_MADVISE, "never": DEFRAG_NEVER}
"""In the order in which the kernel prints them."""


class ThpSwitches(Struct, size=128):
    """Kernel code only reads these; a change counts from the next look on and never touches existing mappings."""

    enabled = field(I32, "const", "THP_*: which vmas may have huge pages")
    defrag = field(I32, "const", "DEFRAG_*: how hard a fault tries for a huge page")
    use_zero_page = field(I32, "const", "1: a read fault maps the huge zero page")
    kh_defrag = field(I32, "const", "1: khugepaged may reclaim and compact")
    pages_to_scan = field(I64, "const", "pages khugepaged looks at in one go")
    scan_sleep_ms = field(I64, "const", "its sleep after that")
    alloc_sleep_ms = field(I64, "const", "its sleep after it found no huge page")
    max_ptes_none = field(I64, "const", "empty ptes that a range to collapse may have")
    max_ptes_swap = field(I64, "const", "swapped ptes that it may have")
    mremap_split = field(I32, "const", "1: mremap splits every huge pmd (R13) instead of moving it")
    force_split_pmd = field(I32, "const", "1: every walker splits huge pmds first, as one that knows nothing of them (R14)")
    k5_young_half = field(I32, "const", "1: collapse wants half of the ptes young, as v4.20 does (K5)")
    swap_whole_thp = field(I32, "const", "1: a THP is swapped out in one piece where there is room; 0: always split first")


thp = SharedOne("thp", ThpSwitches)


@inline
def transparent_hugepage_enabled(mm: Mm, vma: Vma):
    """May a fault in this anonymous vma, or khugepaged, use a huge page? (3.35)"""
    enabled = thp.enabled
    flags = vma.vm_flags
    return (
        flags & VM_NOHUGEPAGE == 0
        and (mm.flags.read() >> MMF_DISABLE_THP) & 1 == 0
        and (enabled == THP_ALWAYS or (enabled == THP_MADVISE and flags & VM_HUGEPAGE != 0))
    )


class Switch(NamedTuple):
    """One file: the field behind it, its value at boot, and what may be written: one of `words`, or a number."""

    field: str
    boot: Callable[[], int]
    words: dict[str, int] | None = None
    lowest: int = 0
    highest: Callable[[], int] = lambda: UINT_MAX


def _flag(field: str, boot: int) -> Switch:
    return Switch(field, lambda: boot, highest=lambda: 1)


SWITCHES = {
    "enabled": Switch("enabled", lambda: THP_ALWAYS, ENABLED_WORDS),
    "defrag": Switch("defrag", lambda: DEFRAG_MADVISE, DEFRAG_WORDS),
    "use_zero_page": _flag("use_zero_page", 1),
    "khugepaged/defrag": _flag("kh_defrag", 1),
    "khugepaged/pages_to_scan": Switch("pages_to_scan", lambda: int(8 * HPAGE_PMD_NR), lowest=1),
    "khugepaged/scan_sleep_millisecs": Switch("scan_sleep_ms", lambda: 10000),
    "khugepaged/alloc_sleep_millisecs": Switch("alloc_sleep_ms", lambda: 60000),
    "khugepaged/max_ptes_none": Switch("max_ptes_none", lambda: int(HPAGE_PMD_NR - 1),
                                       highest=lambda: int(HPAGE_PMD_NR - 1)),
    "khugepaged/max_ptes_swap": Switch("max_ptes_swap", lambda: int(HPAGE_PMD_NR // 8),
                                       highest=lambda: int(HPAGE_PMD_NR - 1)),
    "mremap_split": _flag("mremap_split", 0),
    "force_split_pmd": _flag("force_split_pmd", 0),
    "k5_young_half": _flag("k5_young_half", 1),
    "swap_whole_thp": _flag("swap_whole_thp", 1),
}
"""Files that can be written. The last four are this emulator's own."""

READ_ONLY: dict[str, Callable[[], int]] = {
    "hpage_pmd_size": lambda: int(HPAGE_PMD_SIZE),
    "khugepaged/pages_collapsed": lambda: vmstat()["khugepaged_pages_collapsed"],
    "khugepaged/full_scans": lambda: vmstat()["khugepaged_full_scans"],
}


def init_thp(config: Any) -> None:
    """Boot: the switches as the kernel has them. Small machines are the rule here, so none starts with "never"."""
    for switch in SWITCHES.values():
        setattr(thp, switch.field, switch.boot())


def _find(name: str) -> Switch:
    if name in READ_ONLY:
        raise Misuse(f"{name} is read-only")
    if name not in SWITCHES:
        raise unknown("switch", name, SWITCHES, f"the switches are {', '.join(SWITCHES)}")
    return SWITCHES[name]


def switch_value(name: str, text: str | int) -> int:
    """What writing `text` to a switch would set it to. Bad values, the kernel's -EINVAL, raise Misuse."""
    switch, value = _find(name), str(text).strip()
    if switch.words is not None:
        if value not in switch.words:
            raise Misuse(f"{name}: {value!r} is invalid (-EINVAL); write one of {', '.join(switch.words)}")
        return switch.words[value]
    highest = switch.highest()
    if not (value.isascii() and value.isdigit() and switch.lowest <= int(value) <= highest):
        raise Misuse(f"{name}: {value!r} is invalid (-EINVAL); write a number from {switch.lowest} to {highest}")
    return int(value)


def set_switch(name: str, text: str | int) -> None:
    """Write a switch. Bad values raise Misuse and change nothing."""
    setattr(thp, _find(name).field, switch_value(name, text))


def read_switch(name: str) -> str:
    """The text of a switch's file: a number, or all words with the chosen one in brackets."""
    if name in READ_ONLY:
        return str(READ_ONLY[name]())
    switch = _find(name)
    value = getattr(thp, switch.field)
    if switch.words is None:
        return str(value)
    return " ".join(f"[{word}]" if number == value else word for word, number in switch.words.items())
