"""Laws about the way back from a page to its mappings: anon_vmas, the vmas of files, pools (Q6, Q17)."""

import numpy as np

from concur_thp.check.facts import Facts
from concur_thp.check.report import Law, Report, in_sorted
from concur_thp.check.views import Column, chain
from concur_thp.check.walk import Entries
from concur_thp.mm.mm_types import (
    MAPPING_SHIFT,
    PAGE_MAPPING_ANON,
    POOL_ANON_VMA,
    POOL_AVC,
    POOL_FILE,
    POOL_MM,
    POOL_VMA,
    pools,
)

PAIR = 32
"""Two struct numbers in one sortable number: first << PAIR | second."""


def tree_chains(facts: Facts) -> tuple[Column, Column, list[str]]:
    """Every anon_vma_chain found from the anon_vmas' side, its anon_vma, and what is wrong with the lists."""
    found: list[int] = []
    owner: list[int] = []
    errors = []
    following = facts.avc["rb_next"]
    first = facts.anon_vma["rb_root"][facts.live_anon_vmas]
    for number, head in zip(facts.live_anon_vmas.tolist(), first.tolist(), strict=True):
        row, wrong = chain(following, head, len(following))
        found += row
        owner += [number] * len(row)
        if wrong:
            errors.append(f"tree of anon_vma {number}: {wrong}")
    return np.array(found, dtype=np.int64), np.array(owner, dtype=np.int64), errors


def file_vmas(facts: Facts) -> tuple[Column, Column, list[str]]:
    """Every vma on a file's i_mmap list, its file, and what is wrong with the lists."""
    found: list[int] = []
    owner: list[int] = []
    errors = []
    for number in facts.live_files.tolist():
        row, wrong = chain(facts.vma["shared_next"], int(facts.file["i_mmap"][number]), facts.config.vmas + 1)
        found += row
        owner += [number] * len(row)
        if wrong:
            errors.append(f"i_mmap of file {number}: {wrong}")
    return np.array(found, dtype=np.int64), np.array(owner, dtype=np.int64), errors


def law_rmap(facts: Facts, report: Report) -> None:
    """Q6: by brute force, is every mapping where a walk from the page would look?"""
    chains, owner, _ = tree_chains(facts)
    anon_pairs = np.sort((owner << PAIR) | facts.avc["vma"][chains])
    vmas, files, _ = file_vmas(facts)
    file_pairs = np.sort((files << PAIR) | vmas)
    for entries, name in ((facts.pte, "pte"), (facts.thp, "huge pmd")):
        _entries_found(facts, report, entries, name, anon_pairs, file_pairs)
    _cache_slots(facts, report)


def _entries_found(
    facts: Facts, report: Report, entries: Entries, name: str, anon_pairs: Column, file_pairs: Column
) -> None:
    pfn = entries.pfn
    head = facts.head_of[pfn]
    mapping = facts.mapping[head]
    anon = mapping & PAGE_MAPPING_ANON != 0
    vma = facts.find_vma(entries.mm, entries.addr)
    index = facts.index[head] + (pfn - head)
    linear = facts.linear_index(vma, entries.addr)
    number = mapping >> MAPPING_SHIFT
    pair = (number << PAIR) | vma
    known = np.where(anon, in_sorted(pair, anon_pairs), in_sorted(pair, file_pairs))

    def where(i: int) -> str:
        kind = "anon_vma" if anon[i] else "file"
        return (
            f"{name} at {entries.addr[i]:#x} of mm {entries.mm[i]} maps pfn {pfn[i]:#x} of {kind} {number[i]}"
        )

    inside = vma > 0  # I8 has already spoken of the others.
    report.each(
        inside & (number == 0), lambda i: where(i) + ": the page has no mapping", mm=entries.mm, pfn=pfn
    )
    report.each(
        inside & (index != linear),
        lambda i: where(i) + f", whose index is {index[i]:#x}; here it should be {linear[i]:#x}",
        mm=entries.mm,
        pfn=pfn,
    )
    report.each(
        inside & (number != 0) & ~known,
        lambda i: where(i) + f"; vma {vma[i]} is not in its tree",
        mm=entries.mm,
        pfn=pfn,
        vma=vma,
    )


