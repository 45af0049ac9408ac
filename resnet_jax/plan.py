"""``resnet-jax plan``: ahead-of-time compilation of a training step, for hardware not attached.

The compilers are in the extras ``plan-tpu`` and ``plan-gpu``.
"""

import dataclasses
import functools
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import topologies

from resnet_jax import kernels
from resnet_jax.errors import UserError, nearest
from resnet_jax.models.components import component, constructor_parameters, parts
from resnet_jax.terminal import Table, show
from resnet_jax.training import program, run_dir, sharding
from resnet_jax.training.config import Experiment
from resnet_jax.training.step import ResidentData, StreamedBatch

Kind = Literal["data", "global", "fsdp"]

EXAMPLES = 50_000  # Of a device-resident data set: CIFAR's.

# Name, bytes of memory, bytes per second: NVIDIA's data sheets and device queries.
_GPUS = {
    "gpu:h100": ("NVIDIA H100 80GB HBM3", 84_942_979_072, 3_352_320_000_000),
    "gpu:h200": ("NVIDIA H200", 150_119_000_000, 4_800_000_000_000),
}
# Bytes that a program can have: HBM available to libtpu; three quarters of a GPU's, JAX's default.
USABLE = {
    "tpu:v5e": int(15.75 * 2**30),
    "tpu:v6e": int(31.24 * 2**30),
    "tpu:v5p": 95 * 2**30,
    **{kind: memory * 3 // 4 for kind, (_, memory, _) in _GPUS.items()},
}
# XLA's GpuTargetConfigProto of compute capability 9.0.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""


class Target(NamedTuple):
    """Compile-only devices, and the bytes that a program can have on each."""

    name: str
    platform: str
    usable: int
    devices: tuple[Any, ...]


def find_target(name: str) -> Target:
    """Returns the target of a name such as ``tpu:v5e:4x4``, ``gpu:h100`` or ``gpu:h100:8``."""
    platform, _, rest = name.partition(":")
    chip, _, shape = rest.partition(":")
    kind = f"{platform}:{chip}"
    if kind not in USABLE or (platform == "tpu" and not shape):
        raise UserError(
            f"--target is {name!r}{nearest(kind, USABLE)}. "
            "Write tpu:v5e:4x4 for a slice, gpu:h100:8 for 8 GPUs."
        )
    options: dict[str, Any] = {"platform": "tpu", "topology_name": rest}
    if platform == "gpu":
        description, memory, bandwidth = _GPUS[kind]
        config = _HOPPER.format(name=description, memory=memory, bandwidth=bandwidth)
        # Slices, hosts and the GPUs of one host.
        shape = f"1x1x{shape or 1}"
        options = {"platform": "cuda", "topology_name": shape, "topology": shape}
        options["target_config"] = config
    try:
        topology = topologies.get_topology_desc(**options)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name} has no compiler: {reason}. Is 'resnet-jax-lab[plan-{platform}]' installed?"
        ) from error
    return Target(name, platform, USABLE[kind], tuple(topology.devices))


class Variant(NamedTuple):
    """Devices per parameter copy; images per BatchNorm group (0: the batch, None: no change)."""

    fsdp: int
    group_size: int | None


def find_variants(
    experiment: Experiment, chips: int, batch: int, kinds: Sequence[Kind], fsdp: int | None = None
) -> list[Variant]:
    """Returns the distinct variants for ``batch`` images per device."""
    layer, arguments = parts(experiment.model.norm)
    group = whole = None
    if "group_size" in constructor_parameters(layer)[0]:
        group, whole = arguments.get("group_size") or batch, 0
        # Groups that extend over devices would communicate.
        group = group if batch % group == 0 else batch
        group = 0 if group == batch * chips else group
    # Above 16 devices the parts of a parameter are too small to be worth sending.
    share = fsdp or max(n for n in range(1, 17) if chips % n == 0)
    found = {
        "data": Variant(1, group),
        "global": Variant(1, whole),
        "fsdp": Variant(share, group),
    }
    return list(dict.fromkeys(found[kind] for kind in kinds))


