"""The ways to carry x to the shape of a branch, against their formulas in NumPy float64, forward and gradient."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flax import nnx
from test_convolution import random
from test_layers import call, filled, follows, project, same_statistics, variables

from resnet_jax.errors import UserError
from resnet_jax.models import resizing
from resnet_jax.models.layers import Conv
from resnet_jax.models.norms import BatchNorm, Nothing
from resnet_jax.models.shortcuts import ZeroPad

# In and out features, stride: nothing changes, width, size, both.
UNCHANGED, CHANGES = (4, 4, 1), [(3, 5, 1), (4, 4, 2), (3, 6, 2), (3, 4, 3)]


def pad(x: np.ndarray, out_features: int) -> np.ndarray:
    """Zeros behind the channels."""
    return np.concatenate([x, np.zeros((*x.shape[:3], out_features - x.shape[3]))], -1)


def pool(x: np.ndarray, stride: int) -> np.ndarray:
    """Means of stride x stride pixels; at an edge, of those that are there."""
    rows, columns = (range(0, size, stride) for size in x.shape[1:3])
    y = np.zeros((len(x), len(rows), len(columns), x.shape[3]))
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        y[:, i, j] = x[:, row : row + stride, column : column + stride].mean((1, 2))
    return y


def zero_pad(x: np.ndarray, out_features: int, stride: int) -> np.ndarray:
    """Every stride-th pixel, and zeros behind the channels (He et al. 2015, Section 3.3, option A)."""
    return pad(x[:, ::stride, ::stride], out_features)


def pad_both(x: np.ndarray, out_features: int, stride: int) -> np.ndarray:
    """Every stride-th pixel; zeros before and behind the channels, ``planes // 4`` each where the planes double (akamaster's resnet.py:
    ``F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes//4, planes//4))``). Of an odd number one more behind.
    """
    y = np.zeros((len(x), *x[:, ::stride, ::stride].shape[1:3], out_features))
    before = (out_features - x.shape[3]) // 2
    y[..., before : before + x.shape[3]] = x[:, ::stride, ::stride]
    return y


Carry = Callable[[dict[str, Any], np.ndarray, int, int, bool], np.ndarray]
CARRIES: dict[str, Carry] = {
    "pad": lambda v, x, out, s, train: zero_pad(x, out, s),
    "pad-both": lambda v, x, out, s, train: pad_both(x, out, s),
    "pool-pad": lambda v, x, out, s, train: pad(pool(x, s), out),
    "project": lambda v, x, out, s, train: project(v["projection"], x, s, train=train)[0] if v else x,
    "pool-project": lambda v, x, out, s, train: project(v["projection"], pool(x, s), 1, train=train)[0] if v else x,
    "project-always": lambda v, x, out, s, train: project(v, x, s, train=train)[0],
}
PROJECTIONS = [name for name in CARRIES if "project" in name]


def made(name: Any, shape: tuple[int, int, int], norm: Any = BatchNorm) -> Any:
    return filled(lambda rngs: resizing.BY_NAME[name](*shape, conv=Conv, norm=norm, rngs=rngs))


def test_every_way_has_a_name_and_is_tested_here() -> None:
    assert resizing.BY_NAME.keys() == CARRIES.keys()


@pytest.mark.quick(8)
@pytest.mark.parametrize(
    ("name", "shape", "train"),
    [(name, shape, train) for name in CARRIES for shape in CHANGES for train in (True, False) if name in PROJECTIONS or train],
)
def test_x_is_carried_by_its_formula(name: str, shape: tuple[int, int, int], train: bool) -> None:
    """Sizes that the stride does not divide are rounded up, as a padded convolution's are."""
    (_, out, stride), x = shape, random(2, 5, 6, shape[0])

    def formula(values: dict[str, Any], x: np.ndarray) -> np.ndarray:
        assert bool(values) == (name in PROJECTIONS)
        y = CARRIES[name](values, x, out, stride, train)
        assert y.shape == (2, -(-5 // stride), -(-6 // stride), out)
        return y

    follows(made(name, shape), formula, x, train=train)


@pytest.mark.parametrize("planes", [16, 32, 64])
def test_where_planes_double_a_quarter_of_them_is_added_on_either_side(planes: int) -> None:
    x = random(1, 4, 4, planes // 2)
    y, _ = call(made("pad-both", (planes // 2, planes, 2)), x, train=False)
    np.testing.assert_array_equal(y, np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (planes // 4, planes // 4))))


@pytest.mark.parametrize("name", ["pad", "pad-both", "pool-pad", "project", "pool-project"])
def test_x_is_untouched_where_nothing_changes(name: str) -> None:
    module, x = made(name, UNCHANGED), random(2, 5, 5, 4)
    assert variables(module) == {}
    np.testing.assert_array_equal(call(module, x, train=True)[0], x)


@pytest.mark.parametrize("train", [True, False])
def test_a_projection_everywhere_projects_where_nothing_changes_too(train: bool) -> None:
    module = made("project-always", UNCHANGED)
    assert variables(module)["conv"]["kernel"].shape == (1, 1, 4, 4)
    follows(module, lambda v, x: CARRIES["project-always"](v, x, 4, 1, train), random(2, 4, 5, 4), train=train)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_the_statistics_of_a_projection_run_in_training(name: str) -> None:
    module, x = made(name, (3, 5, 2)), random(2, 5, 6, 3)
    values, after = (v.get("projection", v) for v in (variables(module), call(module, x, train=True)[1]))
    carried, stride = (pool(x, 2), 1) if name == "pool-project" else (x, 2)
    same_statistics(after["norm"], project(values, carried, stride, train=True)[1])


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_takes_the_normalisation_it_is_given(name: str) -> None:
    """Here one that does not ask whether the network trains."""
    module, x = made(name, (3, 5, 2), norm=Nothing), random(2, 5, 6, 3)
    kernel = (variables(module) if name == "project-always" else variables(module)["projection"])["conv"]["kernel"]
    wanted = pool(x, 2) if name == "pool-project" else x[:, ::2, ::2]
    np.testing.assert_allclose(call(module, x, train=True)[0], np.float64(wanted) @ kernel[0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["pad", "pad-both", "pool-pad"])
def test_padding_refuses_to_shrink_and_says_what_to_use(name: Any) -> None:
    with pytest.raises(UserError, match="option A cannot shrink 8 features to 4: use a projection"):
        resizing.BY_NAME[name](8, 4, 1, conv=Conv, norm=BatchNorm, rngs=nnx.Rngs(0))


def test_an_unknown_way_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="resize='projet' is no way to carry x to another shape; did you mean .*project"):
        ZeroPad(3, 4, 1, nnx.Rngs(0), resize="projet")
