"""Addresses of the scene in conftest.py, and its tables."""

from typing import Any

from concur_thp.mm.mm_types import tables
from concur_thp.mm.pgtable import mm_pmd

PAGE, HUGE = 0x1000, 0x8000
THP, HOLES, ZERO, SMALL, FILE, SHARED = 0x80000, 0x90000, 0x98000, 0x101000, 0x180000, 0x1C0000


def pmd_table_of(scene: Any, addr: int) -> int:
    return (int(mm_pmd(scene.mm, addr)) - int(tables.base)) // tables.stride


def pte_table_of(scene: Any, addr: int) -> int:
    return int(mm_pmd(scene.mm, addr).val.read()) >> 12
