"""References to files: one for each vma that maps one. (Linux: fs/file_table.c; struct file and inode are one here)

A file with a name (id not 0) outlives its mappings; shared anonymous memory goes with its last one.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.shared import SharedArray
from concur_thp.arch.struct import I32, Struct, atomic
from concur_thp.mm.filemap import file_free
from concur_thp.mm.mm_types import files


class FileRef(Struct, size=4, align=4):
    """The users of one file."""

    f_count = atomic(I32, "vmas that map it, in the tree or on their way")


file_refs = SharedArray("file_refs", FileRef, lambda c: c.files + 1)


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
