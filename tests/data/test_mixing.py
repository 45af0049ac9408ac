"""Mixed images against loops in NumPy on the same draws; shares and boxes by their statistics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.mixing import Mix
from resnet_jax.errors import UserError
from resnet_jax.training import mesh

KEY = jax.random.key(11)
IMAGES = np.random.default_rng(0).normal(size=(32, 9, 12, 3)).astype(np.float32)
TARGETS = np.eye(32, dtype=np.float32)
BOTH = Mix(mixup=0.8, cutmix=1.0, group=4, probability=0.8)


def numbered(count: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Pairs of a black image and a white one; targets are which."""
    values = jnp.arange(count, dtype=jnp.float32) % 2
    return jnp.broadcast_to(values[:, None, None, None], (count, size, size, 1)), jax.nn.one_hot(values.astype(int), 2)


@pytest.mark.quick(1)
@pytest.mark.parametrize("mix", [BOTH, Mix(mixup=0.5, cutmix=0.0, group=8), Mix(mixup=0.0, cutmix=1.0, group=0)])
def test_images_and_targets_are_mixed_as_by_loops(mix: Mix) -> None:
    drawn = jax.tree.map(np.asarray, mix._draw(KEY, 32 // (mix.group or 32), 9, 12))
    size = mix.group or 32
    images, targets = IMAGES.astype(np.float64), TARGETS.astype(np.float64)
    expected, shares = images.copy(), targets.copy()
    for place in range(32):
        group, within = divmod(place, size)
        other = group * size + size - 1 - within
        if not drawn.mixed[group]:
            continue
        if drawn.cut[group]:
            radius = 0.5 * math.sqrt(1 - drawn.share[group])
            y, x, down, across = drawn.row[group], drawn.column[group], int(radius * 9), int(radius * 12)
            top, bottom, left, right = max(y - down, 0), min(y + down, 9), max(x - across, 0), min(x + across, 12)
            expected[place, top:bottom, left:right] = images[other, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (9 * 12)
        else:
            share = float(drawn.share[group])
            expected[place] = share * images[place] + (1 - share) * images[other]
        shares[place] = share * targets[place] + (1 - share) * targets[other]
    found, found_targets = jax.jit(mix)(KEY, jnp.asarray(IMAGES), jnp.asarray(TARGETS))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found_targets, shares, rtol=0, atol=1e-6)


def test_those_draws_are_of_every_kind() -> None:
    """Else the test above compares less than it seems to."""
    drawn = jax.tree.map(np.asarray, BOTH._draw(KEY, 8, 9, 12))
    assert {(bool(mixed), bool(cut)) for mixed, cut in zip(drawn.mixed, drawn.cut, strict=True)} >= {(True, True), (True, False)}
    assert not drawn.mixed.all()


def test_shares_of_targets_are_those_of_pixels_and_add_up_to_one() -> None:
    """Each image is of one value, its target's: the mean over pixels is the target's share, mixup or cutmix."""
    images, targets = numbered(4000, 16)
    found, shares = jax.jit(Mix(mixup=0.4, group=2))(KEY, images, targets)
    np.testing.assert_allclose(np.asarray(found).mean(axis=(1, 2, 3)), shares[:, 1], atol=1e-5)
    np.testing.assert_allclose(np.asarray(shares).sum(axis=1), 1, atol=1e-6)


@pytest.mark.quick(1)
@pytest.mark.parametrize("alpha", [0.2, 3.0])
def test_mixup_shares_have_the_distribution_beta(alpha: float) -> None:
    """Mean 1/2 and variance 1 / (4 (2 a + 1))."""
    images, targets = numbered(8000, 1)
    _, shares = jax.jit(Mix(mixup=alpha, cutmix=0.0, group=2))(KEY, images, targets)
    own = np.asarray(shares)[::2, 0]
    deviation = math.sqrt(1 / (4 * (2 * alpha + 1)))
    assert abs(own.mean() - 0.5) < 5 * deviation / math.sqrt(4000)
    assert abs(own.std() / deviation - 1) < 0.06


def test_cutmix_boxes_have_torchvisions_sizes_and_places() -> None:
    """Radius int(sqrt(1 - lambda) / 2 * 40) about a uniform middle; with lambda uniform the mean area is known, edges being cut off."""
    images, targets = numbered(8000, 40)
    found, _ = jax.jit(Mix(mixup=0.0, cutmix=1.0, group=2))(KEY, images, targets)
    boxes = np.asarray(found)[::2, ..., 0] == 1
    areas = boxes.sum(axis=(1, 2))
    expected, squares = 0.0, 0.0
    for radius in range(20):
        # radius r where r <= 20 sqrt(1 - lambda) < r + 1
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


@pytest.mark.quick(1)
@pytest.mark.parametrize(("switch", "probability"), [(0.5, 1.0), (0.2, 0.7)])
def test_groups_are_mixed_and_cut_as_often_as_asked(switch: float, probability: float) -> None:
    images, targets = numbered(6000, 16)
    found = np.asarray(jax.jit(Mix(mixup=1.0, group=2, switch=switch, probability=probability))(KEY, images, targets)[0])[::2]
    blended = ((found > 0) & (found < 1)).all(axis=(1, 2, 3)).mean()
    expected = probability * (1 - switch)
    assert abs(blended - expected) <= 5 * math.sqrt(expected * (1 - expected) / 3000) + 1e-9
    cut = ((found == 1).any(axis=(1, 2, 3)) & (found == 0).any(axis=(1, 2, 3))).mean()
    # A box less than two pixels wide is none: lambda above 1 - 1/64; one as large as the image has no chance.
    expected = probability * switch * (1 - 1 / 64)
    assert abs(cut - expected) <= 5 * math.sqrt(expected * (1 - expected) / 3000)


def test_a_group_has_one_draw_and_each_group_its_own() -> None:
    _, shares = Mix(cutmix=0.0, group=8)(KEY, jnp.asarray(IMAGES), jnp.asarray(TARGETS))
    own = np.diagonal(np.asarray(shares)).reshape(4, 8)
    assert np.ptp(own, axis=1).max() < 1e-6
    assert len(np.unique(own[:, 0].round(5))) == 4
    other = np.asarray(shares)[np.arange(32), [group * 8 + 7 - place for group in range(4) for place in range(8)]]
    np.testing.assert_allclose(other.reshape(4, 8), 1 - own, atol=1e-6)


@pytest.mark.slow
def test_mixing_does_not_depend_on_compilation_or_devices() -> None:
    """Groups within a device, and groups over several."""
    over = mesh.batch(mesh.make(8))
    for mix in (BOTH, Mix(cutmix=0.0, group=16)):
        eager = mix(KEY, jnp.asarray(IMAGES), jnp.asarray(TARGETS))
        eight = jax.jit(mix, out_shardings=over)(KEY, jax.device_put(IMAGES, over), jax.device_put(TARGETS, over))
        for one, several in zip(eager, eight, strict=True):
            assert len(several.sharding.device_set) == 8
            np.testing.assert_allclose(several, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Mix(mixup=0.0, cutmix=0.0), "mixup and cutmix are both 0"),
        (lambda: Mix(mixup=-0.1), "mixup is -0.1"),
        (lambda: Mix(group=-1), "group is -1"),
        (lambda: Mix(switch=1.1), "switch is 1.1"),
        (lambda: Mix(probability=2), "probability is 2"),
        (lambda: Mix(group=5)(KEY, jnp.asarray(IMAGES), jnp.asarray(TARGETS)), "32 images does not consist of groups of 5"),
        (lambda: Mix()(KEY, jnp.asarray(IMAGES), jnp.asarray(TARGETS)), "groups of 128"),
    ],
)
def test_what_cannot_be_done_is_refused(made, said: str) -> None:
    with pytest.raises(UserError, match=said):
        made()
