"""Charts of stories made by hand: what is kept, in which column, in how many rows."""

from concur_thp.arch.checked import Site
from concur_thp.sched.state import Verdict
from concur_thp.trace.chart import MOST_LINES, chart, plain
from concur_thp.trace.places import Name
from concur_thp.trace.story import Line, Stop, Story, Touch
from stress.exploring.handover import ending
from stress.exploring.job import Job
from stress.exploring.token import Token

PMD = Name("pmd[0x200000]", 10, "entry")
COUNT = Name("page 0x110 _refcount", 7, "number")
LOCK = Name("pmd ptl of table 0x102", 0, "lock")
TOKEN = Token(Job("dontneed_vs_split_pmd"), "outcome", "no outcome of the scenario", "0")
HUGE, TABLE = 0x110017, 0x103100


class Made:
    """Builds a story line by line."""

    def __init__(self):
        self.lines, self.stops, self.touches = [], [], 0

    def line(self, cpu, function, text, *touches):
        made = Line(len(self.lines), cpu, len(self.stops), Site(function, "f.py", len(self.lines), text), function, cpu,
                    begins=self.touches)
        for name, before, after, decisive in touches:
            made.touches.append(Touch(self.touches, hash(name), 8, "store" if after is not None else "load",
                                      after is not None, 0, len(self.stops), before, after, name, decisive))
            self.touches += 1
        self.lines.append(made)

    def stop(self, cpu, reason):
        self.stops.append(Stop(cpu, reason, self.lines[-1].where, 1))

    def story(self, verdict=Verdict.FINISHED):
        return Story(self.lines, 2, self.stops, None, verdict)


def raced() -> Made:
    made = Made()
    made.line(0, "zap_pmd_range", "if pmd_trans_huge(pmd.val.load()):", (PMD, HUGE, None, True))
    made.line(0, "zap_huge_pmd", "zap(cpu, pmd)")
    made.stop(0, "preempt")
    made.line(1, "split_huge_pmd", "pmd_populate(cpu, pmd, table)", (PMD, HUGE, TABLE, True))
    made.stop(1, "done")
    made.lines[1].touches.append(Touch(made.touches, hash(PMD), 8, "load", False, 0, 2, TABLE, None, PMD, True))
    made.stop(0, "end")
    return made


def columns(text: str) -> dict[int, list[str]]:
    """What stands in each of two columns."""
    head, *rows = text.partition("\n\n")[0].splitlines()
    right = head.index("CPU1")
    found = {0: [], 1: []}
    for row in rows:
        found[int(not row[:right].strip())].append(row.strip())
    return found


def test_meetings_stand_in_their_columns_with_what_was_found():
    found = columns(chart(raced().story(), {0: "dontneed", 1: "split"}))
    assert found[0][0] == "zap_pmd_range()" and "pmd[0x200000] is huge 0x110" in found[0][1]
    assert found[0][2:4] == ["zap_huge_pmd()", "/* stopped before: zap(pmd) */"]
    assert any("pmd[0x200000] huge 0x110 -> table 0x103" in row for row in found[1])
    assert "pmd[0x200000] is table 0x103" in found[0][-1]


def test_the_order_is_that_of_the_run():
    rows = chart(raced().story(), {0: "dontneed", 1: "split"}).splitlines()
    stopped, populate = (next(n for n, row in enumerate(rows) if what in row) for what in ("stopped before", "-> table"))
    assert stopped < populate < next(n for n, row in enumerate(rows) if "is table" in row)


def test_what_says_least_goes_first_and_loops_are_one_row():
    made = raced()
    for _ in range(40):
        made.line(1, "put_page", "page._refcount.sub(1)", (COUNT, 2, 1, True))
        made.lines[-1].where = made.lines[-1].where._replace(line=1000)
    for number in range(40):
        made.line(1, f"helper_{number}", "page._refcount.read()", (COUNT, 1, None, True))
    text = chart(made.story(), {0: "dontneed", 1: "split"})
    body = text.splitlines()[1:]
    assert len(body) <= MOST_LINES and "-> table 0x103" in text
    assert sum("_refcount.sub" in row for row in body) <= 1


def test_a_wait_names_the_lock_and_who_had_it():
    made = Made()
    made.line(1, "split", "spin_lock(cpu, ptl)", (LOCK, 0, 2, False))
    made.stop(1, "preempt")
    made.line(0, "zap", "spin_lock(cpu, ptl)", (LOCK, 2, None, False))
    made.stop(0, "block")
    made.line(1, "split", "spin_unlock(cpu, ptl)", (LOCK, 2, 0, False))
    made.stop(1, "end")
    found = columns(chart(made.story(), {0: "a", 1: "b"}))
    assert any("waits for pmd ptl of table 0x102" in row for row in found[0])
    assert any("takes pmd ptl" in row for row in found[1]) and any("gives back pmd ptl" in row for row in found[1])


def test_a_run_that_could_not_go_on_shows_where():
    made = raced()
    made.line(0, "page_remove_rmap", "bug_on(cpu, 1, 'no')")
    assert "<- here" in chart(made.story(Verdict.BUG), {})
    assert "<- here" not in chart(made.story(), {})


def test_a_cpu_that_serves_interrupts_where_it_was_stopped_is_said_to_be_stopped_once():
    """It stood twice before the same statement, row under row."""
    made = Made()
    made.line(0, "gup_huge_pmd", "if pmd_trans_huge(pmd.val.load()):", (PMD, HUGE, None, True))
    made.line(0, "gup_huge_pmd", "take(page)")
    made.stop(0, "preempt")
    made.line(1, "zap_huge_pmd", "flush(cpu)", (COUNT, 2, 1, False))
    made.stop(1, "yield")
    made.stop(0, "preempt")
    made.line(1, "zap_huge_pmd", "pmd_populate(cpu, pmd, table)", (PMD, HUGE, TABLE, True))
    made.stop(1, "done")
    made.stop(0, "end")
    assert chart(made.story(), {0: "pin", 1: "dontneed"}).count("/* stopped before: take(page) */") == 1


def test_where_cpus_stood_is_where_they_met_when_they_all_came_to_their_ends():
    """It used to be the exit of their mms, whatever had happened."""
    made = raced()
    users = Name("mm 1 mm_users", 1, "number")
    for cpu in (0, 1):
        made.line(cpu, "mmput", "old = mm.mm_users.sub(1)", (users, 2 - cpu, 1 - cpu, True))
    text = ending(made.story(), TOKEN)
    assert "CPU0: zap_huge_pmd" in text and "CPU1: split_huge_pmd" in text and "mmput" not in text
    text = ending(made.story(Verdict.BUG), TOKEN)
    assert "CPU0: mmput" in text and "CPU1: mmput" in text


def test_statements_read_like_the_kernels():
    assert plain("if pmd_none(pmd.val.load()):") == "if pmd_none(pmd)"
    assert plain("put_page(cpu, page)") == "put_page(page)"
