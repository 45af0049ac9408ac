"""``resnet-jax study`` and ``resnet-jax report``."""

import contextlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from resnet_jax import options as options_lib
from resnet_jax import processes
from resnet_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from resnet_jax.studies.cells import Cell
    from resnet_jax.studies.comparison import Comparison
    from resnet_jax.training.experiment import Experiment

# Where this project keeps its own.
COMMITTED = Path("experiments/results")


@dataclass(frozen=True, kw_only=True)
class StudyOptions(options_lib.RunOptions):
    """Run a comparison, what is missing of it, and write its report. Killed at any moment and started again, it goes on where it was."""

    study: Positional[str]
    """FILE.py:FUNCTION of a function that returns experiments, as experiments/he2016_shortcuts.py:table1."""
    seeds: int = 2
    """Runs of each experiment, with the seeds 0, 1, ..."""
    data: str | None = None
    """Another prepared data set in place of the experiments' own: digits, cifar10. Its images and classes become the networks'."""
    steps: int | None = None
    """Shortens or stretches every experiment, with its schedule."""
    depth: int | None = None
    """Handed to the study's function, where it takes a depth."""
    only: tuple[str, ...] = ()
    """Names of the cells to run; all where not given."""
    seed_parallel: Literal["off", "vmap", "devices"] | None = None
    """Seeds one after another (off), on a device each (devices), or vectorised on one (vmap). Where not given: devices if there are
    several, else off."""
    json: bool = False
    """Print the table as JSON."""


def study(arguments: Sequence[str]) -> None:
    """Run a comparison of experiments over seeds: resnet-jax study FILE.py:FUNCTION --seeds N --workdir DIR [--data digits] [--steps N]"""
    options = options_lib.parse("study", StudyOptions, arguments)
    if sum(argument.partition("=")[0] == "--only" for argument in arguments) > 1:
        raise UserError("--only is given more than once; give it once, with all the names")
    if options.seeds < 1:
        raise UserError(f"--seeds is {options.seeds}; give at least 1")
    processes.connect(options.joining)
    from resnet_jax.studies import comparison

    published = comparison.study_cells(options.study, **({} if options.depth is None else {"depth": options.depth}))
    cells = _chosen(published, options.only)
    if options.data is not None:
        from resnet_jax.data import sources

        info = sources.describe(options.data, options.data_dir)
        cells = [cell.on(info) for cell in cells]
    if options.steps is not None:
        cells = [cell.shortened(options.steps) for cell in cells]
    from resnet_jax.live import StudyTable
    from resnet_jax.studies import cells as cells_lib
    from resnet_jax.studies import committed
    from resnet_jax.studies import study as study_lib

    with StudyTable(cells, options.seeds) as watcher:
        study_lib.run(
            cells,
            range(options.seeds),
            options.workdir,
            watcher=watcher,
            data_dir=options.data_dir,
            devices=options.devices,
            seed_parallel=options.seed_parallel,
            begun=lambda: committed.remember_study(
                options.workdir,
                command=_command(options),
                cells=[cell.name for cell in published],
                reduced=_reduced(_chosen(comparison.study_cells(options.study), options.only), cells),
            ),
        )
    if not processes.is_first():
        return
    # All that lies there: cells of earlier commands too.
    found, page = cells_lib.collect([options.workdir]), options.workdir / "report.html"
    _show(found, page, study=committed.study(options.workdir), as_json=options.json)


def _chosen(cells: Sequence["Experiment"], only: Sequence[str]) -> list["Experiment"]:
    names = [cell.name for cell in cells]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise UserError(f"--only {unknown[0]}: the study has no such cell{nearest(unknown[0], names)}")
    return [cell for cell in cells if not only or cell.name in only]


def _command(options: StudyOptions) -> str:
    """The command without the folders of this machine."""
    given = {"--seeds": options.seeds, "--data": options.data, "--steps": options.steps, "--depth": options.depth}
    words = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    only = ["--only", *options.only] if options.only else []
    parallel = ["--seed-parallel", options.seed_parallel] if options.seed_parallel else []
    return shlex.join(["resnet-jax", "study", options.study, *words, *only, *parallel, "--workdir", options.workdir.name])


