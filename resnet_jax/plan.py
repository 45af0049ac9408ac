"""Ahead-of-time compilation of a training step for target hardware that is not attached."""

import functools
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from jax.experimental import topologies

from resnet_jax import kernels
from resnet_jax.errors import UserError, nearest
from resnet_jax.models.components import component, constructor_parameters, parts
from resnet_jax.training import fine_tune, sharding
from resnet_jax.training.config import Experiment

Kind = Literal["data", "global", "fsdp"]
Devices = tuple[Any, ...]
Row = dict[str, Any]

EXAMPLES = 50_000  # Of a device-resident data set: CIFAR's.

# Name, bytes of memory, bytes per second, bytes of L2 cache: NVIDIA's data sheets, device queries.
_GPUS = {
    "gpu:h100": ("NVIDIA H100 80GB HBM3", 84_942_979_072, 3_352_320_000_000, 52_428_800),
    "gpu:h200": ("NVIDIA H200", 150_754_820_096, 4_800_000_000_000, 62_914_560),
}
# Bytes that a program can have: HBM available to libtpu; three quarters of a GPU's, JAX's default.
USABLE = {
    "tpu:v5e": int(15.75 * 2**30),
    "tpu:v6e": int(31.24 * 2**30),
    "tpu:v5p": 95 * 2**30,
    **{kind: memory * 3 // 4 for kind, (_, memory, *_) in _GPUS.items()},
}
# XLA's GpuTargetConfigProto of compute capability 9.0. Without versions it forms no CUDA graphs.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: 1.98
  device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.15.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 15 }}
