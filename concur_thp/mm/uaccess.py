"""What a program's load or store does: TLB, else page tables, else page fault. (Linux: arch/x86/mm/fault.c)

The processor walks the tables without any lock. What keeps it safe is the flusher's wait: whoever frees a
page or a table first takes the entry down, then waits until every CPU has served its request. So between two
polls a CPU may use what it loaded, and it polls before each access and never between looking an entry up and
using it. An access is one instruction: interrupts, and so those requests, wait for its end, or for its fault.
"""

from concur_thp.arch.bug import bug, bug_on
from concur_thp.arch.cpu import Cpu, CpuState
from concur_thp.arch.irq import ipi_poll, local_irq_disable, local_irq_enable
from concur_thp.arch.linker import inline, kernel
from concur_thp.arch.tlb import tlb_drop, tlb_fill_huge, tlb_fill_small, tlb_lookup
from concur_thp.arch.trace import Tracepoint, trace
from concur_thp.config import HPAGE_PMD_NR, PAGE_SHIFT, TASK_SIZE
from concur_thp.mm.errno import EFAULT, EHWPOISON, ENOMEM
from concur_thp.mm.flags import (
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_WRITE,
    VM_ACCESS,
    VM_FAULT_ERROR,
    VM_FAULT_HWPOISON,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_FAULT_SIGSEGV,
    VM_GROWSDOWN,
    VM_WRITE,
)
from concur_thp.mm.memory import handle_mm_fault
from concur_thp.mm.mm_types import Entry, Vma, frames, mms
from concur_thp.mm.mmap import expand_stack
from concur_thp.mm.pgtable import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_HUGE,
    _PAGE_RW,
    entry_pfn,
    hardware_walks,
    mm_pmd,
    pmd_table,
    pte_offset,
)
from concur_thp.mm.vma_tree import find_vma
from concur_thp.sync.rwsem import down_read, up_read

CPU_RUNNING = int(CpuState.RUNNING)
PF_PROT, PF_WRITE, PF_USER = 1, 2, 4
"""Bits of a fault's error code: the entry was there; a write; user mode."""
WALK_ABSENT = 0
WALK_READONLY = -1
"""What a walk returns when there is no translation, or none that may write."""
WRITABLE = _PAGE_RW | _PAGE_DIRTY
"""A cached entry that a store can use as it is; without Dirty the entry in memory has to change first."""
FAULT_LOOP = 100_000
"""Faults of one access, none of which lets it through: more is a bug, not bad luck."""


@inline
def instruction_begins(cpu: Cpu):
    """Serve what has come in, and then nothing until instruction_ends()."""
    ipi_poll(cpu)
    local_irq_disable(cpu)


@inline
def instruction_ends(cpu: Cpu):
    """The next instruction polls."""
    cpu.irq_off = cpu.irq_off - 1


@inline
def word_index(addr: int):
    """Which of a frame's 8 words stands for this byte of its 4096."""
    return (addr >> 9) & 7


@inline
def physical_frame(entry: int, addr: int):
    """The pfn that an entry, small or huge, has for `addr`."""
    pfn = entry_pfn(entry)
    return pfn + ((addr >> PAGE_SHIFT) & (HPAGE_PMD_NR - 1)) if entry & _PAGE_HUGE else pfn


@kernel
def user_load(cpu: Cpu, addr: int):
    """Load the word at `addr` as the program that runs in this CPU's mm.

    Context: user mode: nothing held. May sleep in a fault.
    Return: 0 with the word in cpu.scratch[0]; -EFAULT (SIGSEGV, SIGBUS); -EHWPOISON (SIGBUS, the data is lost); -ENOMEM.
    Emulator: a load instruction.
    """
    instruction_begins(cpu)
    entry = tlb_lookup(cpu, addr)
    if entry == 0:
        entry = translate(cpu, addr, 0)
    # No poll since the entry was looked up: the flusher that takes it down waits for us, and until then the
    # frame is ours.
    if entry >= 0:
        cpu.scratch[0] = frames[physical_frame(entry, addr)].word[word_index(addr)].load()
    instruction_ends(cpu)
    return min(entry, 0)


@kernel
def user_store(cpu: Cpu, addr: int, value: int):
    """Store a word at `addr` as the program that runs in this CPU's mm.

    Context: user mode: nothing held. May sleep in a fault.
    Return: 0; -EFAULT (SIGSEGV, SIGBUS); -EHWPOISON; -ENOMEM.
    Emulator: a store instruction.
    """
    instruction_begins(cpu)
    entry = tlb_lookup(cpu, addr)
    if entry & WRITABLE != WRITABLE:
        entry = translate(cpu, addr, 1)
    # As in user_load(): a store through a translation that is being flushed is in the frame before the
    # flusher goes on.
    if entry >= 0:
        frames[physical_frame(entry, addr)].word[word_index(addr)].store(value)
    instruction_ends(cpu)
    return min(entry, 0)


