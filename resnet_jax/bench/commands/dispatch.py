"""``resnet-jax bench dispatch``."""

from collections.abc import Sequence
from dataclasses import dataclass

from resnet_jax import options as options_lib
from resnet_jax.bench.commands.output import Columns, Output, show
from resnet_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DispatchOptions(Output):
    """Milliseconds that the host spends on a training step, by how many steps are in a call; a transfer or a compilation in the loop is an
    error. The time before the call returns: on CPU jax may run small programs within it.
    """

    network: str = "resnet50_v15"
    depth: int | None = None
    steps: tuple[int, ...] = (1, 10, 100, 500)
    """Steps in a call (one scan)."""
    size: int = 32
    """Height and width of the images; the state is the same at every size."""
    batch_size: int = 2
    rounds: int = 9


def run(arguments: Sequence[str]) -> None:
    """Measures, and prints."""
    options = options_lib.parse("bench dispatch", DispatchOptions, arguments)
    if min((options.rounds, options.size, options.batch_size, *options.steps)) < 1 or not options.steps:
        raise UserError(f"--steps is {options.steps}, --size {options.size}, --batch-size {options.batch_size}; give numbers of at least 1")
    import dataclasses

    from resnet_jax import models
    from resnet_jax.bench import dispatch

    network = models.architecture(options.network, options.depth)
    network = dataclasses.replace(network, input_shape=(options.size, options.size, network.input_shape[2]))
    rows = dispatch.measure(network, options.steps, batch_size=options.batch_size, count=options.rounds)
    columns: Columns = {
        "steps a call": lambda row: str(row["steps"]),
        "host ms a call": lambda row: f"{1e3 * row['host_seconds']:,.2f}",
        "least to most": lambda row: f"{1e3 * row['host_seconds_least']:,.2f} to {1e3 * row['host_seconds_most']:,.2f}",
        "host ms a step": lambda row: f"{1e3 * row['host_seconds_a_step']:,.4f}",
        "ms a step in all": lambda row: f"{1e3 * row['seconds_a_step']:,.2f}",
    }
    state = f"{rows[0]['arrays']} arrays, {rows[0]['state_bytes'] / 1e6:,.0f} MB of state"
    title = f"{options.network}, {state}; median of {options.rounds} interleaved rounds"
    show("dispatch", title, [{"network": options.network} | row for row in rows], columns, options, arguments)
