"""The 39 scenarios of semantics 6 as programs, each with what its column `cmp` lets us compare."""

from typing import NamedTuple

from stress.compare.steps import Program, parse


class Row(NamedTuple):
    """One scenario."""

    number: int
    name: str
    cmp: str
    """Letters of facts.LETTERS; '' when it cannot be run on both sides."""
    text: str
    why_not: str = ""

    @property
    def program(self) -> Program:
        return parse(self.text)


HUGE = "0 mmap 0 512 rw; 0 huge 0 512; "
FULL = HUGE + "0 store 0 512; "
ZERO = HUGE + "0 load 0 1; "
SHARED = FULL + "0 fork 1; "
NO_SHMEM = "the emulator has no huge pages of files"

ROWS = (
    Row(1, "first write", "A F X M", FULL),
    Row(2, "munmap whole", "A S F X M", FULL + "0 munmap 0 512"),
    Row(2, "exit", "A S F X M", SHARED + "0 munmap 0 512; 1 exit"),
    Row(3, "first read", "A F X M", ZERO),
    Row(4, "write after read", "A F X M", ZERO + "0 store 0 512"),
    Row(5, "DONTNEED whole", "A S F X M", FULL + "0 dontneed 0 512"),
    Row(6, "DONTNEED one page", "A S D X M", FULL + "0 dontneed 7 1"),
    Row(7, "write to the hole", "A F X M", FULL + "0 dontneed 7 1; 0 store 7 1"),
    Row(8, "DONTNEED in halves", "A S D X M", FULL + "0 dontneed 0 256; 0 dontneed 256 256"),
    Row(9, "mprotect first page, restore, DONTNEED whole", "A S X M",
        FULL + "0 mprotect 0 1 r; 0 mprotect 0 1 rw; 0 dontneed 0 512"),
    Row(10, "the same, first write again", "X",
        FULL + "0 mprotect 0 1 r; 0 mprotect 0 1 rw; 0 dontneed 0 512; 0 store 0 512"),
    Row(11, "munmap last page", "A S D X M", FULL + "0 munmap 511 1"),
    Row(11, "mremap shrink into the THP", "A S D X M", FULL + "0 mremap 0 512 0 300"),
    Row(11, "munmap from the middle over the next hole", "A S D X M",
        FULL + "0 munmap 256 512"),
    Row(12, "mprotect whole read-only, back, write", "A S F X M",
        FULL + "0 mprotect 0 512 r; 0 mprotect 0 512 rw; 0 store 0 512"),
    Row(13, "mremap to an aligned address", "A S X M", FULL + "0 mremap 0 512 1024 512"),
    Row(14, "mremap to a misaligned address", "A S D X M", FULL + "0 mremap 0 512 1025 512"),
    Row(14, "mremap of a part", "A S D X M", FULL + "0 mremap 100 200 1100 200"),
    Row(15, "NOHUGEPAGE on a part", "A S X M", FULL + "0 nohuge 0 256"),
    Row(15, "mlock and munlock of a part", "A S X M", FULL + "0 mlock 0 256; 0 munlock 0 256"),
    Row(16, "NOHUGEPAGE on the whole", "A S X M", FULL + "0 nohuge 0 512"),
    Row(16, "mlock of the whole", "A S X M", FULL + "0 mlock 0 512; 0 munlock 0 512"),
    Row(17, "fork", "A S F X M", SHARED),
    Row(18, "the child writes while shared", "X", SHARED + "1 store 3 1; 0 load 0 512; 1 load 0 512"),
    Row(18, "the parent writes while shared", "X", SHARED + "0 store 3 1; 0 load 0 512; 1 load 0 512"),
    Row(19, "write after the other process is gone", "A S F X M", SHARED + "1 exit; 0 store 5 1"),
    Row(19, "the same in the child", "A S F X M", SHARED + "0 exit; 1 store 5 1"),
    Row(20, "parent DONTNEEDs a page, child has the pmd", "A S D X M", SHARED + "0 dontneed 7 1"),
    Row(21, "then the child exits", "D X", SHARED + "0 dontneed 7 1; 1 exit"),
    Row(21, "then the child unmaps whole", "D X", SHARED + "0 dontneed 7 1; 1 munmap 0 512"),
    Row(21, "the parent pte-maps every page, the child exits", "D X", SHARED + "0 mprotect 7 1 r; 1 exit"),
    Row(22, "child DONTNEEDs the same page", "A S D X M", SHARED + "0 dontneed 7 1; 1 dontneed 7 1"),
    Row(23, "fork of a pte-mapped THP, child writes, parent writes after its exit", "A S F X M",
        FULL + "0 mprotect 0 1 r; 0 mprotect 0 1 rw; 0 fork 1; 1 store 9 1; 1 exit; 0 store 9 1"),
    Row(24, "huge zero page: fork, child writes", "A F X M", ZERO + "0 fork 1; 1 store 0 1"),
    Row(25, "huge zero page: DONTNEED of a part, write", "A S X M", ZERO + "0 dontneed 7 1; 0 load 7 1; 0 store 7 1"),
    Row(25, "huge zero page: mprotect of a part, write", "A S X M", ZERO + "0 mprotect 7 1 r; 0 store 9 1"),
    Row(26, "MADV_FREE whole", "A S P X M", FULL + "0 free 0 512; 0 store 4 1"),
    Row(27, "MADV_FREE of a part", "A S P X M", FULL + "0 free 0 100"),
    Row(28, "the same with untouched pages", "X", HUGE + "0 store 0 200; 0 free 0 100"),
    Row(29, "shrinker after a partial unmap", "A P X M", FULL + "0 dontneed 0 256; 0 drop_caches; 0 store 0 1"),
    Row(30, "the same with a page pinned, then not", "A P failed X M",
        FULL + "0 dontneed 0 256; 0 pin 300 1; 0 drop_caches; 0 unpin; 0 drop_caches"),
    Row(31, "vma not huge-aligned", "A F X M", "0 mmap 100 600 rw; 0 huge 100 600; 0 store 100 600"),
    Row(31, "PR_SET_THP_DISABLE", "A F X M", "0 thp_disable; " + FULL),
    Row(32, "remote read of an untouched region, remote write", "A F X M", HUGE + "0 remote_load 3 1; 0 remote_store 3 1"),
    Row(33, "tmpfs huge=always: shared write", "", "", NO_SHMEM),
    Row(34, "33, DONTNEED one page; touch again", "", "", NO_SHMEM),
    Row(35, "33 mapped private, read, write", "", "", NO_SHMEM),
    Row(36, "truncate into a file THP", "", "", NO_SHMEM),
    Row(37, "MADV_COLLAPSE of 512 small pages", "A X M",
        "0 mmap 0 512 rw; 0 nohuge 0 512; 0 store 0 512; 0 huge 0 512; 0 collapse 0 512"),
    Row(38, "MADV_COLLAPSE of nothing", "A X M", HUGE + "0 collapse 0 512"),
    Row(38, "MADV_COLLAPSE with NOHUGEPAGE", "A X M",
        "0 mmap 0 512 rw; 0 nohuge 0 512; 0 store 0 512; 0 collapse 0 512"),
    Row(38, "MADV_COLLAPSE with a page pinned", "A X M",
        "0 mmap 0 512 rw; 0 nohuge 0 512; 0 store 0 512; 0 huge 0 512; 0 pin 9 1; 0 collapse 0 512; 0 unpin"),
    Row(39, "MADV_PAGEOUT without swap", "", "", "v4.20 has no MADV_PAGEOUT (since v5.4)"),
)
