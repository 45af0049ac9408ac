"""``resnet-jax bench seeds``."""

from collections.abc import Sequence
from dataclasses import dataclass

from resnet_jax import options as options_lib
from resnet_jax.bench.commands.output import SPEED, Columns, Output, show
from resnet_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SeedsOptions(Output):
    """Seconds of a training step of several seeds in one program, interleaved, and their throughput over that of one after another."""

    network: str = "cifar_resnet"
    """A family, see ``resnet-jax summary --help``."""
    depth: int = 20
    seeds: tuple[int, ...] = (1, 2, 4)
    """Numbers of seeds on one device (vmap), and on as many devices as seeds where there are so many."""
    input_shape: tuple[int, int, int] = (32, 32, 3)
    batch_size: int = 128
    rounds: int = 9


def run(arguments: Sequence[str]) -> None:
    """Measures, and prints."""
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
    show("seeds", title, rows, columns, options, arguments)
