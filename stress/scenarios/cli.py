"""The command `races`, plugged into `concur-thp` (see pyproject.toml)."""

import click

from concur_thp import options
from concur_thp.errors import Misuse
from concur_thp.output import result_console, write_json


@click.group(cls=options.Group, invoke_without_command=True)
@options.json_option()
@options.quiet_option()
@click.pass_context
def races(ctx: click.Context, json_path: str, quiet: bool) -> int:
    """List the races of Appendix B and the scenarios that play them.

    `races show` has the whole of one, `races run` plays them, `races steps` says what programs are made of.
    """
    if ctx.invoked_subcommand is not None:
        if json_path:
            raise Misuse(f"--json {json_path}: pass it behind `races {ctx.invoked_subcommand}`")
        return 0
    from stress.scenarios.registry import PAIRS, SCENARIOS
    from stress.scenarios.show import print_races

    print_races(result_console(quiet, json_path, soft_wrap=False))
    write_json(json_path, {"pairs": [{"number": n, "pair": p} for n, p in PAIRS.items()],
                           "scenarios": [s.json for s in SCENARIOS.values()]})
    return 0


@races.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME|NUMBER|all...")
@options.json_option()
@options.quiet_option()
def show(names: tuple[str, ...], json_path: str, quiet: bool) -> int:
    """Show scenarios: programs, what is looked at, every outcome."""
    from stress.scenarios.registry import find
    from stress.scenarios.show import print_scenario

    out = result_console(quiet, json_path, soft_wrap=False)
    scenarios = find(names)
    for number, scenario in enumerate(scenarios):
        if number:
            out.print()
        print_scenario(out, scenario)
    write_json(json_path, [scenario.json for scenario in scenarios])
    return 0


@races.command()
@options.json_option()
@options.quiet_option()
def steps(json_path: str, quiet: bool) -> int:
    """List the steps that programs are made of."""
    from concur_thp.program.table import STEP_TABLE
    from stress.scenarios.show import print_steps

    print_steps(result_console(quiet, json_path, soft_wrap=False))
    write_json(json_path, [{"step": row.op.name, "arguments": list(row.arguments), "meaning": row.meaning, "status": row.status,
                            "value": row.value} for row in STEP_TABLE])
    return 0


@races.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME|NUMBER|all...")
@click.option("--seconds", type=options.Seconds(), default=5.0, show_default=True, help="How long each race is played.")
@click.option("--chaos", is_flag=True, help="Then as long again with CPUs delayed at random points, seeded.")
@click.option("--order", type=click.Choice(("3", "9")), default="3", show_default=True, help="Order of a huge page.")
@options.cpus_option(1, 8, "more than a race has are bystanders, fewer count as what it has")
@options.seed_option()
@options.run_dir_option()
@options.json_option()
@options.quiet_option()
def run(names: tuple[str, ...], order: str, json_path: str, **given: object) -> int:
    """Play races round after round, and look at every end.

    Every round must end in one of the outcomes that are possible.

    A race is a scenario's NAME, or the NUMBER of a pair of Appendix B: all scenarios that play it.
    """
    from stress.scenarios.registry import find
    from stress.scenarios.run import RaceOptions, run_races

    return run_races(RaceOptions(scenarios=tuple(find(names)), order=int(order), json=json_path, **given))  # type: ignore[arg-type]
