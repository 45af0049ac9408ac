"""``resnet-jax bench layers``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resnet_jax import options as options_lib
from resnet_jax.bench.commands.output import Columns, Output, show
from resnet_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LayersOptions(Output):
    """Milliseconds of each convolution of a network, forward and both gradients, the kernel's under JAX's own derivative too, and torch's
    (NCHW) where it is installed. Where a step spends its time, layer by layer.
    """

    networks: tuple[str, ...] = ("cifar_resnet20",)
    """Of the catalog."""
    batch_size: int = 128
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 9


def run(arguments: Sequence[str]) -> None:
    """Measures, and prints."""
    options = options_lib.parse("bench layers", LayersOptions, arguments)
    if min(options.rounds, options.batch_size) < 1 or not options.networks:
        raise UserError(f"--rounds is {options.rounds} and --batch-size {options.batch_size}; give numbers of at least 1")
    from resnet_jax.bench import layers, throughput
    from resnet_jax.training import environment

    found = throughput.networks(options.networks, options.dtype)
    rows = [{"network": name} | row for name, network in found for row in layers.measure(network, options.batch_size, options.rounds)]
    named = ("forward", "images", "kernel", "kernel_plain", "torch_forward", "torch_images", "torch_kernel")
    columns: Columns = {
        "network": lambda row: row["network"],
        "layer": lambda row: row["layer"],
        "times": lambda row: str(row["times"]),
        **{name.replace("_", " "): lambda row, name=name: f"{1e3 * row[name]:,.1f}" if name in row else "" for name in named},
    }
    described = environment.describe()
    described["versions"] |= throughput.versions()
    title = f"ms a layer, batch {options.batch_size}, {options.dtype}, medians of {options.rounds} interleaved rounds"
    show("layers", title, rows, columns, options, arguments, described=described)
