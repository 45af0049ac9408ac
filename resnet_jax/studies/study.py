"""Variants x seeds, one run each: sequentially in this process, or in worker processes."""

import concurrent.futures
import contextlib
import inspect
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console, Group
from rich.live import Live

from resnet_jax import distributed, models
from resnet_jax.data import datasets
from resnet_jax.errors import Interrupted, NonFiniteLoss, Positive, UserError, check, require
from resnet_jax.models import components
from resnet_jax.studies import results
from resnet_jax.studies.ledger import FAIL_PERCENT
from resnet_jax.studies.results import VariantRuns, spread
from resnet_jax.terminal import RunLines, Table, err, say, terminal
from resnet_jax.training import config, fine_tune, sharding
from resnet_jax.training.config import Experiment
from resnet_jax.training.loggers import Callback
from resnet_jax.training.loggers import Run as RunView
from resnet_jax.training.run_dir import Record, Workdir
from resnet_jax.training.step import Metrics
from resnet_jax.training.train import Interruption, train


class Run(NamedTuple):
    variant: Experiment
    seed: int
    folder: Path


def load_variants(reference: str, **arguments: object) -> tuple[Experiment, ...]:
    """Calls the function of a study, FILE.py:FUNCTION, which returns experiments."""
    function = components.load(reference)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        words = arguments or "no arguments"
        raise UserError(f"{reference} cannot be called with {words}: {error}") from None
    variants = function(**arguments)
    if not isinstance(variants, tuple | list) or {type(v) for v in variants} != {Experiment}:
        remedy = "'resnet-jax train' takes a function that returns one"
        raise UserError(f"{reference} returned no sequence of experiments; {remedy}")
    _check_names(variants, f"{reference}: ")
    return tuple(variants)


def _check_names(variants: Sequence[Experiment], where: str = "") -> None:
    names = [variant.name for variant in variants]
    # The report is beside the directories of the variants.
    pattern = rb"(?!.*\.(json|html|csv)$)[^./\0][^/\0]{0,99}"
    for name in names:
        is_name = re.fullmatch(pattern, os.fsencode(name), re.DOTALL)
        allowed = "with at most 100 bytes and no .json, .html or .csv"
        problem = f"{where}{name!r} must be the name of one directory, {allowed}"
        require(names.count(name) == 1 and is_name is not None, problem)


@dataclass(frozen=True)
class StudyResult:
    """The runs of a study, by variant; the first variant is the baseline."""

    variants: tuple[VariantRuns, ...]

    def table(self) -> list[Record]:
        """Returns a row per run, for ``pandas.DataFrame``: the fields of ``result.json``."""
        runs = ((variant, run) for variant in self.variants for run in variant.runs)
        return [results.row(variant, run) for variant, run in runs]

    def differences(self) -> list[Record]:
        """Returns a row per variant: its test error minus that of the baseline, paired by seed.

        ``low`` and ``high`` are the 95 % interval of the mean.
        """
        baseline, *others = self.variants
        paired = {other.name: results.difference(other, baseline) for other in others}
        return [
            {"variant": name, **row._asdict(), "distinguishable": row.distinguishable}
            for name, row in paired.items()
        ]


def study(
    variants: Sequence[Experiment],
    seeds: Sequence[int],
    folder: Path | str,
    *,
    data_dir: str | None = None,
    devices: int | None = None,
) -> StudyResult:
    """Trains every variant with every seed in ``folder/VARIANT/seed-S``; continues and skips runs.

    Args:
      variants: experiments with different names.
      data_dir, devices: as of ``train``.

    Raises:
      UserError: for anything that any of the runs would reject, before the first starts.
      Interrupted: by a signal; the same call continues.
    """
    _check_names(variants)
    options = {"data_dir": data_dir, "devices": devices}
    with StudyTable(variants, len(seeds), Console(quiet=True)) as watcher:
        run(variants, seeds, Path(folder), watcher=watcher, **options)
    folders = [Path(folder, variant.name, f"seed-{s}") for variant in variants for s in seeds]
    return StudyResult(tuple(results.collect(folders)))


