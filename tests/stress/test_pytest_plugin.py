"""The pytest plugin, seen from a project that uses it: each test is a run of pytest in a process of its own."""

import pytest

from concur_thp.arch import native

pytest_plugins = "pytester"

CACHE = str(native.cache_dir())
"""Before pytester gives its runs another home: they would compile the whole kernel in each test."""

PROGRAMS = """
import pytest

{marker}
def test_words(machine):
    region = machine.mm().mmap("32K", huge=True)

    @machine.program
    def writer(cpu):
        cpu.store(region, 7)
        assert cpu.load(region) in {allowed}

    machine.program(lambda cpu: cpu.madvise(region, "32K", "DONTNEED"), name="zapper")
"""


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    monkeypatch.setenv("CONCUR_THP_CACHE", CACHE)


@pytest.fixture
def run(pytester):
    def run_one(marker, allowed=(0, 7), *options):
        pytester.makepyfile(PROGRAMS.format(marker=marker, allowed=allowed))
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "--strict-markers", *options)

    return run_one


def test_programs_that_do_what_they_may_pass(run):
    run('@pytest.mark.explore(strategy="pct", depth=2, schedules=300)').assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_failure_shows_chart_and_token(run):
    result = run('@pytest.mark.explore(strategy="pct", depth=2, schedules=2000)', (7,))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["raised: writer: AssertionError*", "CPU0 writer*CPU1 zapper*",
                                 "again: m.explore(token=*thp1-*"])


@pytest.mark.slow
def test_the_number_of_schedules_from_the_command_line(run):
    run('@pytest.mark.explore(strategy="pct", depth=2)', (7,), "--explore-schedules", "1").assert_outcomes(passed=1)


@pytest.mark.slow
def test_without_the_marker_nothing_is_explored(run):
    run("", (5,)).assert_outcomes(passed=1)


@pytest.mark.parametrize("marker, said", [
    ('@pytest.mark.explore(strategy="ptc")', "*no strategy 'ptc': did you mean pct?*"),
    ('@pytest.mark.explore(shedules=5)', "*did you mean schedules?*"),
    ('@pytest.mark.explore("pct")', "*name its arguments*"),
])
def test_misuse_is_one_line(run, marker, said):
    result = run(marker)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([said])


def test_wrong_sizes_and_options_are_one_line_each(pytester):
    pytester.makepyfile("""
        import pytest

        @pytest.mark.explore(order=30)
        def test_order(machine):
            pass

        @pytest.mark.explore(memory="lots")
        def test_memory(machine):
            pass
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["@pytest.mark.explore: order 30: pass 2 to 9*",
                                 "@pytest.mark.explore: size 'lots': pass a number*"])
    assert "During handling" not in result.stdout.str()


def test_a_test_without_a_machine_cannot_be_explored(pytester):
    pytester.makepyfile("import pytest\n@pytest.mark.explore()\ndef test_nothing():\n    pass\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*has to take the fixture `machine`*"])


@pytest.mark.slow
def test_the_machine_s_sizes(pytester):
    pytester.makepyfile("""
        import pytest

        def test_small(machine):
            assert (machine.config.cpus, machine.config.order) == (2, 3)

        @pytest.mark.explore(cpus=3, schedules=10)
        def test_more(machine):
            assert machine.config.cpus == 3
            machine.program(lambda cpu: None)
    """)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)
