"""The bench's results as tables for people."""

from typing import Any

from rich.table import Table

LOCK_SIDES = ("multiprocess", "pthread", "fcntl")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("row", "per", "grows", "with") else "right", no_wrap=True)
    return table


def number(value: float | None) -> str:
    """Three figures are enough for anybody."""
    if value is None:
        return "-"
    for unit, size, least in (("G", 1e9, 999_500_000), ("M", 1e6, 999_500), ("k", 1e3, 9_995)):
        if abs(value) >= least:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _who(row: dict[str, Any]) -> str:
    return str(row["processes"]) if row["processes"] == 1 else f"{row['processes']} {row['mm']} mm"


def _quartiles(row: dict[str, Any], side: str) -> str:
    return "-" if row[side] is None else f"{number(row[f'{side}_q1'])}..{number(row[f'{side}_q3'])}"


def print_rows(out: Any, rows: list[dict[str, Any]]) -> None:
    operations = [row for row in rows if row["kind"] == "operation"]
    if operations:
        table = _table("\nns per operation: median and quartiles; ratio = Linux / emulator: median and range of turns",
                       "row", "per", "by", "emulator", "quartiles", "Linux", "quartiles", "ratio", "turns")
        for row in operations:
            between = "-" if row["ratio_kernel"] is None else f"{row['ratio_kernel_low']}..{row['ratio_kernel_high']}"
            table.add_row(row["name"], row["per"], _who(row), number(row["emulator"]), _quartiles(row, "emulator"),
                          number(row["kernel"]), _quartiles(row, "kernel"), number(row["ratio_kernel"]), between)
        out.print(table)
    locks = [row for row in rows if row["kind"] == "lock"]
    if locks:
        heads = [head for side in LOCK_SIDES for head in (side, "ratio")]
        table = _table("\nns per lock and unlock; ratio = theirs / emulator", "row", "by", "emulator", "quartiles",
                       *heads)
        for row in locks:
            who = _who(row).replace("mm", "lock")
            cells = [number(row[key]) for side in LOCK_SIDES for key in (side, f"ratio_{side}")]
            table.add_row(row["name"], who, number(row["emulator"]), _quartiles(row, "emulator"), *cells)
        out.print(table)
    print_reasons(out, rows)


def print_reasons(out: Any, rows: list[dict[str, Any]]) -> None:
    """Why a side has no figure; once for each row, lock rows are plain enough."""
    seen: dict[str, str] = {}
    for row in rows:
        if row["reason"] and row["kind"] != "lock":
            seen.setdefault(f"{row['name']}, {row['reason']}", "")
    for reason in seen:
        out.print(f"  no figure for {reason}", style="dim")


def print_throughput(out: Any, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    table = _table("\nthroughput of two processes in mms of their own, over that of one", "row", "one, per us", "two, per us",
                   "emulator", "quartiles", "Linux", "quartiles", "private", "line, ns",
                   "undisturbed")
    for row in rows:
        table.add_row(row["name"], number(row["emulator_one"]), number(row["emulator_two"]), number(row["emulator"]),
                      f"{number(row['emulator_q1'])}..{number(row['emulator_q3'])}", number(row["kernel"]),
                      "-" if row["kernel"] is None else f"{number(row['kernel_q1'])}..{number(row['kernel_q3'])}",
                      number(row["ceiling"]),
                      "-" if row["line"] is None else f"{number(row['line_low'])}..{number(row['line_high'])}",
                      f"{row['undisturbed']:.1%}")
    out.print(table)


def print_growth(out: Any, rows: list[dict[str, Any]]) -> None:
    for what in dict.fromkeys(row["with"] for row in rows):
        those = [row for row in rows if row["with"] == what]
        table = _table(f"\nns per operation over {what}", "row", "per", *those[0]["labels"], "grows", "exponent")
        for row in those:
            table.add_row(row["name"], row["per"], *(number(cost) for cost in row["costs"]), row["grows"],
                          f"{row['exponent']:+.2f}")
        out.print(table)