def _reduced(full: Sequence["Experiment"], cells: Sequence["Experiment"]) -> str:
    """What makes the study smaller than the one its file describes; empty where nothing does."""
    changes = []
    first, ours = full[0], cells[0]
    if first.data.name != ours.data.name:
        changes.append(f"{ours.data.name} in place of {first.data.name}")
    if first.steps != ours.steps:
        changes.append(f"{ours.steps:,} steps in place of {first.steps:,}")
    if first.model.stages != ours.model.stages:
        changes.append(f"{sum(ours.model.stages)} units in place of {sum(first.model.stages)}")
    return f"At reduced scale: {', '.join(changes)}. Not comparable with the paper's numbers." if changes else ""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Print the table of runs and write one self-contained page about them, with CSV and JSON beside it; or hold the numbers of a paper
    against what has been run."""

    runs: Positional[tuple[Path, ...]] = ()
    """Run folders, folders that hold them, or files of committed results; with --paper or --fill, experiments/results where not given."""
    paper: str | None = None
    """Key of a paper in the ledger, as he2015: its numbers beside ours."""
    output: Path | None = None
    """The page; report.html in the first folder where not given."""
    save: Path | None = None
    """File for the results as data, to be committed."""
    fill: Path | None = None
    """A Markdown file whose blocks <!-- results FILE.json --> are filled with tables of those files."""
    json: bool = False
    """Print the table as JSON."""


def report(arguments: Sequence[str]) -> None:
    """Print the table of runs and write report.html: resnet-jax report RUN [RUN ...]; beside a paper's: resnet-jax report --paper he2015"""
    options = options_lib.parse("report", ReportOptions, arguments)
    if options.fill is not None:
        from resnet_jax.studies import markdown

        with _written(options.fill):
            changed = markdown.fill(options.fill)
        print(f"{options.fill}: {changed} of its tables changed")
        return
    from resnet_jax.studies import cells as cells_lib
    from resnet_jax.studies import committed

    if not options.runs and not options.paper:
        raise UserError("report: name folders of runs or files of results, or a paper with --paper; resnet-jax report --help says more")
    # Benchmarks are committed there too.
    runs = options.runs or tuple(path for path in sorted(COMMITTED.glob("*.json")) if committed.is_study(path))
    cells = cells_lib.collect(runs)
    noted = committed.notes(runs)
    if options.output is not None and options.output.suffix != ".html":
        raise UserError(f"--output is {options.output}; give a name that ends in .html: .csv and .json are written beside it")
    if options.save is not None:
        results = [result for cell in cells for result in cell.results]
        if not results:
            raise UserError(f"{', '.join(map(str, runs)) or 'no runs given'}: no run has finished, there is nothing to save")
        with _written(options.save):
            committed.write(options.save, results, command=noted.get("command", ""), reduced=noted.get("reduced", ""))
    if options.paper:
        _paper(options.paper, cells, options)
        return
    folders = [path for path in runs if path.is_dir()]
    page = options.output or ((folders[0] if folders else Path()) / "report.html")
    _show(cells, page, study=noted, as_json=options.json)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Says of which file an error of the file system speaks."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written or read ({error.strerror})") from error


def _show(cells: Sequence["Cell"], page: Path, *, study: dict[str, Any], as_json: bool) -> None:
    from resnet_jax import tables
    from resnet_jax.console import out
    from resnet_jax.studies import cells as cells_lib
    from resnet_jax.studies import comparison
    from resnet_jax.studies import report as report_lib

    with _written(page):
        report_lib.write(cells, page, study=study, comparisons=comparison.beside(cells))
    if as_json:
        print(json.dumps(cells_lib.table(cells)))
        return
    for table in tables.cells_tables(cells):
        out.print(table)
    if study.get("reduced"):
        out.print(study["reduced"], highlight=False, soft_wrap=True)
    out.print(f"report: {page}", highlight=False, soft_wrap=True)


def _paper(key: str, cells: Sequence["Cell"], options: ReportOptions) -> None:
    from resnet_jax import tables
    from resnet_jax.console import out
    from resnet_jax.studies import comparison, ledger
    from resnet_jax.studies import report as report_lib

    paper = ledger.load(key)
    targets = [entry for entry in paper.entries if entry.verified]
    compared: list[Comparison] = [comparison.compare(entry, cells) for entry in targets]
    if options.output:
        with _written(options.output):
            report_lib.write(cells, options.output, study={"command": f"resnet-jax report --paper {key}"}, comparisons=compared)
    if options.json:
        print(json.dumps([comparison.plain(each) for each in compared]))
        return
    out.print(f"{paper.authors}: {paper.title} ({paper.source})", highlight=False)
    for table in tables.paper_tables(paper, compared):
        out.print(table)
    unverified = len(paper.entries) - len(targets)
    if unverified:
        out.print(f"{unverified} more numbers of it are known from memory only: they are in the ledger, and no targets.", highlight=False)
