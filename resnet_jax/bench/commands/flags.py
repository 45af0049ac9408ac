"""``resnet-jax bench flags``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resnet_jax import options as options_lib
from resnet_jax.bench.commands.output import Columns, Output, show
from resnet_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FlagsOptions(Output):
    """Which XLA flags this jaxlib takes, and which of them, or of other variables, make a training step faster on this device, each in
    processes of its own, in turn. Prints the set to export; nothing is applied.
    """

    network: str = "cifar_resnet20"
    batch_size: int = 128
    dtype: Literal["float32", "bfloat16"] = "float32"
    flags: tuple[str, ...] = ()
    """Others than those known for this device, without --: xla_cpu_enable_fast_math=true. NAME=value in capitals is a variable."""
    steps: int = 5
    """Timed in each process."""
    rounds: int = 5
    limit: float = 300.0
    """Seconds after which a process is given up."""


def run(arguments: Sequence[str]) -> None:
    """Measures, and prints."""
    options = options_lib.parse("bench flags", FlagsOptions, arguments)
    if min(options.rounds, options.steps, options.batch_size) < 1:
        raise UserError(f"--rounds is {options.rounds}, --steps {options.steps}, --batch-size {options.batch_size}; give at least 1")
    from resnet_jax import models
    from resnet_jax.bench import flags

    models.architecture(options.network)
    # A flag and its value are one word.
    given = (flag if "=" in flag and flag.partition("=")[0].isupper() else f"--{flag.removeprefix('--')}" for flag in options.flags)
    candidates = tuple(given) or flags.CANDIDATES[flags.backend(options.limit)]
    asked = {"batch_size": options.batch_size, "steps": options.steps, "count": options.rounds, "limit": options.limit}
    rows = list(flags.measure(options.network, candidates, dtype=options.dtype, **asked))
    columns: Columns = {
        "flag": lambda row: row["flag"] or "none",
        "ms a step": lambda row: f"{1e3 * row['seconds']:,.1f}" if row["accepted"] else "",
        "least to most": lambda row: f"{1e3 * row['seconds_least']:,.1f} to {1e3 * row['seconds_most']:,.1f}" if row["accepted"] else "",
        "speedup": lambda row: f"{row['speedup']:.2f}" if row["accepted"] else row["reason"],
    }
    title = f"training step of {options.network}, batch {options.batch_size}, {options.dtype}, median of {options.rounds} rounds"
    show("flags", title, rows, columns, options, arguments)
    if not options.json:
        from resnet_jax.console import out

        helping = flags.best(rows)
        told = f"each helped alone, together they were not measured: {flags.exports(helping)}"
        text = told if helping else "none of them helps beyond the spread: export nothing"
        out.print(text, highlight=False, soft_wrap=True)
