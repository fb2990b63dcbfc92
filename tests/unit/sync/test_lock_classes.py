"""The table of locks holds together."""

from concur_thp.arch.cpu import NR_LOCK_CLASSES
from concur_thp.sync.lock_classes import CLASS_ID, FIRST_USER_CLASS, LOCK_CLASSES, SPIN_CLASSES


def test_rows_are_in_rank_order_and_fit():
    ranks = [row.rank for row in LOCK_CLASSES]
    assert ranks == sorted(set(ranks)) and len(LOCK_CLASSES) <= FIRST_USER_CLASS < NR_LOCK_CLASSES


def test_names_give_the_class_number():
    assert all(LOCK_CLASSES[number].name == name for name, number in CLASS_ID.items())
    assert len(CLASS_ID) == len(LOCK_CLASSES)


def test_a_nested_class_follows_its_class():
    nested = [row for row in LOCK_CLASSES if row.name.endswith("/1")]
    assert {row.name for row in nested} == {"mmap_sem/1", "pmd_ptl/1", "pte_ptl/1"}
    for row in nested:
        outer = LOCK_CLASSES[CLASS_ID[row.name] - 1]
        assert row.name == f"{outer.name}/1" and (row.kind, row.irq) == (outer.kind, outer.irq)
        assert "/1" in outer.nesting or outer.name == "mmap_sem"


def test_who_may_sleep():
    assert {row.name for n, row in enumerate(LOCK_CLASSES) if n and not SPIN_CLASSES >> n & 1} == {
        "mmap_sem", "mmap_sem/1", "page_lock", "i_mmap_rwsem", "anon_vma_rwsem"}
    assert all(not row.sleeps for row in LOCK_CLASSES if row.irq), "irqs are off: nobody sleeps"
