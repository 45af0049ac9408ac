"""``resnet-jax bench input``."""

from collections.abc import Sequence
from dataclasses import dataclass

from resnet_jax import options as options_lib
from resnet_jax.bench.commands.output import Columns, Output, show
from resnet_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class InputOptions(Output):
    """Images per CPU-second of each stage of the streaming input, of the whole of it, and of others that do the same, interleaved.

    [EXPERIMENT], FILE.py:FUNCTION, says how images are cropped and what else is done to them on the host; RandomResizedCrop else.
    """

    data: str | None = None
    """Data set; that of the experiment, or imagenet2012, where not given."""
    data_dir: str | None = None
    images: int = 440
    size: int = 224
    """Height and width after the crop."""
    batch_size: int = 64
    rounds: int = 5
    device_rate: float = 5000.0
    """Images a second that the device takes: how many cores would feed it."""


def run(arguments: Sequence[str]) -> None:
    """Measures, and prints."""
    reference, rest = ("", arguments) if not arguments or arguments[0].startswith("-") else (arguments[0], arguments[1:])
    options = options_lib.parse("bench input", InputOptions, rest)
    for name in ("rounds", "images", "batch_size", "size", "device_rate"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}; give at least 1")
    from resnet_jax.bench import pipelines, stages
    from resnet_jax.data import sources
    from resnet_jax.data.crops import RandomResizedCrop
    from resnet_jax.training.experiment import Data

    data = options_lib.experiment(reference).data if reference else Data(name="imagenet2012", crop=RandomResizedCrop)
    if data.crop is None:
        raise UserError(f"{reference} has no data.crop: its images live on the device, and nothing is streamed")
    info = sources.describe(options.data or data.name, options.data_dir)
    given = {"info": info, "crop": data.crop, "policy": data.policy, "size": (options.size, options.size), "batch_size": options.batch_size}
    rows = stages.measure(**given, images=options.images, rounds=options.rounds)
    rows += pipelines.measure(**given, images=options.images, rounds=options.rounds)
    columns: Columns = {
        "what": lambda row: row["what"],
        "images a CPU-second": lambda row: f"{row['images_per_cpu_second']:,.0f}",
        "least to most": lambda row: f"{row['least']:,.0f} to {row['most']:,.0f}",
        "over Pillow's pool": lambda row: f"{row['over_pool']:.2f}" if "over_pool" in row else "",
        f"cores for {options.device_rate:,.0f}/s": lambda row: f"{options.device_rate / row['images_per_cpu_second']:.1f}",
    }
    title = f"{info.name}, {options.images} images to {options.size}x{options.size}, median of {options.rounds} interleaved rounds"
    show("input", title, rows, columns, options, arguments)