def _cache_slots(facts: Facts, report: Report) -> None:
    """A cached page knows its slot, and nrpages counts the slots."""
    file, index, pfn = facts.cached
    head = facts.head_of[pfn]
    bad = (facts.mapping[head] != file << MAPPING_SHIFT) | (facts.index[head] + (pfn - head) != index)
    report.each(
        bad,
        lambda i: (
            f"file {file[i]} slot {index[i]:#x} holds pfn {pfn[i]:#x}, which says mapping "
            f"{facts.mapping[head[i]]:#x} index {facts.index[head[i]]:#x}"
        ),
        pfn=pfn,
    )
    count = np.bincount(file, minlength=facts.config.files + 1)[facts.live_files]
    said = facts.file["nrpages"][facts.live_files]
    report.each(
        count != said,
        lambda i: f"file {facts.live_files[i]}: nrpages {said[i]}, {count[i]} slots filled",
        file=facts.live_files,
    )


def law_anon_vma(facts: Facts, report: Report) -> None:
    """Q17, and that nothing of the pools is lost."""
    chains, owner, errors = facts.avc_lists
    tree, tree_owner, tree_errors = tree_chains(facts)
    for wrong in errors + tree_errors + file_vmas(facts)[2]:
        report.broken(wrong)
    _same_chains(facts, report, chains, owner, tree, tree_owner)
    _orders(facts, report, tree, tree_owner)
    _anon_vma_counts(facts, report, tree_owner)
    _vma_anon_vmas(facts, report, chains, owner)
    vmas = facts.vma_list
    mapped = vmas[facts.vma["vm_file"][vmas] != 0]
    listed, files, _ = file_vmas(facts)
    pairs = np.sort((files << PAIR) | listed)
    missing = ~in_sorted((facts.vma["vm_file"][mapped].astype(np.int64) << PAIR) | mapped, pairs)
    report.each(
        missing,
        lambda i: f"vma {mapped[i]} is not on the i_mmap list of file {facts.vma['vm_file'][mapped[i]]}",
        vma=mapped,
    )
    report.check(
        len(listed) == len(mapped), f"{len(listed)} vmas on i_mmap lists, {len(mapped)} vmas map files"
    )
    in_use = {
        POOL_MM: len(facts.live_mms),
        POOL_VMA: len(vmas),
        POOL_ANON_VMA: len(facts.live_anon_vmas),
        POOL_AVC: len(np.unique(chains)),
        POOL_FILE: len(facts.live_files),
    }
    names = {
        POOL_MM: "mms",
        POOL_VMA: "vmas",
        POOL_ANON_VMA: "anon_vmas",
        POOL_AVC: "anon_vma_chains",
        POOL_FILE: "files",
    }
    for pool, count in in_use.items():
        word = pools[pool].in_use.read()
        report.check(word == count, f"{word} {names[pool]} are handed out, {count} can be found")


def _same_chains(
    facts: Facts, report: Report, chains: Column, owner: Column, tree: Column, tree_owner: Column
) -> None:
    """Both sides of a chain agree: it is on its vma's list and in its anon_vma's tree, once each."""
    avc = facts.avc
    report.each(
        avc["vma"][chains] != owner,
        lambda i: (
            f"anon_vma_chain {chains[i]} is on the list of vma {owner[i]} and says "
            f"vma {avc['vma'][chains[i]]}"
        ),
        vma=owner,
    )
    report.each(
        avc["anon_vma"][tree] != tree_owner,
        lambda i: (
            f"anon_vma_chain {tree[i]} is in the tree of anon_vma "
            f"{tree_owner[i]} and says {avc['anon_vma'][tree[i]]}"
        ),
        anon_vma=tree_owner,
    )
    report.each(
        ~np.isin(chains, tree),
        lambda i: f"anon_vma_chain {chains[i]} of vma {owner[i]} is in no anon_vma's tree",
        vma=owner,
    )
    report.each(
        ~np.isin(tree, chains),
        lambda i: f"anon_vma_chain {tree[i]} of anon_vma {tree_owner[i]} belongs to no vma",
        anon_vma=tree_owner,
    )
    for numbers, where in ((chains, "vma lists"), (tree, "anon_vma trees")):
        twice = len(numbers) - len(np.unique(numbers))
        report.check(twice == 0, f"{twice} anon_vma_chains are on two {where}")


