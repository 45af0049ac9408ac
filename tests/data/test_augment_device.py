"""Normalization, crops, color changes, erasing and mixing against NumPy; random draws by their statistics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributions import frequency, uncorrelated, uniform
from resnet_jax.data import augment_device
from resnet_jax.data.augment_device import Augmentation, ColorJitter, Mix, PcaLighting, Preprocessing, RandomErasing
from resnet_jax.errors import UserError
from resnet_jax.models.components import component
from resnet_jax.training import sharding

KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
INTEGERS = (RNG.integers(0, 256, (200, 4, 5, 3)) * np.array([1, 0.5, 0.25])).astype(np.uint8)
IMAGES = RNG.uniform(0, 1, (16, 6, 5, 3)).astype(np.float32)
GRAY = np.array([0.299, 0.587, 0.114])


def test_normalization_subtracts_and_divides_by_its_statistics() -> None:
    """He et al. 2015, Section 3.4, in [0, 1], and the population's mean and deviation. Summed in float64:
    a float32 beyond 2^24 does not count by 255. A constant channel is an error, one pixel of another value is not."""
    scaled = INTEGERS.astype(np.float64) / 255
    for kind, mean, deviation in (("pixel_mean", scaled.mean(0), 1), ("channel", scaled.mean((0, 1, 2)), scaled.std((0, 1, 2)))):
        fitted = augment_device.fit(INTEGERS, kind)
        np.testing.assert_allclose(fitted.mean, mean, rtol=1e-6)
        np.testing.assert_allclose(fitted.deviation, np.broadcast_to(deviation, 3), rtol=1e-6)
        np.testing.assert_allclose(fitted(jnp.asarray(INTEGERS)), (scaled - mean) / deviation, rtol=0, atol=1e-5)
        white = np.full((100_000, 2, 2, 3), 255, np.uint8)
        white[0, 0, 0, :2] = 254
        with pytest.raises(UserError, match=r"training images of pets are equal in the channels \[2\]"):
            augment_device.fit(white, kind, "pets")
        white[0, 0, 0, 2] = 0
        assert np.all(np.abs(augment_device.fit(white, kind).mean - 1) <= 2e-5)
    with pytest.raises(UserError, match="'weights' is read from a file"):
        augment_device.fit(INTEGERS, "weights")


def test_crops_and_mirror_images_are_uniform_and_independent() -> None:
    """Every image is a slice of its zero-padded form, or the mirror image of one."""
    count, pad, height, width = 1000, 2, 6, 7
    images = np.arange(1, count * height * width * 2 + 1, dtype=np.float32).reshape(count, height, width, 2)
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for crop, flip in ((True, False), (False, True), (True, True)):
        results = np.asarray(augment_device.crop_and_flip(KEY, jnp.asarray(images), pad=pad * crop, flip=flip))
        drawn = []
        for whole, result in zip(padded, results, strict=True):
            places = [(y, x, f) for y in range(2 * pad + 1) for x in range(2 * pad + 1) for f in (False, True)]
            slices = {(y, x, f): whole[y : y + height, x : x + width] for y, x, f in places}
            (place,) = [p for p, part in slices.items() if np.array_equal(part[:, ::-1] if p[2] else part, result)]
            drawn.append(place)
        down, across, mirrored = np.array(drawn).T
        counts = np.zeros((5, 5))
        np.add.at(counts, (down, across), 1)
        # Chi-squared: mean 24, variance 48.
        assert ((counts - 40) ** 2 / 40).sum() < 24 + 5 * np.sqrt(48) if crop else counts[2, 2] == count
        frequency(mirrored, 0.5 * flip)
    uncorrelated(down, across, mirrored)
    uncorrelated(down[1:], down[:-1])


def test_augmentations_do_not_depend_on_the_devices() -> None:
    """Each on one device and on eight; another key gives other images."""
    images = np.random.default_rng(1).integers(0, 256, (64, 6, 8, 3)).astype(np.uint8)
    constants, labels = Preprocessing(np.zeros(3, np.float32), np.ones(3, np.float32)), np.zeros(64, np.int32)
    jitter = component(ColorJitter, lighting=0.1)
    mix = component(Mix, group=8)
    augmentation = Augmentation(pad=2, flip=True, erasing=component(RandomErasing, probability=0.5), mix=mix, color=jitter)

    def on(devices: int, key: jax.Array) -> np.ndarray:
        over = sharding.batch(sharding.make(devices))
        augment = jax.jit(lambda key, x, labels: augmentation(key, constants, x, labels, 3), out_shardings=over)
        result, _ = augment(key, jax.device_put(images, over), jax.device_put(labels, over))
        assert len(result.sharding.device_set) == devices
        return np.asarray(result)

    one = on(1, KEY)
    np.testing.assert_allclose(one, on(8, KEY), rtol=0, atol=1e-6)
    assert not np.array_equal(one, on(1, jax.random.key(8)))


def test_lighting_adds_a_color_with_the_covariance_of_imagenets() -> None:
    """Krizhevsky et al. 2012: components p_i, normal with deviation 0.1 lambda_i; 20,000 draws. One color per image, not clipped."""
    added = np.asarray(PcaLighting()(KEY, jnp.asarray(IMAGES))) - IMAGES
    assert np.abs(added - added[:, :1, :1]).max() < 1e-6
    strong = np.asarray(PcaLighting(5.0)(KEY, jnp.asarray(IMAGES)))
    assert strong.min() < 0 < 1 < strong.max()
    gray = np.full((20000, 1, 1, 3), 0.5, np.float32)
    colors = np.asarray(PcaLighting()(KEY, jnp.asarray(gray)))[:, 0, 0] - 0.5
    assert np.abs(colors.mean(axis=0)).max() < 5 * 0.1 * 0.2175 / math.sqrt(20000)
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    along = colors @ vectors  # the columns are orthonormal
    np.testing.assert_allclose(along.std(axis=0), 0.1 * np.array([0.2175, 0.0188, 0.0045]), rtol=0.03)
    uncorrelated(*along.T)
    assert np.abs(((along / along.std(axis=0)) ** 4).mean(axis=0) - 3).max() < 0.3  # kurtosis of a normal


def adjusted(image: np.ndarray, which: int, factor: float) -> np.ndarray:
    """Brightness, contrast, saturation in float64."""
    gray = image.astype(np.float64) @ GRAY
    other = (0.0, gray.mean(), gray[..., None])[which]
    return np.clip(factor * image.astype(np.float64) + (1 - factor) * other, 0, 1)


def test_jitter_factors_are_uniform_within_their_bounds() -> None:
    """Two pixels tell the factor of one adjustment while the others are off."""
    for name, amount in (("brightness", 0.4), ("contrast", 0.3), ("saturation", 0.2), ("brightness", 1.5)):
        jitter = ColorJitter(**({"brightness": 0.0, "contrast": 0.0, "saturation": 0.0} | {name: amount}))
        pixels = np.broadcast_to(np.float32([[0.3, 0.2, 0.2], [0.2, 0.2, 0.3]]), (4000, 1, 2, 3)).copy()
        changed = np.asarray(jax.jit(jitter)(KEY, jnp.asarray(pixels)), np.float64)
        left, right = changed[:, 0, 0], changed[:, 0, 1]
        # Contrast stretches the difference of the pixels' grays, saturation that of a pixel's channels.
        factors = {
            "brightness": left[:, 0] / 0.3,
            "contrast": (left - right) @ GRAY / (0.1 * (GRAY[0] - GRAY[2])),
            "saturation": (left[:, 0] - left[:, 1]) / 0.1,
        }[name]
        uniform(factors, max(0.0, 1 - amount), 1 + amount, ends=0.01)


def test_jitter_orders_its_adjustments_at_random_per_image() -> None:
    """Each result is that of one of the six orders, lighting comes last, and all orders occur."""
    count, image = 120, IMAGES[0]
    results = jax.jit(ColorJitter(0.9, 0.9, 0.9, lighting=0.1))(KEY, jnp.asarray(np.broadcast_to(image, (count, *image.shape)).copy()))
    order_key, factor_key, lighting_key = jax.random.split(KEY, 3)
    colors = np.asarray(PcaLighting()(lighting_key, jnp.zeros((count, 1, 1, 3))))
    orders = np.asarray(jax.random.permutation(order_key, jnp.broadcast_to(jnp.arange(3), (count, 3)), axis=1, independent=True))
    factors = np.asarray(jax.random.uniform(factor_key, (count, 3), minval=0.1, maxval=1.9))
    for order, factor, color, result in zip(orders, factors, colors, results, strict=True):
        expected = image.astype(np.float64)
        for which in order:
            expected = adjusted(expected, which, float(factor[which]))
        np.testing.assert_allclose(result, expected + color, rtol=0, atol=2e-5)
    assert len({tuple(order) for order in orders.tolist()}) == 6


def erase(erasing: RandomErasing, count: int, height: int, width: int) -> np.ndarray:
    """(n, 4): top, left, rows, columns of the erased box of each image of ones, which must be one box; zeros: none."""
    boxes = []
    for image in np.asarray(jax.jit(erasing)(KEY, jnp.ones((count, height, width, 1))))[..., 0] == 0:
        down, across = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
        boxes.append((down[0], across[0], np.ptp(down) + 1, np.ptp(across) + 1) if len(down) else (0,) * 4)
        assert image.sum() == boxes[-1][2] * boxes[-1][3]
    return np.array(boxes).T


def test_erased_boxes_are_uniform() -> None:
    """Area, log ratio and position, where every box fits; a box of a tenth of 10x10 pixels reaches every row and column."""
    top, left, rows, columns = erase(RandomErasing(1.0, area=(0.05, 0.25), ratio=(0.5, 2.0)), 3000, 160, 200)
    area, ratio = rows * columns / 32000, np.log(rows / columns) / math.log(2)
    down, across = top / (160 - rows), left / (200 - columns)
    for values, low, high in ((area, 0.05, 0.25), (ratio, -1, 1), (down, 0, 1), (across, 0, 1)):
        uniform(values, low, high)
    uncorrelated(area, ratio, down, across)
    top, left, rows, columns = erase(RandomErasing(1.0, area=(0.1, 0.1), ratio=(1.0, 1.0)), 2000, 10, 10)
    assert set(rows) == set(columns) == {3}  # the root of 10, rounded
    assert set(top) == set(left) == set(range(8))


def test_erased_boxes_that_do_not_fit_are_redrawn_ten_times() -> None:
    """Of 4x4 pixels, ratio 1, areas uniform in (0, 1]: sides of 0, 1, 2, 3 have areas up to 1/64, 9/64, 25/64, 49/64."""
    _, _, rows, columns = erase(RandomErasing(1.0, area=(1e-6, 1.0), ratio=(1.0, 1.0)), 2000, 4, 4)
    assert np.array_equal(rows, columns)
    for side, share in enumerate((1 / 49, 8 / 49, 16 / 49, 24 / 49)):
        frequency(rows == side, share)
    assert not erase(RandomErasing(1.0, area=(1.0, 1.0), ratio=(1.0, 1.0)), 100, 4, 4).any()


def test_only_the_boxes_of_chosen_images_are_erased_in_all_channels() -> None:
    images = np.random.default_rng(0).normal(size=(2000, 12, 14, 3)).astype(np.float32)
    erased = np.asarray(jax.jit(RandomErasing(0.6, value=7.5))(KEY, jnp.asarray(images)))
    changed = erased != images
    assert np.all(changed == changed[..., :1])
    assert np.all(erased[changed] == 7.5)
    frequency(changed.any(axis=(1, 2, 3)), 0.6)


def test_images_and_targets_are_mixed_alike() -> None:
    """With the mirrored position of the group: all pixels by one share, or a box of them. Groups of every kind occur."""
    count, partners = 64, np.arange(64).reshape(-1, 4)[:, ::-1].ravel()
    images = np.random.default_rng(0).normal(size=(count, 9, 12, 3)).astype(np.float32)
    mixed, targets = map(np.asarray, jax.jit(Mix(mixup=0.8, group=4, probability=0.8))(KEY, images, np.eye(count, dtype=np.float32)))
    shares, kinds = targets.diagonal(), set()
    expected = shares[:, None] * np.eye(count) + (1 - shares)[:, None] * np.eye(count)[partners]
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    np.testing.assert_allclose(shares.reshape(-1, 4), np.broadcast_to(shares[::4, None], (16, 4)), atol=1e-6)
    for image, other, result, share in zip(images, images[partners], mixed, shares, strict=True):
        pasted = (result == other).all(axis=-1)
        kinds.add("unmixed" if share == 1 else "pasted" if pasted.any() else "blended")
        if share == 1 or pasted.any():
            rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
            assert len(rows) * len(columns) == pasted.sum() == round((1 - share) * 9 * 12)
            np.testing.assert_array_equal(result, np.where(pasted[..., None], other, image))
        else:
            np.testing.assert_allclose(result, share * image + (1 - share) * other, rtol=0, atol=1e-6)
    assert kinds == {"unmixed", "pasted", "blended"}


def mixed_pairs(mix: Mix, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first of each mixed pair of a black image and a white one, and its share of white."""
    values = jnp.arange(count, dtype=jnp.float32) % 2
    images = jnp.broadcast_to(values[:, None, None, None], (count, size, size, 1))
    mixed, targets = map(np.asarray, jax.jit(mix)(KEY, images, jax.nn.one_hot(values.astype(int), 2)))
    np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), targets[:, 1], atol=1e-5)
    return mixed[::2, ..., 0], targets[::2, 1]


