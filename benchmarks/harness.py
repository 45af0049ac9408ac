"""Interleaved rounds, device traces, and the output of benchmarks."""

import collections
import datetime
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro
from jax.profiler import ProfileData

from resnet_jax.errors import CommandError, Positive, UserError, check
from resnet_jax.training import run_dir

Row = dict[str, Any]
Seconds = list[float]


def cli(main: Callable[..., None]) -> None:
    """Calls a function with the options of the command line; bad input ends in one sentence."""
    try:
        tyro.cli(main)
    except CommandError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def check_positive(**options: int) -> None:
    for name, value in options.items():
        check(f"--{name.replace('_', '-')}", Positive, value)


def interleave(candidates: Sequence[Callable[[], object]], rounds: int) -> list[Seconds]:
    """Returns the seconds of each candidate in each round, after an unmeasured one.

    Of several candidates, each is called twice and measured once: memory allocation is slower after
    another's step.
    """
    seconds: list[Seconds] = [[] for _ in candidates]
    for _ in range(1 + rounds):
        for candidate, measured in zip(candidates, seconds, strict=True):
            if len(candidates) > 1:
                candidate()
            start = time.perf_counter()
            candidate()
            measured.append(time.perf_counter() - start)
    return [measured[1:] for measured in seconds]


def summary(seconds: Seconds, steps: int) -> Row:
    """Returns the seconds per step."""
    return {
        "seconds": statistics.median(seconds) / steps,
        "seconds_least": min(seconds) / steps,
        "seconds_most": max(seconds) / steps,
        "rounds": len(seconds),
    }


def ratio(numerator: Seconds, denominator: Seconds) -> float:
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def trace(run: Callable[[], object], steps: int, most: int = 20) -> Row:
    """Returns what the device does in a call of ``steps`` steps; times are per step.

    ``busy_ms`` is the time in which any kernel runs. ``kernels`` has name, milliseconds and number
    of the most expensive ones. XLA launches no CUDA graphs while it is traced.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = list(ProfileData.from_file(str(file)).planes)
        devices = [plane for plane in planes if plane.name.startswith("/device:")]
        # Streams of a GPU, operations of a TPU, threads of the CPU.
        events = sorted(
            (event.start_ns, event.start_ns + event.duration_ns, event.name)
            for plane in devices or planes
            for line in plane.lines
            if line.name.startswith(("Stream", "XLA Ops", "tf_XLA"))
            for event in line.events
            if event.duration_ns
        )
    busy, end, kernels = 0.0, 0.0, collections.defaultdict[str, Seconds](list)
    for first, last, name in events:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
        kernels[name].append(last - first)
    sums = {name: sum(times) / steps / 1e6 for name, times in kernels.items()}
    return {
        "busy_ms": busy / steps / 1e6,
        "launches": len(events) / steps,
        "kernels": [
            [name, round(sums[name], 5), len(kernels[name]) / steps]
            for name in sorted(sums, key=sums.__getitem__, reverse=True)[:most]
        ],
    }


def write(rows: Iterable[Row], output: Path | None) -> None:
    """Prints rows as they are measured; writes them with their origin to a file.

    The file exists when all are measured, before that one with the suffix ``.part``.
    """
    result, measured = {}, []
    part = output and output.with_suffix(".part")
    if part:
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.open("a").close()
        except OSError as error:
            raise UserError(f"--output {output} cannot be written: {error.strerror}.") from None
        result = {
            "benchmark": Path(sys.argv[0]).stem,
            "date": datetime.date.today().isoformat(),
            "command": shlex.join(["python", *sys.argv]),
            **run_dir.describe(),
            "rows": measured,
        }
    for row in rows:
        texts = {n: f"{v:.4g}" if isinstance(v, float) else v for n, v in row.items()}
        texts.pop("kernels", None)
        print(", ".join(f"{name} {text}" for name, text in texts.items()), flush=True)
        measured.append(row)
        if part:
            part.write_text(json.dumps(result, indent=2) + "\n")
    if part and output:
        part.rename(output)
