"""mlock and munlock: which pages are marked, what is counted, what they refuse."""

import pytest

from concur_thp.arch.system import system
from concur_thp.check.audit import audit
from concur_thp.config import HPAGE_PMD_NR, HPAGE_PMD_SIZE, PAGE_SIZE
from concur_thp.mm.do_mlock import do_mlock, do_munlock
from concur_thp.mm.errno import EAGAIN, EINVAL, ENOMEM
from concur_thp.mm.flags import MADV_DONTNEED, PROT_NONE, PROT_READ, PROT_WRITE, VM_LOCKED
from concur_thp.mm.madvise import do_madvise
from concur_thp.mm.migrate import NEW_PAGE
from concur_thp.mm.mm_types import mem_map
from concur_thp.mm.move_pages import migrate_pfn
from concur_thp.mm.mprotect import do_mprotect
from concur_thp.mm.mremap import do_mremap
from concur_thp.mm.page_flags import PageDoubleMap, PageHead, PG_mlocked, PG_unevictable, TestFlag
from concur_thp.mm.pgtable import entry_pfn, pmd_trans_huge
from concur_thp.mm.swap import lru_add_drain
from concur_thp.mm.thp_sysfs import set_switch
from concur_thp.mm.vma_prot import mmap_switches
from concur_thp.mm.vmstat import vmstat
from concur_thp.rules.edit import Delete, Rewrite
from concur_thp.rules.variant import broken

ADDR = 1 << 26


def mlock(task, page: int, pages: int) -> int:
    return do_mlock(task.cpu, task.mm, ADDR + page * PAGE_SIZE, pages * PAGE_SIZE)


def munlock(task, page: int, pages: int) -> int:
    return do_munlock(task.cpu, task.mm, ADDR + page * PAGE_SIZE, pages * PAGE_SIZE)


def state(task) -> tuple[int, int]:
    return task.mm.locked_vm, vmstat()["NR_MLOCK"]


def flags_of(task, page: int) -> int:
    lru_add_drain(task.cpu)
    return task.page(ADDR + page * PAGE_SIZE).flags.read() >> PG_unevictable & 3  # unevictable | mlocked << 1


def test_a_part_is_locked_and_faulted_in(new_task):
    task = new_task()
    task.mmap(ADDR, 8)
    task.store(ADDR, 5)
    assert mlock(task, 0, 3) == 0 and state(task) == (3, 3)
    assert [flags_of(task, page) for page in range(3)] == [3, 3, 3]
    assert task.pte(ADDR + 3 * PAGE_SIZE).val.read() == 0
    assert task.vma(ADDR).vm_end == ADDR + 3 * PAGE_SIZE and task.load(ADDR) == 5
    task.store(ADDR + 5 * PAGE_SIZE, 1)
    assert mlock(task, 1, 5) == 0 and state(task) == (6, 6)
    assert munlock(task, 2, 2) == 0 and state(task) == (4, 4)
    assert [flags_of(task, page) for page in range(6)] == [3, 3, 0, 0, 3, 3]
    assert munlock(task, 0, 8) == 0 and state(task) == (0, 0)
    assert task.mm.map_count == 1


def test_faults_in_a_locked_vma_mark_their_page(new_task):
    task = new_task()
    task.mmap(ADDR, 4)
    assert mlock(task, 0, 4) == 0
    vma = task.vma(ADDR)
    assert task.munmap(ADDR, 1) == 0 and state(task) == (3, 3)
    task.mmap(ADDR, 1)
    assert mlock(task, 0, 1) == 0 and vma.vm_flags & VM_LOCKED and state(task) == (4, 4)


def test_limits_and_errors(new_task):
    task = new_task()
    limit = mmap_switches.memlock
    task.mmap(ADDR, limit + 8)
    assert mlock(task, 0, limit + 1) == -ENOMEM and state(task) == (0, 0)
    assert mlock(task, 0, 4) == 0
    assert mlock(task, 0, limit) == 0, "what is locked already does not count twice"
    assert mlock(task, limit, 1) == -ENOMEM and task.mm.locked_vm == limit
    assert do_mremap(task.cpu, task.mm, ADDR, limit * PAGE_SIZE, (limit + 1) * PAGE_SIZE, 0) == -EAGAIN
    assert do_mlock(task.cpu, task.mm, -PAGE_SIZE, PAGE_SIZE) == -EINVAL
    assert munlock(task, 0, limit) == 0
    assert task.munmap(ADDR + 2 * PAGE_SIZE, 1) == 0
    assert mlock(task, 0, 4) == -ENOMEM and state(task) == (2, 0), "up to the hole the flag is set, nothing is faulted in"
    assert munlock(task, 0, 4) == -ENOMEM and state(task) == (0, 0)
    do_mprotect(task.cpu, task.mm, ADDR, PAGE_SIZE, PROT_NONE)
    assert mlock(task, 0, 1) == -ENOMEM and task.mm.locked_vm == 1


