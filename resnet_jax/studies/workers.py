"""Worker processes of a study: one per device, with one run at a time.

The parent never initializes an accelerator, whose memory it would hold. A worker reads its run from stdin, writes
progress to stdout, one JSON object per line, and stops as on SIGTERM when stdin closes: none survives its parent.
"""

import concurrent.futures
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from resnet_jax.errors import Interrupted, NonFiniteLoss, UserError
from resnet_jax.studies.study import Run, Watcher
from resnet_jax.training import resolved
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.interruption import Interruption
from resnet_jax.training.workdir import Workdir

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
        raise UserError(f"--workers is {workers} for {count} devices; give at most one worker per device")
    if workers == 1:
        return []
    if backend == "tpu":  # https://github.com/jax-ml/jax/issues/8809; libtpu renamed DEVICES to CHIPS.
        one = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        return [one | {"TPU_VISIBLE_CHIPS": str(chip), "TPU_VISIBLE_DEVICES": str(chip)} for chip in range(workers)]
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names.split(",")[:workers]]


def train(runs: Sequence[Run], variables: Sequence[dict[str, str]], *, watcher: Watcher, data_dir: str | None) -> dict[Path, str]:
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
    with Interruption() as interruption, concurrent.futures.ThreadPoolExecutor(len(variables)) as pool:
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
        print(f"resnet-jax: stopped by {name}; the states are saved, the same command continues", file=sys.stderr)
        raise SystemExit(128 + interruption.requested)
    return failed


def _start(run: Run, variables: dict[str, str], log: Path, data_dir: str | None) -> "subprocess.Popen[str]":
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "resnet_jax.studies.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | ({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {}) | variables,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which stops every worker once.
        )
    request = {"experiment": resolved.resolve(run.variant), "seed": run.seed, "folder": str(run.folder), "data_dir": data_dir}
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # The worker has ended; see its exit code.
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    return process


class _Progress:
    """Writes every call to stdout."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: print(json.dumps({"call": name, "arguments": arguments}), flush=True)


def main() -> None:
    request = json.loads(sys.stdin.readline())

    def stop_with_parent() -> None:
        os.read(0, 1)  # Returns at the end of stdin; nothing follows the first line.
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_with_parent, daemon=True).start()
    from resnet_jax.training.train import train as train_run

    experiment = resolved.restore(Experiment, request["experiment"])
    progress: Any = _Progress()
    try:
        train_run(experiment, request["seed"], request["folder"], progress=progress, data_dir=request["data_dir"], devices=1)
    except NonFiniteLoss:
        pass  # its result
    except Interrupted as error:
        raise SystemExit(error.exit_code) from None
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
