"""anon_vmas: their counts, their order, their reuse, and that a page that is no longer mapped never yields one."""

from collections import Counter
from contextlib import nullcontext

import pytest

from concur_thp.arch.cpu import Cpu
from concur_thp.arch.linker import interpreted
from concur_thp.config import PAGE_SHIFT, PAGE_SIZE
from concur_thp.machine import Machine
from concur_thp.mm.anon_vma import (
    anon_vma_clone,
    anon_vma_fork,
    anon_vma_interval_tree_post_update_vma,
    anon_vma_interval_tree_pre_update_vma,
    anon_vma_lock_read,
    anon_vma_lock_write,
    anon_vma_prepare,
    anon_vma_unlock_read,
    anon_vma_unlock_write,
    page_get_anon_vma,
    page_lock_anon_vma_read,
    page_unlock_anon_vma_read,
    put_anon_vma,
    unlink_anon_vmas,
)
from concur_thp.mm.anon_vma_ref import anon_vma_alloc
from concur_thp.mm.errno import ENOMEM
from concur_thp.mm.flags import VM_MAYWRITE, VM_READ, VM_WRITE
from concur_thp.mm.fork import mm_alloc
from concur_thp.mm.mm_types import (
    MAPPING_SHIFT,
    PAGE_MAPPING_ANON,
    POOL_ANON_VMA,
    POOL_AVC,
    AnonVma,
    Mm,
    Vma,
    anon_vmas,
    avcs,
    mem_map,
    pools,
    vmas,
)
from concur_thp.mm.vma_adjust import vm_area_alloc, vm_area_dup, vm_area_free
from concur_thp.mm.vma_tree import vma_link, vma_unlink
from concur_thp.sync.rwsem import down_read, up_read

MODES = pytest.mark.parametrize(("order", "plain"), [(9, False), (3, False), (3, True)])


def machine(order: int, structs: int = 64) -> Machine:
    return Machine(memory="64M" if order == 9 else "2M", order=order, vmas=structs, max_map_count=64)


def new_vma(cpu: Cpu, mm: Mm, start: int, pages: int) -> Vma:
    vma = Vma(vm_area_alloc(cpu, mm))
    vma.vm_start = start
    vma.vm_end = start + pages * PAGE_SIZE
    vma.vm_pgoff = start >> PAGE_SHIFT
    vma.vm_flags = VM_READ | VM_WRITE | VM_MAYWRITE
    vma_link(cpu, mm, vma)
    return vma


def prepared(cpu: Cpu, mm: Mm, start: int, pages: int) -> Vma:
    vma = new_vma(cpu, mm, start, pages)
    assert prepare(cpu, mm, vma) == 0
    return vma


def prepare(cpu: Cpu, mm: Mm, vma: Vma) -> int:
    down_read(cpu, mm.mmap_sem)
    result = anon_vma_prepare(cpu, vma)
    up_read(cpu, mm.mmap_sem)
    return result


def forked(cpu: Cpu, mm: Mm, parent: Vma) -> Vma:
    child = Vma(vm_area_dup(cpu, parent))
    child.vm_mm = mm.id
    assert anon_vma_fork(cpu, child, parent) == 0
    vma_link(cpu, mm, child)
    return child


def gone(cpu: Cpu, mm: Mm, vma: Vma) -> None:
    unlink_anon_vmas(cpu, vma)
    vma_unlink(cpu, mm, vma)
    vm_area_free(cpu, vma)


def chains(vma: Vma) -> list[int]:
    """The anon_vmas of a vma, oldest first."""
    found = []
    nr = vma.avc_head
    while nr:
        assert avcs[nr].vma == vmas.index(vma)
        found.append(avcs[nr].anon_vma)
        nr = avcs[nr].same_vma
    return found[::-1]


def tree(anon_vma: AnonVma) -> list[int]:
    """The vmas of an anon_vma in the order of a walk; checks the links on the way."""
    found, last = [], 0
    nr = anon_vma.rb_root
    while nr:
        assert avcs[nr].rb_prev == last and avcs[nr].anon_vma == anon_vmas.index(anon_vma)
        found.append(avcs[nr].vma)
        last, nr = nr, avcs[nr].rb_next
    keys = [vmas[v].vm_pgoff for v in found]
    assert keys == sorted(keys)
    return found


