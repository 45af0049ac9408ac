"""What the reader of every format returns: named arrays whose shapes are known and whose bytes are not read yet."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Note = int | float | str | bool


@dataclass(frozen=True)
class Stored:
    """One array of a file, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    """In the machine's byte order; ``ml_dtypes.bfloat16`` is among them."""
    read: Callable[[], np.ndarray]
    """Returns a fresh C-contiguous array of ``shape`` and ``dtype``. Raises UserError where its bytes are damaged or gone."""


@dataclass(frozen=True)
class TensorFile:
    """A weight file of which names, shapes and dtypes are known."""

    path: Path
    format: str
    """One of "safetensors", "npz", "torch zip", "torch legacy"."""
    tensors: dict[str, Stored]
    """Name -> array, in the file's order."""
    metadata: dict[str, str]
    """Safetensors' own metadata; empty for other formats."""
    notes: dict[str, Note]
    """Scalars beside the state dict of a torch file (epoch, arch, best_prec1), and what else with tensors lies there unread."""


def fits_an_array(shape: Sequence[int], dtype: np.dtype) -> bool:
    """Whether numpy can hold the shape at all: sizes of an array without elements are as free as anyone's imagination."""
    if len(shape) > 64 or any(size < 0 or size >= 2**63 for size in shape):
        return False
    return math.prod(size or 1 for size in shape) * dtype.itemsize < 2**63


def shown(text: str) -> str:
    """A name out of a file as messages quote it: without control characters, 80 characters at most."""
    text = text if len(text) <= 80 else text[:77] + "..."
    return text if text.isprintable() else ascii(text)
