"""What all readers share: which shapes can be, and how names out of files are shown."""

import numpy as np
import pytest

from resnet_jax.tensors.stored import fits_an_array, shown


@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (1,) * 64, (0, 2**40)])
def test_numpy_has_the_shapes_that_fit(shape: tuple[int, ...]) -> None:
    assert fits_an_array(shape, np.dtype(np.float32))
    np.empty(shape, np.float32)


@pytest.mark.parametrize("shape", [(1,) * 65, (-1,), (2**63,), (2**40, 2**40), (2**40, 0, 2**40)])
def test_numpy_has_not_the_others(shape: tuple[int, ...]) -> None:
    assert not fits_an_array(shape, np.dtype(np.float32))
    with pytest.raises((ValueError, OverflowError)):
        np.empty(shape, np.float32)


def test_a_name_cannot_move_the_cursor_nor_fill_the_screen() -> None:
    assert shown("layer1.0.conv1.weight") == "layer1.0.conv1.weight"
    assert shown("a\x1b[2Jb") == r"'a\x1b[2Jb'"
    assert shown("\udc80") == r"'\udc80'"
    assert shown("x" * 10_000) == "x" * 77 + "..."