def run(
    variants: Sequence[Experiment],
    seeds: Sequence[int],
    workdir: Path,
    *,
    watcher: "StudyTable",
    data_dir: str | None = None,
    devices: int | None = None,
    environments: Sequence[dict[str, str]] = (),
    on_start: Callable[[], None] = lambda: None,
) -> dict[Path, str]:
    """Runs every variant, seed by seed, in ``workdir/VARIANT/seed-S``, or resumes it.

    Args:
      devices: number of devices of each run in this process.
      environments: variables of each worker process; empty: everything runs in this process.
      on_start: is called after every check, before the first run.

    Returns:
      Run directories of worker processes that failed, with the reason.

    Raises:
      UserError: for anything that any of the runs would reject, before the first starts.
      Interrupted, SystemExit: after a signal, with the states saved.
    """
    size = 1 if environments else sharding.make(devices).size
    runs = []
    for seed, variant in itertools.product(seeds, variants):
        run_dir = Workdir(workdir / variant.name / f"seed-{seed}")
        with _naming(variant):
            info = datasets.describe(variant.data.name, data_dir)
            variant.check(info, size)
            known, _ = fine_tune.with_teacher(variant.with_data(info)[0])
            run_dir.check(known, seed)
            result = run_dir.result()
        if result is None:
            runs.append(Run(variant, seed, run_dir.path))
        else:
            watcher.finished(variant, result)
    if environments:
        on_start()
        return train_in_workers(runs, environments, watcher=watcher, data_dir=data_dir)
    for variant in {run.variant.name: run.variant for run in runs}.values():
        with _naming(variant):
            # Traces the network: an invalid one fails before the first run.
            sharding.compiled(variant, devices)
    distributed.wait("results are read")
    if distributed.is_first():
        on_start()
    for one in runs:
        with watcher.running(one.variant, one.seed) as progress:
            try:
                result = train(*one, callbacks=[progress], data_dir=data_dir, devices=devices)
            except NonFiniteLoss:
                result = Workdir(one.folder).result()
        if result is not None:  # NFS may delay the files of process 0.
            watcher.finished(one.variant, result)
    return {}


@contextlib.contextmanager
def _naming(variant: Experiment) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{variant.name}: {error}") from None


# Cores of one TPU chip have the same coordinates.
_COUNT = (
    "import jax; devices = jax.local_devices(); "
    "print(jax.default_backend(), len({getattr(d, 'coords', d.id) for d in devices}))"
)


def environments(workers: int | None) -> list[dict[str, str]]:
    """Returns the variables of each worker process (None: one per accelerator), or none."""
    check("--workers", Positive | None, workers)
    if workers == 1 or (workers is None and os.environ.get("JAX_PLATFORMS") == "cpu"):
        return []
    # A subprocess frees the device memory.
    counted = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True)
    if counted.returncode:
        raise UserError(f"JAX found no device: {''.join(counted.stderr.splitlines()[-1:])}")
    backend, count = counted.stdout.split()[-2:]
    return visible(backend, int(count), workers)


def visible(backend: str, count: int, workers: int | None) -> list[dict[str, str]]:
    """Returns ``environments`` for a backend with ``count`` GPUs or TPU chips."""
    if backend == "cpu":
        return [{}] * (workers or 0)
    workers = workers or count
    if workers > count:
        remedy = "give at most one worker per device"
        raise UserError(f"--workers is {workers} for {count} devices; {remedy}")
    if workers == 1:
        return []
    if backend == "tpu":
        # https://github.com/jax-ml/jax/issues/8809; libtpu renamed DEVICES to CHIPS.
        one = dict.fromkeys(("TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_PROCESS_BOUNDS"), "1,1,1")
        one |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        names = ("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES")
        return [one | dict.fromkeys(names, str(chip)) for chip in range(workers)]
    devices = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return [{"CUDA_VISIBLE_DEVICES": name} for name in devices.split(",")[:workers]]


def train_in_workers(
    runs: Sequence[Run],
    variables: Sequence[dict[str, str]],
    *,
    watcher: "StudyTable",
    data_dir: str | None,
) -> dict[Path, str]:
    """Trains runs in worker processes, one per element of ``variables``; see ``run``."""
    pending = iter(runs)
    processes: list[subprocess.Popen[str]] = []
    failed: dict[Path, str] = {}

    def train_pending(environment: dict[str, str]) -> None:
        for run in pending:
            if interruption.requested:
                return
            try:
                reason = train_one(run, environment)
            except Exception as error:  # The device remains for the other runs.
                reason = f"{type(error).__name__}: {error}"
            if reason:
                failed[run.folder] = reason

    def train_one(run: Run, environment: dict[str, str]) -> str:
        log = run.folder.with_name(f"{run.folder.name}.log")
        process = _start(run, environment, log, data_dir)
        processes.append(process)
        with process, watcher.running(run.variant, run.seed) as progress:
            for line in process.stdout or ():
                if line.startswith('{"call": '):
                    message = json.loads(line)
                    getattr(progress, message["call"])(*message["arguments"])
        if (result := Workdir(run.folder).result()) is not None:
            watcher.finished(run.variant, result)
        elif not interruption.requested:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2] or "no message"
            return f"exit code {process.returncode}: {last}; see {log}"
        log.unlink()
        return ""

    terminated = 0
    with (
        Interruption() as interruption,
        concurrent.futures.ThreadPoolExecutor(len(variables)) as pool,
    ):
        try:
            trained = [pool.submit(train_pending, environment) for environment in variables]
            while concurrent.futures.wait(trained, timeout=0.1).not_done:
                if interruption.requested:
                    for process in processes[terminated:]:
                        process.terminate()
                        terminated += 1
        except BaseException:  # A second Ctrl-C.
            for process in processes:
                process.kill()
            raise
    if interruption.requested:
        name = signal.Signals(interruption.requested).name
        remedy = "the states are saved, the same command continues"
        print(f"resnet-jax: stopped by {name}; {remedy}", file=sys.stderr)
        raise SystemExit(128 + interruption.requested)
    return failed