def adapt(
    experiment: Experiment, variant: Variant, batch_size: int, platform: str, **execution: Any
) -> Experiment:
    """Returns the experiment of a variant, with ``auto`` execution resolved."""
    model, settings = experiment.model, experiment.execution
    if variant.group_size is not None:
        norm = component(model.norm, group_size=variant.group_size)
        model = dataclasses.replace(model, norm=norm)
    resolved: dict[str, Any] = {
        "blocks": "scan" if settings.scans(sum(model.stages), platform) else "loop",
        "kernels": kernels.resolve(settings.kernels, platform),
    }
    return dataclasses.replace(
        experiment,
        model=model,
        batch_size=batch_size,
        execution=dataclasses.replace(settings, **resolved | execution),
        # Not in this program, but must divide among the same devices.
        evaluation=dataclasses.replace(experiment.evaluation, batch_size=batch_size),
    )


def lower_step(
    experiment: Experiment, devices: Sequence[Any], fsdp: int, examples: int
) -> jax.stages.Lowered:
    compiled = program.compiled(experiment, fsdp=fsdp, among=devices)
    streams, replicated = experiment.data.crop is not None, sharding.replicated(compiled.mesh)
    count = experiment.batch_size if streams else examples
    where = sharding.batch(compiled.mesh) if streams else replicated

    def struct(shape: tuple[int, ...], dtype: Any, at: Any = where) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=at)

    constants = jax.tree.map(
        lambda leaf: struct(leaf.shape, leaf.dtype, replicated),
        program.abstract_preprocessing(experiment),
    )
    data = (StreamedBatch if streams else ResidentData)(
        struct((count, *experiment.model.input_shape), jnp.uint8),
        struct((count,), jnp.int32),
        constants,
    )
    train: Any = compiled.train
    return train.lower(compiled.abstract_state, data, steps=1)


_SHAPE = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(
    rf"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ({_KINDS})(?:-done)?\((?:.*channel_id=(\d+))?",
    re.MULTILINE,
)
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*?)\)", re.MULTILINE)


