"""Rules by name, as lines and as diffs; and that every variant compiles."""

import pytest

from concur_thp.arch import native
from concur_thp.arch.linker import SLOTS, Kernel
from concur_thp.config import Param
from concur_thp.errors import Misuse
from concur_thp.machine import Machine
from concur_thp.rules.find import source_named
from concur_thp.rules.rule import At
from concur_thp.rules.table import RULES, VARIANTS, diffs, resolve, rule_json, rule_named, variants_named
from concur_thp.rules.variant import Variant, broken

Machine._import_kernel()
ONE_OF_EACH_KIND = ("R18a", "R29d", "X4a", "X1a", "R37a", "X12a", "X34", "K17a")
A_DEEP_INLINE = "X3c"


@pytest.mark.parametrize("name, rule", [("R18", "R18"), ("r18", "R18"), (" X1b ", "X1"), ("k17a", "K17")])
def test_a_rule_is_found_by_its_own_name_and_by_its_variants(name, rule):
    assert rule_named(name).id == rule
    assert all(variant.id.startswith(rule) for variant in variants_named(name))


@pytest.mark.parametrize("name, said", [("R18z", "near are .*R18"), ("R99", "near are"), ("lock", "`concur-thp rules` lists")])
def test_other_names_are_misuse_with_near_ones(name, said):
    with pytest.raises(Misuse, match=said):
        rule_named(name)
    with pytest.raises(Misuse, match=said):
        variants_named(name)


def test_a_rule_without_variants_says_why():
    with pytest.raises(Misuse, match="R25 has no broken variant: huge pages of files"):
        variants_named("R25")


def test_a_statement_is_found_where_it_stands_now():
    line = resolve(At("__pmd_trans_huge_lock", "if pmd_huge_or_swap(...)"))
    source = source_named("__pmd_trans_huge_lock")
    with open(source.filename) as file:
        assert "if pmd_huge_or_swap(" in file.read().splitlines()[line.line - 1]


def test_a_diff_shows_the_broken_line():
    (diff,) = diffs(VARIANTS["R18a"][1])
    assert "\n-    if pmd_huge_or_swap(pmd.val.read()):\n+    if True:\n" in diff and '"""' not in diff


def test_json_has_what_the_table_has():
    data = rule_json(rule_named("R29"), with_diffs=True)
    assert [v["id"] for v in data["variants"]] == ["R29a", "R29b", "R29c", "R29d", "R29e"]
    assert data["enforced_in"][0]["line"] > 0 and all(v["diffs"] for v in data["variants"])


@pytest.fixture
def order3():
    before = Param.order
    Param.order = 3
    native.link()
    yield
    Param.order = before


@pytest.mark.parametrize("name", [name for name in ONE_OF_EACH_KIND if name in VARIANTS])
def test_some_variants_compile_and_leave_no_trace(order3, name):
    before = list(SLOTS)
    with broken(VARIANTS[name][1].edits, name) as variant:
        assert all(SLOTS[k.slot] != before[k.slot] for k in variant.kernels)
        untouched = [k.slot for k in Kernel.all if k not in variant.kernels]
        assert all(SLOTS[slot] == before[slot] for slot in untouched)
    assert list(SLOTS) == before


def test_a_broken_inline_function_replaces_all_its_users(order3):
    variant = Variant(VARIANTS[A_DEEP_INLINE][1].edits)
    assert {"zap_huge_pmd", "zap_pte_range", "ptep_clear_flush", "move_huge_pmd"} <= {k.name for k in variant.kernels}


@pytest.mark.slow
def test_every_variant_compiles(order3):
    for name, (_, variant) in VARIANTS.items():
        addresses = Variant(variant.edits, name).compile()
        assert addresses and all(addresses.values()), name


def test_every_rule_is_shown(capsys):
    from concur_thp.output import result_console
    from concur_thp.rules.show import print_rule, print_rules

    out = result_console(False, "", soft_wrap=False)
    print_rules(out)
    print_rule(out, rule_named("X31"), variants_named("X31"))
    text = capsys.readouterr().out
    assert all(rule.id in text for rule in RULES) and "+    pgdat.huge_zero_refcount.store(0)" in text
