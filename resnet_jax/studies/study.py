"""Variants x seeds, one run each: sequentially in this process, or in worker processes."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from resnet_jax import distributed
from resnet_jax.data import datasets
from resnet_jax.errors import Interrupted, NonFiniteLoss, UserError
from resnet_jax.training import config, program, sharding
from resnet_jax.training.config import Experiment
from resnet_jax.training.run_dir import Workdir
from resnet_jax.training.train import Interruption, Progress, train


class Run(NamedTuple):
    """One run of a study."""

    variant: Experiment
    seed: int
    folder: Path


@runtime_checkable
class Watcher(Protocol):
    """Display of the progress of a study."""

    def running(self, variant: Experiment, seed: int) -> AbstractContextManager[Progress]: ...

    def finished(self, variant: Experiment, result: dict[str, Any]) -> None:
        """Receives the result of a finished run, including those of earlier sessions."""
        ...


def run(
    variants: Sequence[Experiment],
    seeds: Sequence[int],
    workdir: Path,
    *,
    watcher: Watcher,
    data_dir: str | None = None,
    devices: int | None = None,
    environments: Sequence[dict[str, str]] = (),
    on_start: Callable[[], None] = lambda: None,
) -> dict[Path, str]:
    """Runs every variant, seed by seed, in ``workdir/VARIANT/seed-S``; resumes where an earlier call stopped.

    ``environments`` has the variables of the worker processes; empty: everything runs in this process, on ``devices``
    devices. ``on_start`` is called after every check, before the first run.

    Returns:
      Run directories of worker processes that failed, with the reason.

    Raises:
      UserError: for anything that any of the runs would reject, before the first starts.
      Interrupted, SystemExit: after a signal, with the states saved.
    """
    size = 1 if environments else sharding.make(devices).size
    runs = []
    for seed, variant in itertools.product(seeds, variants):
        folder = workdir / variant.name / f"seed-{seed}"
        try:
            variant.check(datasets.describe(variant.data.name, data_dir), size)
            Workdir(folder).check(variant, seed)
            result = Workdir(folder).result()
        except UserError as error:
            raise UserError(f"{variant.name}: {error}") from None
        if result is None:
            runs.append(Run(variant, seed, folder))
        else:
            watcher.finished(variant, result)
    if environments:
        on_start()
        return train_in_workers(runs, environments, watcher=watcher, data_dir=data_dir)
    for variant in {run.variant.name: run.variant for run in runs}.values():
        try:
            program.compiled(
                variant, devices
            )  # Traces the network: an invalid one fails before the first run.
        except UserError as error:
            raise UserError(f"{variant.name}: {error}") from None
    distributed.wait("results are read")
    if distributed.first():
        on_start()
    for variant, seed, folder in runs:
        with watcher.running(variant, seed) as progress:
            try:
                result = train(
                    variant, seed, folder, progress=progress, data_dir=data_dir, devices=devices
                )
            except NonFiniteLoss:
                result = Workdir(folder).result()
        watcher.finished(variant, result or {})
    return {}


# Cores of one TPU chip have the same coordinates.
_COUNT = "import jax; print(jax.default_backend(), len({getattr(d, 'coords', d.id) for d in jax.local_devices()}))"


def environments(workers: int | None) -> list[dict[str, str]]:
    """Returns the variables that show each of ``workers`` processes (None: one per accelerator) its device, or [] for no worker."""
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; give at least 1")
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
        raise UserError(
            f"--workers is {workers} for {count} devices; give at most one worker per device"
        )
    if workers == 1:
        return []
    if (
        backend == "tpu"
    ):  # https://github.com/jax-ml/jax/issues/8809; libtpu renamed DEVICES to CHIPS.
        one = {
            "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
            "TPU_PROCESS_BOUNDS": "1,1,1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
        return [
            one | {"TPU_VISIBLE_CHIPS": str(chip), "TPU_VISIBLE_DEVICES": str(chip)}
            for chip in range(workers)
        ]
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names.split(",")[:workers]]


def train_in_workers(
    runs: Sequence[Run],
    variables: Sequence[dict[str, str]],
    *,
    watcher: Watcher,
    data_dir: str | None,
) -> dict[Path, str]:
    """Trains runs in worker processes, one per element of ``variables``; returns as ``study.run``.

    Raises:
      SystemExit: after SIGINT, SIGTERM or SIGUSR1, when every worker has saved its state.
    """
    idle: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for environment in variables:
        idle.put(environment)
    processes: list[subprocess.Popen[str]] = []
    failed: dict[Path, str] = {}

    def train_one(run: Run) -> None:
        if interruption.requested:
            return
        log = run.folder.with_name(f"{run.folder.name}.log")
        environment = idle.get()
        try:
            process = _start(run, environment, log, data_dir)
            processes.append(process)
            with process, watcher.running(run.variant, run.seed) as progress:
                for line in process.stdout or ():
                    if line.startswith('{"call": '):
                        message = json.loads(line)
                        getattr(progress, message["call"])(*message["arguments"])
                code = process.wait()
        finally:
            idle.put(environment)  # Otherwise the next run would wait forever.
        result = Workdir(run.folder).result()
        if result is not None:
            watcher.finished(run.variant, result)
        elif not interruption.requested:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            failed[run.folder] = f"exit code {code}: {''.join(last) or 'no message'}; see {log}"
            return
        log.unlink()

    terminated = 0
    with (
        Interruption() as interruption,
        concurrent.futures.ThreadPoolExecutor(len(variables)) as pool,
    ):
        try:
            trained = [pool.submit(train_one, run) for run in runs]
            while concurrent.futures.wait(trained, timeout=0.1).not_done:
                if interruption.requested:
                    for process in processes[terminated:]:
                        process.terminate()
                        terminated += 1
        except BaseException:  # A second Ctrl-C.
            for process in processes:
                process.kill()
            raise
    for future in trained:
        future.result()
    if interruption.requested:
        name = signal.Signals(interruption.requested).name
        print(
            f"resnet-jax: stopped by {name}; the states are saved, the same command continues",
            file=sys.stderr,
        )
        raise SystemExit(128 + interruption.requested)
    return failed


def _start(
    run: Run, variables: dict[str, str], log: Path, data_dir: str | None
) -> "subprocess.Popen[str]":
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "resnet_jax.studies.study"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | ({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {}) | variables,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which stops every worker once.
        )
    request = {
        "experiment": config.resolve(run.variant),
        "seed": run.seed,
        "folder": str(run.folder),
        "data_dir": data_dir,
    }
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # The worker has ended; see its exit code.
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    return process


class _Progress:
    """Writes every call to stdout."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: print(
            json.dumps({"call": name, "arguments": arguments}), flush=True
        )


def main() -> None:
    request = json.loads(sys.stdin.readline())

    def stop_with_parent() -> None:
        os.read(0, 1)  # Returns at the end of stdin; nothing follows the first line.
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_with_parent, daemon=True).start()
    from resnet_jax.training.train import train as train_run

    experiment = config.restore(Experiment, request["experiment"])
    progress: Any = _Progress()
    try:
        train_run(
            experiment,
            request["seed"],
            request["folder"],
            progress=progress,
            data_dir=request["data_dir"],
            devices=1,
        )
    except NonFiniteLoss:
        pass  # its result
    except Interrupted as error:
        raise SystemExit(error.exit_code) from None
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
