"""Views of storages as torch's pickles describe them, checked before anything is read."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet_jax.tensors.stored import fits_an_array


@dataclass(frozen=True)
class Storage:
    """A run of ``numel`` numbers somewhere in the file."""

    key: str
    dtype: np.dtype
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count elements. Its reach is checked against the storage's claim."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def typed(value: Any, kind: type) -> Any:
    """Returns the value where it is of exactly this type; raises ValueError otherwise."""
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def count(value: Any) -> int:
    """Returns the value where it is a number of elements, 0 to 2^63 - 1; raises ValueError otherwise."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("a size, offset or stride that is not a number of elements")
    return value


def view(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    """Makes a Tensor of what a pickle claims.

    Raises:
      ValueError: for a value of another type, a negative number, a reach outside the storage, and more elements than the storage has
        (an expanded view, which would make memory out of nothing).
    """
    typed(storage, Storage)
    shape, strides = (tuple(count(n) for n in typed(numbers, tuple)[:65]) for numbers in (shape, strides))
    if len(shape) != len(strides) or not fits_an_array(shape, storage.dtype):
        raise ValueError("a shape that no array has")
    elements = math.prod(shape)
    if elements > storage.numel:
        raise ValueError(f"a tensor of {elements} elements views a storage of {storage.numel}")
    reach = count(offset) + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if elements and reach >= storage.numel:
        raise ValueError(f"a tensor reaches element {reach} of a storage of {storage.numel}")
    # A stride along an axis of one element means nothing and may be anything.
    return Tensor(storage, offset, shape, tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True)))