def _shape_bytes(shapes: str) -> int:
    return sum(
        int(bits or 8) * math.prod(map(int, filter(None, sizes.split(",")))) // 8
        for bits, sizes in _SHAPE.findall(shapes)
    )


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Returns count and result bytes by kind; asynchronous pairs and channels count once."""
    counts: dict[str, dict[str, int]] = {}
    # The first of each channel, in reverse.
    distinct = {
        channel or name: (kind, shapes)
        for name, shapes, kind, channel in reversed(_COLLECTIVE.findall(hlo))
    }
    for kind, shapes in reversed(distinct.values()):
        entry = counts.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += _shape_bytes(shapes)
    return counts


def bytes_accessed(hlo: str) -> int:
    """Returns bytes of operands and results, without device-resident images (uint8 parameters)."""
    sizes: dict[str, int] = {}
    total = 0
    for name, shapes, opcode, operands in _INSTRUCTION.findall(hlo[hlo.index("ENTRY ") :]):
        resident = opcode == "parameter" and shapes.startswith("u8[")
        sizes[name] = 0 if resident else _shape_bytes(shapes)
        if opcode not in {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}:
            inputs = re.findall(r"%([\w.-]+)", operands)
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in inputs)
    return total


@functools.cache
def measure(experiment: Experiment, target: Target, variant: Variant, batch: int) -> dict[str, Any]:
    """Compiles a step with ``batch`` images per device. Memory and collectives are per device."""
    chips = len(target.devices)
    changed = adapt(experiment, variant, batch * chips, target.platform)
    row: dict[str, Any] = {
        "target": target.name,
        "chips": chips,
        "usable_bytes": target.usable,
        "fits": False,
        "batch_per_device": batch,
        "scan": changed.execution.blocks == "scan",
        **variant._asdict(),
    }
    # Autotuning needs a device.
    options: Any = {"xla_gpu_autotune_level": "0"} if target.platform == "gpu" else None
    try:
        compiled = lower_step(changed, target.devices, variant.fsdp, EXAMPLES).compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row | {"refusal": str(error).splitlines()[0]}
    memory: Any = compiled.memory_analysis()
    kinds = ("argument", "output", "temp", "generated_code")
    total = sum(getattr(memory, f"{kind}_size_in_bytes") for kind in kinds)
    total -= memory.alias_size_in_bytes
    hlo, cost = compiled.as_text() or "", compiled.cost_analysis() or {}
    # Only attached devices analyze lowered programs.
    unrolled = adapt(experiment, variant, batch, target.platform, blocks="loop")
    flops: Any = lower_step(unrolled, jax.devices("cpu")[:1], 1, batch).cost_analysis()
    return row | {
        "fits": total <= target.usable,
        "memory_bytes": total,
        "bytes_per_image": (cost.get("bytes accessed") or bytes_accessed(hlo)) / batch,
        "flops_per_image": flops["flops"] / batch,
        "collectives": collectives(hlo),
    }


def largest_batch(memory: Callable[[int], int | None], usable: int, batch: int) -> int:
    """Returns the largest ``batch * 2**k`` (k an integer) that fits into ``usable`` bytes; 0: none.

    ``memory`` maps images to bytes, or None for a rejected program. It compiles, so the search
    starts where the line through two batches meets ``usable``.
    """

    def fits(images: int) -> bool:
        needed = memory(images)
        return needed is not None and needed <= usable

    if fits(batch) and fits(2 * batch):
        first, second = memory(batch) or 0, memory(2 * batch) or 0
        batch *= 2 ** max(1, int(math.log2(1 + (usable - first) / max(second - first, 1))))
    while not fits(batch):
        if batch % 2:
            return 0
        batch //= 2
    while fits(2 * batch):
        batch *= 2
    return batch


def plan(
    reference: Annotated[str, tyro.conf.Positional],  # noqa: ARG001
    *,
    target: tuple[str, ...],
    experiment: Annotated[Experiment, tyro.conf.arg(name="")],
    batch_per_device: int | None = None,
    variants: tuple[Kind, ...] = ("data", "global", "fsdp"),
    fsdp: int | None = None,
    search: bool = True,
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print JSON.")] = False,
    words: Annotated[tuple[str, ...], tyro.conf.Suppress] = (),
) -> None:
    """Compile a training step for target hardware: memory, FLOPs, bytes accessed, collectives.

    Every field of the experiment is an option; --help-all lists all of them.

    Args:
      target: tpu:v5e:16x16, tpu:v6e:4x4, tpu:v5p:8x16x16, gpu:h100, gpu:h200:8, ...
      batch_per_device: Default: batch_size, shared by the devices.
      variants: data: replicated parameters, BatchNorm over its groups, else over the images of a
        device. global: BatchNorm over the batch. fsdp: split parameters, BatchNorm over groups.
      fsdp: Devices that share one copy of the parameters. Default: the largest divisor up to 16.
      search: Search the largest batch that fits with the first variant.
    """
    # Neither libtpu nor JAX searches for devices, and JAX does not cache what it cannot run.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1"
    )
    jax.config.update("jax_platforms", "cpu")
    targets = [find_target(name) for name in target]
    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    for one in targets:
        chips = len(one.devices)
        share, rest = divmod(experiment.batch_size, chips)
        batch = (0 if rest else share) if batch_per_device is None else batch_per_device
        if batch < 1:
            raise UserError(
                f"batch_size must be a multiple of the {chips} devices of {one.name}. "
                "Give --batch-per-device N."
            )

        def row(images: int, number: int = 0, one: Target = one) -> dict[str, Any]:
            found = find_variants(experiment, len(one.devices), images, variants, fsdp)
            return measure(experiment, one, found[number], images)

        count = len(find_variants(experiment, chips, batch, variants, fsdp))
        measured = [row(batch, number) for number in range(count)]
        if search:
            largest = largest_batch(lambda n: row(n).get("memory_bytes"), one.usable, batch)
            measured[0] = measured[0] | {"largest_batch_per_device": largest}
        rows += measured
    if as_json:
        command = shlex.join(["resnet-jax", "plan", *words])
        result = {"kind": "plan", "command": command, "experiment": experiment.name}
        print(json.dumps(result | run_dir.describe() | {"rows": rows}))
        return
    columns = "target, fsdp, BatchNorm images, images per device, fits, GB, of, GFLOP per image, "
    columns += "MB per image, collectives (of a scan once), largest batch"
    show(Table("", tuple(columns.split(", ")), tuple(map(_cells, rows))))


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    collectives = row.get("collectives", {}).items()
    return (
        *(row[name] for name in ("target", "fsdp", "group_size", "batch_per_device")),
        "yes" if row["fits"] else row.get("refusal", "no"),
        *(row.get(name, math.nan) / 1e9 for name in ("memory_bytes", "usable_bytes")),
        row.get("flops_per_image", math.nan) / 1e9,
        row.get("bytes_per_image", math.nan) / 1e6,
        "\n".join(f"{k['count']} {name}, {k['bytes'] / 1e6:,.1f} MB" for name, k in collectives),
        row.get("largest_batch_per_device"),
    )
