"""Tensors of a torch network drawn by name, and images: the same numbers wherever they are drawn. NumPy alone, for torch and JAX."""

import math
import zlib

import numpy as np


def tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A parameter or buffer by its name in torch's state dict and its shape there, such as ``layer1.0.conv1.weight`` (64, 64, 3, 3)."""
    rng = _generator(name, seed)
    kind = name.rpartition(".")[2]
    if kind == "running_var":
        values = rng.uniform(0.5, 1.5, shape)
    elif kind in ("running_mean", "bias"):
        values = 0.1 * rng.standard_normal(shape)
    elif kind == "weight" and len(shape) == 1:
        # Much smaller, and biases alone would make the logits; much larger, and they explode in 152 layers.
        values = rng.uniform(0.4, 0.8, shape)
    elif kind == "weight" and len(shape) == 4:
        values = math.sqrt(2 / math.prod(shape[1:])) * rng.standard_normal(shape)
    elif kind == "weight" and len(shape) == 2:
        values = rng.standard_normal(shape) / math.sqrt(shape[1])
    else:
        raise ValueError(f"{name} of shape {shape}: nothing says how to draw it")
    return values.astype(np.float32)


def images(height: int, width: int | None = None, channels: int = 3, count: int = 2, seed: int = 0) -> np.ndarray:
    """Standard normal images, (count, channels, height, width) as torch has them; square where no width is given."""
    shape = (count, channels, height, height if width is None else width)
    return _generator("images", seed).standard_normal(shape).astype(np.float32)


def _generator(name: str, seed: int) -> np.random.Generator:
    # Not hash(): that differs from one process to the next.
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
