"""``resnet-jax plan``: the training step on target hardware that is not attached."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import tyro

from resnet_jax import plan as plan_lib
from resnet_jax.cli import options as options_lib
from resnet_jax.training import run_dir
from resnet_jax.training.config import Experiment


def run(arguments: Sequence[str]) -> None:
    reference, base, rest = options_lib.experiment_first("plan", arguments)

    @dataclass(frozen=True, kw_only=True)
    class Plan:
        """Compile a training step for target hardware that is not attached: memory, largest batch, FLOPs, bytes accessed, collectives."""

        target: tuple[str, ...]
        """tpu:v5e:16x16, tpu:v6e:4x4, tpu:v5p:8x16x16, gpu:h100, gpu:h200:8, ..."""
        batch_per_device: int | None = None
        """Default: batch_size, shared by the devices."""
        variants: tuple[plan_lib.Kind, ...] = ("data", "global", "fsdp")
        """data: replicated parameters, BatchNorm over its groups, else over the images of a device.
        global: BatchNorm over the batch. fsdp: split parameters, BatchNorm over groups."""
        fsdp: int | None = None
        """Devices that share one copy of the parameters. Default: the largest divisor up to 16."""
        search: bool = True
        """Search the largest batch that fits with the first variant."""
        json: bool = False
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(default=base)

    options = options_lib.parse(f"plan {reference}", Plan, rest)
    # Neither libtpu nor JAX searches for devices, and JAX does not cache what it cannot run.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1"
    )
    jax.config.update("jax_platforms", "cpu")
    targets = [plan_lib.target(name) for name in options.target]
    jax.config.update("jax_enable_compilation_cache", False)
    rows = [row for one in targets for row in plan_lib.rows_of(one, options)]
    if options.json:
        command = shlex.join(["resnet-jax", "plan", *arguments])
        result = {
            "kind": "plan",
            "command": command,
            "experiment": options.experiment.name,
            **run_dir.describe(),
            "rows": rows,
        }
        print(json.dumps(result))
    else:
        print(*map(_describe, rows), sep="\n")


def _describe(row: dict[str, Any]) -> str:
    norm = {None: "as given", 0: "the batch"}.get(row["group_size"], f"{row['group_size']} images")
    text = f"{row['target']}, fsdp {row['fsdp']}, BatchNorm over {norm}, {row['batch_per_device']} images per device: "
    text += "fits" if row["fits"] else f"does not fit {row.get('refusal', '')}"
    if "memory_bytes" in row:
        text += f"\n  {row['memory_bytes'] / 1e9:,.2f} of {row['usable_bytes'] / 1e9:,.1f} GB"
        text += f", {row['flops_per_image'] / 1e9:,.2f} GFLOP and {row['bytes_per_image'] / 1e6:,.1f} MB per image"
        text += "".join(
            f"\n  {kind['count']} {name}, {kind['bytes'] / 1e6:,.1f} MB"
            for name, kind in row["collectives"].items()
        )
        text += (
            "\n  bytes and collectives of a scan's body count once; see --execution.blocks loop"
            * row["scan"]
        )
    if "largest_batch_per_device" in row:
        text += f"\n  largest batch: {row['largest_batch_per_device']} images per device"
    return text
