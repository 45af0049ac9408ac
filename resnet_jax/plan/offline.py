"""Devices that are not there, which jax compiles for: ``jax.experimental.topologies``.

What it takes: libtpu for TPUs, CUDA's plugin and its assembler for GPUs; neither a device nor a driver. Tried with jax 0.12.0.1, libtpu
0.0.50.1, jax-cuda12-plugin 0.12.0.1.
"""

import importlib.util
import os
from collections.abc import MutableMapping, Sequence
from typing import Any

from resnet_jax import attached
from resnet_jax.errors import UserError
from resnet_jax.plan.targets import Target

# XLA's GpuTargetConfigProto, from NVIDIA's data sheets, the CUDA C++ Programming Guide (compute capabilities) and device queries.
_GPUS = {
    "gpu:h100": """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
""",
    "gpu:a100": """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 167936
  threads_per_core_limit: 2048 core_count: 108 fpus_per_core: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 2039000000000 l2_cache_size: 41943040 clock_rate_ghz: 1.41 device_memory_size: 84974239744
  shared_memory_per_block_optin: 166912 cuda_compute_capability { major: 8 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA A100-SXM4-80GB"
""",
}
# Extra to the module that it brings.
EXTRAS = {"tpu": ("plan-tpu", "libtpu"), "gpu": ("plan-gpu", "jax_plugins.xla_cuda12")}


def require(target: Target) -> None:
    """Raises UserError where what compiles for a target is not installed."""
    extra, module = EXTRAS[target.device.platform]
    if not installed(target.device.platform):
        raise UserError(f"{module} is not installed, which compiles for {target.name}: pip install 'resnet-jax-lab[{extra}]'")


def installed(platform: str) -> bool:
    """Whether what compiles for TPUs or GPUs is there. Nothing is imported."""
    try:
        return importlib.util.find_spec(EXTRAS[platform][1]) is not None
    except ModuleNotFoundError:
        return False


def environment(before: MutableMapping[str, str]) -> dict[str, str]:
    """The environment of a process that compiles for devices that are not there; it has to be set before jax starts."""
    return {
        **before,
        # Neither looks for devices, nor says what is missing.
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # Programs that nothing here can run.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        # Nothing is there to be timed.
        "XLA_FLAGS": f"{before.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip(),
    }


def devices(target: Target) -> Sequence[Any]:
    """Compile-only devices of a target, all of them.

    Raises:
      UserError: where what compiles for them is not installed, or does not know them.
    """
    require(target)
    from jax.experimental import topologies

    kind = target.name.rpartition(":")[0] if target.name.count(":") > 1 else target.name
    try:
        if target.device.platform == "tpu":
            return topologies.get_topology_desc(platform="tpu", topology_name=f"{kind.partition(':')[2]}:{target.shape}").devices
        # Slices, hosts and GPUs of a host.
        shape = f"1x1x{target.shape}"
        return topologies.get_topology_desc(platform="cuda", topology_name=shape, topology=shape, target_config=_GPUS[kind]).devices
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(f"{target.name} is not known to what compiles for it: {str(error).splitlines()[0]}") from error


def hide_missing_devices(variables: MutableMapping[str, str] = os.environ) -> None:
    """Keeps jax on the CPU where an extra of plans is installed and no accelerator is there: jax would print what it does not find."""
    if "JAX_PLATFORMS" in variables or not (installed("gpu") or installed("tpu")):
        return
    if attached.accelerator() is None:
        variables["JAX_PLATFORMS"] = "cpu"
