"""Text about a machine that has stopped: a page, an mm, a CPU, locks, everything; and what a failure is shown with.

Reads shared memory from outside and believes nothing: a number that leads nowhere is printed as it is, and a part that
cannot be read says so in its place. A dump of a broken machine always comes out.
"""

import re
from typing import Any

import numpy as np

from concur_thp.arch.linker import texts
from concur_thp.arch.system import system
from concur_thp.arch.tlb import tlb_contexts
from concur_thp.check.broken_rule import explain_bug
from concur_thp.check.clock import read_cycles
from concur_thp.check.dump_cpu import dump_cpu, dump_locks, robust
from concur_thp.check.events import event_text, page_events
from concur_thp.check.facts import Facts
from concur_thp.check.lock_names import wait_cycle
from concur_thp.check.views import view
from concur_thp.check.walk import LEVELS
from concur_thp.config import HPAGE_PMD_NR, MachineConfig
from concur_thp.mm.flags import (
    MMF_DISABLE_THP,
    MMF_HUGE_ZERO_PAGE,
    MMF_VM_HUGEPAGE,
    VM_EXEC,
    VM_FLAG_NAMES,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_NOHUGEPAGE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from concur_thp.mm.mm_types import (
    MAPPING_SHIFT,
    PAGE_MAPPING_ANON,
    PAGE_TYPE_BUDDY,
    PAGE_TYPE_NONE,
    PAGE_TYPE_PCP,
    PAGE_TYPE_RESERVED,
    PAGE_TYPE_TABLE,
    TAIL_MAPPING,
    mem_map,
)
from concur_thp.mm.page_flags import FLAG_NAMES, PG_double_map, PG_head

PAGE_TYPES = {
    PAGE_TYPE_NONE: "",
    PAGE_TYPE_BUDDY: "free block",
    PAGE_TYPE_TABLE: "page table",
    PAGE_TYPE_RESERVED: "reserved",
    PAGE_TYPE_PCP: "on a pcp list",
}
VM_LETTERS = ((VM_READ, "r"), (VM_WRITE, "w"), (VM_EXEC, "x"))
VM_WORDS = (VM_SHARED, VM_GROWSDOWN, VM_LOCKED, VM_HUGEPAGE, VM_NOHUGEPAGE)
MMF_WORDS = {
    MMF_VM_HUGEPAGE: "on khugepaged's list",
    MMF_HUGE_ZERO_PAGE: "uses the huge zero page",
    MMF_DISABLE_THP: "THP disabled",
}
MOST_VMAS = 12


def flag_text(flags: int) -> str:
    """'head|uptodate|lru'."""
    return "|".join(name for bit, name in FLAG_NAMES.items() if flags >> bit & 1) or "none"


def mapping_text(mapping: int) -> str:
    """What a page's mapping says."""
    if mapping == 0:
        return "none"
    if mapping == TAIL_MAPPING:
        return "TAIL_MAPPING"
    return f"{'anon_vma' if mapping & PAGE_MAPPING_ANON else 'file'} {mapping >> MAPPING_SHIFT}"


@robust
def dump_page(config: MachineConfig, pfn: int) -> str:
    """A page's fields, those of its head, and what maps it."""
    if not 0 <= pfn < config.frames:
        return f"pfn {pfn:#x} is outside memory (0..{config.frames - 1:#x})"
    row = view(mem_map, config.frames)[pfn]
    link = int(row["compound_head"])
    lines = [_page_line(config, pfn, row)]
    head = link >> 1 if link & 1 else pfn
    if head != pfn and 0 <= head < config.frames:
        lines.append(_page_line(config, head, view(mem_map, config.frames)[head]))
    facts = Facts(config)
    lines += _mappings(facts, pfn, head)
    return "\n".join(lines)


def _page_line(config: MachineConfig, pfn: int, row: Any) -> str:
    link, flags = int(row["compound_head"]), int(row["flags"])
    kind = PAGE_TYPES.get(int(row["page_type"]), f"type {row['page_type']}")
    what = f", tail {pfn - (link >> 1)} of {link >> 1:#x}" if link & 1 else ""
    what += f", {kind}" if kind else ""
    text = (
        f"page pfn {pfn:#x}{what}   flags {flag_text(flags)}   _refcount {row['_refcount']}   _mapcount "
        f"{row['_mapcount']}   mapping {mapping_text(int(row['mapping']))}   index {int(row['index']):#x}"
    )
    if int(row["lock_owner"]):
        text += f"   locked by cpu {int(row['lock_owner']) - 1}"
    if flags >> PG_head & 1 and pfn + 2 < config.frames:
        first, second = view(mem_map, config.frames)[pfn + 1], view(mem_map, config.frames)[pfn + 2]
        text += f"   compound_mapcount {first['compound_mapcount']}   order {first['compound_order']}"
        text += "   DoubleMap" if int(first["flags"]) >> PG_double_map & 1 else ""
        text += "   on the deferred split queue" if int(second["deferred_next"]) else ""
    return text


def _mappings(facts: Facts, pfn: int, head: int, most: int = 8) -> list[str]:
    """The entries that map a page."""
    found = []
    for entries, name, wanted in ((facts.pte, "pte", pfn), (facts.huge, "huge pmd", head)):
        for i in np.flatnonzero(entries.pfn == wanted)[:most]:
            found.append(f"  {name} {entries.val[i]:#x} at {entries.addr[i]:#x} of mm {entries.mm[i]}")
    return found or ["  no entry maps it"]


@robust
def dump_mm(config: MachineConfig, number: int) -> str:
    """An mm: counts, vmas, tables."""
    if not 0 < number <= config.mms:
        return f"mm {number} does not exist"
    facts = Facts(config)
    row = facts.mm[number]
    marks = [word for bit, word in MMF_WORDS.items() if int(row["flags"]) >> bit & 1]
    on = [n for n in range(config.cpus) if int(view(tlb_contexts, config.mms + 1)["cpumask"][number]) >> n & 1]
    lines = [
        f"mm {number}: mm_users {row['mm_users']}, mm_count {row['mm_count']}, rss {row['rss'].tolist()} "
        f"(file, anon, swap, shmem), nr_ptes {row['nr_ptes']}, nr_pmds {row['nr_pmds']}, map_count "
        f"{row['map_count']}, tlb_flush_pending {row['tlb_flush_pending']}, cpus {on}"
        + (", " + ", ".join(marks) if marks else "")
    ]
    mine = facts.vma_list[facts.vma_mm == number].tolist()
    lines += [_vma_line(facts.vma[vma], vma) for vma in mine[:MOST_VMAS]]
    if len(mine) > MOST_VMAS:
        lines.append(f"  ... and {len(mine) - MOST_VMAS} more vmas")
    counts = [f"{int((links.mm == number).sum())} {LEVELS[level]}s" for level, links in facts.walked.linked.items()]
    lines.append(
        f"  tables: {', '.join(counts)}; {int((facts.thp.mm == number).sum())} huge pmds, "
        f"{int((facts.pte.mm == number).sum())} ptes"
    )
    return "\n".join(lines)


def _vma_line(row: Any, number: int) -> str:
    flags = int(row["vm_flags"])
    rights = "".join(letter if flags & bit else "-" for bit, letter in VM_LETTERS)
    words = [VM_FLAG_NAMES[bit] for bit in VM_WORDS if flags & bit]
    what = f"file {row['vm_file']}" if int(row["vm_file"]) else f"anon_vma {row['anon_vma']}"
    return (
        f"  vma {number}: {int(row['vm_start']):#x}-{int(row['vm_end']):#x} {rights} pgoff {int(row['vm_pgoff']):#x} "
        f"{what} {' '.join(words)}"
    ).rstrip()


@robust
def dump_machine(config: MachineConfig) -> str:
    """All CPUs and all live mms."""
    facts = Facts(config)
    parts = [dump_cpu(config, n) for n in range(config.cpus)]
    parts += [dump_mm(config, int(mm)) for mm in facts.live_mms]
    return "\n".join(parts)


@robust
def bug_text() -> str:
    """The first line: what was broken, or that nothing was."""
    if not system.panicked.read():
        return "no bug was reported"
    return f"BUG {explain_bug()}"


def bug_pfn(config: MachineConfig) -> int | None:
    """The page a bug is about: its text says which of the two values is a pfn."""
    text = texts().get(int(system.bug_text), "") if system.panicked.read() else ""
    named = re.search(r"\(values?: ([^)]*)\)", text)
    for name, value in zip(named[1].split(","), (system.bug_a, system.bug_b), strict=False) if named else ():
        if "pfn" in name and 0 <= int(value) < config.frames:
            return int(value)
    return None


@robust
def report_text(
    config: MachineConfig, *, what: str = "", pfn: int | None = None, again: str = "", events: int = 6
) -> str:
    """The page a failure is shown on: what was broken, the page concerned, every CPU, its locks, how to do it again.

    `what` replaces the first line; `pfn` is the page it is about (else the one that the bug's text speaks of).
    """
    lines = [what or bug_text()]
    if pfn is None:
        pfn = bug_pfn(config)
    if pfn is not None:
        lines.append("  " + dump_page(config, pfn).replace("\n", "\n  "))
        now = read_cycles()
        about = page_events(config, pfn, events, int(HPAGE_PMD_NR) if _is_head(config, pfn) else 1)
        if about:
            lines.append("  last events on this page")
            lines += ["    " + event_text(config, event, now, with_cpu=True) for event in about]
    for number in range(config.cpus):
        lines.append("  " + dump_cpu(config, number, events).replace("\n", "\n  "))
    circle = wait_cycle(config)
    if circle:
        lines.append("  deadlock: " + " -> ".join(f"cpu {n}" for n in (*circle, circle[0])))
    if again:
        lines.append(f"  again:  {again}")
    return "\n".join(lines)


def _is_head(config: MachineConfig, pfn: int) -> bool:
    return 0 <= pfn < config.frames and bool(int(view(mem_map, config.frames)["flags"][pfn]) >> PG_head & 1)


__all__ = ["dump_cpu", "dump_locks", "dump_machine", "dump_mm", "dump_page", "report_text"]
