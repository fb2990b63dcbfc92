"""Cuts: what is found in mm/ without a list, and that each leaves code that can be run."""

import copy
from collections import Counter

from concur_thp.arch.linker import Source
from concur_thp.machine import Machine
from concur_thp.rules.edit import edited_trees
from concur_thp.rules.find import places, source_named, text
from concur_thp.rules.variant import Variant
from stress.breaking.cuts import all_cuts
from stress.breaking.harmless import HARMLESS, harmless


def cuts():
    Machine._import_kernel()
    return all_cuts()


def test_locks_trylocks_flushes_and_second_looks_are_found_by_themselves():
    kinds = Counter(cut.kind for cut in cuts())
    assert all(kinds[kind] > 10 for kind in ("lock", "trylock", "flush", "look")) and sum(kinds.values()) > 250
    functions = {cut.function for cut in cuts()}
    assert {"zap_pte_range", "__split_huge_pmd", "do_anonymous_page", "try_to_unmap_one"} & functions


def test_every_cut_changes_its_function_and_only_there():
    for cut in cuts():
        tree = source_named(cut.function).tree
        edited = copy.deepcopy(tree)
        cut.edit.apply(edited)
        before, after = [text(p.statement) for p in places(tree)], [text(p.statement) for p in places(edited)]
        assert before != after, cut
        assert len(before) == len(after), "what is left out leaves a number, so that lines keep their place"


def test_a_lock_goes_with_its_unlocks():
    cut = next(c for c in cuts() if c.function == "zap_pte_range" and c.kind == "lock")
    tree = copy.deepcopy(source_named(cut.function).tree)
    cut.edit.apply(tree)
    assert not [p for p in places(tree) if "spin_lock(" in text(p.statement) or "spin_unlock(cpu, ptl)" in text(p.statement)]


def test_a_lock_that_another_function_gives_back_goes_with_that():
    cut = next(c for c in cuts() if c.function == "migration_entry_wait" and c.kind == "lock")
    trees = edited_trees(cut.edits)
    left = [text(p.statement) for tree in trees.values() for p in places(tree) if "spin_" in text(p.statement)]
    assert {s.name for s in trees} == {"migration_entry_wait", "pmd_migration_entry_wait", "wait_for_migration"} and not left
    for row in [c for c in cuts() if len(c.edits) > 1]:
        assert Variant(row.edits, row.name).trees, row


def test_a_lock_that_returns_what_it_locks_returns_nothing():
    cut = next(c for c in cuts() if c.function == "__split_huge_pmd" and "lock_anon_pmd_page" in c.what)
    tree = copy.deepcopy(source_named(cut.function).tree)
    cut.edit.apply(tree)
    assert [text(p.statement) for p in places(tree)].count("locked = Page(0)") == 2


def test_a_second_look_goes_the_way_of_no_change():
    cut = next(c for c in cuts() if c.function == "do_anonymous_page" and "pte_none" in c.what)
    tree = copy.deepcopy(source_named(cut.function).tree)
    cut.edit.apply(tree)
    assert "if False" in [text(p.statement) for p in places(tree)]


def test_an_if_that_does_not_leave_is_cut_both_ways():
    made = [c for c in cuts() if c.function == "tlb_finish_mmu" and c.kind == "look"]
    assert [c.what.rpartition(" ")[2] for c in made] == ["(always)", "(never)"] and len({c.name for c in made}) == 2
    heads = []
    for one in made:
        tree = copy.deepcopy(source_named(one.function).tree)
        one.edit.apply(tree)
        heads += [text(p.statement) for p in places(tree) if text(p.statement) in ("if True", "if False")]
    assert heads == ["if True", "if False"]


def test_statements_alike_are_told_apart_and_no_two_cuts_share_a_name():
    assert [c.what for c in cuts() if c.function == "follow_huge_pmd" and c.kind == "lock"][1] == "spin_lock(cpu, ptl) #2"
    names = Counter(c.name for c in cuts())
    assert max(names.values()) == 1, [name for name, count in names.items() if count > 1]


def test_cuts_can_be_compiled():
    some = [cut for cut in cuts() if cut.function in ("do_anonymous_page", "zap_huge_pmd")]
    for cut in some:
        variant = Variant(cut.edits, cut.name)
        assert variant.compile()
    assert some and all(isinstance(s, Source) for s in [source_named(cut.function) for cut in some])


def test_what_is_called_harmless_exists():
    known = {(cut.function, cut.what) for cut in cuts()}
    assert not HARMLESS.keys() - known, "the code has changed: think again"
    assert all(harmless(cut) for cut in cuts() if cut.what.startswith("smp_"))
    assert not [cut for cut in cuts() if cut.kind == "lock" and cut.function == "zap_pte_range" and harmless(cut)]
