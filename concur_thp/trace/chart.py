"""The chart of a run: a column for each CPU, in the way kernel developers draw races in commit messages.

    CPU0 advise 0 1h dontneed                 CPU1 split_pmd 3
    zap_pmd()
      value = pmd.val.load()
                                              __split_huge_pmd_locked()
                                                pmd_populate(cpu, pmd, table)       <- tables[0x102].entry[0]
    -> preempted

Only what the run is about is kept: the statements that touch what the other CPUs touch too, those around each change of CPU,
and the last ones.
"""

from collections.abc import Iterator, Mapping

from concur_thp.trace.story import Line, Story

COLUMN = 62
AROUND = 1
"""Statements kept before and after each change of CPU."""
LAST = 3
"""Statements kept at the end."""
MOST_LINES = 70
ENDS = {"block": "(waits)", "yield": "(polls)", "done": "(done)", "end": "", "preempt": ""}
DECISIVE = "<- "


def chart(story: Story, titles: Mapping[int, str], ending: str = "", width: int = COLUMN) -> str:
    """Draw it. `titles`: what each CPU's program does; `ending`: what was found at the end."""
    cpus = sorted({line.cpu for line in story.lines})
    column = {cpu: number for number, cpu in enumerate(cpus)}
    rows = ["  ".join(_cut(f"CPU{cpu} {titles.get(cpu, '')}", width).ljust(width) for cpu in cpus).rstrip()]
    for cpu, text in _texts(story, _kept(story)):
        rows.append((" " * ((width + 2) * column[cpu]) + text).rstrip())
    if ending:
        rows += ["", ending]
    return "\n".join(rows)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[:width - 3] + "..."


def _kept(story: Story) -> list[Line]:
    """The lines that are shown, fewer the longer the run."""
    lines = story.lines
    edges = {n for n in range(len(lines)) if n and lines[n].stretch != lines[n - 1].stretch}
    near = {n + d for n in edges for d in range(-AROUND, AROUND)} | set(range(len(lines) - LAST, len(lines)))
    kept = [n for n, line in enumerate(lines) if n in near or line.shared]
    if len(kept) > MOST_LINES:  # Words that are fought over all the time (list heads, counters) go first.
        often = _often(story)
        kept = [n for n in kept if n in near or any(name not in often for name in lines[n].shared)]
    if len(kept) > MOST_LINES:
        kept = [n for n in kept if any(abs(n - edge) <= MOST_LINES // (2 * max(len(edges), 1)) for edge in edges) or n in near]
    return [lines[n] for n in kept if 0 <= n < len(lines)]


def _often(story: Story, most: int = 6) -> set[str]:
    counts: dict[str, int] = {}
    for line in story.lines:
        for name in line.shared:
            counts[name] = counts.get(name, 0) + 1
    return {name for name, count in counts.items() if count > most}


def _texts(story: Story, kept: list[Line]) -> Iterator[tuple[int, str]]:
    """What stands in the columns."""
    function: dict[int, str] = {}
    stretch = -1
    for line in kept:
        if line.stretch != stretch:
            if stretch >= 0 and (why := ENDS.get(story.endings[stretch][1], "")):
                yield story.endings[stretch][0], "  " + why
            stretch = line.stretch
        name = line.where.function
        if function.get(line.cpu) != name:
            function[line.cpu] = name
            yield line.cpu, f"{name}()"
        mark = f"   {DECISIVE}{', '.join(line.shared[:2])}" if line.shared else ""
        again = "(goes on) " if line.resumed else ""
        yield line.cpu, f"  {again}{_cut(line.where.text, COLUMN - 4)}{mark}"


__all__ = ["chart"]
