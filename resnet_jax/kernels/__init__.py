"""Operations with custom VJPs, without forward mode; ``active`` may choose JAX's own instead."""

from typing import Literal

import jax

Kernels = Literal["auto", "plain", "cpu", "gpu"]
"""plain: autodiff; gpu: custom VJPs for BatchNorm and max pooling; cpu: also for convolutions;
auto: by backend, plain on TPU."""

active = jax.make_user_context("auto")
"""Kernels of the network that is traced: ``with active("plain"): ...``"""


def resolve(kernels: Kernels, backend: str | None = None) -> Literal["plain", "cpu", "gpu"]:
    """Resolves ``auto`` for a backend (cpu, gpu, tpu), by default the one in use."""
    if kernels != "auto":
        return kernels
    backend = backend or jax.default_backend()
    return "plain" if backend not in ("cpu", "gpu") else backend
