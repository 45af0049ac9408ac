"""``resnet-jax plan``: the training step on target hardware that is not attached."""

import math
import os
import shlex
from functools import partial

import jax

from resnet_jax import plan as plan_lib
from resnet_jax.cli.options import AsJson, Fields, Reference, Words
from resnet_jax.errors import Positive, UserError, require
from resnet_jax.terminal import Table, show
from resnet_jax.training import run_dir


def plan(
    reference: Reference,  # noqa: ARG001
    *,
    target: tuple[str, ...],
    experiment: Fields,
    batch_per_device: Positive | None = None,
    variants: tuple[plan_lib.Kind, ...] = ("data", "global", "fsdp"),
    fsdp: Positive | None = None,
    search: bool = True,
    as_json: AsJson = False,
    words: Words = (),
) -> None:
    """Compile a training step for target hardware: memory, FLOPs, bytes, collectives, launches.

    Every field of the experiment is an option; --help-all lists all of them.

    Args:
      target: tpu:v5e:16x16, tpu:v6e:4x4, tpu:v5p:8x16x16, gpu:h100, gpu:h200:8, ...
      batch_per_device: Default: batch_size, shared by the devices.
      variants: data: replicated parameters, BatchNorm over its groups, else over the images of a
        device. global: BatchNorm over the batch. fsdp: split parameters, BatchNorm over groups.
      fsdp: Devices that share one copy of the parameters. Default: the largest divisor up to 16.
      search: Search the largest batch that fits with the first variant.
    """
    for option, values in {"--target": target, "--variants": variants}.items():
        require(bool(values), f"{option} needs at least one value.")
    # Neither libtpu nor JAX searches for devices, and JAX does not cache what it cannot run.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1"
    )
    jax.config.update("jax_platforms", "cpu")
    targets = [plan_lib.target(name) for name in target]
    jax.config.update("jax_enable_compilation_cache", False)

    def measured(images: int, one: plan_lib.Target, *kinds: plan_lib.Kind) -> list[plan_lib.Row]:
        distinct = plan_lib.variants(experiment, len(one.devices), images, kinds, fsdp)
        return [plan_lib.measure(experiment, one, variant, images) for variant in distinct]

    def memory(images: int, one: plan_lib.Target) -> float:
        (row,) = measured(images, one, variants[0])
        return row.get("memory_bytes", math.inf)

    rows: list[plan_lib.Row] = []
    for one in targets:
        batch, rest = divmod(experiment.batch_size, len(one.devices))
        if batch_per_device is not None:
            batch = batch_per_device
        elif rest:
            wrong = f"batch_size must be a multiple of the {len(one.devices)} devices of {one.name}"
            raise UserError(f"{wrong}. Give --batch-per-device N.")
        first, *others = measured(batch, one, *variants)
        if search:
            largest = plan_lib.largest_batch(partial(memory, one=one), one.usable, batch)
            first = first | {"largest_batch_per_device": largest}
        rows += [first, *others]
    command = shlex.join(["resnet-jax", "plan", *words])
    result = {"kind": "plan", "command": command, "experiment": experiment.name, "rows": rows}
    show(as_json, run_dir.describe() | result, Table.from_rows("", map(_cells, rows)))


def _cells(row: plan_lib.Row) -> plan_lib.Row:
    collectives = row.get("collectives", {}).items()
    texts = (f"{k['count']} {name}, {k['bytes'] / 1e6:,.1f} MB" for name, k in collectives)
    return {
        "target": row["target"],
        "fsdp": row["fsdp"],
        "BatchNorm images": row["group_size"],
        "images per device": row["batch_per_device"],
        "fits": "yes" if row["fits"] else row.get("refusal", "no"),
        "GB": row.get("memory_bytes", math.nan) / 1e9,
        "of": row["usable_bytes"] / 1e9,
        "GFLOP per image": row.get("flops_per_image", math.nan) / 1e9,
        "MB per image": row.get("bytes_per_image", math.nan) / 1e6,
        "kernels per step": row.get("kernels_per_step"),
        "launches per call": row.get("launches_per_call"),
        "steps per call": row.get("steps_per_call"),
        "collectives (of a scan once)": "\n".join(texts),
        "largest batch": row.get("largest_batch_per_device"),
    }
