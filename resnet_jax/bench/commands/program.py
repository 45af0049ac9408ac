"""``resnet-jax bench program``: the training step's kernels and bytes, read out of the program that XLA makes for a device."""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resnet_jax import options as options_lib
from resnet_jax.bench.commands.output import Columns, Output, show
from resnet_jax.errors import UserError

if TYPE_CHECKING:
    from resnet_jax.models import Architecture


@dataclass(frozen=True, kw_only=True)
class ProgramOptions(Output):
    """Kernels by kind, bytes an image, copies and collectives of the training step of networks, from the program that XLA makes for a
    device that need not be there; which source lines cost which kernels; activations kept in float32. Nothing is run or timed.
    """

    networks: tuple[str, ...] = ("resnet50",)
    """Of the catalog: cifar_resnet20, resnet50, ..."""
    target: tuple[str, ...] = ("gpu:h100",)
    """gpu:h100, gpu:a100, tpu:v5e:1x1, tpu:v5e:2x2 (extras plan-gpu, plan-tpu)."""
    batch_size: int | None = None
    """Images a device; 256 for ImageNet's networks, 128 for small images where not given."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    blocks: Literal["auto", "loop", "scan"] = "auto"
    convolution: Literal["auto", "plain", "explicit"] = "auto"
    normalization: tuple[Literal["auto", "plain", "explicit"], ...] = ("auto",)
    """Gradients of BatchNorm: plain explicit, both after one another."""
    stem: Literal["plain", "space_to_depth"] = "plain"
    steps: int = 0
    """Training steps in one call, the figures being those of one. 0: as training calls them, see ``execution.steps_per_dispatch``; one
    where images are streamed."""
    lines: int = 12
    """Source lines that are listed, the dearest first."""
    text: Path | None = None
    """File for the program's text, of the last row."""


def run(arguments: Sequence[str]) -> None:
    """Compiles in a process of its own, and prints."""
    options, _ = _read(arguments)
    from resnet_jax.console import err, out
    from resnet_jax.plan import elsewhere

    rows = elsewhere.ask(
        "resnet_jax.bench.commands.program", arguments, lambda message: err.print(message, highlight=False, soft_wrap=True)
    )
    columns: Columns = {
        "network": lambda row: row["network"],
        "target": lambda row: row["target"],
        "BatchNorm": lambda row: row["normalization"],
        "steps a call": lambda row: str(row["steps"]),
        "kernels": lambda row: f"{row['kernels']:,.0f}",
        "MB an image": lambda row: f"{row['bytes_per_image'] / 1e6:,.1f}",
        "f32 activations": lambda row: f"{row['float32_activations']:,.0f}",
        "collectives": lambda row: f"{sum(kind['count'] for kind in row['collectives'].values()):.0f}",
        "temporary MB": lambda row: f"{row['temporary_bytes'] / 1e6:,.0f}",
        "compile s": lambda row: f"{row['compile_seconds']:.0f}",
    }
    batches = ", ".join(sorted({str(row["batch_size"]) for row in rows}))
    title = f"training step, {batches} images a device, {options.dtype}"
    show("program", title, rows, columns, options, arguments, described=elsewhere.described())
    if options.json:
        return
    from rich.table import Table

    for row in rows:
        for heading, groups in (("kind", row["by_kind"]), ("line", row["by_line"][: options.lines])):
            table = Table(title=f"{row['network']}, {row['target']}: by {'source line' if heading == 'line' else heading}")
            for column in (heading, "kernels", "MB an image", "share", "f32 activations"):
                table.add_column(column, justify="left" if column == heading else "right")
            for group in groups:
                share = group["bytes_per_image"] / max(row["bytes_per_image"], 1)
                what = group[heading] + (" (backward)" if group.get("backward") else "")
                cells = (f"{group['kernels']:,.0f}", f"{group['bytes_per_image'] / 1e6:,.2f}", f"{share:.0%}")
                table.add_row(what, *cells, f"{group['float32_activations']:.0f}")
            out.print(table)


def _read(arguments: Sequence[str]) -> "tuple[ProgramOptions, dict[str, Architecture]]":
    options = options_lib.parse("bench program", ProgramOptions, arguments)
    import dataclasses

    from resnet_jax import models
    from resnet_jax.plan import offline, targets

    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"--batch-size is {options.batch_size}; give at least 1")
    if options.steps < 0:
        raise UserError(f"--steps is {options.steps}; give at least 1, or 0 for as many as training takes in one call")
    for name, given in (("target", options.target), ("networks", options.networks), ("normalization", options.normalization)):
        if not given:
            raise UserError(f"--{name} is empty; give at least one")
    for target in options.target:
        offline.require(targets.parse(target))
    return options, {name: dataclasses.replace(models.architecture(name), dtype=options.dtype) for name in options.networks}


def _rows(arguments: Sequence[str], say: Callable[[str], None]) -> list[dict[str, Any]]:
    options, networks = _read(arguments)
    cases = itertools.product(networks.items(), options.target, options.normalization)
    return [_row(options, name, network, target, normalization, say) for (name, network), target, normalization in cases]


def _row(
    options: ProgramOptions, name: str, network: "Architecture", target: str, normalization: Any, say: Callable[[str], None]
) -> dict[str, Any]:
    from resnet_jax.models import Execution
    from resnet_jax.plan import compiled, costs, offline, targets
    from resnet_jax.training.experiment import Data, Experiment

    small = network.input_shape[0] <= 64
    experiment = Experiment(
        name="program",
        model=network,
        # Images of ImageNet's size are streamed.
        data=Data(name="") if small else _streamed(),
        execution=Execution(blocks=options.blocks, convolution=options.convolution, normalization=normalization, stem=options.stem),
    )
    batch = options.batch_size or (128 if small else 256)
    found_target = targets.parse(target)
    platform = found_target.device.platform
    steps = options.steps or (experiment.execution.steps_a_call(platform) if small else 1)
    if steps > 1 and not small:
        raise UserError(f"--steps is {steps}, and the images of {name} are streamed: one step a call")
    found = compiled.compile_step(experiment, compiled.Variant(batch), offline.devices(found_target), platform, steps=steps)
    if found.memory is None:
        raise UserError(f"--batch-size is {batch}, which {target} has no memory for: {found.refusal}")
    if options.text:
        options.text.parent.mkdir(parents=True, exist_ok=True)
        options.text.write_text(found.text)
    say(f"{name} for {target}: compiled in {found.seconds:.0f} s")
    return {
        "network": name,
        "target": target,
        "normalization": normalization,
        "batch_size": batch,
        "steps": steps,
        "dtype": options.dtype,
        "flops": found.flops / steps,
        "compile_seconds": found.seconds,
        "temporary_bytes": found.memory.temporary,
        "total_bytes": found.memory.total,
        "collectives": {kind: {what: number / steps for what, number in sums.items()} for kind, sums in found.traffic.by_kind().items()},
        **costs.summary(costs.kernels(found.text, batch), batch, steps),
    }


def _streamed() -> Any:
    from resnet_jax.data.crops import RandomResizedCrop
    from resnet_jax.training.experiment import Data

    return Data(name="", crop=RandomResizedCrop, pad=0, normalization="channel")


if __name__ == "__main__":
    from resnet_jax.plan import elsewhere

    elsewhere.answer(lambda say: _rows(sys.argv[1:], say))
