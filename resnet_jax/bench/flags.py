"""Which XLA flags this jaxlib knows, and which of them, or of other variables of the environment, make a training step faster here.

An unknown flag ends the process, and flags are read once: every one is tried in a process of its own. Nothing is applied.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from resnet_jax import huge_pages
from resnet_jax.bench import rounds

# XLA's begin with --; others are variables by their names.
CANDIDATES: dict[str, tuple[str, ...]] = {
    "gpu": (
        "--xla_gpu_enable_command_buffer=+CONVOLUTION",
        "--xla_gpu_enable_command_buffer=+CONVOLUTION,+WHILE",
        "--xla_gpu_experimental_enable_conv_fusion=true",
        "--xla_gpu_autotune_level=2",
        "--xla_gpu_enable_latency_hiding_scheduler=true",
    ),
    "cpu": (
        "--xla_cpu_enable_fast_math=true",
        "--xla_cpu_use_thunk_runtime=false",
        "--xla_cpu_enable_concurrency_optimized_scheduler=true",
        "--xla_cpu_use_onednn=true",
        # XLA's own choice, in place of that of models/execution.py.
        "--xla_cpu_experimental_ynn_fusion_type=individual_dot,individual_convolution,reduce",
        "--xla_cpu_prefer_vector_width=512",
        # Pages of 4 KiB, in place of those of huge_pages.py.
        f"{huge_pages.VARIABLE}=glibc.malloc.hugetlb=0",
    ),
    "tpu": ("--xla_tpu_enable_latency_hiding_scheduler=true",),
}
# What a flag has to gain before it is worth exporting, over the spread of the rounds.
LEAST_GAIN = 1.02


def measure(
    network: str, flags: Sequence[str], *, batch_size: int, steps: int, count: int, limit: float, dtype: str = "float32"
) -> Iterator[dict[str, Any]]:
    """Yields a row without flags, then one for each: ``accepted``, and where it is, seconds of a step and ``speedup``, the median over the
    rounds of the seconds without over those with it; ``helps`` where even the lower quartile of these is a gain.

    Every round starts a process for each, in turn, which compiles and runs ``steps`` steps.
    """
    ready, reasons = [""], {}
    for flag in flags:
        reason = refused(flag, limit)
        ready += [] if reason else [flag]
        reasons[flag] = reason
    asked = json.dumps({"network": network, "batch_size": batch_size, "steps": steps, "dtype": dtype})
    spent: dict[str, list[float]] = {flag: [] for flag in ready}
    for _ in range(count):
        for flag in list(spent):
            seconds = _timed(asked, flag, limit)
            if seconds is not None:
                spent[flag].append(seconds)
            elif flag:
                reasons[flag] = f"the step failed with it, or took more than {limit:.0f} s"
                del spent[flag]
            else:
                raise RuntimeError(f"a step of {network} without any flag failed, or took more than {limit:.0f} s")
    for flag in ("", *flags):
        row: dict[str, Any] = {"network": network, "batch_size": batch_size, "flag": flag, "accepted": flag in spent}
        if flag not in spent:
            yield row | {"reason": reasons[flag]}
            continue
        ratios = sorted(a / b for a, b in zip(spent[""], spent[flag], strict=True))
        helps = bool(flag) and count > 1 and statistics.quantiles(ratios, method="inclusive")[0] >= LEAST_GAIN
        yield row | rounds.spread(spent[flag]) | {"speedup": statistics.median(ratios), "helps": helps}


def best(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The flags that help, of several values of one flag the fastest."""
    fastest: dict[str, dict[str, Any]] = {}
    for row in sorted((row for row in rows if row.get("helps")), key=lambda row: row["speedup"]):
        fastest[row["flag"].partition("=")[0]] = row
    return [row["flag"] for row in fastest.values()]


def exports(flags: Sequence[str]) -> str:
    """The line for a shell that sets them all."""
    return "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in _variables(flags).items())


def backend(limit: float) -> str:
    """cpu, gpu or tpu. Asked of a process of its own: one that has seen an accelerator keeps its memory, or all of it, from the others.

    Raises:
      RuntimeError: where jax does not start.
    """
    done = _child(["-c", "import jax; print(jax.default_backend())"], "", limit)
    if done.returncode:
        raise RuntimeError(f"jax does not start: {(done.stderr.splitlines() or [''])[-1]}")
    return done.stdout.splitlines()[-1]


def refused(flag: str, limit: float) -> str:
    """Why this jaxlib does not take a flag; empty where it does."""
    try:
        done = _child(["-c", "import jax; jax.jit(lambda x: x + 1)(1.0)"], flag, limit)
    except subprocess.TimeoutExpired:
        return f"nothing within {limit:.0f} s"
    if not done.returncode:
        return ""
    said = [line for line in done.stderr.splitlines() if "Unknown flag" in line or "error" in line.lower()]
    return (said or done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1].strip()[:160]


def _variables(flags: Sequence[str], before: str = "") -> dict[str, str]:
    """Variables of the environment by name; XLA's flags are one, behind those of ``before``."""
    of_xla = [*filter(None, [before]), *(flag for flag in flags if flag.startswith("--"))]
    others = dict(flag.split("=", 1) for flag in flags if flag and not flag.startswith("--"))
    return others | ({"XLA_FLAGS": " ".join(of_xla)} if of_xla else {})


def _timed(asked: str, flag: str, limit: float) -> float | None:
    """Seconds of a step; None where there was none."""
    try:
        done = _child(["-m", "resnet_jax.bench.flags", asked], flag, limit)
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])["seconds"]


def _child(command: Sequence[str], flag: str, limit: float) -> subprocess.CompletedProcess[str]:
    # Kept programs know nothing of flags that are not part of their key.
    variables = _variables([flag], os.environ.get("XLA_FLAGS", "")) | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.run(
        [sys.executable, *command], env=os.environ | variables, capture_output=True, text=True, timeout=limit, check=False
    )


def _here(network: str, batch_size: int, steps: int, dtype: str) -> dict[str, float]:
    import dataclasses

    from resnet_jax import models
    from resnet_jax.bench.workload import Workload

    work = Workload(dataclasses.replace(models.architecture(network), dtype=dtype), batch_size, models.Execution())
    return {"seconds": rounds.spread(rounds.interleaved([work.stepping()], steps)[0])["seconds"]}


if __name__ == "__main__":
    print(json.dumps(_here(**json.loads(sys.argv[1]))))
