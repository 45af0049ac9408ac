"""Operations with custom VJPs that are faster than autodiff on some backends, without forward mode.

Layers call them whatever the backend; ``active`` decides whether they are JAX's own instead.
"""

from typing import Literal

import jax

Kernels = Literal["auto", "plain", "cpu", "gpu"]
"""plain: autodiff everywhere; gpu: custom VJPs for BatchNorm and max pooling; cpu: for convolutions
too; auto: those of the backend in use, plain on TPU.
"""

active = jax.make_user_context("auto")
"""Kernels of the network that is traced: ``with active("plain"): ...``"""


def resolve(kernels: Kernels, backend: str | None = None) -> Literal["plain", "cpu", "gpu"]:
    """Resolves ``auto`` for a backend (cpu, gpu, tpu), by default the one in use."""
    if kernels != "auto":
        return kernels
    backend = backend or jax.default_backend()
    return "cpu" if backend == "cpu" else "gpu" if backend == "gpu" else "plain"