def test_mixed_shares_and_boxes_have_their_distributions() -> None:
    """Mixup: mean 1/2 and variance 1 / (4 (2 a + 1)). Cutmix, as in torchvision: radius int(sqrt(1 - lambda) / 2 * 40) about a
    uniform center; for uniform lambda the mean area, clipped at the border, is known."""
    _, shares = mixed_pairs(Mix(mixup=0.2, cutmix=0.0, group=2), 8000, 1)
    deviation = math.sqrt(1 / (4 * (2 * 0.2 + 1)))
    assert abs(shares.mean() - 0.5) < 5 * deviation / math.sqrt(4000)
    assert abs(shares.std() / deviation - 1) < 0.06
    _, shares = mixed_pairs(Mix(mixup=0.0, cutmix=1.0, group=2), 8000, 40)
    # radius r if r <= 20 sqrt(1 - lambda) < r + 1
    probabilities = np.diff(np.arange(21) ** 2) / 400
    extents = np.array([[min(y + r, 40) - max(y - r, 0) for y in range(40)] for r in range(20)])
    mean, square = probabilities @ extents.mean(1) ** 2, probabilities @ (extents**2).mean(1) ** 2
    assert abs(shares.mean() * 1600 - mean) < 5 * math.sqrt((square - mean**2) / 4000)