def _orders(facts: Facts, report: Report, tree: Column, owner: Column) -> None:
    """Trees are sorted by vm_pgoff."""
    pgoff = facts.vma["vm_pgoff"][np.clip(facts.avc["vma"][tree], 0, facts.config.vmas)]
    if len(tree) > 1:
        bad = (owner[1:] == owner[:-1]) & (pgoff[1:] < pgoff[:-1])
        report.each(
            bad,
            lambda i: f"tree of anon_vma {owner[i]} is not sorted at anon_vma_chain {tree[i + 1]}",
            anon_vma=owner[1:],
        )


def _anon_vma_counts(facts: Facts, report: Report, tree_owner: Column) -> None:
    """refcount and degree of each anon_vma; none without chains."""
    numbers = facts.live_anon_vmas
    size = facts.config.vmas + 1
    root = facts.anon_vma["root"][numbers]
    parent = facts.anon_vma["parent"][numbers]
    is_root = root == numbers
    below = np.bincount(np.clip(root[~is_root], 0, size - 1), minlength=size)[numbers]
    want = 1 + np.where(is_root, below, 0)
    got = facts.anon_vma["refcount"][numbers]
    report.each(
        got != want,
        lambda i: f"anon_vma {numbers[i]} has refcount {got[i]}, should be {want[i]}",
        anon_vma=numbers,
    )
    own = np.bincount(np.clip(facts.vma["anon_vma"][facts.vma_list], 0, size - 1), minlength=size)[numbers]
    children = np.bincount(np.clip(parent[parent != numbers], 0, size - 1), minlength=size)[numbers]
    degree = facts.anon_vma["degree"][numbers]
    right = own + children + is_root
    report.each(
        degree != right,
        lambda i: (
            f"anon_vma {numbers[i]} has degree {degree[i]}, should be {right[i]} ({own[i]} vmas, "
            f"{children[i]} children)"
        ),
        anon_vma=numbers,
    )
    chains = np.bincount(tree_owner, minlength=size)[numbers]
    report.each(chains == 0, lambda i: f"anon_vma {numbers[i]} has no vma left in its tree", anon_vma=numbers)
    lost = ~np.isin(root, numbers)
    report.each(
        lost, lambda i: f"anon_vma {numbers[i]} has root {root[i]}, which is not alive", anon_vma=numbers
    )


def _vma_anon_vmas(facts: Facts, report: Report, chains: Column, owner: Column) -> None:
    """A vma's own anon_vma is among its chains, and all of them have one root."""
    vmas = facts.vma_list
    own = facts.vma["anon_vma"][vmas].astype(np.int64)
    linked = facts.avc["anon_vma"][chains].astype(np.int64)
    pairs = np.sort((owner << PAIR) | linked)
    report.each(
        (own != 0) & ~in_sorted((vmas << PAIR) | own, pairs),
        lambda i: f"vma {vmas[i]} has anon_vma {own[i]} and no chain to it",
        vma=vmas,
    )
    own_of = np.zeros(facts.config.vmas + 1, dtype=np.int64)
    own_of[vmas] = own
    root = facts.anon_vma["root"].astype(np.int64) if len(chains) else np.zeros(1, np.int64)
    limit = len(root) - 1
    other = (
        root[np.clip(linked, 0, limit)] != root[np.clip(own_of[owner], 0, limit)]
        if len(chains)
        else np.zeros(0, bool)
    )
    report.each(
        other,
        lambda i: f"vma {owner[i]} is linked to anon_vma {linked[i]}, which has another root than its own",
        vma=owner,
    )


LAWS = (
    Law("Q6", "rmap", "every mapping is found by a walk from its page", law_rmap),
    Law(
        "Q17",
        "anon_vmas",
        "refcounts, degrees and chains of anon_vmas agree, no struct is lost",
        law_anon_vma,
    ),
)
