"""Views of storages: which claims hold, by counting the elements that they reach."""

import itertools
import random

import numpy as np
import pytest

from resnet_jax.tensors.torch_views import Storage, Tensor, count, typed, view


def test_a_view_holds_where_every_element_lies_in_the_storage() -> None:
    drawn = random.Random(0)
    accepted = 0
    for _ in range(3000):
        axes = drawn.randrange(4)
        shape = tuple(drawn.randrange(4) for _ in range(axes))
        strides = tuple(drawn.randrange(7) for _ in range(axes))
        offset, storage = drawn.randrange(6), Storage("0", np.dtype(np.float32), drawn.randrange(20))
        indices = list(itertools.product(*map(range, shape)))
        reached = [offset + sum(i * s for i, s in zip(index, strides, strict=True)) for index in indices]
        holds = len(reached) <= storage.numel and all(i < storage.numel for i in reached)
        if holds:
            tensor = view(storage, offset, shape, strides)
            assert (tensor.storage, tensor.offset, tensor.shape) == (storage, offset, shape)
            found = [offset + sum(i * s for i, s in zip(index, tensor.strides, strict=True)) for index in indices]
            assert found == reached
            accepted += 1
        else:
            with pytest.raises(ValueError, match="a tensor (of|reaches)"):
                view(storage, offset, shape, strides)
    assert 300 < accepted < 2700


def test_strides_along_single_elements_mean_nothing() -> None:
    storage = Storage("0", np.dtype(np.float32), 4)
    assert view(storage, 0, (1, 4), (2**62, 1)) == Tensor(storage, 0, (1, 4), (0, 1))


@pytest.mark.parametrize("value", [-1, 2**63, True, 1.0, "1", None, np.int64(1)])
def test_a_count_is_a_plain_integer(value: object) -> None:
    with pytest.raises(ValueError, match="not a number of elements"):
        count(value)


def test_types_are_exact() -> None:
    assert typed("a", str) == "a"
    with pytest.raises(ValueError, match="bool where int belongs"):
        typed(True, int)