device_description_str: "{name}"
"""


class Target(NamedTuple):
    """Compile-only devices, and the bytes that a program can have on each."""

    name: str
    platform: str
    usable: int
    devices: Devices


def target(name: str) -> Target:
    """Returns the target of a name such as ``tpu:v5e:4x4`` or ``gpu:h100:8``."""
    platform, _, rest = name.partition(":")
    chip, _, shape = rest.partition(":")
    kind = f"{platform}:{chip}"
    pattern = r"[1-9]\d*(x[1-9]\d*)*" if platform == "tpu" else r"([1-9]\d*)?"
    if kind not in USABLE or not re.fullmatch(pattern, shape):
        hint = "" if kind in USABLE else nearest(kind, USABLE)
        forms = "tpu:v5e:4x4 for a slice or gpu:h100:8 for 8 GPUs"
        raise UserError(f"--target is {name!r}, not {forms}{hint}")
    backend, options = platform, {}
    if platform == "gpu":
        fields = zip(("name", "memory", "bandwidth", "cache"), _GPUS[kind], strict=True)
        config = _HOPPER.format(**dict(fields))
        rest = f"1x1x{shape or 1}"  # Slices, hosts and the GPUs of one host.
        backend, options = "cuda", {"topology": rest, "target_config": config}
    try:
        topology = topologies.get_topology_desc(rest, backend, **options)
    except (RuntimeError, NotImplementedError) as error:
        reason = f"{name} has no compiler: {str(error).splitlines()[0]}"
        extra = f"resnet-jax-lab[plan-{platform}]"
        raise UserError(f"{reason}. Is '{extra}' installed?") from error
    return Target(name, platform, USABLE[kind], tuple(topology.devices))


class Variant(NamedTuple):
    """Devices per parameter copy; images per BatchNorm group (0: the batch, None: no change)."""

    fsdp: int
    group_size: int | None


def variants(
    experiment: Experiment, chips: int, batch: int, kinds: Sequence[Kind], fsdp: int | None = None
) -> list[Variant]:
    """Returns the distinct variants for ``batch`` images per device."""
    layer, arguments = parts(experiment.model.norm)
    group = whole = None
    if "group_size" in constructor_parameters(layer)[0]:
        whole, group = 0, arguments.get("group_size") or batch
        if batch % group:  # Groups that extend over devices would communicate.
            group = batch
        group = 0 if group == batch * chips else group
    # Above 16 devices the parts of a parameter are too small to be worth sending.
    share = fsdp or max(n for n in range(1, 17) if chips % n == 0)
    places = {"data": (1, group), "global": (1, whole), "fsdp": (share, group)}
    return list(dict.fromkeys(Variant(*places[kind]) for kind in kinds))


def adapt(experiment: Experiment, variant: Variant, batch_size: int, platform: str) -> Experiment:
    """Returns the experiment of a variant, with ``auto`` execution resolved."""
    model, execution = experiment.model, experiment.execution
    if variant.group_size is not None:
        model = replace(model, norm=component(model.norm, group_size=variant.group_size))
    return replace(
        experiment,
        model=model,
        batch_size=batch_size,
        execution=replace(
            execution,
            blocks="scan" if execution.scans(sum(model.stages), platform) else "loop",
            kernels=kernels.resolve(execution.kernels, platform),
        ),
        # Not in this program, but must divide among the same devices.
        evaluation=replace(experiment.evaluation, batch_size=batch_size),
    )


def lower_step(
    experiment: Experiment, devices: Devices, fsdp: int, examples: int, steps: int = 1
) -> jax.stages.Lowered:
    compiled = sharding.compiled(experiment, fsdp=fsdp, among=devices)
    _, teacher = fine_tune.with_teacher(experiment)
    teacher = jax.tree.map(lambda leaf: compiled.abstract(leaf.shape, leaf.dtype), teacher)
    return compiled.train.lower(*compiled.abstract_inputs(examples), steps=steps, teacher=teacher)


_SHAPE = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_RESULT = r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) "
_KINDS = "(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
_COLLECTIVE = re.compile(rf"{_RESULT}{_KINDS}(?:-done)?\((?:.*channel_id=(\d+))?", re.MULTILINE)
_INSTRUCTION = re.compile(rf"{_RESULT}([a-z][\w-]*)\((.*?)\)", re.MULTILINE)


def _shape_bytes(shapes: str) -> int:
    return sum(
        int(bits or 8) * math.prod(map(int, filter(None, sizes.split(",")))) // 8
        for bits, sizes in _SHAPE.findall(shapes)
    )


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Returns count and result bytes by kind; asynchronous pairs and channels count once."""
    counts: dict[str, dict[str, int]] = {}
    matches = _COLLECTIVE.findall(hlo)
    distinct = {channel or name: (kind, shapes) for name, shapes, kind, channel in matches}
    for kind, shapes in distinct.values():
        entry = counts.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += _shape_bytes(shapes)
    return counts


def bytes_accessed(hlo: str, steps: int = 1) -> int:
    """Returns bytes of operands and results of one step, without device-resident images (uint8).

    Those are parameters of the program, or of its loop over several steps.
    """
    text = hlo[hlo.index("ENTRY ") :]
    if steps > 1 and (loop := re.search(r" while\(.*\bbody=(%[\w.-]+)", text)):
        start = hlo.index(f"\n{loop[1]} (")
        text = hlo[start : hlo.index("\n}", start)]
    sizes: dict[str, int] = {}
    parameters: set[str] = set()
    total = 0
    for name, shapes, opcode, operands in _INSTRUCTION.findall(text):
        inputs = re.findall(r"%([\w.-]+)", operands)
        if opcode == "parameter":
            parameters.add(name)
        is_given = opcode in ("parameter", "get-tuple-element") and parameters.issuperset(inputs)
        sizes[name] = 0 if is_given and shapes.startswith("u8[") else _shape_bytes(shapes)
        if opcode not in {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}:
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in inputs)
    return total


# Thunks that contain others or wait for them.
_NO_KERNEL = re.compile("Async|Conditional|DynamicSlice|While|Wait|.*Done")