@kernel
def translate(cpu: Cpu, addr: int, write: int):
    """A TLB miss, or a hit that does not allow the access: walk, and fault until the walk succeeds. No poll follows its end.

    Context: inside an instruction; a fault interrupts it.
    Return: the entry, now in the TLB; -EFAULT; -EHWPOISON; -ENOMEM.
    Emulator: the part of an access between TLB miss and completion.
    """
    if addr < 0 or addr >= TASK_SIZE:
        return -EFAULT
    bug_on(cpu, cpu.context == 0 or cpu.state.read() != CPU_RUNNING,
           "user access on a CPU that is parked or in no mm (values: address, mm)", addr, cpu.context)
    if write and tlb_lookup(cpu, addr) & _PAGE_RW == 0:
        tlb_drop(cpu, addr)  # It forbids the store. One that only lacks Dirty stays: the processor sets that without a fault.
    tries = 0
    while tries < FAULT_LOOP:
        entry = hardware_walk(cpu, addr, write)
        if entry > 0:
            return entry
        tlb_drop(cpu, addr)
        code = PF_USER | (PF_WRITE if write else 0) | (PF_PROT if entry == WALK_READONLY else 0)
        local_irq_enable(cpu)
        error = do_user_addr_fault(cpu, addr, code)
        instruction_begins(cpu)
        if error != 0:
            return error
        tries += 1
    bug(cpu, "fault loop: the access never succeeds (values: address, write)", addr, write)
    return -EFAULT


@kernel
def hardware_walk(cpu: Cpu, addr: int, write: int):
    """Translate by the page tables and fill the TLB.

    Context: no lock: entries and whole tables may be taken down right now.
    Return: the entry, with Accessed, and for a write Dirty, set; WALK_ABSENT; WALK_READONLY.
    Emulator: the processor's page walk (1.4).
    """
    marks = _PAGE_ACCESSED | (_PAGE_DIRTY if write else 0)
    while True:
        at = mm_pmd(mms[cpu.context], addr)
        entry = at.val.load() if at else 0
        # A pmd that is being split is huge to software but not present: it must not be loaded.
        if not hardware_walks(entry):
            return WALK_ABSENT
        if pmd_table(entry):
            at = pte_offset(entry, addr)
            entry = at.val.load()
            if not hardware_walks(entry):
                return WALK_ABSENT
        if write and entry & _PAGE_RW == 0:
            return WALK_READONLY
        if set_marks(at, entry, marks):
            break
        # Software changed the entry between load and RMW: it may be gone, read-only or a table by now.
    entry = entry | marks
    if entry & _PAGE_HUGE:
        tlb_fill_huge(cpu, addr, entry)
    else:
        tlb_fill_small(cpu, addr, entry)
    return entry


@inline
def set_marks(at: Entry, entry: int, marks: int):
    """Set Accessed and Dirty by an atomic RMW that fails if the entry is no longer what was loaded."""
    return entry & marks == marks or at.val.cas(entry, entry | marks) == entry


@kernel
def do_user_addr_fault(cpu: Cpu, addr: int, error_code: int):
    """A page fault of a program.

    Context: nothing held; takes mmap_sem read. May sleep.
    Return: 0: try the access again; -EFAULT (SIGSEGV, SIGBUS); -EHWPOISON; -ENOMEM.
    Linux: arch/x86/mm/fault.c __do_page_fault
    Differs: no stack pointer that an access could be too far below; no memory is an error of the access, nobody is killed.
    """
    mm = mms[cpu.context]
    mm.faults.add(1)
    flags = FAULT_FLAG_ALLOW_RETRY | (FAULT_FLAG_WRITE if error_code & PF_WRITE else 0)
    fault = VM_FAULT_RETRY
    while fault & VM_FAULT_RETRY:
        down_read(cpu, mm.mmap_sem)
        fault = VM_FAULT_SIGSEGV
        vma = find_vma(mm, addr)
        if vma and reaches(cpu, vma, addr) and not access_error(vma, error_code):
            fault = handle_mm_fault(cpu, vma, addr, flags)
        # Once only: the second time the fault waits where it is, with mmap_sem, so that it gets on.
        flags = flags & ~FAULT_FLAG_ALLOW_RETRY
        if fault & VM_FAULT_RETRY == 0:
            up_read(cpu, mm.mmap_sem)
    trace(cpu, Tracepoint.page_fault_user, addr, error_code, fault)
    if fault & VM_FAULT_OOM:
        return -ENOMEM
    if fault & VM_FAULT_HWPOISON:
        return -EHWPOISON
    return -EFAULT if fault & VM_FAULT_ERROR else 0


@inline
def reaches(cpu: Cpu, vma: Vma, addr: int):
    """Is `addr` in this first vma above it, or can its stack grow down to there?"""
    return vma.vm_start <= addr or (vma.vm_flags & VM_GROWSDOWN != 0 and expand_stack(cpu, vma, addr) == 0)


@inline
def access_error(vma: Vma, error_code: int):
    """Does the vma forbid the access?"""
    return vma.vm_flags & (VM_WRITE if error_code & PF_WRITE else VM_ACCESS) == 0
