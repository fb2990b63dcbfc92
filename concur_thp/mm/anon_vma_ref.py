"""References to an anon_vma, and how to come to one from a page. (Linux: mm/rmap.c)

A page names its anon_vma without holding a reference of it, and who comes from the page has no lock yet. In Linux
the struct is SLAB_TYPESAFE_BY_RCU: it may be freed and used again at any moment, but stays an anon_vma. The same is
true here for ever, as pools never give memory back. So no RCU is needed, and everything else is as in Linux:

    the finder                                   the last unmapper
      reads page.mapping                           mapcounts to -1
      page mapped?                                 unlink_anon_vmas(): chains away
      takes the refcount unless it is 0,           refcount to 0
        or the rwsem by trylock                    rwsem locked? then wait for the finder
      page STILL mapped?  then it is the           free
        page's anon_vma and cannot go now

A struct used again may pass the first three steps, never the last. For that reason the rwsem is made only once in the
life of a struct, not at each allocation: a finder that is about to fail may hold it.
"""

from concur_thp.arch.bug import bug_on
from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import inline, kernel
from concur_thp.mm.mapcount import page_mapped
from concur_thp.mm.mm_types import (
    MAPPING_SHIFT,
    PAGE_MAPPING_ANON,
    POOL_ANON_VMA,
    AnonVma,
    Page,
    anon_vmas,
)
from concur_thp.mm.page_flags import compound_head
from concur_thp.mm.slab import kmem_cache_alloc, kmem_cache_free
from concur_thp.sync.lock_classes import ANON_VMA_RWSEM
from concur_thp.sync.lockdep import might_sleep
from concur_thp.sync.rwsem import (
    down_read,
    down_read_trylock,
    down_write,
    init_rwsem,
    rwsem_is_locked,
    up_read,
    up_write,
)

# -- lock and reference -----------------------------------------------------------------------------------------------


@inline
def anon_vma_root(anon_vma: AnonVma) -> AnonVma:
    return anon_vmas[anon_vma.root]


@inline
def anon_vma_lock_write(cpu: Cpu, anon_vma: AnonVma):
    down_write(cpu, anon_vma_root(anon_vma).rwsem)


@inline
def anon_vma_unlock_write(cpu: Cpu, anon_vma: AnonVma):
    up_write(cpu, anon_vma_root(anon_vma).rwsem)


@inline
def anon_vma_lock_read(cpu: Cpu, anon_vma: AnonVma):
    down_read(cpu, anon_vma_root(anon_vma).rwsem)


@inline
def anon_vma_unlock_read(cpu: Cpu, anon_vma: AnonVma):
    up_read(cpu, anon_vma_root(anon_vma).rwsem)


@inline
def get_anon_vma(anon_vma: AnonVma):
    anon_vma.refcount.add(1)


@inline
def put_anon_vma(cpu: Cpu, anon_vma: AnonVma):
    """Drop a reference; the last one frees. No anon_vma lock of the family held."""
    old = anon_vma.refcount.sub(1)
    bug_on(cpu, old <= 0, "put_anon_vma: no reference left (value: anon_vma)", anon_vmas.index(anon_vma), old)
    if old == 1:
        __put_anon_vma(cpu, anon_vma)


@inline
def anon_vma_inc_not_zero(anon_vma: AnonVma):
    """Take a reference unless the struct is free; 1 when taken. It may be another user's: look at the page again."""
    seen = anon_vma.refcount.read()
    now = 0
    while seen > 0:
        now = anon_vma.refcount.cas(seen, seen + 1)
        if now == seen:
            return 1
        seen = now
    return 0


@kernel
def anon_vma_alloc(cpu: Cpu) -> AnonVma:
    """An anon_vma that is its own root, with one reference.

    Context: any; never sleeps.
    Return: the anon_vma, NULL when there are no more.
    Linux: mm/rmap.c anon_vma_alloc, anon_vma_ctor
    """
    nr = kmem_cache_alloc(cpu, POOL_ANON_VMA)
    anon_vma = AnonVma(0)
    if nr != 0:
        anon_vma = anon_vmas[nr]
        # The constructor, once: no class yet means that nobody ever used this struct.
        if anon_vma.rwsem.cls == 0:
            init_rwsem(anon_vma.rwsem, ANON_VMA_RWSEM)
        anon_vma.root = nr
        anon_vma.parent = nr
        anon_vma.degree = 1  # A root's link to itself as parent, or the first vma.
        anon_vma.rb_root = 0
        anon_vma.refcount.store(1)  # Last, release: from here on finders of the last user's pages may take one too.
    return anon_vma


