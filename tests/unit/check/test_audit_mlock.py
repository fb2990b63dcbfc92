"""What the laws about mlock say, and to whom. (That they speak and keep silent: test_audit_catches.py, _allows.py.)"""

from concur_thp.check.audit import audit
from concur_thp.mm.mm_types import mem_map
from concur_thp.mm.page_flags import PG_mlocked, PG_unevictable
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.syscall import sys_mlock, sys_munlock
from concur_thp.mm.vmstat import Stat
from tests.unit.check.conftest import HUGE, PAGE, SMALL, THP


def said(scene) -> list[str]:
    return [violation.what for violation in audit(scene.config, only={"I21", "locked_vm"}).violations]


def test_a_mark_without_its_list(scene):
    assert sys_mlock(scene.cpu, SMALL, PAGE) == 0
    lru_add_drain(scene.cpu)
    scene.page(SMALL).flags.and_(~(1 << PG_unevictable))
    assert said(scene) == [f"pfn {scene.pfn(SMALL):#x} on the LRU has PG_mlocked 1 and PG_unevictable 0"]


def test_a_mark_that_munlock_forgot(scene):
    assert sys_mlock(scene.cpu, SMALL, 2 * PAGE) == 0 and sys_munlock(scene.cpu, SMALL, PAGE) == 0
    lru_add_drain(scene.cpu)
    scene.page(SMALL).flags.or_(1 << PG_mlocked | 1 << PG_unevictable)
    assert said(scene) == [f"pfn {scene.pfn(SMALL):#x} has PG_mlocked and no VM_LOCKED vma maps it"]


def test_a_marked_tail(scene):
    assert sys_mlock(scene.cpu, THP, HUGE) == 0
    head = scene.pfn(THP)
    mem_map[head + 3].flags.or_(1 << PG_mlocked)
    assert said(scene) == [f"tail pfn {head + 3:#x} has PG_mlocked"]


def test_the_count_of_an_mm(scene):
    assert sys_mlock(scene.cpu, THP, HUGE) == 0
    assert scene.cpu.vmstat[int(Stat.NR_MLOCK)] == 8 == scene.mm.locked_vm
    scene.mm.locked_vm = 7
    assert said(scene) == [f"mm {scene.mm.id}: locked_vm is 7, its VM_LOCKED vmas have 8 pages"]
