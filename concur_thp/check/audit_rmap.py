"""Laws about the way back from a page to its mappings: anon_vmas, the vmas of files, pools (Q6, Q17)."""

import numpy as np

from concur_thp.check.facts import Facts
from concur_thp.check.report import Law, Report, in_sorted
from concur_thp.check.views import Column
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


def law_rmap(facts: Facts, report: Report) -> None:
    """Q6: by brute force, is every mapping where a walk from the page would look?"""
    chains, owner, _ = facts.tree_chains
    anon_pairs = np.sort((owner << PAIR) | facts.avc["vma"][chains])
    listed, files, _ = facts.file_vmas
    file_pairs = np.sort((files << PAIR) | listed)
    for entries, name in ((facts.pte, "pte"), (facts.thp, "huge pmd")):
        _entries_found(facts, report, entries, name, anon_pairs, file_pairs)
    _cache_slots(facts, report)


def _entries_found(facts: Facts, report: Report, entries: Entries, name: str, anon_pairs: Column,
                   file_pairs: Column) -> None:
    pfn = entries.pfn
    head = facts.head_of[pfn]
    mapping = facts.mapping[head]
    anon, number = mapping & PAGE_MAPPING_ANON != 0, mapping >> MAPPING_SHIFT
    vma = facts.find_vma(entries.mm, entries.addr)
    index, linear = facts.index[head] + (pfn - head), facts.linear_index(vma, entries.addr)
    pair = (number << PAIR) | vma
    known = np.where(anon, in_sorted(pair, anon_pairs), in_sorted(pair, file_pairs))
    inside = vma > 0  # I8 speaks of the others.
    for bad, what in (
        (inside & (number == 0), "which has no mapping"),
        (inside & (index != linear), "whose index is {index:#x}; mapped here it should be {linear:#x}"),
        (inside & (number != 0) & ~known, "of {kind} {number}, in whose tree vma {vma} is not"),
    ):
        report.each(bad, "{name} at {addr:#x} of mm {mm} maps pfn {pfn:#x}, " + what, name=name, addr=entries.addr,
                    mm=entries.mm, pfn=pfn, index=index, linear=linear, number=number, vma=vma,
                    kind=np.where(anon, "anon_vma", "file"))


def _cache_slots(facts: Facts, report: Report) -> None:
    """A cached page knows its slot, and nrpages counts the slots."""
    file, index, pfn = facts.cached
    head = facts.head_of[pfn]
    bad = (facts.mapping[head] != file << MAPPING_SHIFT) | (facts.index[head] + (pfn - head) != index)
    report.each(bad, "file {file} slot {slot:#x} holds pfn {pfn:#x}, which says mapping {mapping:#x} index {index:#x}",
                file=file, slot=index, pfn=pfn, mapping=facts.mapping[head], index=facts.index[head])
    files = facts.live_files
    count, said = np.bincount(file, minlength=facts.config.files + 1)[files], facts.file["nrpages"][files]
    report.each(count != said, "file {file}: nrpages {said}, {count} slots filled", file=files, said=said, count=count)


def law_anon_vma(facts: Facts, report: Report) -> None:
    """Q17, and that no struct of a pool is lost."""
    for _, _, errors in (facts.vma_chains, facts.tree_chains, facts.file_vmas):
        for wrong in errors:
            report.broken(wrong)
    _same_chains(facts, report)
    _sorted_trees(facts, report)
    _anon_vma_counts(facts, report)
    _vma_anon_vmas(facts, report)
    _vmas_of_files(facts, report)
    for pool, name, found in (
        (POOL_MM, "mms", facts.live_mms),
        (POOL_VMA, "vmas", facts.vma_list),
        (POOL_ANON_VMA, "anon_vmas", facts.live_anon_vmas),
        (POOL_AVC, "anon_vma_chains", np.unique(facts.vma_chains[0])),
        (POOL_FILE, "files", facts.live_files),
    ):
        used = pools[pool].in_use.read()
        report.check(used == len(found), f"{used} {name} are handed out, {len(found)} can be found")


def _same_chains(facts: Facts, report: Report) -> None:
    """Both sides of a chain agree: it is on its vma's list and in its anon_vma's tree, once each."""
    avc = facts.avc
    chains, vma, _ = facts.vma_chains
    tree, anon_vma, _ = facts.tree_chains
    report.each(avc["vma"][chains] != vma, "anon_vma_chain {chain} is on the list of vma {vma} and says vma {says}",
                chain=chains, vma=vma, says=avc["vma"][chains])
    report.each(avc["anon_vma"][tree] != anon_vma, "anon_vma_chain {chain} is in the tree of anon_vma {anon_vma} and "
                "says {says}", chain=tree, anon_vma=anon_vma, says=avc["anon_vma"][tree])
    report.each(~np.isin(chains, tree), "anon_vma_chain {chain} of vma {vma} is in no anon_vma's tree",
                chain=chains, vma=vma)
    report.each(~np.isin(tree, chains), "anon_vma_chain {chain} in the tree of anon_vma {anon_vma} belongs to no vma",
                chain=tree, anon_vma=anon_vma)
    for numbers, where in ((chains, "vma lists"), (tree, "anon_vma trees")):
        twice = len(numbers) - len(np.unique(numbers))
        report.check(twice == 0, f"{twice} anon_vma_chains are on two {where}")


