"""The units of He et al. 2015, Figure 5, against their composition in NumPy float64."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from test_convolution import close, random
from test_layers import call, conv, filled, normalise, variables

from resnet_jax.models.blocks import BasicBlock, Bottleneck, BottleneckV15
from resnet_jax.models.shortcuts import NoShortcut, Projection, ZeroPad

# Stride of each convolution where the unit has stride s. Paper: in the first 1x1; fb.resnet.torch and torchvision: in the 3x3.
STRIDES: dict[type[nnx.Module], Callable[[int], tuple[int, ...]]] = {
    BasicBlock: lambda s: (s, 1),
    Bottleneck: lambda s: (s, 1, 1),
    BottleneckV15: lambda s: (1, s, 1),
}
BLOCKS = list(STRIDES)


def branch(
    values: dict[str, Any], x: np.ndarray, strides: tuple[int, ...], *, train: bool = False
) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """Convolution and normalisation in turn, ReLU between them but not at the end; and the running statistics afterwards."""
    running = {}
    for index, stride in enumerate(strides, 1):
        x = conv(np.maximum(x, 0) if index > 1 else x, values[f"conv{index}"]["kernel"], stride)
        x, running[f"norm{index}"] = normalise(x, values[f"norm{index}"], train=train)
    return x, running


def project(values: dict[str, Any], x: np.ndarray, stride: int, *, train: bool = False) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A strided 1x1 convolution and a normalisation (He et al. 2015, eq. 2)."""
    return normalise(conv(x, values["conv"]["kernel"], stride), values["norm"], train=train)


def same_statistics(after: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if isinstance(value, dict):
            same_statistics(after[name], value)
        else:
            np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_striding_unit_is_relu_of_branch_plus_projection(block: Any, train: bool) -> None:
    unit = filled(lambda rngs: block(3, 4, 2, shortcut=Projection, rngs=rngs))
    x, values = random(2, 6, 6, 3), variables(unit)
    y, running = branch(values, x, STRIDES[block](2), train=train)
    beside, running["projection"] = project(values["shortcut"]["projection"], x, 2, train=train)
    actual, after = call(unit, x, train=train)
    close(actual, np.maximum(y + beside, 0))
    assert np.min(y + beside) < 0  # so that the last ReLU is seen
    same_statistics({**after, "projection": after["shortcut"]["projection"]["norm"]}, running)


@pytest.mark.parametrize("block", BLOCKS)
def test_an_identity_unit_is_relu_of_branch_plus_input(block: Any) -> None:
    width = 4 * block.expansion
    unit = filled(lambda rngs: block(width, 4, 1, shortcut=ZeroPad, rngs=rngs))
    x = random(2, 5, 5, width)
    close(call(unit, x)[0], np.maximum(branch(variables(unit), x, STRIDES[block](1))[0] + x, 0))


@pytest.mark.parametrize("block", BLOCKS)
def test_a_plain_unit_is_relu_of_the_branch(block: Any) -> None:
    unit = filled(lambda rngs: block(3, 4, 2, shortcut=NoShortcut, rngs=rngs))
    x = random(2, 5, 5, 3)
    close(call(unit, x)[0], np.maximum(branch(variables(unit), x, STRIDES[block](2))[0], 0))


def test_the_two_bottlenecks_differ_in_where_the_stride_sits_and_in_nothing_else() -> None:
    x = random(2, 6, 6, 3)
    paper, v15 = (filled(lambda rngs, block=block: block(3, 4, 2, shortcut=NoShortcut, rngs=rngs)) for block in (Bottleneck, BottleneckV15))
    jax.tree.map(np.testing.assert_array_equal, variables(paper), variables(v15))
    ours, theirs = call(paper, x)[0], call(v15, x)[0]
    assert ours.shape == theirs.shape == (2, 3, 3, 16)
    assert np.abs(ours - theirs).max() > 0.1 * np.abs(ours).max()


@pytest.mark.parametrize(
    ("block", "kernels", "widths"),
    [(BasicBlock, (3, 3), (5, 4, 4)), (Bottleneck, (1, 3, 1), (5, 4, 4, 16)), (BottleneckV15, (1, 3, 1), (5, 4, 4, 16))],
)
def test_kernels_and_widths_are_those_of_figure_5(block: Any, kernels: tuple[int, ...], widths: tuple[int, ...]) -> None:
    """Two 3x3; or 1x1, 3x3 and 1x1, the last four times as wide. Here 4 features from 5."""
    values = variables(filled(lambda rngs: block(5, 4, 1, shortcut=NoShortcut, rngs=rngs)))
    assert values.keys() == {f"{layer}{i + 1}" for layer in ("conv", "norm") for i in range(len(kernels))}
    for index, side in enumerate(kernels):
        assert values[f"conv{index + 1}"]["kernel"].shape == (side, side, widths[index], widths[index + 1])
    assert 4 * block.expansion == widths[-1]


def test_a_unit_makes_its_layers_and_its_shortcut_from_the_factories_it_is_given() -> None:
    made: list[tuple[Any, ...]] = []

    class Layer(nnx.Module):
        def __init__(self, *shape: int, rngs: nnx.Rngs):
            made.append(shape)

    Bottleneck(3, 4, 2, shortcut=Projection, conv=Layer, norm=Layer, rngs=nnx.Rngs(0))
    convolutions, norms = [(3, 4, 1, 2), (4, 4, 3, 1), (4, 16, 1), (3, 16, 1, 2)], [(4,), (4,), (16,), (16,)]
    assert sorted(made) == sorted(convolutions + norms)