def test_groups_are_mixed_and_cut_with_their_probabilities() -> None:
    mixed, _ = mixed_pairs(Mix(mixup=1.0, group=2, switch=0.2, probability=0.7), 6000, 16)
    frequency(((mixed > 0) & (mixed < 1)).all(axis=(1, 2)), 0.7 * 0.8)
    # A box less than two pixels wide is empty: lambda above 1 - 1/64.
    frequency((mixed == 1).any(axis=(1, 2)) & (mixed == 0).any(axis=(1, 2)), 0.7 * 0.2 * (1 - 1 / 64))


def test_invalid_augmentations_are_rejected() -> None:
    zeros = jnp.zeros((2, 4, 4, 1))
    for build, message in (
        (lambda: PcaLighting(-0.1), "deviation must be a finite number of at least 0, got -0.1"),
        (lambda: PcaLighting()(KEY, zeros), "need RGB images, got 1 channels"),
        (lambda: RandomErasing(1.2), r"probability must be in \[0, 1\], got 1.2"),
        (lambda: RandomErasing(area=(0.5, 1.2)), r"area must be in \[0, 1\], got \(0.5, 1.2\)"),
        (lambda: RandomErasing(ratio=(math.nan, 1.0)), "ratio must be a positive finite number, got"),
        (lambda: Mix(mixup=0.0, cutmix=0.0), "mixup and cutmix are both 0"),
        (lambda: Mix(switch=1.1), "switch must be in"),
        (lambda: Mix()(KEY, zeros, jnp.zeros((2, 3))), "2 images does not consist of groups of 128"),
    ):
        with pytest.raises(UserError, match=message):
            build()
