"""``resnet-jax study`` and ``resnet-jax report``."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from resnet_jax import distributed
from resnet_jax.cli import options as options_lib
from resnet_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from resnet_jax.studies.results import VariantRuns
    from resnet_jax.training.config import Experiment

COMMITTED = Path("experiments/results")


@dataclass(frozen=True, kw_only=True)
class StudyOptions(options_lib.RunOptions):
    """Train every variant of a study with every seed and write the report. The same command resumes."""

    study: Positional[str]
    """FILE.py:FUNCTION that returns experiments, for example experiments/he2016_shortcuts.py:table1."""
    seeds: int = 2
    """Runs of each variant, with the seeds 0, 1, ..."""
    data: str | None = None
    """Other prepared data set: digits, cifar10. The networks take its image size and classes."""
    steps: int | None = None
    """Shortens or stretches every variant, with its schedule."""
    depth: int | None = None
    """Argument of the study's function."""
    only: tuple[str, ...] = ()
    """Names of the variants to train. Default: all."""
    workers: int | None = None
    """Worker processes, one device each. Default: one per accelerator; none on CPU, with --devices, or in several processes. 1: this
    process, with all devices for every run."""
    json: bool = False
    """Print the table as JSON."""


def study(arguments: Sequence[str]) -> None:
    """Runs ``resnet-jax study``."""
    options = options_lib.parse("study", StudyOptions, arguments)
    if sum(argument.partition("=")[0] == "--only" for argument in arguments) > 1:
        raise UserError("--only is given more than once; give it once, with all the names")
    if options.seeds < 1:
        raise UserError(f"--seeds is {options.seeds}; give at least 1")
    if options.workers is not None and options.devices is not None:
        raise UserError("--workers and --devices exclude each other; a worker has one device")
    distributed.connect(options.joining)
    if distributed.several() and options.workers not in (None, 1):
        raise UserError(
            f"--workers is {options.workers} in a study of several processes; start one process, or leave out --workers"
        )
    from resnet_jax.studies import study as study_lib

    every = study_lib.load_variants(
        options.study, **({} if options.depth is None else {"depth": options.depth})
    )
    variants = _chosen(every, options.only)
    if options.data is not None:
        from resnet_jax.data import datasets

        info = datasets.describe(options.data, options.data_dir)
        variants = [variant.on(info) for variant in variants]
    if options.steps is not None:
        variants = [variant.shortened(options.steps) for variant in variants]
    reduced = _reduced(_chosen(study_lib.load_variants(options.study), options.only), variants)
    import jax

    from resnet_jax.studies import results as results_lib

    in_this_process = distributed.several() or options.devices is not None
    environments = [] if in_this_process else study_lib.environments(options.workers)
    if environments:
        jax.config.update("jax_platforms", "cpu")  # this process holds no accelerator memory
    names = [variant.name for variant in every]
    with study_lib.StudyTable(variants, options.seeds) as watcher:
        failed = study_lib.run(
            variants,
            range(options.seeds),
            options.workdir,
            watcher=watcher,
            data_dir=options.data_dir,
            devices=options.devices,
            environments=environments,
            on_start=lambda: results_lib.remember_study(
                options.workdir, command=_command(options), variants=names, reduced=reduced
            ),
        )
    if not distributed.is_first():
        return
    # Also variants of earlier commands.
    variants_so_far, notes = (
        results_lib.collect([options.workdir]),
        results_lib.notes([options.workdir]),
    )
    _show(variants_so_far, options.workdir / "report.html", study=notes, as_json=options.json)
    for folder, reason in failed.items():
        print(f"resnet-jax: {folder}: {reason}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def _chosen(variants: Sequence["Experiment"], only: Sequence[str]) -> list["Experiment"]:
    names = [variant.name for variant in variants]
    if unknown := [name for name in only if name not in names]:
        raise UserError(
            f"--only {unknown[0]}: the study has no such variant{nearest(unknown[0], names)}"
        )
    return [variant for variant in variants if not only or variant.name in only]


def _command(options: StudyOptions) -> str:
    """Returns the command, without absolute paths."""
    values = {
        "--seeds": options.seeds,
        "--data": options.data,
        "--steps": options.steps,
        "--depth": options.depth,
    }
    words = [
        word for name, value in values.items() if value is not None for word in (name, str(value))
    ]
    only = ["--only", *options.only] if options.only else []
    return shlex.join(
        ["resnet-jax", "study", options.study, *words, *only, "--workdir", options.workdir.name]
    )


def _reduced(full: Sequence["Experiment"], variants: Sequence["Experiment"]) -> str:
    """Returns the differences in scale to the study's file; empty without any."""
    ours, theirs = (
        (variant.data.name, f"{variant.steps:,} steps", f"{sum(variant.model.stages)} blocks")
        for variant in (variants[0], full[0])
    )
    changes = [
        f"{our} in place of {their.split()[0]}"
        for our, their in zip(ours, theirs, strict=True)
        if our != their
    ]
    return (
        f"At reduced scale: {', '.join(changes)}. Not comparable with the paper's numbers."
        if changes
        else ""
    )


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Print the table of runs and write a self-contained page, with CSV and JSON beside it; or compare them with a paper."""

    runs: Positional[tuple[Path, ...]] = ()
    """Run directories, their parents, or files of committed results. Default with --paper: experiments/results."""
    paper: str | None = None
    """Key of a paper in the ledger, for example he2015: its numbers beside ours."""
    output: Path | None = None
    """The page. Default: report.html in the first directory."""
    save: Path | None = None
    """JSON file for the results, to commit."""
    fill: Path | None = None
    """Markdown file: its blocks <!-- results FILE.json --> are filled with tables."""
    json: bool = False
    """Print the table as JSON."""


def report(arguments: Sequence[str]) -> None:
    """Runs ``resnet-jax report``."""
    options = options_lib.parse("report", ReportOptions, arguments)
    if options.fill is not None:
        from resnet_jax.studies import report as report_lib

        with _written(options.fill):
            changed = report_lib.fill(options.fill)
        print(f"{options.fill}: {changed} of its tables changed")
        return
    from resnet_jax.studies import results as results_lib

    if not options.runs and not options.paper:
        raise UserError(
            "report needs run directories, files of results, or --paper; see resnet-jax report --help"
        )
    if options.output is not None and options.output.suffix != ".html":
        raise UserError(
            f"--output is {options.output}; give a name that ends in .html, .csv and .json are written beside it"
        )
    # Findings are committed there too.
    runs = options.runs or tuple(
        path for path in sorted(COMMITTED.glob("*.json")) if results_lib.is_study(path)
    )
    variants = results_lib.collect(runs)
    notes = results_lib.notes(runs)
    if options.save is not None:
        results = [result for variant in variants for result in variant.results]
        if not results:
            raise UserError(
                f"{', '.join(map(str, runs))}: no run is finished, there is nothing to save"
            )
        with _written(options.save):
            results_lib.write(
                options.save,
                results,
                command=notes.get("command", ""),
                reduced=notes.get("reduced", ""),
            )
    if options.paper:
        _paper(options.paper, variants, options)
        return
    folders = [path for path in runs if path.is_dir()]
    page = options.output or (folders[0] if folders else Path()) / "report.html"
    _show(variants, page, study=notes, as_json=options.json)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written or read ({error.strerror})") from error


def _show(
    variants: Sequence["VariantRuns"], page: Path, *, study: dict[str, Any], as_json: bool
) -> None:
    from resnet_jax.studies import comparison
    from resnet_jax.studies import report as report_lib
    from resnet_jax.studies import results as results_lib

    with _written(page):
        report_lib.write(variants, page, study=study, comparisons=comparison.beside(variants))
    if as_json:
        print(json.dumps(results_lib.table(variants)))
        return
    _print(*results_lib.tables(variants), *filter(None, [study.get("reduced")]), f"report: {page}")


def _print(*parts: Any) -> None:
    """Prints tables and texts."""
    from resnet_jax import terminal
    from resnet_jax.terminal import out

    for part in parts:
        out.print(
            part if isinstance(part, str) else terminal.terminal(part),
            highlight=False,
            markup=False,
            soft_wrap=isinstance(part, str),
        )


def _paper(key: str, variants: Sequence["VariantRuns"], options: ReportOptions) -> None:
    from resnet_jax.studies import comparison, ledger
    from resnet_jax.studies import report as report_lib

    paper = ledger.load(key)
    targets = [entry for entry in paper.entries if entry.verified]
    compared = [comparison.compare(entry, variants) for entry in targets]
    if options.output:
        with _written(options.output):
            report_lib.write(
                variants,
                options.output,
                study={"command": f"resnet-jax report --paper {key}"},
                comparisons=compared,
            )
    if options.json:
        print(json.dumps([comparison.plain(row) for row in compared]))
        return
    _print(f"{paper.authors}: {paper.title} ({paper.source})", *comparison.tables(compared))
    if more := len(paper.entries) - len(targets):
        _print(f"{more} more numbers are unverified: in the ledger, but no targets.")