def _start(
    run: Run, variables: dict[str, str], log: Path, data_dir: str | None
) -> "subprocess.Popen[str]":
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    request = json.dumps([config.resolve(run.variant), run.seed, str(run.folder), data_dir])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "resnet_jax.studies.study", request],
            stdin=subprocess.PIPE,  # Its end stops the worker if this process dies.
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | ({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {}) | variables,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which stops every worker.
        )


class _CallsToStdout(Callback):
    """Writes calls to stdout."""

    def start(self, run: RunView) -> None:
        self.step(run.step, None)

    def step(self, step: int, metrics: Metrics | None) -> None:  # noqa: ARG002
        self._write("step", step, None)

    def record(self, record: Record) -> None:
        self._write("record", record)

    def message(self, text: str) -> None:
        self._write("message", text)

    def _write(self, name: str, *words: object) -> None:
        print(json.dumps({"call": name, "arguments": words}), flush=True)


def _work(request: str) -> None:
    def stop_with_parent() -> None:
        os.read(0, 1)  # Returns at the end of stdin.
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_with_parent, daemon=True).start()
    experiment, seed, folder, data_dir = json.loads(request)
    variant, callbacks = config.restore(Experiment, experiment), [_CallsToStdout()]
    try:
        with contextlib.suppress(NonFiniteLoss):
            train(variant, seed, folder, callbacks=callbacks, data_dir=data_dir, devices=1)
    except Interrupted as error:
        raise SystemExit(error.exit_code) from None
    except UserError as error:
        raise SystemExit(str(error)) from None


class StudyTable:
    """Context manager that shows a table on a terminal, or one line per event in a log."""

    def __init__(self, variants: Sequence[Experiment], seeds: int, console: Console = err):
        self._seeds, self._console = seeds, console
        # The time of a run is about proportional to its multiply-adds.
        self._costs = {
            v.name: models.count(v.model).multiply_adds * v.steps * v.batch_size for v in variants
        }
        self._errors: dict[str, list[float]] = {name: [] for name in self._costs}
        self._current: list[_Running] = []
        self._began: float | None = None  # Of the first run of this session.
        self._done_before = 0.0
        self._live = Live(
            get_renderable=self.render, console=console, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> "StudyTable":
        if self._console.is_terminal and distributed.is_first():
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @contextlib.contextmanager
    def running(self, variant: Experiment, seed: int) -> Iterator[Callback]:
        """Yields the callback of a run."""
        if self._began is None:
            self._began, self._done_before = time.monotonic(), self._done()
        run = _Running(variant, seed, self._console)
        self._current.append(run)
        try:
            yield run
        finally:
            self._current.remove(run)

    def finished(self, variant: Experiment, result: Record) -> None:
        """Receives the result of a run, including those of earlier sessions."""
        self._errors[variant.name].append(result["value"])
        # Earlier runs appear in the table only.
        if self._began is not None and not self._console.is_terminal:
            error = f"seed {result['seed']}: test error {result['value']:.2f} %"
            say(f"{variant.name}, {error}; {self._summary()}", self._console)

    def _done(self) -> float:
        done = sum(self._costs[name] * len(errors) for name, errors in self._errors.items())
        return done + sum(self._costs[run.variant] * run.done for run in self._current)

    def _summary(self) -> str:
        runs, total = sum(map(len, self._errors.values())), self._seeds * len(self._errors)
        text = f"{runs} of {total} runs"
        if self._began is None:
            return text
        elapsed, since = time.monotonic() - self._began, self._done() - self._done_before
        text += f" in {timedelta(seconds=round(elapsed))}"
        left = self._seeds * sum(self._costs.values()) - self._done()
        if since and left:
            text += f", about {timedelta(seconds=round(elapsed * left / since))} left"
        return text

    def render(self) -> Group:
        """Returns the table, and a line with the number of runs and the remaining time."""
        rows = []
        for name, errors in self._errors.items():
            error = spread(errors)
            failed = " fail" if error.median > FAIL_PERCENT else ""
            now = "\n".join(run.now for run in self._current if run.variant == name)
            rows.append((name, f"{len(errors)}/{self._seeds}", f"{error}{failed}", now))
        table = Table("", ("variant", "seeds", "test error %", "now"), tuple(rows))
        return Group(terminal(table, box=None, header_style="bold"), self._summary())


class _Running(RunLines):
    def __init__(self, variant: Experiment, seed: int, console: Console):
        super().__init__(f"{variant.name}, seed {seed}", console)
        self.variant, self.seed, self.steps = variant.name, seed, variant.steps
        self.now, self.done = f"seed {seed}: compiling", 0.0

    def step(self, step: int, metrics: object) -> None:  # noqa: ARG002
        self.done = step / self.steps
        self.now = f"seed {self.seed}: step {step}/{self.steps}{self.numbers}"


if __name__ == "__main__":
    _work(sys.argv[1])
