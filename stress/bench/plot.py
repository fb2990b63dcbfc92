"""The bench's results as a picture: what each operation costs beside the running kernel, how it scales, how costs grow."""

from pathlib import Path
from typing import Any

from concur_thp.errors import Misuse

SIDES = {"emulator": "#1f6f8b", "kernel": "#d1603d", "multiprocess": "#8a8d91", "pthread": "#b7a57a", "fcntl": "#c9cdd2"}
NAMES = {"emulator": "emulator", "kernel": "Linux, same machine", "multiprocess": "multiprocess.Lock",
         "pthread": "pthread_rwlock", "fcntl": "fcntl.lockf"}
DPI = 130


def load_matplotlib() -> Any:
    """matplotlib.pyplot without a window, or a line that says how to get it."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise Misuse("--plot needs matplotlib, which is not installed: pip install 'concur_thp[plot]', or leave --plot out"
                     ) from None
    return plt


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Write the picture; the name's ending says which kind."""
    plt = load_matplotlib()
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "concur_thp"})
    kinds = {row["kind"] for row in rows}
    figure = _growth(plt, rows) if kinds == {"growth"} else _costs(plt, rows)
    temporary = Path(path).with_name(f".{Path(path).name}.part{Path(path).suffix}")
    try:
        figure.savefig(temporary, dpi=DPI, bbox_inches="tight")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Misuse(f"--plot {path}: {error.strerror}; pass a file that can be written") from error
    finally:
        plt.close(figure)


def _costs(plt: Any, rows: list[dict[str, Any]]) -> Any:
    """Left: costs of one process. Right: what becomes of them with more, and throughput below."""
    alone = [row for row in rows if row["kind"] in ("operation", "lock") and row["processes"] == 1]
    crowds = [row for row in rows if row["kind"] == "operation" and row["processes"] > 1]
    scaled = [row for row in rows if row["kind"] == "throughput"]
    height = max(6.5, 1.5 + 0.42 * len(alone))
    figure = plt.figure(figsize=(15, height))
    grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1), height_ratios=(3, 2), hspace=0.3, wspace=0.25)
    _bars(figure.add_subplot(grid[:, 0]), alone)
    _scaling(figure.add_subplot(grid[0, 1]), alone, crowds)
    _throughput(figure.add_subplot(grid[1, 1]), scaled)
    return figure


def _bars(axes: Any, rows: list[dict[str, Any]]) -> None:
    axes.set_title("one process: ns per operation, median and quartiles", loc="left", fontweight="bold")
    for place, row in enumerate(reversed(rows)):
        there = [side for side in SIDES if row.get(side) is not None and row[side] > 0]
        for number, side in enumerate(there):
            thick = 0.8 / len(there)
            at = place + 0.4 - thick * (number + 0.5)
            axes.barh(at, row[side], thick, color=SIDES[side], zorder=2)
            low, high = max(row[f"{side}_q1"], 1e-3 * row[side]), row[f"{side}_q3"]
            axes.plot((low, high), (at, at), color="black", linewidth=0.8, zorder=3)
            if side == "kernel" and row["ratio_kernel"]:
                axes.text(max(high, row[side]) * 1.15, at, f"x {row['ratio_kernel']:.3g}", va="center", fontsize=8,
                          color=SIDES[side])
            if there == ["emulator"]:
                axes.text(max(high, row[side]) * 1.15, at, "not measured on Linux", va="center", fontsize=8,
                          color="#777777")
    axes.set_yticks(range(len(rows)), [f"{row['name']}" for row in reversed(rows)])
    axes.set_xscale("log")
    medians = [row[side] for row in rows for side in SIDES if row.get(side) is not None and row[side] > 0]
    axes.set_xlim(left=min(medians, default=1) / 2)  # Not where a quartile near nothing would have it.
    axes.set_ylim(-0.6, max(len(rows), 1) - 0.4)
    axes.grid(axis="x", color="#e6e6e6", zorder=0)
    axes.set_xlabel("ns (x: Linux / emulator)")
    used = [side for side in SIDES if any(row.get(side) for row in rows)]
    if used:
        from matplotlib.patches import Patch
        axes.legend(handles=[Patch(color=SIDES[side], label=NAMES[side]) for side in used], loc="upper left",
                    bbox_to_anchor=(0, -0.5 / axes.figure.get_figheight()), ncols=len(used), frameon=False, handlelength=1)


