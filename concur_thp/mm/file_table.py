"""Files: made, referred to by each vma that maps one, and gone with the last. (Linux: fs/file_table.c, fs/inode.c; struct file
and inode are one here)

A file with a name (id not 0) outlives its mappings; shared anonymous memory goes with its last one.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, Struct, atomic
from concur_thp.mm.errno import EINVAL, ENOMEM
from concur_thp.mm.mm_types import POOL_FILE, files, mm_globals
from concur_thp.mm.slab import kmem_cache_alloc, kmem_cache_free
from concur_thp.mm.truncate import invalidate_mapping_pages
from concur_thp.sync.lock_classes import I_MMAP_RWSEM, I_PAGES
from concur_thp.sync.rwsem import init_rwsem
from concur_thp.sync.spinlock import spin_lock_init, spin_lock_irq, spin_unlock_irq


class FileRef(Struct, size=4, align=4):
    """The users of one file."""

    f_count = atomic(I32, "vmas that map it, in the tree or on their way")


file_refs = SharedArray("file_refs", FileRef, lambda c: c.files + 1)


@kernel
def file_alloc(cpu: Cpu, nr_pages: int, id: int):
    """A file of `nr_pages` pages with nothing cached.

    `id` 0 is shared anonymous memory; any other number is what the content is made from.

    Context: any.
    Return: its number; -EINVAL when a file cannot be that long, -ENOMEM when there are no more files.
    Linux: mm/shmem.c shmem_file_setup
    """
    if nr_pages < 1 or nr_pages > mm_globals.file_pages:
        return -EINVAL
    file = kmem_cache_alloc(cpu, POOL_FILE)
    if file == 0:
        return -ENOMEM
    mapping = files[file]
    spin_lock_init(mapping.i_pages, I_PAGES)
    init_rwsem(mapping.i_mmap_rwsem, I_MMAP_RWSEM)
    mapping.i_mmap = 0
    mapping.nrpages = 0
    mapping.size = nr_pages
    mapping.id = id
    return file


@kernel
def file_free(cpu: Cpu, file: int):
    """The last mapping of a file is gone and it has no name: drop its pages, and the file.

    Context: may sleep; takes page locks and i_pages. Nobody can map the file; who has found a page of it may be dropping it.
    Linux: fs/inode.c evict, clear_inode
    """
    invalidate_mapping_pages(cpu, file)
    mapping = files[file]
    # Who took the last page out (drop_caches, in Linux reclaim too) has counted nrpages down and may still hold the lock, which
    # must not become another file's under his hands.
    spin_lock_irq(cpu, mapping.i_pages)
    left = mapping.nrpages
    spin_unlock_irq(cpu, mapping.i_pages)
    bug_on(cpu, left != 0 or mapping.i_mmap != 0, "file_free: still in use (values: file, pages)", file, left)
    kmem_cache_free(cpu, POOL_FILE, file)


@inline
def get_file(file: int):
    """One more vma maps `file`; 0 is no file."""
    if file != 0:
        file_refs[file].f_count.add(1)


@kernel
def fput(cpu: Cpu, file: int):
    """A vma that mapped `file` is gone, out of i_mmap already; 0 is no file.

    Context: no spinlock, no rmap lock: the last one drops the cached pages of shared anonymous memory.
    Linux: fs/file_table.c fput
    """
    if file == 0:
        return 0
    old = file_refs[file].f_count.sub(1)
    bug_on(cpu, old <= 0, "fput: file has no reference (value: file)", file, old)
    if old == 1 and files[file].id == 0:
        file_free(cpu, file)
    return 0