def audit(live: list[Vma]) -> None:
    """Q17, counted from the vmas that exist."""
    seen: Counter[int] = Counter()
    for vma in live:
        for nr in chains(vma):
            assert tree(anon_vmas[nr]).count(vmas.index(vma)) == 1
            seen[nr] += 1
        assert vma.anon_vma == 0 or vma.anon_vma in chains(vma)
    assert pools[POOL_ANON_VMA].in_use.read() == len(seen), "an anon_vma without chains does not exist"
    assert pools[POOL_AVC].in_use.read() == sum(seen.values())
    for nr in seen:
        a = anon_vmas[nr]
        family = [n for n in seen if anon_vmas[n].root == nr and n != nr]
        children = [n for n in seen if anon_vmas[n].parent == nr and n != nr]
        own = sum(vma.anon_vma == nr for vma in live)
        assert len(tree(a)) == seen[nr]
        assert a.refcount.read() == (1 + len(family) if a.root == nr else 1)
        assert a.degree == own + len(children) + (a.root == nr)


@MODES
def test_prepare_makes_one_and_a_neighbour_that_could_be_merged_shares_it(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        middle = prepared(cpu, mm, 0x20000, 4)
        above = prepared(cpu, mm, 0x24000, 4)
        below = new_vma(cpu, mm, 0x1C000, 4)
        below.vm_flags = VM_READ | VM_MAYWRITE  # mprotect() splits such vmas off: other access rights do not matter
        assert prepare(cpu, mm, below) == 0
        apart = prepared(cpu, mm, 0x30000, 4)
        assert above.anon_vma == below.anon_vma == middle.anon_vma != apart.anon_vma
        assert tree(anon_vmas[middle.anon_vma]) == [vmas.index(v) for v in (below, middle, above)]
        before = middle.anon_vma
        assert prepare(cpu, mm, middle) == 0 and middle.anon_vma == before
        audit([below, middle, above, apart])
        for vma in (middle, apart, below, above):
            gone(cpu, mm, vma)
        audit([])
        assert cpu.depth == 0


@MODES
def test_a_neighbour_with_a_forks_history_is_not_shared(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mm, child_mm = Mm(mm_alloc(cpu)), Mm(mm_alloc(cpu))
        parent = prepared(cpu, mm, 0x20000, 4)
        child = forked(cpu, child_mm, parent)
        near = prepared(cpu, child_mm, 0x24000, 4)
        assert near.anon_vma not in chains(child) and len(chains(near)) == 1
        audit([parent, child, near])


@MODES
def test_fork_links_to_all_ancestors_behind_the_parent(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mms_ = [Mm(mm_alloc(cpu)) for _ in range(4)]
        family = [prepared(cpu, mms_[0], 0x20000, 4)]
        for mm in mms_[1:]:
            family.append(forked(cpu, mm, family[-1]))
        own = [v.anon_vma for v in family]
        assert len(set(own)) == 4
        for depth, vma in enumerate(family):
            assert chains(vma) == own[: depth + 1]  # oldest first, own last
            assert tree(anon_vmas[own[depth]]) == [vmas.index(v) for v in family[depth:]]  # parent before child
            assert anon_vmas[own[depth]].root == own[0]
        audit(family)
        for index in (1, 0, 3, 2):
            gone(cpu, mms_[index], family[index])
            family[index] = Vma(0)
            audit([v for v in family if v])
        assert pools[POOL_ANON_VMA].in_use.read() == 0


@MODES
def test_a_long_line_of_forks_uses_abandoned_anon_vmas_again(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        vma = prepared(cpu, mm, 0x20000, 4)
        most = 0
        for _ in range(12):  # a daemon that forks itself away, again and again: the parent exits
            child = forked(cpu, mm, vma)
            gone(cpu, mm, vma)
            vma = child
            audit([vma])
            most = max(most, pools[POOL_ANON_VMA].in_use.read())
        assert most <= 3, "without reuse the family would get deeper at each fork"


@MODES
def test_an_anon_vma_that_some_vma_owns_is_not_used_again(order: int, plain: bool) -> None:
    """CVE-2022-42703: degree counts vmas and children alike, so a low one does not say that no vma is left."""
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        root = prepared(cpu, mm, 0x20000, 4)
        a = forked(cpu, mm, root)  # A is the root's child
        b = forked(cpu, mm, a)  # B is A's child
        gone(cpu, mm, a)  # A: no vma, one child, degree 1
        c = forked(cpu, mm, b)  # c uses A again: a leaf, so A's degree 2 is a vma and a child
        assert c.anon_vma in chains(b) and c.anon_vma != b.anon_vma
        d = forked(cpu, mm, c)  # B does not come into question, and A is c's own: d gets a new one
        assert d.anon_vma not in chains(c)
        gone(cpu, mm, b)
        audit([root, c, d])
        e = forked(cpu, mm, d)  # A has degree 2 or less, and c
        assert e.anon_vma not in (c.anon_vma, d.anon_vma)
        audit([root, c, d, e])
        for vma in (c, root, e, d):
            gone(cpu, mm, vma)
        audit([])


@MODES
def test_clone_for_a_split_keeps_the_own_anon_vma_and_reinsertion_keeps_the_order(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mm, child_mm = Mm(mm_alloc(cpu)), Mm(mm_alloc(cpu))
        parent = prepared(cpu, mm, 0x20000, 8)
        child = forked(cpu, child_mm, parent)
        upper = Vma(vm_area_dup(cpu, parent))
        upper.vm_start += 4 * PAGE_SIZE
        upper.vm_pgoff += 4
        assert anon_vma_clone(cpu, upper, parent) == 0
        assert upper.anon_vma == parent.anon_vma
        anon_vma = anon_vmas[parent.anon_vma]
        anon_vma_lock_write(cpu, anon_vma)
        anon_vma_interval_tree_pre_update_vma(cpu, parent)
        parent.vm_end = upper.vm_start
        anon_vma_interval_tree_post_update_vma(cpu, parent)
        anon_vma_unlock_write(cpu, anon_vma)
        vma_link(cpu, mm, upper)
        # Equal keys behind: after the update the child comes before the parent, as in Linux.
        assert tree(anon_vma) == [vmas.index(v) for v in (child, parent, upper)]
        audit([parent, child, upper])


def test_out_of_structs_is_enomem_and_leaves_nothing_behind() -> None:
    with machine(3, structs=2) as m:  # 2 anon_vmas, 4 chains, 2 vmas
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        a = prepared(cpu, mm, 0x20000, 4)
        other = prepared(cpu, mm, 0x80000, 4)
        gone(cpu, mm, other)
        b = forked(cpu, mm, a)  # both anon_vmas, 3 chains
        audit([a, b])
        fake = Vma(int(vmas[0]))  # number 0 is never handed out: room for one more vma that is in no pool
        fake.vm_mm, fake.vm_start, fake.vm_end, fake.vm_pgoff = mm.id, 0x20000, 0x24000, 0x20
        assert anon_vma_fork(cpu, fake, b) == -ENOMEM
        assert fake.anon_vma == 0 and fake.avc_head == 0
        assert prepare(cpu, mm, fake) == -ENOMEM
        audit([a, b])
        assert cpu.depth == 0


@MODES
def test_only_a_mapped_page_yields_its_anon_vma(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        vma = prepared(cpu, mm, 0x20000, 4)
        nr = vma.anon_vma
        page = mem_map[64]
        page.compound_head = 0
        page.flags.write(0)
        page.mapping = nr << MAPPING_SHIFT | PAGE_MAPPING_ANON
        page._mapcount.write(-1)
        assert not page_get_anon_vma(cpu, page) and not page_lock_anon_vma_read(cpu, page)
        page._mapcount.write(0)
        found = AnonVma(page_get_anon_vma(cpu, page))
        assert anon_vmas.index(found) == nr and found.refcount.read() == 2
        put_anon_vma(cpu, found)
        found = AnonVma(page_lock_anon_vma_read(cpu, page))
        assert anon_vmas.index(found) == nr and found.refcount.read() == 1 and found.rwsem.count.read() == 1
        page_unlock_anon_vma_read(cpu, found)
        page.mapping = 7 << MAPPING_SHIFT  # a file's
        assert not page_get_anon_vma(cpu, page) and not page_lock_anon_vma_read(cpu, page)
        page.mapping = nr << MAPPING_SHIFT | PAGE_MAPPING_ANON
        page._mapcount.write(-1)
        gone(cpu, mm, vma)
        # The struct is free, and then another family's: the old page must not get it, whatever its mapping says.
        assert not page_get_anon_vma(cpu, page)
        other = prepared(cpu, mm, 0x80000, 4)
        assert other.anon_vma == nr
        assert not page_get_anon_vma(cpu, page) and not page_lock_anon_vma_read(cpu, page)
        assert anon_vmas[nr].refcount.read() == 1 and anon_vmas[nr].rwsem.count.read() == 0
        audit([other])


@MODES
def test_the_rwsem_of_a_struct_outlives_its_user(order: int, plain: bool) -> None:
    with machine(order) as m, interpreted() if plain else nullcontext():
        cpu = m.cpu(0)
        mm = Mm(mm_alloc(cpu))
        vma = prepared(cpu, mm, 0x20000, 4)
        nr = vma.anon_vma
        gone(cpu, mm, vma)
        # A finder that came too late holds the rwsem of the freed struct for a moment...
        anon_vma_lock_read(cpu, anon_vmas[nr])
        assert anon_vmas.index(AnonVma(anon_vma_alloc(cpu))) == nr
        assert anon_vmas[nr].rwsem.count.read() == 1  # ... and allocating it anew does not take that away.
        anon_vma_unlock_read(cpu, anon_vmas[nr])
        put_anon_vma(cpu, anon_vmas[nr])
        audit([])
