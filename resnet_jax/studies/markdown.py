"""Tables of committed results in a Markdown file: filled in by a command, so that no number of the README is typed."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resnet_jax.errors import UserError, nearest
from resnet_jax.studies import cells as cells_lib
from resnet_jax.studies import committed, findings
from resnet_jax.studies.cells import Cell, difference

_BEGIN, _END = "<!-- results ", "<!-- end -->"
_BLOCK = re.compile(rf"({_BEGIN}(?P<file>\S+) -->\n)(?P<table>(?:(?!{_BEGIN}).)*?)({_END})", re.DOTALL)


def fill(path: Path) -> int:
    """Rewrites every block ``<!-- results FILE.json --> ... <!-- end -->`` of a file; FILE lies relative to it.

    Returns:
      How many blocks changed.

    Raises:
      UserError: for a file of results that is missing or unknown.
    """
    before = path.read_text()
    after, changed = filled(before, path.parent)
    if changed:
        path.write_text(after)
    return changed


def filled(text: str, base: Path) -> tuple[str, int]:
    """The text with its blocks filled from files below ``base``, and how many changed."""
    changed = 0

    def replace(block: re.Match[str]) -> str:
        nonlocal changed
        new = f"{block[1]}{table(base / block['file'], block['file'])}{_END}"
        changed += new != block[0]
        return new

    open_ended = re.search(rf"{_BEGIN}.*", _BLOCK.sub("", text))
    if open_ended:
        raise UserError(f"'{open_ended[0]}' is not closed: write '{_END}' after it")
    return _BLOCK.sub(replace, text), changed


def table(path: Path, link: str) -> str:
    """The Markdown table of a file of results, with a link to it."""
    if not path.is_file():
        raise UserError(f"there is no file {path}{nearest(str(path), map(str, path.parent.glob('*.json')))}")
    found = committed.read_object(path)
    kind = found.get("kind") or found.get("benchmark")
    if kind not in TABLES:
        raise UserError(f"{path} holds results of kind {kind!r}; tables can be made of {', '.join(TABLES)}")
    if kind == "study":
        lines, where = _study(cells_lib.collect([path])), committed.read(path)
    else:
        lines, where = TABLES[kind](found["tables" if kind == findings.KIND else "rows"]), [found | {"device": found["devices"]}]
    return (
        "\n".join(
            [*lines, "", f"`{found['command']}`; {_where(where)}; {found['date']}; [data]({link}). {found.get('reduced', '')}".rstrip()]
        )
        + "\n"
    )


def _where(results: list[dict[str, Any]]) -> str:
    """What the results were found on; all of it where they differ."""
    devices = [f"{r['device']['count']} x {r['device']['kind']}, {r['device']['cores']} cores" for r in results]
    commits = ["no checkout" if r["commit"] is None else re.sub(r"^(\w{7})\w*", r"commit \1", r["commit"]) for r in results]
    return "; ".join(" and ".join(dict.fromkeys(each)) for each in (devices, [f"jax {r['versions']['jax']}" for r in results], commits))


def _study(cells: list[Cell]) -> list[str]:
    names = ("cell", "seeds", "test error %", "median", "best over training %", "training error %", "against the first, paired (95 %)")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return lines + [f"| {' | '.join(_cell(cell, cells[0]))} |" for cell in cells]


def _cell(cell: Cell, first: Cell) -> list[str]:
    error = cell.error
    diverged = f", {cell.diverged} diverged" if cell.diverged else ""
    return [
        cell.name.replace("|", "\\|"),
        f"{len(error.values)}{diverged}",
        f"{error}{' **fail**' if cell.failed else ''}",
        f"{error.median:.2f}",
        str(cell.spread("best_over_training")),
        str(cell.spread("training_error_percent")),
        "" if cell is first else str(difference(cell, first)),
    ]


def _seeds(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| seeds | how | ms a step of all | images/s of all seeds | throughput over one after another |", "|" + "---|" * 5]
    for row in rows:
        lines.append(f"| {row['seeds']} | {row['how']} | {_speed(row)} | {row['throughput']:.2f} |")
    return lines


def _peers(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| network | images | work | what | ms | images/s | ours over it |", "|" + "---|" * 7]
    for row in rows:
        what = f"{row['what']} ({row['version']})"
        cells = [row["network"], str(row["batch_size"]), row["work"], what, _speed(row, 1), f"{row['ours_over_this']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _runs(rows: list[dict[str, Any]]) -> list[str]:
    names = ("network", "dtype", "steps run of", "compile s", "ms a step", "images/s", "training s", "all of it s")
    cells = []
    for row in rows:
        middle, least, most = (1e3 * row[name] for name in ("step_seconds", "step_seconds_least", "step_seconds_most"))
        cells.append(
            [
                _network(row),
                row["dtype"],
                f"{row['steps']:,} of {row['recipe_steps']:,}",
                f"{row['compile_seconds']:.1f}",
                f"{middle:.2f} ({least:.2f} to {most:.2f})",
                f"{row['images_per_second']:,.0f}",
                f"{row['training_seconds']:,.0f}",
                f"{row['seconds']:,.0f}{', extrapolated' if row['extrapolated'] else ''}",
            ]
        )
    return _lines(names, cells)


def _dispatches(rows: list[dict[str, Any]]) -> list[str]:
    names = ("network", "arrays of state", "steps a call", "host ms a call", "host ms a step", "ms a step in all")
    cells = []
    for row in rows:
        middle, least, most = (1e3 * row[f"host_{name}"] for name in ("seconds", "seconds_least", "seconds_most"))
        cells.append(
            [
                row["network"],
                str(row["arrays"]),
                str(row["steps"]),
                f"{middle:.2f} ({least:.2f} to {most:.2f})",
                f"{1e3 * row['host_seconds_a_step']:.3f}",
                f"{1e3 * row['seconds_a_step']:.1f}",
            ]
        )
    return _lines(names, cells)


def _layers(rows: list[dict[str, Any]]) -> list[str]:
    named = ("forward", "images", "kernel", "kernel_plain", "torch_forward", "torch_images", "torch_kernel")
    lines = [f"| network | convolution | times | {' | '.join(name.replace('_', ' ') for name in named)} |", "|" + "---|" * (3 + len(named))]
    for row in rows:
        cells = [f"{1e3 * row[name]:,.1f}" if name in row else "" for name in named]
        lines.append(f"| {row['network']} | {row['layer']} | {row['times']} | {' | '.join(cells)} |")
    return lines


def _executions(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| network | blocks | gradients | ms a step | images/s | speedup |", "|" + "---|" * 6]
    for row in rows:
        lines.append(f"| {_network(row)} | {row['blocks']} | {row['convolution']} | {_speed(row)} | {row['speedup']:.2f} |")
    return lines


def _compilation(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| network | blocks | trace + lower s | compile s | operations | temporary MB |", "|" + "---|" * 6]
    for row in rows:
        stopped = row.get("stopped_after_seconds")
        numbers = (
            [f"over {stopped:.0f} in all", "", "", ""]
            if stopped
            else [
                f"{row['trace_seconds'] + row['lower_seconds']:.1f}",
                f"{row['compile_seconds']:.1f}",
                f"{row['operations']:,}",
                f"{row['temporary_bytes'] / 1e6:,.0f}",
            ]
        )
        lines.append(f"| {_network(row)} | {row['blocks']}{', remat' if row['remat'] else ''} | {' | '.join(numbers)} |")
    return lines


def _input(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| what | images per CPU-second | over a Pillow process pool |", "|" + "---|" * 3]
    for row in rows:
        numbers = f"{row['images_per_cpu_second']:,.0f} ({row['least']:,.0f} to {row['most']:,.0f})"
        lines.append(f"| {row['what']} | {numbers} | {format(row['over_pool'], '.2f') if 'over_pool' in row else ''} |")
    return lines


def _plan(rows: list[dict[str, Any]]) -> list[str]:
    names = (
        *("target", "chips", "BatchNorm over", "images a chip", "memory, GB a chip", "exchanges a step", "of them, MB"),
        *("memory traffic, MB an image", "images/s, upper bound", "efficiency, upper bound: nothing hidden / all"),
    )
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in rows:
        bound, kinds = row["bound"], row["collectives"].items()
        cells = [
            row["target"],
            f"{row['chips']:,}",
            {0: "the whole batch", None: "no batch"}.get(row["group_size"], f"groups of {row['group_size']}"),
            str(row["batch_per_device"]),
            f"{row['memory_bytes'] / 1e9:.3f}",
            ", ".join(f"{kind['count']} {name}" for name, kind in kinds) or "none",
            f"{sum(kind['bytes'] for _, kind in kinds) / 1e6:.2f}",
            f"{row['bytes_per_image'] / 1e6:.0f}",
            f"{bound['images_per_second']:,.0f}",
            f"{100 * bound['efficiency_exposed']:.1f} / {100 * bound['efficiency_hidden']:.1f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _program(rows: list[dict[str, Any]]) -> list[str]:
    names = ("network", "images", "target", "BatchNorm's gradients", "steps a call", "kernels a step", "MB an image", "temporary MB")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in rows:
        numbers = f"{row['steps']} | {row['kernels']:,.0f} | {row['bytes_per_image'] / 1e6:,.1f} | {row['temporary_bytes'] / 1e6:,.0f}"
        lines.append(f"| {row['network']} | {row['batch_size']} | {row['target']} | {row['normalization']} | {numbers} |")
    return lines


def _finding(tables: list[dict[str, Any]]) -> list[str]:
    """The first of what a look inside networks found."""
    first = findings.table(tables[0])
    return _lines(first.columns, [[cell.replace("|", "\\|") for cell in row] for row in first.cells()])


def _lines(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table by its headings and cells."""
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names), *(f"| {' | '.join(cells)} |" for cells in rows)]


def _speed(row: dict[str, Any], digits: int = 0) -> str:
    """Milliseconds with their range, and images a second to so many digits: two cells."""
    middle, least, most = (1e3 * row[name] for name in ("seconds", "seconds_least", "seconds_most"))
    return f"{middle:,.0f} ({least:,.0f} to {most:,.0f}) | {row['images_per_second']:,.{digits}f}"


def _network(row: dict[str, Any]) -> str:
    return f"{row['network']} {row['depth'] or ''}".strip()


TABLES: dict[str, Callable[[Any], list[str]]] = {
    "study": _study,
    "seeds": _seeds,
    "step": _peers,
    "layers": _layers,
    "run": _runs,
    "dispatch": _dispatches,
    "execution": _executions,
    "compile": _compilation,
    "input": _input,
    "plan": _plan,
    "program": _program,
    findings.KIND: _finding,
}
