"""The pytest plugin: a `machine` fixture, and @pytest.mark.explore for tests that declare programs on it.

    @pytest.mark.explore(strategy="pct", depth=2, schedules=1000)
    def test_dontneed_against_hints(machine):
        region = machine.mm().mmap("32K", huge=True)

        @machine.program
        def writer(cpu): ...

When the body is through, its programs are explored; a failure shows the chart and the token. Nothing of the emulator is
imported before a test asks for a machine.
"""

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from concur_thp.machine import Machine

SIZES = {"cpus": 2, "memory": "4M", "order": 3, "swap": 0}
"""The machine of a test, unless its marker says otherwise: small, so that many schedules fit into a second."""
MARKER = ("explore(strategy, depth, schedules, ..): explore the programs that the test declares on the fixture `machine` "
          "once its body is through. Takes what Machine.explore() takes, and cpus, memory, order, swap of the machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("concur_thp", "concur_thp: programs on emulated CPUs")
    group.addoption("--explore-schedules", type=int, metavar="N", help="schedules of every @pytest.mark.explore test")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> "Iterator[Machine]":
    """A small machine: two CPUs, huge pages of 8 pages (order 3), 4M; @pytest.mark.explore(cpus=3, memory="8M") changes it."""
    from concur_thp.errors import Misuse
    from concur_thp.machine import Machine

    marker = request.node.get_closest_marker("explore")
    given = marker.kwargs if marker else {}
    said = ""
    try:
        booted = Machine(**{name: given.get(name, value) for name, value in SIZES.items()})
    except Misuse as error:
        said = f"@pytest.mark.explore: {error}".replace("--", "")
    if said:
        pytest.fail(said, pytrace=False)
    with booted:
        yield booted


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    result = yield
    marker = pyfuncitem.get_closest_marker("explore")
    if marker is not None:
        _explore(pyfuncitem, marker)
    return result


def _explore(item: pytest.Function, marker: pytest.Mark) -> None:
    from concur_thp.errors import Misuse
    from concur_thp.program.declared import ProgramFailure

    booted: Any = item.funcargs.get("machine")
    if booted is None:
        pytest.fail("@pytest.mark.explore: the test has to take the fixture `machine`", pytrace=False)
    said = ""
    try:
        booted.explore(**_options(marker, item.config.getoption("--explore-schedules"))).check()
    except (Misuse, ProgramFailure) as error:
        said = str(error)
    if said:  # Behind the handler: a failure that was raised within it would be shown together with its cause.
        pytest.fail(said, pytrace=False)


def _options(marker: pytest.Mark, schedules: int | None) -> dict[str, Any]:
    """What Machine.explore() gets."""
    from concur_thp.errors import Misuse
    from concur_thp.program.processor import one_of
    from stress.programs.engine import explore

    if marker.args:
        raise Misuse(f"@pytest.mark.explore({marker.args[0]!r}): name its arguments, such as strategy=\"pct\"")
    known = [name for name, row in inspect.signature(explore).parameters.items() if row.kind is row.KEYWORD_ONLY]
    for name in marker.kwargs:
        one_of("option of @pytest.mark.explore", name, [*known, *SIZES])
    options = {name: value for name, value in marker.kwargs.items() if name not in SIZES}
    return {**options, "schedules": schedules} if schedules else options
