"""What it costs to compile a training step, by depth and by the form of its stages: seconds, operations, temporary memory.

Each row is measured in a process of its own, so that nothing is warm and one that takes too long can be stopped; then in a second one,
which finds in jax's persistent cache what the first has left there.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any


def measure(name: str, depth: int | None, *, blocks: str, remat: bool, batch_size: int) -> dict[str, Any]:
    """Traces, lowers and compiles the training step of a network of the catalog; returns one row."""
    from resnet_jax import models
    from resnet_jax.bench.workload import Workload

    work = Workload(models.architecture(name, depth), batch_size, models.Execution(blocks=blocks, remat=remat))  # pyright: ignore[reportArgumentType]
    began = time.perf_counter()
    traced = work.step.trace(work.abstract_state, work.abstract_batch())
    traced_at = time.perf_counter()
    lowered = traced.lower()
    lowered_at = time.perf_counter()
    compiled = lowered.compile()
    compiled_at = time.perf_counter()
    memory: Any = compiled.memory_analysis()
    return {
        "trace_seconds": traced_at - began,
        "lower_seconds": lowered_at - traced_at,
        "compile_seconds": compiled_at - lowered_at,
        "operations": operations(lowered.as_text()),
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def operations(stablehlo: str) -> int:
    """Number of operations of a lowered program: each is a line that gives its result a name."""
    return sum(" = " in line and line.lstrip().startswith("%") for line in stablehlo.splitlines())


def table(
    name: str, depths: Sequence[int], *, blocks: Sequence[str], remat: bool, batch_size: int, limit: float
) -> Iterator[dict[str, Any]]:
    """Yields a row for every depth and form; where ``limit`` seconds did not do, one without measurements."""
    from resnet_jax import models

    for depth in depths:  # all are looked up before the first is measured
        models.architecture(name, depth)
    for depth in depths:
        for form in blocks:
            row: dict[str, Any] = {"network": name, "depth": depth, "blocks": form, "remat": remat, "batch_size": batch_size}
            arguments = json.dumps({"name": name, "depth": depth, "blocks": form, "remat": remat, "batch_size": batch_size})
            try:
                # A folder of their own: the user's may know the program.
                with tempfile.TemporaryDirectory(prefix="resnet_jax-compiled-") as cache:
                    found = _elsewhere(arguments, cache, limit, f"{name} of depth {depth} ({form})")
                    again = _elsewhere(arguments, cache, limit, f"{name} of depth {depth} ({form})")
            except subprocess.TimeoutExpired:
                yield row | {"stopped_after_seconds": limit}
                continue
            yield row | found | {"cached_seconds": again["compile_seconds"]}


def _elsewhere(arguments: str, cache: str, limit: float, what: str) -> dict[str, Any]:
    kept = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "resnet_jax.bench.compilation", arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False, env=os.environ | kept)
    if done.returncode:
        # A process that the system killed, for want of memory say, has said nothing.
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{what} did not compile: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
