"""Results as tables in the terminal."""

from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from resnet_jax.studies.cells import Cell, Spread, difference
from resnet_jax.studies.comparison import MEASURED, Comparison
from resnet_jax.studies.ledger import METRICS, Entry, Paper


def cells_tables(cells: Sequence[Cell]) -> list[Table]:
    """The headline: errors of the last step in percent, and the difference to the first cell. Then what was selected, and costs."""
    return [_headline(cells), _selected_and_costs(cells)]


def _headline(cells: Sequence[Cell]) -> Table:
    finished = [cell for cell in cells if cell.results]
    table = Table(title="error of the last step: mean ± standard deviation over seeds")
    table.add_column("cell", overflow="fold")
    for name in ("seeds", "test error %", "median", "best seed", "training error %"):
        table.add_column(name, justify="right")
    table.add_column("against the first cell, paired (95 %)", overflow="fold")
    for cell in cells:
        if not cell.results:
            table.add_row(escape(cell.name), f"0/{len(cell.runs)}", "not run")
            continue
        error = cell.error
        table.add_row(
            escape(cell.name),
            seeds(cell),
            f"{error}{' fail' if cell.failed else ''}",
            f"{error.median:.2f}",
            f"{error.best:.2f}",
            str(cell.spread("training_error_percent")),
            "" if cell is finished[0] else escape(str(difference(cell, finished[0]))),
        )
    return table


def _selected_and_costs(cells: Sequence[Cell]) -> Table:
    finished = [cell for cell in cells if cell.results]
    validated = any(cell.spread("selected_on_validation").values for cell in finished)
    table = Table(title="errors of a chosen step, not comparable with those above, and costs")
    table.add_column("cell", overflow="fold")
    selected = ["best over training (selected on test) %", *(["selected on validation %"] if validated else [])]
    for name in [*selected, "parameters", "s a run"]:
        table.add_column(name, justify="right")
    for cell in finished:
        seconds = cell.seconds
        table.add_row(
            escape(cell.name),
            str(cell.spread("best_over_training")),
            *([str(cell.spread("selected_on_validation"))] if validated else []),
            f"{cell.results[0]['parameters']:,}",
            f"{seconds.mean:.0f}" if seconds.values else "–",
        )
    return table


def seeds(cell: Cell) -> str:
    """Seeds finished, and how many of them diverged."""
    of_all = "" if len(cell.results) == len(cell.runs) else f"/{len(cell.runs)}"
    return f"{len(cell.results)}{of_all}{f', {cell.diverged} diverged' if cell.diverged else ''}"


def paper_tables(paper: Paper, comparisons: Iterable[Comparison]) -> list[Table]:
    """A table for each of the paper's: published beside ours. Only numbers that may be targets."""
    grouped: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        grouped.setdefault(comparison.entry.table, []).append(comparison)
    titles = {name: f": {rows[0].entry.caption}" if rows[0].entry.caption else "" for name, rows in grouped.items()}
    return [_paper_table(escape(f"{paper.key}, {name}{titles[name]}"), rows) for name, rows in grouped.items()]


def _paper_table(title: str, comparisons: Sequence[Comparison]) -> Table:
    table = Table("row", "what", title=title, caption_justify="left")
    table.add_column("published", justify="right")
    for name in ("mark", "ours"):
        table.add_column(name, overflow="fold")
    for comparison in comparisons:
        entry = comparison.entry
        table.add_row(escape(entry.row), METRICS[entry.metric], f"{entry}{how(entry)}", entry.mark, escape(ours(comparison)))
    missing = [comparison for comparison in comparisons if comparison.study_command and _is_missing(comparison)]
    commands = dict.fromkeys(comparison.study_command for comparison in missing)
    if commands:
        alone = escape(" [--only NAME]") if any(comparison.only for comparison in missing) else ""
        table.caption = "\n".join(f"to run: {command}{alone}" for command in commands)
    return table


def how(entry: Entry) -> str:
    """The statistic of a published number, where it is not of a single run."""
    if entry.statistic in ("single", "exact"):
        return ""
    return f" {entry.statistic}" + (f" of {entry.runs}" if entry.runs else "")


def ours(comparison: Comparison) -> str:
    """What stands beside a published number: results, a count, a refusal, or the name of the cell that would be run."""
    entry = comparison.entry
    if comparison.counted is not None:
        return f"{comparison.counted:,}"
    if not entry.network:
        return "–"
    if entry.metric not in MEASURED:
        return "not measured here"
    lines = [f"{spread_of(spread)} ({cell.name})" for cell, spread in comparison.ours]
    lines += [str(refusal) for refusal in comparison.refused]
    if _is_missing(comparison):
        lines.append(f"not run{f': {comparison.only}' if comparison.only else ''}")
    return "\n".join(lines)


def _is_missing(comparison: Comparison) -> bool:
    return bool(comparison.entry.network) and comparison.entry.metric in MEASURED and not comparison.ours


def spread_of(spread: Spread) -> str:
    """All that may be compared with a published number, whichever statistic that is."""
    return f"{spread}, median {spread.median:.2f}, best {spread.best:.2f}, n={len(spread.values)}"
