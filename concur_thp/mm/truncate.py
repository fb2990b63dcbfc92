"""Pages of files that nobody maps leave the page cache. (Linux: mm/truncate.c, fs/drop_caches.c)"""

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import kernel
from concur_thp.mm.filemap import delete_from_page_cache, find_get_page
from concur_thp.mm.mapcount import page_mapped
from concur_thp.mm.mm_types import MAPPING_SHIFT, POOL_FILE, files, pools
from concur_thp.mm.page_lock import lock_page, unlock_page
from concur_thp.mm.put_page import put_page


@kernel
def invalidate_mapping_pages(cpu: Cpu, file: int):
    """Drop every page of a file that is not mapped.

    Context: may sleep.
    Return: how many.
    Linux: mm/truncate.c invalidate_mapping_pages
    Differs: dirty pages go too; there is no disk to keep them for, so their content is lost (as by truncation). So do pages
    that somebody has a reference of; and a locked one is waited for, not left out.
    """
    dropped = 0
    index = 0
    while index < files[file].size and files[file].nrpages != 0:
        page = find_get_page(cpu, file, index)
        if page:
            lock_page(cpu, page)
            # Mapped or not is stable: a fault maps a page under its lock.
            if page.mapping == file << MAPPING_SHIFT and not page_mapped(page):
                delete_from_page_cache(cpu, page)
                dropped += 1
            unlock_page(cpu, page)
            put_page(cpu, page)
        index += 1
    return dropped


def drop_caches(cpu: Cpu) -> int:
    """Drop every unmapped page of every file; returns how many. (Linux: fs/drop_caches.c)"""
    numbers = range(1, pools[POOL_FILE].limit + 1)
    return sum(invalidate_mapping_pages(cpu, number) for number in numbers if files[number].nrpages)
