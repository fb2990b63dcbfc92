"""Where vmas begin and end on both sides, and which blocks a boundary of one side only can make a difference in."""

from stress.compare.doubts import Place, blocks_of
from stress.compare.situation import Situation
from stress.compare.steps import BLOCK

Mappings = tuple[tuple[int, int], ...]
"""First page and end of each vma, by address."""


def in_block(mappings: Mappings, block: int) -> Mappings:
    """Their parts in a block; one that goes on from the block before begins a page early, so that its boundary is not here."""
    first, end = block * BLOCK, (block + 1) * BLOCK
    return tuple((max(one[0], first - 1), min(one[1], end)) for one in mappings if one[0] < end and one[1] > first)


def boundaries(mappings: Mappings) -> set[int]:
    """Pages where one vma ends and the next begins."""
    return {after[0] for before, after in zip(mappings, mappings[1:], strict=False) if before[1] == after[0]}


def mapped(mappings: Mappings) -> Mappings:
    """What is mapped, whatever the vmas: neighbours as one."""
    spans: list[tuple[int, int]] = []
    for first, end in mappings:
        if spans and spans[-1][1] == first:
            first = spans.pop()[0]
        spans.append((first, end))
    return tuple(spans)


def differing(ours: Mappings, theirs: Mappings) -> set[int]:
    """Boundaries that one side only has; none when they have not mapped the same."""
    if ours == theirs:
        return set()
    return boundaries(ours) ^ boundaries(theirs) if mapped(ours) == mapped(theirs) else set()


def around(mappings: Mappings, page: int) -> tuple[int, int]:
    """The vma that has both `page` and the one before it: on the side without a boundary there. Else nothing."""
    return next(((first, end) for first, end in mappings if first < page < end), (page, page))


def _beside(s: Situation, at: int, page: int) -> list[str]:
    """Letters of the emulator's one or two vmas that `page` and the one before it are in, behind step `at`."""
    task = s.step.task
    if at < 0 or task not in s.emulator[at].vmas:
        return []
    seen = s.emulator[at]
    return [letters for (first, end), letters in zip(seen.looks[task].mappings, seen.vmas[task], strict=True)
            if first <= page <= end]


def _one_sided(s: Situation) -> set[int]:
    """Boundaries of the step's task that one side only has."""
    task = s.step.task
    if task not in s.ours.looks or task not in s.theirs.looks:
        return set()
    return differing(s.ours.looks[task].mappings, s.theirs.looks[task].mappings)


def not_merged(s: Situation) -> list[Place]:
    """Blocks with a boundary of the emulator's between vmas of which only one has, or had, an anon_vma."""
    return [(s.step.task, page // BLOCK) for page in sorted(_one_sided(s))
            if page in boundaries(s.ours.looks[s.step.task].mappings)
            and any(len({"a" in letters for letters in _beside(s, at, page)}) == 2 for at in (s.at - 1, s.at))]


def unaccounted(s: Situation) -> list[Place]:
    """Blocks with a boundary of one side beside memory that was writable once."""
    return [(s.step.task, page // BLOCK) for page in sorted(_one_sided(s))
            if any("p" in letters for at in (s.at - 1, s.at) for letters in _beside(s, at, page))]


def grown(s: Situation) -> list[Place]:
    """The block in which a vma that mremap made longer in place meets the next, on the emulator's side alone."""
    end = s.step.page + s.step.arg2
    longer = s.step.op == "mremap" and s.step.arg == s.step.page and s.step.arg2 > s.step.pages
    if not longer or end not in _one_sided(s) & boundaries(s.ours.looks[s.step.task].mappings):
        return []
    return [(s.step.task, end // BLOCK)]


def _ever_one_vma(s: Situation) -> set[int]:
    """Blocks of vmas that were two on the other side at some time, in any task: one has an anon_vma since, one has none."""
    found: set[int] = set()
    for ours, theirs in zip(s.emulator[: s.at + 1], s.kernel, strict=False):
        for task in ours.looks.keys() & theirs.looks.keys():
            sides = ours.looks[task].mappings, theirs.looks[task].mappings
            for page in differing(*sides):
                for side in sides:
                    found |= set(blocks_of(*around(side, page)))
    return found


def copied_otherwise(s: Situation) -> list[Place]:
    """Blocks that a fork has copied on one side only: of vmas that are, or were, two on the other side."""
    if s.step.op != "fork" or s.step.arg not in s.ours.looks or s.step.arg not in s.theirs.looks:
        return []
    task, child = s.step.task, s.step.arg
    mine, theirs = s.ours.looks[child].blocks, s.theirs.looks[child].blocks
    return [(task, block) for block in sorted(_ever_one_vma(s))
            if s.ours.blocks[task][block] == "e" or not (mine and theirs) or mine[block].places != theirs[block].places]


def huge_across(s: Situation) -> list[Place]:
    """Blocks with a boundary of one side only inside, in which a step has mapped more on one side."""
    task, found = s.step.task, []
    for page in sorted(_one_sided(s)):
        mine, theirs = s.ours.looks[task].blocks, s.theirs.looks[task].blocks
        block = page // BLOCK
        if page % BLOCK and mine and theirs and (mine[block].places, mine[block].anon_huge) != (
                theirs[block].places, theirs[block].anon_huge):
            found.append((task, block))
    return found
