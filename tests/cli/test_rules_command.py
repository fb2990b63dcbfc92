"""`concur-thp rules`: the table, one rule, JSON, and wrong names."""

import json

import pytest

from concur_thp import cli
from concur_thp.rules.table import RULES, VARIANTS


def test_rules_lists_them_all(capsys):
    assert cli.run(["rules"]) == 0
    out, err = capsys.readouterr()
    assert not err and "R18" in out and f"{len(RULES)} rules, {len(VARIANTS)} broken variants" in out


def test_rules_json_goes_alone_to_standard_output(capsys):
    assert cli.run(["rules", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [rule["id"] for rule in data] == [rule.id for rule in RULES]
    assert all({"id", "statement", "source", "enforced_in", "variants"} <= rule.keys() for rule in data)


@pytest.mark.parametrize("name, has, has_not", [("R18", "R18b", "R19"), ("r18a", "if True", "R18b  "),
                                                ("R25", "not here", "expected")])
def test_show_has_the_statement_its_place_and_the_diff(capsys, name, has, has_not):
    assert cli.run(["rules", "show", name]) == 0
    out = capsys.readouterr().out
    assert ".py:" in out and has in out and has_not not in out


def test_show_json(capsys, tmp_path):
    path = tmp_path / "rule.json"
    assert cli.run(["rules", "show", "K17", "--json", str(path), "--quiet"]) == 0
    assert not capsys.readouterr().out
    assert json.loads(path.read_text())["variants"][0]["diffs"][0].startswith("--- a/concur_thp/mm/")


@pytest.mark.parametrize("name, said", [("R81z", "near are"), ("pizza", "lists them")])
def test_unknown_names_are_one_line(capsys, name, said):
    assert cli.run(["rules", "show", name]) == 2
    err = capsys.readouterr().err
    assert err.startswith("concur-thp: there is no rule") and said in err and err.count("\n") == 1
