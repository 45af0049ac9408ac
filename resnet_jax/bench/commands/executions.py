"""``resnet-jax bench execution``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resnet_jax import options as options_lib
from resnet_jax.bench.commands.output import SPEED, Columns, Output, show
from resnet_jax.errors import UserError

Form = Literal["loop", "scan"]


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions(Output):
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


def run(arguments: Sequence[str]) -> None:
    """Measures, and prints."""
    options = options_lib.parse("bench execution", ExecutionOptions, arguments)
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
    show("execution", title, rows, columns, options, arguments)