def _scaling(axes: Any, alone: list[dict[str, Any]], crowds: list[dict[str, Any]]) -> None:
    """The cost of an operation when N do it at once, over its cost alone: the middle of all rows, and each row thin."""
    axes.set_title("N processes: cost over the cost alone", loc="left", fontweight="bold")
    base = {row["name"]: row for row in alone}
    for side in ("emulator", "kernel"):
        for mm, style in (("own", "-"), ("one", "--")):
            lines: dict[str, dict[int, float]] = {}
            for row in crowds:
                first = base.get(row["name"], {}).get(side)
                if row["mm"] == mm and row[side] and first and first > 0 and row[side] > 0:
                    lines.setdefault(row["name"], {1: 1.0})[row["processes"]] = row[side] / first
            for line in lines.values():
                axes.plot(list(line), list(line.values()), style, color=SIDES[side], linewidth=0.6, alpha=0.2)
            counts = sorted({n for line in lines.values() for n in line})
            middle = [sorted(line[n] for line in lines.values() if n in line) for n in counts]
            axes.plot(counts, [values[len(values) // 2] for values in middle], style, marker="o", color=SIDES[side],
                      label=f"{NAMES[side]}, {mm} mm")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    counts = sorted({1, *(row["processes"] for row in crowds)})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.set_xlabel("processes (thick: the row in the middle)")
    axes.grid(color="#e6e6e6")
    if crowds:
        axes.legend(frameon=False, handlelength=4)


def _throughput(axes: Any, rows: list[dict[str, Any]]) -> None:
    axes.set_title("two processes, own mms: throughput over one", loc="left", fontweight="bold")
    for place, row in enumerate(rows):
        for number, side in enumerate(("emulator", "kernel")):
            if row[side] is not None:
                axes.bar(place + 0.32 * number, row[side], 0.3, color=SIDES[side])
                axes.text(place + 0.32 * number, row[side] - 0.03, f"{row[side]:.2f}", ha="center", va="top", fontsize=8,
                          color="white")
        axes.plot((place - 0.2, place + 0.52), (row["ceiling"],) * 2, color="black", linewidth=1)
    axes.set_xticks([place + 0.16 for place in range(len(rows))], [row["name"].removeprefix("throughput_") for row in rows])
    axes.set_ylim(0, 2.3)
    axes.set_xlabel("black line: private memory, what the machine can do" if rows else "not measured")


def _growth(plt: Any, rows: list[dict[str, Any]]) -> Any:
    """One panel for each dimension, logarithmic both ways: a constant cost is flat, a linear one rises with the dotted line."""
    what = list(dict.fromkeys(row["with"] for row in rows))
    across = min(3, len(what))
    down = -(-len(what) // across)
    figure, panels = plt.subplots(down, across, figsize=(5.6 * across, 5 * down), squeeze=False)
    for axes in panels.flat[len(what):]:
        axes.set_visible(False)
    for axes, dimension in zip(panels.flat, what, strict=False):
        those = [row for row in rows if row["with"] == dimension]
        for row in those:
            axes.plot(row["sizes"], row["costs"], marker="o", markersize=3.5,
                      label=f"{row['name'].partition('_')[2] or row['name']}: {row['grows']}")
        sizes = those[0]["sizes"]
        least = min(min(row["costs"]) for row in those)
        axes.plot(sizes, [least * size / sizes[0] for size in sizes], ":", color="black", linewidth=1, label="linear")
        axes.set(xscale="log", yscale="log", xlabel=dimension, ylabel="ns per operation")
        axes.set_xticks(sizes, those[0]["labels"])
        axes.minorticks_off()
        axes.grid(color="#e6e6e6")
        axes.legend(frameon=False, fontsize=7.5, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2)
    figure.suptitle("how costs grow", x=0.02, ha="left", fontweight="bold")
    figure.tight_layout()
    return figure
