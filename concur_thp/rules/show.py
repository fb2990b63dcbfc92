"""Rules on the terminal: the table of all, and one with everything about it."""

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from concur_thp.rules.rule import NEEDS, SYMPTOMS, Rule, Variant
from concur_thp.rules.table import RULES, diffs, resolve


def print_rules(out: Console) -> None:
    """Every rule in a line or two."""
    table = Table(box=None, pad_edge=False, row_styles=("", "dim"))
    table.add_column("rule", style="bold", no_wrap=True)
    table.add_column("statement", ratio=3)
    table.add_column("enforced in", ratio=1, overflow="fold")
    table.add_column("broken", justify="right", no_wrap=True)
    for rule in RULES:
        functions = dict.fromkeys(at.function for at in rule.enforced_in)
        statement = rule.statement if not rule.out_of_scope else f"{rule.statement} (not here: {rule.out_of_scope})"
        table.add_row(rule.id, escape(statement), escape(", ".join(functions)), str(len(rule.variants) or ""))
    out.print(table)
    variants = sum(len(rule.variants) for rule in RULES)
    out.print(f"\n{len(RULES)} rules, {variants} broken variants; `concur-thp rules show ID` has the whole of one")


def print_rule(out: Console, rule: Rule, only: list[Variant]) -> None:
    """One rule: what, where from, where enforced, and `only` these broken variants with their diffs."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    rows: list[tuple[str, Any]] = [("says", rule.statement), ("source", rule.source), ("semantics", rule.semantics)]
    if rule.out_of_scope:
        rows.append(("not here", rule.out_of_scope))
    if rule.noticed_by:
        rows.append(("noticed by", ", ".join(rule.noticed_by)))
    lines = [resolve(at) for at in rule.enforced_in]
    rows += [("enforced in" if n == 0 else "", f"{line}  {line.function}\n    {line.text}") for n, line in enumerate(lines)]
    for name, value in rows:
        facts.add_row(name, Text(value))
    out.print(Panel(facts, title=rule.id, title_align="left"))
    for variant in only:
        out.print(_variant(variant))


def _variant(variant: Variant) -> Panel:
    expected = "; ".join(f"{s} ({SYMPTOMS[s]})" if s in SYMPTOMS else s for s in variant.symptoms)
    lines = [f"scenario   {variant.scenario}", f"expected   {expected}"]
    lines += [f"needs      {need}: {NEEDS[need]}" for need in variant.needs]
    parts: list[RenderableType] = [Text("\n".join(lines)), *(Syntax(d, "diff", background_color="default",
                                                                    word_wrap=True) for d in diffs(variant))]
    return Panel(Group(*parts), title=Text(f"{variant.id}  {variant.mistake}"), title_align="left")