@kernel
def anon_vma_free(cpu: Cpu, anon_vma: AnonVma):
    """The last reference is gone.

    Context: may sleep; no anon_vma lock of the family held. The root is still there.
    Linux: mm/rmap.c anon_vma_free
    """
    nr = anon_vmas.index(anon_vma)
    might_sleep(cpu)
    bug_on(cpu, anon_vma.refcount.read() != 0 or anon_vma.rb_root != 0, "anon_vma_free: still in use (value: anon_vma)",
           nr, anon_vma.rb_root)
    # page_lock_anon_vma_read() on another CPU may have the rwsem by trylock, having seen the page mapped before it:
    #   finder: rwsem += reader (full);  page mapped?      we: mapcount -1 (full) ... refcount 0 (full);  rwsem locked?
    # One of us sees the other. If it was the finder who came first, wait until it is through with the struct.
    if rwsem_is_locked(anon_vma_root(anon_vma).rwsem):
        anon_vma_lock_write(cpu, anon_vma)
        anon_vma_unlock_write(cpu, anon_vma)
    kmem_cache_free(cpu, POOL_ANON_VMA, nr)


@kernel
def __put_anon_vma(cpu: Cpu, anon_vma: AnonVma):
    """Free an anon_vma, and its root if this was the last of the family.

    Context: may sleep; no anon_vma lock of the family held.
    Linux: mm/rmap.c __put_anon_vma
    """
    root = anon_vma_root(anon_vma)
    anon_vma_free(cpu, anon_vma)
    if root != anon_vma and root.refcount.sub(1) == 1:
        anon_vma_free(cpu, root)


# -- from a page ------------------------------------------------------------------------------------------------------


@inline
def mapping_anon_vma(mapping: int) -> AnonVma:
    """The anon_vma that a page's `mapping` names, NULL if it is no anon page's."""
    return anon_vmas[mapping >> MAPPING_SHIFT] if mapping & PAGE_MAPPING_ANON else AnonVma(0)


@inline
def page_anon_vma(page: Page) -> AnonVma:
    """The anon_vma of a page, NULL if it is not anon. Stable under the page lock only: a child that stores to the page while
    nobody else maps it moves it to its own. When nothing maps the page any more it may name a free struct, or a stranger's."""
    return mapping_anon_vma(compound_head(page).mapping)


@inline
def still_anon_mapped(head: Page, mapping: int):
    """Is the page mapped, and does it still name the anon_vma that was looked up?"""
    return page_mapped(head) and head.mapping == mapping


@kernel
def page_get_anon_vma(cpu: Cpu, page: Page) -> AnonVma:
    """The anon_vma of a mapped anon page, with a reference.

    Context: the caller has a reference of the page; no lock needed.
    Return: the anon_vma; NULL if the page is not mapped (any more).
    Linux: mm/rmap.c page_get_anon_vma
    Differs: looks for a new `mapping` too: page_move_anon_rmap() may run while the caller has no page lock.
    """
    head = compound_head(page)
    found = AnonVma(0)
    while not found:
        mapping = head.mapping
        if mapping & PAGE_MAPPING_ANON == 0 or not page_mapped(head):
            break
        anon_vma = mapping_anon_vma(mapping)
        if not anon_vma_inc_not_zero(anon_vma):
            # Free, so it cannot be this page's: unmapped, or moved to another anon_vma.
            if head.mapping == mapping:
                break
        elif still_anon_mapped(head, mapping):
            found = anon_vma
        else:
            put_anon_vma(cpu, anon_vma)
    return found


@kernel
def page_lock_anon_vma_read(cpu: Cpu, page: Page) -> AnonVma:
    """The anon_vma of a mapped anon page, locked for reading; page_unlock_anon_vma_read() gives it back.

    Context: the caller has a reference of the page. May sleep.
    Return: the anon_vma, which is the one to walk: without the page lock page_anon_vma() may be another by now. NULL if the
    page is not mapped (any more).
    Linux: mm/rmap.c page_lock_anon_vma_read
    Differs: looks for a new `mapping` too, as page_get_anon_vma().
    """
    head = compound_head(page)
    mapping = head.mapping
    if mapping & PAGE_MAPPING_ANON == 0 or not page_mapped(head):
        return AnonVma(0)
    anon_vma = mapping_anon_vma(mapping)
    root = anon_vma_root(anon_vma)
    if down_read_trylock(cpu, root.rwsem):
        # Still mapped, so still its anon_vma, and anon_vma_free() waits for this lock.
        if still_anon_mapped(head, mapping):
            return anon_vma
        up_read(cpu, root.rwsem)
    # The trylock failed (or the page moved): take a reference, which allows to sleep.
    anon_vma = page_get_anon_vma(cpu, head)
    if not anon_vma:
        return anon_vma
    anon_vma_lock_read(cpu, anon_vma)
    old = anon_vma.refcount.sub(1)
    if old == 1:
        # We had the last reference, so nothing is mapped any more. put_anon_vma() would wait for our own lock.
        anon_vma_unlock_read(cpu, anon_vma)
        __put_anon_vma(cpu, anon_vma)
        anon_vma = AnonVma(0)
    return anon_vma


@inline
def page_unlock_anon_vma_read(cpu: Cpu, anon_vma: AnonVma):
    anon_vma_unlock_read(cpu, anon_vma)
