"""``resnet-jax bench step``: images a second of any network, beside peers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resnet_jax import options as options_lib
from resnet_jax.bench.commands.output import Columns, Output, show
from resnet_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class StepOptions(Output):
    """Images a second of training and inference, interleaved with peers (torch, torchvision, timm where installed: the extra bench; a plain
    Flax Linen network), with a large matrix product and with a copy.
    """

    networks: tuple[str, ...] = ("cifar_resnet20",)
    """Of the catalog: cifar_resnet56, resnet50_v15 (torchvision's resnet50), ..."""
    batch_sizes: tuple[int, ...] = (128,)
    dtype: Literal["float32", "bfloat16"] = "float32"
    work: tuple[Literal["training", "inference"], ...] = ("training", "inference")
    blocks: Literal["auto", "loop", "scan"] = "auto"
    convolution: Literal["auto", "plain", "explicit"] = "auto"
    peers: bool = True
    rounds: int = 9


def run(arguments: Sequence[str]) -> None:
    """Measures, and prints."""
    options = options_lib.parse("bench step", StepOptions, arguments)
    if options.rounds < 1 or not options.batch_sizes or min(options.batch_sizes) < 1:
        raise UserError(f"--rounds is {options.rounds} and --batch-sizes {options.batch_sizes}; give numbers of at least 1")
    from resnet_jax.bench import throughput
    from resnet_jax.models import Execution
    from resnet_jax.training import environment

    execution, rows = Execution(blocks=options.blocks, convolution=options.convolution), []
    for name, network in throughput.networks(options.networks, options.dtype):
        for batch_size in options.batch_sizes:
            rows += throughput.measure(
                name,
                network,
                works=options.work,
                batch_size=batch_size,
                execution=execution,
                peers=options.peers,
                count=options.rounds,
            )
    columns: Columns = {
        "network": lambda row: row["network"],
        "batch": lambda row: str(row["batch_size"]),
        "work": lambda row: row["work"],
        "what": lambda row: row["what"],
        "ms": lambda row: f"{1e3 * row['seconds']:,.1f}",
        "least to most": lambda row: f"{1e3 * row['seconds_least']:,.1f} to {1e3 * row['seconds_most']:,.1f}",
        "images/s": lambda row: f"{row['images_per_second']:,.1f}",
        "ours over it": lambda row: f"{row['ours_over_this']:.2f}",
        "GFLOP/s": lambda row: f"{row['flops_per_second'] / 1e9:,.0f} ({row['share_of_matrix']:.0%})",
        "GB/s": lambda row: f"{row['bytes_per_second'] / 1e9:,.1f} ({row['share_of_copy']:.0%})" if "bytes_per_second" in row else "",
        "peak MB": lambda row: f"{row['peak_bytes'] / 1e6:,.0f}" if "peak_bytes" in row else "",
    }
    described = environment.describe()
    described["versions"] |= throughput.versions()
    title = f"{options.dtype}, median of {options.rounds} interleaved rounds; share of a measured matrix product, of a measured copy"
    show("step", title, rows, columns, options, arguments, described=described)
    if not options.json:
        from resnet_jax.console import out

        for version in sorted({f"{row['what'].partition(',')[0]}: {row['version']}" for row in rows}):
            out.print(version, highlight=False)
        for reason in sorted({reason for row in rows for reason in row.get("failed_peers", ())}):
            out.print(f"a peer that did not run: {reason}", highlight=False, soft_wrap=True)
