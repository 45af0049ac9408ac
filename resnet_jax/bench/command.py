"""``resnet-jax bench``: each benchmark prints a short table, and writes it as JSON with device and versions where asked."""

import datetime
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resnet_jax import options as options_lib
from resnet_jax.errors import UserError, nearest

Form = Literal["loop", "scan"]


# Heading to what of a row stands below it.
Columns = dict[str, Callable[[dict[str, Any]], str]]
SPEED: Columns = {
    "ms a step": lambda row: f"{1e3 * row['seconds']:,.0f}",
    "least to most": lambda row: f"{1e3 * row['seconds_least']:,.0f} to {1e3 * row['seconds_most']:,.0f}",
    "images/s": lambda row: f"{row['images_per_second']:,.0f}",
}


@dataclass(frozen=True, kw_only=True)
class _Output:
    output: Path | None = None
    """File for the table as JSON, with date, commit, versions and devices."""
    json: bool = False
    """Print that JSON instead of the table."""


@dataclass(frozen=True, kw_only=True)
class CompileOptions(_Output):
    """Seconds to trace, lower and compile a training step, operations of the lowered program, temporary memory: by depth and form."""

    network: str = "cifar_resnet"
    """A family, see ``resnet-jax summary --help``."""
    depths: tuple[int, ...] = (20, 56, 110, 1202)
    blocks: tuple[Form, ...] = ("loop", "scan")
    remat: bool = False
    batch_size: int = 128
    limit: float = 900.0
    """Seconds after which a row is given up."""


@dataclass(frozen=True, kw_only=True)
class StepOptions(_Output):
    """Seconds of a training step under several forms, interleaved; the speedup is over the first form, round by round."""

    network: str = "cifar_resnet"
    """A family, see ``resnet-jax summary --help``."""
    depths: tuple[int, ...] = (20, 56, 110)
    blocks: tuple[Form, ...] = ("loop", "scan")
    convolution: tuple[Literal["plain", "explicit"], ...] = ("explicit",)
    """Gradients of convolutions; every form is measured with each."""
    remat: bool = False
    batch_size: int = 128
    rounds: int = 9


@dataclass(frozen=True, kw_only=True)
class SeedsOptions(_Output):
    """Seconds of a training step of several seeds in one program, interleaved, and their throughput over that of one after another."""

    network: str = "cifar_resnet"
    """A family, see ``resnet-jax summary --help``."""
    depth: int = 20
    seeds: tuple[int, ...] = (1, 2, 4)
    """Numbers of seeds on one device (vmap), and on as many devices as seeds where there are so many."""
    input_shape: tuple[int, int, int] = (32, 32, 3)
    batch_size: int = 128
    rounds: int = 9


def compile_(arguments: Sequence[str]) -> None:
    """Cost of compiling a training step, by depth and form: resnet-jax bench compile [--depths 20 110] [--output FILE]"""
    options = options_lib.parse("bench compile", CompileOptions, arguments)
    from resnet_jax.bench import compilation

    rows = list(
        compilation.table(
            options.network,
            options.depths,
            blocks=options.blocks,
            remat=options.remat,
            batch_size=options.batch_size,
            limit=options.limit,
        )
    )
    columns: Columns = {
        "trace s": lambda row: f"{row['trace_seconds']:.1f}",
        "lower s": lambda row: f"{row['lower_seconds']:.1f}",
        "compile s": lambda row: f"{row['compile_seconds']:.1f}",
        "operations": lambda row: f"{row['operations']:,}",
        "temporary MB": lambda row: f"{row['temporary_bytes'] / 1e6:,.0f}",
    }
    _show("compile", f"training step of {options.network}, batch {options.batch_size}", rows, columns, options, arguments)


