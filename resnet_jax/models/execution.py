"""Execution of a network: compiler options, unrolled or scanned blocks, custom VJPs."""

import functools
import os
from dataclasses import dataclass
from typing import Any, Literal

import jax

from resnet_jax.kernels import Kernels

_YNN_FUSION, _REDUCTIONS = "xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_REDUCE"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Compilation of a network; not part of a fingerprint."""

    blocks: Literal["auto", "loop", "scan"] = "auto"
    """Blocks of a stage unrolled or as one scan. auto: scan on CPU, elsewhere above 100 blocks."""
    kernels: Kernels = "auto"
    """Custom VJPs. plain: none; gpu: BatchNorm, max pooling; cpu: also convolutions; auto: by
    backend."""
    remat: bool = False
    """Recompute all activations of a block in the backward pass: less memory, more time."""
    steps_per_dispatch: int = 0
    """Training steps per call of the compiled program, at most. 0: 1 on CPU, 100 elsewhere."""
    images_per_device: int = 0
    """Per-device microbatch size. Larger batches use gradient accumulation. 0: no limit."""

    def steps_a_call(self, backend: str | None = None) -> int:
        """Returns the maximum of training steps per call on a device-resident data set."""
        # On CPU a call is cheap, and a loop around the step compiles to slower code.
        default = 1 if (backend or jax.default_backend()) == "cpu" else 100
        return self.steps_per_dispatch or default

    def scans(self, num_blocks: int, backend: str | None = None) -> bool:
        """Returns whether a network of this many blocks runs as scans."""
        if self.blocks == "auto":
            return (backend or jax.default_backend()) == "cpu" or num_blocks > 100
        return self.blocks == "scan"


def quick_to_compile() -> dict[str, Any] | None:
    """Returns compiler options for what runs once."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def quick_to_run(platform: str | None = None) -> dict[str, str] | None:
    """Returns compiler options for what runs often, by default on the backend in use.

    On CPU they leave only reductions to YNNPACK: XLA's own code and Eigen are faster for
    convolutions and products.
    """
    is_cpu = (platform or jax.default_backend()) == "cpu"
    if not is_cpu or _YNN_FUSION in os.environ.get("XLA_FLAGS", "") or not _knows(_YNN_FUSION):
        return None
    return {_YNN_FUSION: _REDUCTIONS}


@functools.cache
def _knows(option: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: _REDUCTIONS}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
