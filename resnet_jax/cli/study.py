"""``resnet-jax study``, ``resnet-jax report`` and ``resnet-jax sweep``."""

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from tyro.conf import Positional

from resnet_jax import distributed
from resnet_jax.cli import options
from resnet_jax.cli.options import AsJson, DataDir, Processes, Reference, Words, check_suffix
from resnet_jax.data import datasets
from resnet_jax.distributed import Joining
from resnet_jax.errors import Positive, UserError, nearest, require
from resnet_jax.studies import comparison, ledger
from resnet_jax.studies import report as report_lib
from resnet_jax.studies import results as results_lib
from resnet_jax.studies import study as study_lib
from resnet_jax.studies import sweep as sweep_lib
from resnet_jax.studies.results import VariantRuns
from resnet_jax.studies.study import StudyTable
from resnet_jax.terminal import Table, say, show
from resnet_jax.training.config import Experiment
from resnet_jax.training.run_dir import Record


def study(
    reference: Reference,
    *,
    workdir: Path,
    seeds: Positive = 2,
    data: str | None = None,
    steps: Positive | None = None,
    depth: Positive | None = None,
    only: tuple[str, ...] = (),
    workers: Positive | None = None,
    data_dir: DataDir = None,
    devices: Positive | None = None,
    as_json: AsJson = False,
    joining: Processes = Joining(),
    words: Words = (),
) -> None:
    """Train every variant of a study, such as he2016_shortcuts:table1, with every seed. It resumes.

    Args:
      workdir: Folder of the runs and the report.
      seeds: Runs of each variant, with the seeds 0, 1, ...
      data: Other prepared data set: digits, cifar10. The networks take its image size and classes.
      steps: Shortens or stretches every variant, with its schedule.
      depth: Argument of the study's function.
      only: Names of the variants to train. Default: all.
      workers: Worker processes, one device each. Default: one per accelerator; none on CPU, with
        --devices, or in several processes. 1: this process, with all devices for every run.
      devices: Devices to use, over all processes; default: all.
    """
    if sum(word.partition("=")[0] == "--only" for word in words) > 1:
        raise UserError("--only is given more than once; give it once, with all the names")
    distributed.connect(joining)
    in_this_process = distributed.several() or devices is not None
    if in_this_process and workers not in (None, 1):
        other = "--devices" if devices is not None else "several processes"
        raise UserError(f"--workers and {other} exclude each other; a worker has one device")
    file = options.resolve(reference)
    arguments = {} if depth is None else {"depth": depth}
    full = every = study_lib.load_variants(file, **arguments)
    if depth is not None:
        with contextlib.suppress(UserError):  # The depth may have no default.
            full = study_lib.load_variants(file)
    names = [variant.name for variant in every]
    for name in only:
        if name not in names:
            raise UserError(f"--only {name}: the study has no such variant{nearest(name, names)}")
    variants = [variant for variant in every if not only or variant.name in only]
    full_scale = full[min(every.index(variants[0]), len(full) - 1)]
    if data is not None:
        info = datasets.describe(data, data_dir)
        variants = [variant.on(info) for variant in variants]
    if steps is not None:
        variants = [variant.shortened(steps) for variant in variants]
    reduced = _reduced(full_scale, variants[0])
    environments = [] if in_this_process else study_lib.environments(workers)
    if environments:
        jax.config.update("jax_platforms", "cpu")  # This process holds no accelerator memory.
    command = ["resnet-jax", "study", reference]
    scale = {"seeds": seeds, "data": data, "steps": steps, "depth": depth}
    for name, value in scale.items():
        command += [] if value is None else [f"--{name}", str(value)]
    command += [*(["--only", *only] if only else []), "--workdir", workdir.name]

    def remember() -> None:
        text = shlex.join(command)
        results_lib.remember_study(workdir, command=text, variants=names, reduced=reduced)

    with StudyTable(variants, seeds) as watcher:
        failed = study_lib.run(
            variants,
            range(seeds),
            workdir,
            watcher=watcher,
            data_dir=data_dir,
            devices=devices,
            environments=environments,
            on_start=remember,
        )
    if not distributed.is_first():
        return
    # Also variants of earlier commands.
    runs = results_lib.collect([workdir]), results_lib.notes([workdir])
    _report(*runs, workdir / "report.html", as_json)
    for folder, reason in failed.items():
        print(f"resnet-jax: {folder}: {reason}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def _reduced(full: Experiment, variant: Experiment) -> str:
    """Returns the differences in scale to the study's file; empty without any."""
    compared = (
        (variant.data.name, "", full.data.name),
        (f"{variant.steps:,}", " steps", f"{full.steps:,}"),
        (sum(variant.model.stages), " blocks", sum(full.model.stages)),
    )
    changes = [f"{a}{what} in place of {b}" for a, what, b in compared if a != b]
    text = f"At reduced scale: {', '.join(changes)}. Not comparable with the paper's numbers."
    return text if changes else ""


def report(
    runs: Positional[tuple[Path, ...]] = (),
    *,
    paper: str | None = None,
    output: Path | None = None,
    save: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Print the table of runs and write a page, with CSV and JSON; or compare with a paper.

    Args:
      runs: Run directories, their parents, or files of committed results. Default with --paper:
        experiments/results.
      paper: Key of a paper in the ledger, for example he2015: its numbers beside ours.
      output: The page. Default: report.html in the first directory.
      save: JSON file for the results, to commit.
    """
    require(bool(runs or paper), "report needs run directories, files of results, or --paper")
    published = ledger.load(paper) if paper else None
    # Findings are committed there too.
    committed = sorted(Path("experiments/results").glob("*.json"))
    runs = runs or tuple(filter(results_lib.is_study, committed))
    damaged = list[str]()
    variants, notes = results_lib.collect(runs, damaged), results_lib.notes(runs, damaged)
    if output is not None:
        check_suffix("--output", output, ".html")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.touch()  # Fails now rather than after a minute of comparisons.
    if save is not None:
        results = [result for variant in variants for result in variant.results]
        require(bool(results), f"{', '.join(map(str, runs))}: no run is finished, nothing to save")
        text = {"command": "", "reduced": ""} | notes
        results_lib.write(save, results, command=text["command"], reduced=text["reduced"])
    if published is None:
        folder = next((path for path in runs if path.is_dir()), Path())
        _report(variants, notes, output or folder / "report.html", as_json)
        require(not damaged, "; ".join(damaged))
        return
    targets = [entry for entry in published.entries if entry.verified]
    compared = [comparison.compare(entry, variants) for entry in targets]
    if output is not None:
        notes = {"command": f"resnet-jax report --paper {paper}"}
        report_lib.write(variants, output, study=notes, comparisons=compared)
    head = f"{published.authors}: {published.title} ({published.source})"
    parts = [head, *comparison.tables(compared)]
    if more := len(published.entries) - len(targets):
        parts.append(f"{more} more numbers are unverified: in the ledger, but no targets.")
    show(as_json, [comparison.plain(row) for row in compared], *parts)
    require(not damaged, "; ".join(damaged))


def _report(variants: Sequence[VariantRuns], notes: Record, page: Path, as_json: bool) -> None:
    report_lib.write(variants, page, study=notes, comparisons=comparison.beside(variants))
    lines = filter(None, [notes.get("reduced"), f"report: {page}"])
    show(as_json, results_lib.table(variants), *results_lib.tables(variants), *lines)


def sweep(
    reference: Reference,
    *,
    workdir: Path,
    trials: Positive = 20,
    seeds: Positive = 3,
    storage: str | None = None,
    data_dir: DataDir = None,
    devices: Positive | None = None,
    as_json: AsJson = False,
) -> None:
    """Search the annotated parameters of a function, then train the winner on fresh seeds.

    Several workers are several identical commands. A command that was killed continues.

    Args:
      workdir: Folder of the trials, the winner and the report, shared by all workers.
      trials: Finished trials of all workers; each counts, also one that was pruned.
      seeds: Runs of the winner, with the seeds 1, 2, ...; trials have seed 0.
      storage: URL of Optuna's database, as sqlite:///sweep.db. Default: WORKDIR/sweep.log.
      devices: Devices to use; default: all.
    """
    recipe = sweep_lib.Recipe(options.resolve(reference))
    places = {"data_dir": data_dir, "devices": devices}
    found = sweep_lib.run(recipe, trials, workdir, storage=storage, **places)
    best = sweep_lib.train_winner(found, recipe, seeds, workdir, **places)
    if best is None:
        say("other workers continue; the last one trains the winner")
        return
    rows, winner = sweep_lib.rows(found), results_lib.collect([workdir / best.name])
    command = f"resnet-jax sweep {reference} --trials {trials} --seeds {seeds}"
    page, notes = workdir / "report.html", {"command": command}
    report_lib.write(winner, page, study=notes, comparisons=comparison.beside(winner))
    parts = Table.from_rows("trials", rows), *results_lib.tables(winner), f"report: {page}"
    show(as_json, {"trials": rows, "winner": results_lib.table(winner)}, *parts)