def test_dontneed_of_locked_memory_is_refused(new_task):
    task = new_task()
    task.mmap(ADDR, 1)
    task.store(ADDR, 5)
    assert mlock(task, 0, 1) == 0
    assert do_madvise(task.cpu, task.mm, ADDR, PAGE_SIZE, MADV_DONTNEED) == -EINVAL and task.load(ADDR) == 5


def test_a_huge_page_is_marked_whole_and_unmarked_by_the_split(new_task):
    task = new_task()
    n = int(HPAGE_PMD_NR)
    set_switch("enabled", "always")
    task.mmap(ADDR, n)
    assert mlock(task, 0, n) == 0 and pmd_trans_huge(task.pmd(ADDR)) and state(task) == (n, n)
    set_switch("enabled", "never")
    # Half of it: the pmd is split, and a THP mapped by ptes is not marked (I21).
    assert munlock(task, 0, n // 2) == 0
    assert not pmd_trans_huge(task.pmd(ADDR)) and state(task) == (n // 2, 0)
    assert munlock(task, n // 2, n // 2) == 0


def test_a_huge_page_is_unlocked_in_one_step(new_task):
    task = new_task()
    n = int(HPAGE_PMD_NR)
    set_switch("enabled", "always")
    task.mmap(ADDR, n)
    assert mlock(task, 0, n) == 0
    assert munlock(task, 0, n) == 0 and state(task) == (0, 0) and pmd_trans_huge(task.pmd(ADDR))


@pytest.mark.parametrize("how", ["munmap", "exit"])
def test_a_page_that_others_map_does_not_stay_locked_for_one_that_goes(new_task, how):
    task = new_task()
    task.mmap(ADDR, 2)
    task.store(ADDR, 5)
    parent = task.mm
    assert mlock(task, 0, 2) == 0
    child = task.fork()
    assert child.locked_vm == 0 and vmstat()["NR_MLOCK"] == 2
    if how == "munmap":
        assert task.munmap(ADDR, 2) == 0 and state(task) == (0, 0)
    else:
        task.exit(parent)
        assert vmstat()["NR_MLOCK"] == 0
    task.run_in(child)
    assert flags_of(task, 0) == 0 and task.load(ADDR) == 5


def test_a_write_copies_away_from_a_locked_page(new_task):
    task = new_task()
    task.mmap(ADDR, 1)
    task.store(ADDR, 5)
    assert mlock(task, 0, 1) == 0
    child = task.fork()
    old = task.page(ADDR)
    task.store(ADDR, 6)
    assert flags_of(task, 0) == 3 and not TestFlag(old, PG_mlocked) and state(task) == (1, 1)
    task.run_in(child)
    assert task.load(ADDR) == 5


def test_two_lockers_of_one_page(new_task):
    """The one that unlocks leaves the mark to the other (try_to_munlock)."""
    task = new_task()
    task.mmap(ADDR, 1, prot=PROT_READ)
    do_mprotect(task.cpu, task.mm, ADDR, PAGE_SIZE, PROT_READ | PROT_WRITE)
    task.store(ADDR, 5)
    do_mprotect(task.cpu, task.mm, ADDR, PAGE_SIZE, PROT_READ)  # So that mlock does not break the sharing.
    parent, child = task.mm, task.fork()
    assert mlock(task, 0, 1) == 0
    task.run_in(child)
    assert mlock(task, 0, 1) == 0 and vmstat()["NR_MLOCK"] == 1
    assert munlock(task, 0, 1) == 0 and flags_of(task, 0) == 3, "the parent still wants it"
    task.run_in(parent)
    assert munlock(task, 0, 1) == 0 and flags_of(task, 0) == 0


def test_mremap_takes_the_lock_along(new_task):
    task = new_task()
    task.mmap(ADDR, 2)
    assert mlock(task, 0, 2) == 0
    target = ADDR + 8 * int(HPAGE_PMD_SIZE)
    assert do_mremap(task.cpu, task.mm, ADDR, 2 * PAGE_SIZE, 4 * PAGE_SIZE, target) == target
    assert state(task) == (4, 4), "the new part is faulted in"
    assert do_mremap(task.cpu, task.mm, target, 4 * PAGE_SIZE, 6 * PAGE_SIZE, target) == target and state(task) == (6, 6)
    assert do_mremap(task.cpu, task.mm, target, 6 * PAGE_SIZE, PAGE_SIZE, target) == target and state(task) == (1, 1)


def test_a_migrated_page_with_pmd_and_pte_mappings_is_not_marked(new_task):
    """K10: it comes back without PG_double_map, so the mark is not asked for its ptes; it would be one of a pte-mapped THP."""
    task = new_task()
    n = int(HPAGE_PMD_NR)
    set_switch("enabled", "always")
    task.mmap(ADDR, n)
    task.store(ADDR, 5)
    child = task.fork()
    assert do_mprotect(task.cpu, task.mm, ADDR, PAGE_SIZE, PROT_READ) == 0  # The parent's pmd is split.
    lru_add_drain(task.cpu)
    assert migrate_pfn(task.cpu, mem_map[entry_pfn(task.pte(ADDR).val.read())], NEW_PAGE) == 0
    head = mem_map[entry_pfn(task.pte(ADDR).val.read())]
    assert PageHead(head) and not PageDoubleMap(head)
    task.run_in(child)
    assert do_mprotect(task.cpu, task.mm, ADDR, n * PAGE_SIZE, PROT_READ) == 0  # So that mlock does not copy.
    assert mlock(task, 0, n) == 0 and pmd_trans_huge(task.pmd(ADDR)) and not TestFlag(head, PG_mlocked)
    with broken((Rewrite("mlock_huge_page", "if head.mapping != 0 and ...", "mapped_by_ptes(head)", "False"),), "k10_mlock"):
        assert mlock(task, 0, n) == 0 and TestFlag(head, PG_mlocked)
    assert "I21" in audit(task.machine.config).laws()
    assert munlock(task, 0, n) == 0


@pytest.mark.parametrize("edits, law", [
    ((Delete("do_munmap", "munlock_vmas(...)"),), "I21"),
    ((Delete("wp_page_copy", "munlock_copied_page(...)"),), "I21"),
    ((Delete("mlock_fixup", "mm.locked_vm = mm.locked_vm - pages"),), "locked_vm"),
], ids=["munmap", "copy", "count"])
def test_what_the_audit_says_when_one_of_them_is_forgotten(new_task, edits, law):
    task = new_task()
    task.mmap(ADDR, 3)
    task.store(ADDR, 5)
    task.store(ADDR + PAGE_SIZE, 6)
    with broken(edits, "mlock_forgotten"):
        assert mlock(task, 0, 3) == 0
        task.fork()
        task.store(ADDR, 7)
        assert munlock(task, 2, 1) == 0
        assert task.munmap(ADDR + PAGE_SIZE, 1) == 0
    lru_add_drain(task.cpu)
    assert law in audit(task.machine.config).laws()
    system.panicked.store(1)  # Broken for good: the machine is not to be audited once more.


def test_who_only_moves_is_not_asked_for_the_limit(new_task):
    """The limit has become smaller since: what is locked stays so, wherever it goes."""
    task = new_task()
    task.mmap(ADDR, 4)
    assert do_mlock(task.cpu, task.mm, ADDR, 4 * PAGE_SIZE) == 0
    limit, mmap_switches.memlock = mmap_switches.memlock, 2
    new = ADDR + 64 * PAGE_SIZE
    assert do_mremap(task.cpu, task.mm, ADDR, 4 * PAGE_SIZE, 4 * PAGE_SIZE, new) == new
    assert do_mremap(task.cpu, task.mm, new, 4 * PAGE_SIZE, 5 * PAGE_SIZE, 0) == -EAGAIN
    mmap_switches.memlock = limit
    assert task.mm.locked_vm == 4
