"""What bug() reported, with statements in place of their numbers: broken guards and races name the source line."""

from concur_thp.arch.bug import describe_bug
from concur_thp.arch.checked import sites
from concur_thp.arch.linker import texts
from concur_thp.arch.system import system
from concur_thp.check.lock_stat import class_name

GUARD, RACE = "guard broken: ", "race: "


def statement(number: int) -> str:
    """'zap_pte_range() at zap.py:120: `entry = ...`'"""
    site = sites().get(number)
    if site is None:
        return f"statement {number:#x}"
    return f"{site.function}() at {site.file.rpartition('/')[2]}:{site.line}: `{site.text}`"


def explain_bug() -> str:
    """As describe_bug(); the values of a broken guard or a race are said in words."""
    text = texts().get(system.bug_text, "")
    what, _, _ = text.partition(" (values")
    if text.startswith(GUARD):
        held = [class_name(n) for n in range(32) if system.bug_b >> n & 1]
        return f"{what}, in {statement(system.bug_a)} on cpu {system.bug_cpu}, which holds {', '.join(held) or 'nothing'}"
    if text.startswith(RACE):
        return f"{what}: {statement(system.bug_a)} on cpu {system.bug_cpu}; before that {statement(system.bug_b)}"
    return describe_bug()


__all__ = ["explain_bug", "statement"]
