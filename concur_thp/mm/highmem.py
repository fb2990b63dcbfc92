"""Clearing and copying the contents of frames. (Linux: include/linux/highmem.h; mm/memory.c)"""

from concur_thp.arch.builtins import clear_bytes, copy_bytes
from concur_thp.arch.linker import inline, kernel
from concur_thp.config import FRAME_WORDS, HPAGE_PMD_NR
from concur_thp.mm.mm_types import Page, frames
from concur_thp.mm.page_flags import page_to_pfn

FRAME_BYTES = 8 * FRAME_WORDS


@inline
def clear_frames(pfn: int, count: int):
    """Zero `count` frames from `pfn` on."""
    clear_bytes(frames[pfn], count * FRAME_BYTES)


@inline
def clear_page(page: Page):
    clear_bytes(frames[page_to_pfn(page)], FRAME_BYTES)


@inline
def copy_page(to: Page, source: Page):
    copy_bytes(frames[page_to_pfn(to)], frames[page_to_pfn(source)], FRAME_BYTES)


@kernel
def clear_huge_page(page: Page):
    """Zero a huge page.

    Context: the page is not mapped yet.
    Linux: mm/memory.c clear_huge_page
    Differs: in one go; Linux leaves the faulting subpage for last.
    """
    clear_bytes(frames[page_to_pfn(page)], HPAGE_PMD_NR * FRAME_BYTES)


@kernel
def copy_huge_page(to: Page, source: Page):
    """Copy a huge page.

    Context: `to` is not mapped yet; nobody writes to `source`.
    Linux: mm/memory.c copy_user_huge_page
    """
    copy_bytes(frames[page_to_pfn(to)], frames[page_to_pfn(source)], HPAGE_PMD_NR * FRAME_BYTES)