def step(arguments: Sequence[str]) -> None:
    """Seconds of a training step, loop against scan, interleaved: resnet-jax bench step [--depths 20 56] [--output FILE]"""
    options = options_lib.parse("bench step", StepOptions, arguments)
    if options.rounds < 1:
        raise UserError(f"--rounds is {options.rounds}; give at least 1")
    from resnet_jax.bench import steps
    from resnet_jax.models import Execution

    executions = [Execution(blocks=b, convolution=c, remat=options.remat) for c in options.convolution for b in options.blocks]
    rows = steps.compare(options.network, options.depths, executions, batch_size=options.batch_size, rounds=options.rounds)
    columns: Columns = {
        "gradients": lambda row: row["convolution"],
        **SPEED,
        "speedup": lambda row: f"{row['speedup']:.2f}",
    }
    title = f"training step of {options.network}, batch {options.batch_size}, median of {options.rounds} interleaved rounds"
    _show("step", title, rows, columns, options, arguments)


def seeds(arguments: Sequence[str]) -> None:
    """Throughput of several seeds in one program against one after another: resnet-jax bench seeds [--depth 20] [--seeds 1 2 4]"""
    options = options_lib.parse("bench seeds", SeedsOptions, arguments)
    if options.rounds < 1 or not options.seeds or min(options.seeds) < 1:
        raise UserError(f"--rounds is {options.rounds} and --seeds {options.seeds}; give numbers of at least 1")
    import dataclasses

    from resnet_jax import models
    from resnet_jax.bench import parallel_seeds

    network = dataclasses.replace(models.architecture(options.network, options.depth), input_shape=options.input_shape)
    measured = parallel_seeds.measure(network, options.seeds, batch_size=options.batch_size, rounds=options.rounds)
    rows = [{"network": options.network, "depth": options.depth} | row for row in measured]
    columns: Columns = {
        "seeds": lambda row: str(row["seeds"]),
        "how": lambda row: row["how"],
        **SPEED,
        "over one after another": lambda row: f"{row['throughput']:.2f}",
    }
    title = (
        f"training step of all seeds of {options.network}, batch {options.batch_size} a seed, median of {options.rounds} interleaved rounds"
    )
    _show("seeds", title, rows, columns, options, arguments)


BENCHMARKS: dict[str, Callable[[Sequence[str]], None]] = {"compile": compile_, "step": step, "seeds": seeds}


def run(arguments: Sequence[str]) -> None:
    """Dispatches to a benchmark."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("resnet-jax bench BENCHMARK [...]; resnet-jax bench BENCHMARK --help says more\n")
        print("\n".join(f"  {name:9} {(function.__doc__ or '').strip()}" for name, function in BENCHMARKS.items()))
        raise SystemExit(0 if arguments else 2)
    if arguments[0] not in BENCHMARKS:
        raise UserError(f"there is no benchmark {arguments[0]!r}{nearest(arguments[0], BENCHMARKS)}")
    BENCHMARKS[arguments[0]](arguments[1:])


def _show(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    columns: Columns,
    options: _Output,
    arguments: Sequence[str],
) -> None:
    from resnet_jax.training import environment

    command = shlex.join(["resnet-jax", "bench", name, *arguments])
    found = {"benchmark": name, "date": datetime.date.today().isoformat(), "command": command, **environment.describe(), "rows": rows}
    if options.json:
        print(json.dumps(found))
    else:
        _print(title, rows, columns, found)
    # Last: a file that cannot be written loses no measurement.
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=2) + "\n")


def _print(title: str, rows: list[dict[str, Any]], columns: Columns, found: dict[str, Any]) -> None:
    from rich.table import Table

    from resnet_jax.console import out

    table = Table(title=title)
    # What every row of a benchmark has beside what it measured.
    names = [name for name in ("depth", "blocks") if name in rows[0]]
    for heading in (*names, *columns):
        table.add_column(heading, justify="right")
    for row in rows:
        stopped = row.get("stopped_after_seconds")
        cells = [f"> {stopped:.0f} s in all"] + [""] * (len(columns) - 1) if stopped else [cell(row) for cell in columns.values()]
        table.add_row(*(str(row[name]) for name in names), *cells)
    out.print(table)
    device = found["devices"]
    out.print(f"{device['count']} x {device['kind']}, {device['cores']} cores, jax {found['versions']['jax']}", highlight=False)
