"""``resnet-jax bench run``: how long a paper's recipe takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resnet_jax import options as options_lib
from resnet_jax.bench.commands.output import Columns, Output, show
from resnet_jax.errors import UserError

# He et al. 2015, Section 4.2.
RECIPE = 64_000


@dataclass(frozen=True, kw_only=True)
class RunOptions(Output):
    """Wall time of He et al. 2015's recipe on CIFAR-10 (64k steps of 128 images), on images that are made up: compilation, training and
    evaluation apart. With fewer --steps the whole is extrapolated, and said to be.
    """

    depth: int | None = None
    steps: int = RECIPE
    """To run; the figures are for 64,000."""
    batch_size: int = 128
    dtype: Literal["float32", "bfloat16"] = "float32"
    evaluations: int = 64
    """Scores of the test set in a whole run."""
    cache: bool = False
    """Use compiled programs that are kept from earlier; else everything is compiled."""


def run(arguments: Sequence[str]) -> None:
    """Measures, and prints."""
    network, rest = options_lib.first("bench run", arguments, "a network of small images, as cifar_resnet --depth 20")
    options = options_lib.parse(f"bench run {network or 'NETWORK'}", RunOptions, rest)
    if min(options.steps, options.batch_size) < 1 or options.evaluations < 0:
        raise UserError(
            f"--steps is {options.steps}, --batch-size {options.batch_size}, --evaluations {options.evaluations}; give at least 1"
        )
    import dataclasses

    import jax

    from resnet_jax import models
    from resnet_jax.bench import whole_run
    from resnet_jax.console import err

    jax.config.update("jax_enable_compilation_cache", options.cache)
    architecture = dataclasses.replace(models.architecture(network or "", options.depth), dtype=options.dtype)
    if architecture.input_shape[0] > 64:
        raise UserError(f"{network} takes images of {architecture.input_shape}; this recipe is for small ones, as cifar_resnet --depth 20")
    found = whole_run.measure(
        architecture,
        steps=min(options.steps, RECIPE),
        recipe_steps=RECIPE,
        batch_size=options.batch_size,
        scores=options.evaluations,
        say=lambda message: err.print(message, highlight=False),
    )
    whole = "whole s (extrapolated)" if found["extrapolated"] else "whole s"
    columns: Columns = {
        "steps run": lambda row: f"{row['steps']:,}",
        "compile s": lambda row: f"{row['compile_seconds']:.1f}",
        "ms a step": lambda row: f"{1e3 * row['step_seconds']:.2f}",
        "least to most": lambda row: f"{1e3 * row['step_seconds_least']:.2f} to {1e3 * row['step_seconds_most']:.2f}",
        "images/s": lambda row: f"{row['images_per_second']:,.0f}",
        "one evaluation s": lambda row: f"{row['evaluation_seconds']:.2f}",
        "training s": lambda row: f"{row['training_seconds']:,.1f}",
        whole: lambda row: f"{row['seconds']:,.1f}",
    }
    title = f"{RECIPE:,} steps of {network}, batch {options.batch_size}, {options.dtype}, {options.evaluations} evaluations"
    rows = [{"network": network, "depth": options.depth, "dtype": options.dtype} | found]
    show("run", title, rows, columns, options, arguments)