def launches(thunks: str, steps: int) -> Row:
    """Returns what the host launches in a call of ``steps`` steps, from XLA's dump of a program.

    Kernels of a step include the condition of the loop over steps. Inner loops count once.
    """
    kernels = graphs = launches = 0
    # Indentation of the CUDA graph and of the loop around the current thunk.
    graph = loop = math.inf
    for indent, kind in re.findall(r"^( *)\d+: k(\w+)", thunks, re.MULTILINE):
        depth = len(indent)
        graph, loop = (start if depth > start else math.inf for start in (graph, loop))
        is_launched = graph == math.inf
        if kind == "CommandBuffer":
            graph, graphs = depth, graphs + 1
        elif kind == "While" and steps > 1:
            loop = min(loop, depth)
        if kind == "CommandBuffer" or not _NO_KERNEL.match(kind):
            launches += is_launched * (steps if depth > loop else 1)
            kernels += kind != "CommandBuffer" and (depth > loop or steps == 1)
    counts = {"steps_per_call": steps, "launches_per_call": launches}
    return counts | {"cuda_graphs": graphs, "kernels_per_step": kernels}


@functools.cache
def measure(experiment: Experiment, target: Target, variant: Variant, batch: int) -> Row:
    """Compiles a step with ``batch`` images per device; memory and collectives are per device."""
    chips = len(target.devices)
    changed = adapt(experiment, variant, batch * chips, target.platform)
    row: Row = {
        "target": target.name,
        "chips": chips,
        "usable_bytes": target.usable,
        "fits": False,
        "batch_per_device": batch,
        "scan": changed.execution.blocks == "scan",
        **variant._asdict(),
    }
    is_gpu, resident = target.platform == "gpu", changed.data.crop is None
    steps = changed.execution.steps_per_call("gpu") if is_gpu and resident else 1
    lowered = lower_step(changed, target.devices, variant.fsdp, EXAMPLES, steps)
    with tempfile.TemporaryDirectory() as folder:
        # Autotuning needs a device.
        options: Any = {"xla_gpu_autotune_level": "0", "xla_dump_to": folder} if is_gpu else None
        try:
            compiled = lowered.compile(options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return row | {"refusal": str(error).splitlines()[0]}
        # The last name ends in _after_thunk_passes, where those formed graphs.
        for file in sorted(Path(folder).glob("*thunk_sequence*.txt")):
            row |= launches(file.read_text(), steps)
    memory: Any = compiled.memory_analysis()
    kinds = ("argument", "output", "temp", "generated_code")
    total = sum(getattr(memory, f"{kind}_size_in_bytes") for kind in kinds)
    total -= memory.alias_size_in_bytes
    hlo, cost = compiled.as_text() or "", compiled.cost_analysis() or {}
    # Only attached devices analyze lowered programs.
    single = adapt(experiment, variant, batch, target.platform)
    unrolled = replace(single, execution=replace(single.execution, blocks="loop"))
    flops: Any = lower_step(unrolled, (jax.devices("cpu")[0],), 1, batch).cost_analysis()
    return row | {
        "fits": total <= target.usable,
        "memory_bytes": total,
        "bytes_per_image": (cost.get("bytes accessed") or bytes_accessed(hlo, steps)) / batch,
        "flops_per_image": flops["flops"] / batch,
        "collectives": collectives(hlo),
    }


def largest_batch(memory: Callable[[int], float], usable: int, batch: int) -> int:
    """Returns the largest ``batch * 2**k`` (k an integer) that fits into ``usable`` bytes; 0: none.

    ``memory`` maps images to bytes, by compilation: the search starts where the line through two
    batches meets ``usable``.
    """
    if memory(batch) <= usable and memory(2 * batch) <= usable:
        doubling = max(memory(2 * batch) - memory(batch), 1)
        batch *= 2 ** max(1, int(math.log2(1 + (usable - memory(batch)) / doubling)))
    while memory(batch) > usable:
        if batch % 2:
            return 0
        batch //= 2
    while memory(2 * batch) <= usable:
        batch *= 2
    return batch