def _sorted_trees(facts: Facts, report: Report) -> None:
    """Trees are sorted by vm_pgoff: walkers stop at the first vma behind their page."""
    tree, anon_vma, _ = facts.tree_chains
    listed, file, _ = facts.file_vmas
    of_chain = np.clip(facts.avc["vma"][tree], 0, facts.config.vmas)
    for owner, vmas, kind in ((anon_vma, of_chain, "anon_vma"), (file, listed, "file")):
        pgoff = facts.vma["vm_pgoff"][vmas]
        bad = (owner[1:] == owner[:-1]) & (pgoff[1:] < pgoff[:-1])
        report.each(bad, "the tree of {kind} {owner} is not sorted at vma {vma}",
                    kind=kind, owner=owner[1:], vma=vmas[1:])


def _anon_vma_counts(facts: Facts, report: Report) -> None:
    """refcount and degree of each anon_vma; none without chains."""
    numbers, size = facts.live_anon_vmas, facts.config.vmas + 1
    rows = facts.anon_vma[numbers]
    root, parent = np.clip(rows["root"], 0, size - 1), np.clip(rows["parent"], 0, size - 1)
    is_root = root == numbers

    def count(which: Column) -> Column:
        return np.bincount(which, minlength=size)[numbers]

    want = 1 + np.where(is_root, count(root[~is_root]), 0)
    report.each(rows["refcount"] != want, "anon_vma {anon_vma} has refcount {got}, should be {want}",
                anon_vma=numbers, got=rows["refcount"], want=want)
    own = count(np.clip(facts.vma["anon_vma"][facts.vma_list], 0, size - 1))
    children = count(parent[parent != numbers])
    right = own + children + is_root
    report.each(rows["degree"] != right, "anon_vma {anon_vma} has degree {got}, should be {want} ({own} vmas, "
                "{children} children)", anon_vma=numbers, got=rows["degree"], want=right, own=own, children=children)
    report.each(count(facts.tree_chains[1]) == 0, "anon_vma {anon_vma} has no vma left in its tree", anon_vma=numbers)


def _vma_anon_vmas(facts: Facts, report: Report) -> None:
    """A vma's own anon_vma is among its chains, and all of them have one root."""
    vmas, limit = facts.vma_list, facts.config.vmas
    own = facts.vma["anon_vma"][vmas].astype(np.int64)
    chains, owner, _ = facts.vma_chains
    linked = np.clip(facts.avc["anon_vma"][chains], 0, limit).astype(np.int64)
    pairs = np.sort((owner << PAIR) | linked)
    unlinked = (own != 0) & ~in_sorted((vmas << PAIR) | own, pairs)
    report.each(unlinked, "vma {vma} has anon_vma {anon_vma} and no chain to it", vma=vmas, anon_vma=own)
    own_of_owner = np.clip(facts.vma["anon_vma"][owner], 0, limit)
    other = facts.anon_vma["root"][linked] != facts.anon_vma["root"][own_of_owner]
    report.each(other, "vma {vma} is linked to anon_vma {anon_vma}, which has another root than its own",
                vma=owner, anon_vma=linked)


def _vmas_of_files(facts: Facts, report: Report) -> None:
    """The vmas that map a file are on its i_mmap list, and nobody else."""
    vmas = facts.vma_list
    mapped = vmas[facts.vma["vm_file"][vmas] != 0]
    file = facts.vma["vm_file"][mapped].astype(np.int64)
    listed, owner, _ = facts.file_vmas
    missing = ~in_sorted((file << PAIR) | mapped, np.sort((owner << PAIR) | listed))
    report.each(missing, "vma {vma} is not on the i_mmap list of file {file}", vma=mapped, file=file)
    report.check(len(listed) == len(mapped), f"{len(listed)} vmas on i_mmap lists, {len(mapped)} vmas map files")


LAWS = (
    Law("Q6", "rmap", "every mapping is found by a walk from its page", law_rmap),
    Law("Q17", "anon_vmas", "refcounts, degrees and chains of anon_vmas agree, no struct is lost", law_anon_vma),
)
