"""``resnet-jax bench compile``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resnet_jax import options as options_lib
from resnet_jax.bench.commands.output import Columns, Output, show

Form = Literal["loop", "scan"]


@dataclass(frozen=True, kw_only=True)
class CompileOptions(Output):
    """Seconds to trace, lower and compile a training step, operations of the lowered program, temporary memory: by depth and form."""

    network: str = "cifar_resnet"
    """A family, see ``resnet-jax summary --help``."""
    depths: tuple[int, ...] = (20, 56, 110, 1202)
    blocks: tuple[Form, ...] = ("loop", "scan")
    remat: bool = False
    batch_size: int = 128
    limit: float = 900.0
    """Seconds after which a row is given up."""


def run(arguments: Sequence[str]) -> None:
    """Measures, and prints."""
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
        "from the cache s": lambda row: f"{row['cached_seconds']:.1f}",
        "operations": lambda row: f"{row['operations']:,}",
        "temporary MB": lambda row: f"{row['temporary_bytes'] / 1e6:,.0f}",
    }
    show("compile", f"training step of {options.network}, batch {options.batch_size}", rows, columns, options, arguments)
