"""The tables of rules keep up with the code: statements are found, edits fit, words are of the closed lists."""

import re

import pytest

from concur_thp.arch.linker import texts
from concur_thp.check.audit import LAWS
from concur_thp.machine import Machine
from concur_thp.rules.edit import edited_trees
from concur_thp.rules.rule import NEEDS, SYMPTOMS
from concur_thp.rules.table import RULES, VARIANTS, resolve
from concur_thp.rules.variant import as_python

Machine._import_kernel()
LEAST_VARIANTS = 75
INVARIANTS = {f"I{n}" for n in range(1, 27)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_each_rule_says_what_where_from_and_where_it_is_enforced(rule):
    assert rule.statement.endswith(".") and rule.source and re.search(r"\d|[A-Z]", rule.semantics)
    for at in rule.enforced_in:
        line = resolve(at)
        assert line.file.startswith("concur_thp/mm/") and line.line > 1
    assert rule.variants or rule.out_of_scope, "break it, or say why nothing here can"
    assert rule.enforced_in or rule.out_of_scope


def test_every_rule_of_the_document_is_there():
    ids = [rule.id for rule in RULES]
    assert len(set(ids)) == len(ids)
    assert {f"R{n}" for n in range(1, 42)} | {f"X{n}" for n in range(1, 36)} | {"K1", "K17"} <= set(ids)
    assert sum(len(rule.variants) for rule in RULES) == len(VARIANTS) >= LEAST_VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_fits_the_code(name):
    rule, variant = VARIANTS[name]
    assert re.fullmatch(re.escape(rule.id) + "[a-z]", name)
    for source, tree in edited_trees(variant.edits).items():
        as_python(source, tree)
    assert variant.scenario and set(variant.needs) <= NEEDS.keys()


def test_symptoms_are_of_the_closed_list():
    known = SYMPTOMS.keys() | INVARIANTS | {law.id for law in LAWS}
    reports = set(texts().values())
    wrong = []
    for name, (_, variant) in VARIANTS.items():
        assert variant.symptoms, name
        for symptom in variant.symptoms:
            said = symptom.removeprefix("bug: ")
            if symptom not in known and not (said != symptom and any(text.startswith(said) for text in reports)):
                wrong.append(f"{name}: {symptom}")
        assert "none" not in variant.symptoms or variant.equivalent, name
    assert not wrong, f"an invariant, a law, the beginning of a report behind `bug: `, or one of {list(SYMPTOMS)}: {wrong}"
