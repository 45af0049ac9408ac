"""Mixed images against loops in NumPy on the same draws; shares and boxes by their statistics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resnet_jax.data.augment_device import Mix
from resnet_jax.errors import UserError
from resnet_jax.training import sharding

KEY = jax.random.key(11)
IMAGES = np.random.default_rng(0).normal(size=(32, 9, 12, 3)).astype(np.float32)
TARGETS = np.eye(32, dtype=np.float32)
MIX = Mix(mixup=0.8, cutmix=1.0, group=4, probability=0.8)


def black_and_white(count: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Pairs of a black image and a white one; targets tell which."""
    values = jnp.arange(count, dtype=jnp.float32) % 2
    return jnp.broadcast_to(values[:, None, None, None], (count, size, size, 1)), jax.nn.one_hot(values.astype(int), 2)


def draws(groups: int, height: int, width: int) -> list[np.ndarray]:
    """Per group: mixed or not, cutmix or mixup, lambda, and the center of the box."""
    keys = jax.random.split(KEY, 5)
    mixed, cut = (jax.random.bernoulli(key, p, (groups,)) for key, p in zip(keys, (MIX.probability, MIX.switch), strict=False))
    alpha = jnp.where(cut, MIX.cutmix, MIX.mixup)
    center = (jax.random.randint(key, (groups,), 0, extent) for key, extent in zip(keys[3:], (height, width), strict=True))
    return [np.asarray(values) for values in (mixed, cut, jax.random.beta(keys[2], alpha, alpha), *center)]


def test_images_and_targets_are_mixed_as_by_loops_on_any_devices() -> None:
    """Eight devices, groups within a device; the draws are of every kind."""
    mixed, cut, lambdas, rows, columns = draws(8, 9, 12)
    assert {*zip(mixed.tolist(), cut.tolist(), strict=True)} >= {(True, True), (True, False)}
    assert not mixed.all()
    images, targets = IMAGES.astype(np.float64), TARGETS.astype(np.float64)
    expected, shares = images.copy(), targets.copy()
    for position in range(32):
        group, within = divmod(position, 4)
        other = group * 4 + 3 - within
        if not mixed[group]:
            continue
        if cut[group]:
            radius = 0.5 * math.sqrt(1 - lambdas[group])
            y, x, down, across = rows[group], columns[group], int(radius * 9), int(radius * 12)
            top, bottom, left, right = max(y - down, 0), min(y + down, 9), max(x - across, 0), min(x + across, 12)
            expected[position, top:bottom, left:right] = images[other, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (9 * 12)
        else:
            share = float(lambdas[group])
            expected[position] = share * images[position] + (1 - share) * images[other]
        shares[position] = share * targets[position] + (1 - share) * targets[other]
    over = sharding.batch(sharding.make(8))
    results = jax.jit(MIX, out_shardings=over)(KEY, jax.device_put(IMAGES, over), jax.device_put(TARGETS, over))
    assert len(results[0].sharding.device_set) == 8
    for result, wanted in zip(results, (expected, shares), strict=True):
        np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-6)


def test_mixup_shares_are_beta_distributed() -> None:
    """Mean 1/2 and variance 1 / (4 (2 a + 1))."""
    images, targets = black_and_white(8000, 1)
    _, shares = jax.jit(Mix(mixup=0.2, cutmix=0.0, group=2))(KEY, images, targets)
    own = np.asarray(shares)[::2, 0]
    deviation = math.sqrt(1 / (4 * (2 * 0.2 + 1)))
    assert abs(own.mean() - 0.5) < 5 * deviation / math.sqrt(4000)
    assert abs(own.std() / deviation - 1) < 0.06


def test_cutmix_boxes_have_torchvisions_sizes_and_positions() -> None:
    """Radius int(sqrt(1 - lambda) / 2 * 40) about a uniform center; for uniform lambda the mean area, clipped at the border, is known."""
    images, targets = black_and_white(8000, 40)
    mixed, _ = jax.jit(Mix(mixup=0.0, cutmix=1.0, group=2))(KEY, images, targets)
    boxes = np.asarray(mixed)[::2, ..., 0] == 1
    areas = boxes.sum(axis=(1, 2))
    expected, squares = 0.0, 0.0
    for radius in range(20):
        # radius r if r <= 20 sqrt(1 - lambda) < r + 1
        probability = ((radius + 1) ** 2 - radius**2) / 400
        extents = np.array([min(y + radius, 40) - max(y - radius, 0) for y in range(40)])
        expected += probability * extents.mean() ** 2
        squares += probability * (extents**2).mean() ** 2
    assert abs(areas.mean() - expected) < 5 * math.sqrt((squares - expected**2) / 4000)
    for box in boxes[:200]:
        assert box.sum() == box.any(axis=1).sum() * box.any(axis=0).sum()
    covered = boxes.mean(axis=0)
    assert abs(covered[:20].mean() - covered[20:].mean()) < 0.03
    assert abs(covered[:, :20].mean() - covered[:, 20:].mean()) < 0.03
    assert covered[20, 20] > covered[0, 0]


def test_groups_are_mixed_and_cut_with_their_probabilities() -> None:
    """Images of one value: the mean over pixels is the target's share, mixup or cutmix."""
    images, targets = black_and_white(6000, 16)
    mixed, shares = map(np.asarray, jax.jit(Mix(mixup=1.0, group=2, switch=0.2, probability=0.7))(KEY, images, targets))
    np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), shares[:, 1], atol=1e-5)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    mixed = mixed[::2]
    blended = ((mixed > 0) & (mixed < 1)).all(axis=(1, 2, 3)).mean()
    cut = ((mixed == 1).any(axis=(1, 2, 3)) & (mixed == 0).any(axis=(1, 2, 3))).mean()
    # A box less than two pixels wide is empty: lambda above 1 - 1/64.
    for share, expected in ((blended, 0.7 * 0.8), (cut, 0.7 * 0.2 * (1 - 1 / 64))):
        assert abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / 3000)


def test_invalid_mixing_is_rejected() -> None:
    for build, message in (
        (lambda: Mix(mixup=0.0, cutmix=0.0), "mixup and cutmix are both 0"),
        (lambda: Mix(mixup=-0.1), "mixup must be at least 0, got -0.1"),
        (lambda: Mix(switch=1.1), "switch must be in"),
        (lambda: Mix()(KEY, jnp.asarray(IMAGES), jnp.asarray(TARGETS)), "32 images does not consist of groups of 128"),
    ):
        with pytest.raises(UserError, match=message):
            build()
