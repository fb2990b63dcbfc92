"""What bug() reported, in words."""

from concur_thp.arch.builtins import text_id
from concur_thp.arch.checked import sites
from concur_thp.arch.guard_words import message
from concur_thp.arch.system import system
from concur_thp.check.broken_rule import explain_bug, statement
from concur_thp.machine import Machine
from concur_thp.mm.mm_types import Vma
from concur_thp.sched.races import TEXT_WRITE
from concur_thp.sync.lock_classes import MMAP_SEM


def test_guards_and_races_name_statements_and_locks():
    with Machine(cpus=1, memory="1M", order=3, mms=4, vmas=64):
        number, site = next((n, s) for n, s in sites().items() if s.function == "zap_pte_range")
        system.bug_text, system.bug_a, system.bug_b = text_id(message(Vma.FIELDS["vm_end"], True)), number, 1 << MMAP_SEM
        text = explain_bug()
        assert text.startswith("guard broken: Vma.vm_end written without mmap_sem, in zap_pte_range() at ")
        assert site.text in text and text.endswith("on cpu 0, which holds mmap_sem")
        system.bug_text, system.bug_b = TEXT_WRITE, number
        assert explain_bug().count(site.text) == 2
        system.bug_text = text_id("spinlock recursion (value: class)")
        assert explain_bug().startswith("spinlock recursion")
        assert statement(1) == "statement 0x1"
