"""State and training step against NumPy, and digests of states."""

import copy
import dataclasses
import itertools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from numpy_network import backward, drawn, each, forward, leaves
from resnet_jax import kernels
from resnet_jax.data import augment_device, datasets
from resnet_jax.models import Apply, Architecture, Execution, resnet
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.training import optimizer, sharding, step
from resnet_jax.training.config import Experiment, Loss, Optimizer, Schedule
from resnet_jax.training.step import Batch, Learning, Metrics, TrainState

# Two stages: a block that keeps the shape, one that halves the image and widens, and two equal ones that can be scanned. Odd sizes.
ARCHITECTURE = Architecture(stages=(1, 3), features=(3, 5), shortcut=ZeroPad, input_shape=(7, 6, 2), num_classes=4)
RATE, MOMENTUM, DECAY, BATCH = 0.1, 0.9, 1e-2, 6
TX = optimizer.make(Optimizer(momentum=MOMENTUM, weight_decay=DECAY), Schedule(learning_rate=RATE, decay_steps=()))
QUICK = {"xla_backend_optimization_level": 0}


def apply_and_shapes(execution: Execution = Execution(), architecture: Architecture = ARCHITECTURE) -> tuple[Apply, Any, Any]:
    return jax.eval_shape(lambda: architecture.init(jax.random.key(0), execution=execution))


@pytest.fixture(scope="module")
def start() -> tuple[dict, dict]:
    """Parameters and running statistics drawn by NumPy: no scale is 1, no bias 0, no statistic at its initial value."""
    rng = np.random.default_rng(1)
    _, params, batch_stats = apply_and_shapes()
    return drawn(params, rng), each(lambda leaf: rng.uniform(0.5, 2, size=leaf.shape), batch_stats)


def batch(index: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(100 + index)
    return rng.normal(size=(BATCH, *ARCHITECTURE.input_shape)), rng.integers(0, ARCHITECTURE.num_classes, BATCH)


class Expected(NamedTuple):
    """A step in NumPy: the loss is summed over the batch."""

    loss: float
    errors: int
    params: dict
    velocity: dict
    batch_stats: dict


@pytest.fixture(scope="module")
def reference(start: tuple[dict, dict]) -> list[Expected]:
    """Two steps: v = m v + g + decay w, w = w - rate v."""
    params, batch_stats = start
    velocity, found = each(np.zeros_like, params), []
    for index in range(2):
        images, labels = batch(index)
        targets = np.eye(ARCHITECTURE.num_classes)[labels]
        logits, batch_stats, saved = forward(params, batch_stats, images)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        gradients = backward(params, saved, (probabilities - targets) / BATCH)
        velocity = each(lambda v, g, w: MOMENTUM * v + g + DECAY * w, velocity, gradients, params)
        params = each(lambda w, v: w - RATE * v, params, velocity)
        loss, errors = -(targets * np.log(probabilities)).sum(), int((logits.argmax(axis=1) != labels).sum())
        found.append(Expected(loss, errors, params, velocity, batch_stats))
    return found


def two_steps(
    start: tuple[dict, dict], execution: Execution, architecture: Architecture = ARCHITECTURE
) -> list[tuple[TrainState, Metrics]]:
    """The states after one and two steps of ``train_step``, and their metrics."""
    dtype = jnp.dtype(architecture.dtype)
    apply, _, _ = apply_and_shapes(execution, architecture)
    params, batch_stats = (each(lambda leaf: jnp.asarray(leaf, dtype), tree) for tree in start)
    state = TrainState(jnp.int32(0), params, batch_stats, TX.init(params), jax.random.key(0), {}, {})
    train = jax.jit(lambda s, b: step.train_step(s, b, Learning(apply, TX)), compiler_options=QUICK)
    found = []
    for index in range(2):
        images, labels = batch(index)
        state, metrics = train(state, Batch(jnp.asarray(images, dtype), jnp.int32(labels)))
        found.append((state, metrics))
    return found


def momentum(state: TrainState) -> dict:
    return optax.tree_utils.tree_get(state.opt_state, "trace")


def assert_close(ours: dict, theirs: dict, rtol: float) -> None:
    """Every leaf within ``rtol`` of its own largest value: single precision has no more, and no gradient hides behind a bigger one."""
    ours, theirs = leaves(ours), leaves(theirs)
    assert ours.keys() == theirs.keys()
    for path, expected in theirs.items():
        np.testing.assert_allclose(np.asarray(ours[path], np.float64), expected, rtol=0, atol=rtol * np.abs(expected).max(), err_msg=path)


def test_two_steps_in_double_precision_equal_numpy(
    start: tuple[dict, dict], reference: list[Expected], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to twelve digits before the first update, to seven after it: the learning
    rate is a float32. BatchNorm and the classifier's average compute in float32 too: not here.
    """
    architecture = copy.copy(ARCHITECTURE)
    object.__setattr__(architecture, "dtype", "float64")  # not by replace: no experiment may ask for it
    for module in (kernels, resnet):
        monkeypatch.setattr(module, "jnp", types.SimpleNamespace(**vars(jnp) | {"float32": jnp.float64}))
    with jax.enable_x64(True):
        for (state, metrics), expected, tolerance in zip(
            two_steps(start, Execution(blocks="scan"), architecture), reference, (1e-12, 2e-7), strict=True
        ):
            assert all(leaf.dtype == jnp.float64 for leaf in leaves(state.params).values())
            assert (int(metrics.errors), int(metrics.examples)) == (expected.errors, BATCH)
            assert float(metrics.loss) == pytest.approx(expected.loss, rel=tolerance)
            assert_close(state.batch_stats, expected.batch_stats, tolerance)
            assert_close(momentum(state), expected.velocity, tolerance)
            assert_close(state.params, expected.params, 2e-7)


@pytest.fixture(scope="module")
def digits(digits_dir: str) -> datasets.Examples:
    return datasets.read(datasets.describe("digits", digits_dir), "train")


def test_five_steps_of_one_dispatch_equal_five_dispatches(tiny: Experiment, digits: datasets.Examples) -> None:
    """To rounding. 40 does not divide 1,437 images."""
    program = sharding.compiled(dataclasses.replace(tiny, batch_size=40), 1)
    data = program.put((Batch(digits.images, digits.labels), augment_device.fit(digits.images, "pixel_mean")))

    def trained(dispatches: list[int]) -> tuple[TrainState, Metrics]:
        state, metrics = program.init(jax.random.key(3)), []
        for steps in dispatches:
            state, of_dispatch = program.train(state, *data, steps)
            metrics.append(of_dispatch)
        return state, jax.tree.map(lambda *parts: np.concatenate(parts), *metrics)

    (one_by_one, expected), (together, metrics) = trained([1] * 5), trained([5])
    assert int(together.step) == int(one_by_one.step) == 5
    for ours, theirs in ((together.params, one_by_one.params), (together.batch_stats, one_by_one.batch_stats)):
        np.testing.assert_allclose(ravel_pytree(ours)[0], ravel_pytree(theirs)[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-5)
    assert metrics.errors.tolist() == expected.errors.tolist()
    assert metrics.examples.tolist() == [40] * 5
    np.testing.assert_allclose(metrics.learning_rate, [0.01, 0.01, 0.05, 0.05, 0.05], rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Recorder(Apply):
    """A network whose batch statistics are its input."""

    def __call__(self, params: Any, batch_stats: Any, images: jax.Array, **_: Any) -> tuple[jax.Array, Any]:
        return jnp.zeros((len(images), 10)) * params["w"], {"images": images}


def test_augmentation_differs_between_images_and_steps(digits: datasets.Examples) -> None:
    """Of 40 copies of one image."""
    augmentation, graphdef = augment_device.Augmentation(pad=2, flip=True), apply_and_shapes()[0].graphdef
    learning = Learning(Recorder(graphdef), TX, augmentation=augmentation, classes=10, batch_size=40)
    data = Batch(jnp.asarray(digits.images[:1]), jnp.asarray(digits.labels[:1]))
    constants = augment_device.fit(digits.images, "pixel_mean")
    params = {"w": jnp.float32(1)}
    state = TrainState(jnp.int32(0), params, {"images": jnp.zeros((40, 8, 8, 1))}, TX.init(params), jax.random.key(5), {}, {})
    train, augmented = jax.jit(lambda state: step.train_steps(state, data, constants, 1, learning)[0], compiler_options=QUICK), []
    for _ in range(2):
        state = train(state)
        augmented.append(np.asarray(state.batch_stats["images"]))
    assert augmented[0].tobytes() != augmented[1].tobytes()
    assert all(len({image.tobytes() for image in images}) > 20 for images in augmented)


RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(6, 5))
LABELS, OTHERS = np.array([0, 1, 2, 3, 4, 0]), np.array([1, 1, 0, 4, 2, 3])
ONE_HOT = np.eye(5)[LABELS]
# As mixing makes them: shares of two classes, or all of one where an image met its own class.
SHARES = np.array([1.0, 0.3, 0.85, 0.5, 0.1, 0.75])[:, None]
MIXED = SHARES * ONE_HOT + (1 - SHARES) * np.eye(5)[OTHERS]


def softmax(targets: np.ndarray) -> np.ndarray:
    """- sum t log p."""
    exponentials = np.exp(LOGITS)
    return -(targets * np.log(exponentials / exponentials.sum(axis=1, keepdims=True))).sum(axis=1)


def binary(targets: np.ndarray) -> np.ndarray:
    """- mean of t log s + (1 - t) log (1 - s)."""
    yes = 1 / (1 + np.exp(-LOGITS))
    return -(targets * np.log(yes) + (1 - targets) * np.log(1 - yes)).mean(axis=1)


def of(targets: np.ndarray | None, **fields: Any) -> np.ndarray:
    batch = Batch(jnp.zeros((6, 1, 1, 1)), jnp.int32(LABELS), None if targets is None else jnp.float32(targets))
    return np.asarray(step.losses(jnp.float32(LOGITS), batch, Loss(**fields)))


def test_losses_equal_numpy() -> None:
    """Labels and mixed targets; smoothing after mixing is mixing smoothed targets."""
    for (kind, expected), smoothing in itertools.product((("softmax", softmax), ("binary", binary)), (0.0, 0.1)):
        for targets, shares in ((None, ONE_HOT), (ONE_HOT, ONE_HOT), (MIXED, MIXED)):
            found = of(targets, kind=kind, smoothing=smoothing)
            assert found.shape == (6,)
            # timm's ``mixup_target``: shares of values for on and off.
            smoothed = shares * (1 - smoothing + smoothing / 5) + (1 - shares) * smoothing / 5
            np.testing.assert_allclose(found, expected(smoothed), rtol=1e-5)


def test_targets_above_the_threshold_count_as_one() -> None:
    """Half a target is not above 0.5. timm smooths first: with e = 0.1 a share of 0.21 is 0.9 x 0.21 + 0.02 = 0.209."""
    for threshold in (0.0, 0.2, 0.5):
        expected = np.where(threshold < MIXED, 1.0, 0.0)
        np.testing.assert_allclose(of(MIXED, kind="binary", threshold=threshold), binary(expected), rtol=1e-5)
    targets = np.tile([0.79, 0.21, 0, 0, 0], (6, 1))
    for smoothing, threshold, ones in ((0.1, 0.2, 2), (0.1, 0.2095, 1), (0.0, 0.2095, 2)):
        found = of(targets, kind="binary", smoothing=smoothing, threshold=threshold)
        np.testing.assert_allclose(found, binary(np.tile(np.arange(5) < ones, (6, 1))), rtol=1e-5)


def small(seed: int = 0) -> TrainState:
    rng = np.random.default_rng(seed)
    params = {"conv": {"kernel": np.float32(rng.normal(size=(2, 3)))}, "norm": {"scale": np.float32(rng.normal(size=3))}}
    opt_state = ((), jax.tree.map(lambda p: 3 * p, params), (np.int32(7), np.float32(0.1), np.bool_(True)))
    stats = [{"norm": {"mean": np.float32(rng.normal(size=3))}} for _ in range(2)]
    ema = jax.tree.map(lambda p: 0.5 * p, params)
    return TrainState(np.int32(7), params, stats[0], opt_state, jax.random.key(seed), ema, stats[1])


def test_digest_is_equal_on_any_devices_and_changes_with_any_leaf() -> None:
    """With a bit of any leaf, its name, dtype or shape."""
    expected = step.digest(small())
    for devices in (1, 8):
        assert step.digest(jax.device_put(small(), sharding.replicated(sharding.make(devices)))) == expected
    leaves, treedef = jax.tree.flatten(small()._replace(key=jax.random.key_data(small().key)))
    others = [
        small()._replace(params={"conv": small().params["conv"], "other": small().params["norm"]}),
        small()._replace(params=jax.tree.map(lambda p: p.view(np.int32), small().params)),
        small()._replace(params=jax.tree.map(lambda p: p.reshape(-1, 3, 1), small().params)),
        small()._replace(step=np.array([7], np.int32)),
    ]
    for index, leaf in enumerate(leaves):
        for byte in (0, -1):
            changed = bytearray(np.asarray(leaf).tobytes())
            changed[byte] ^= 1
            other = np.frombuffer(bytes(changed), leaf.dtype).reshape(leaf.shape)
            state = jax.tree.unflatten(treedef, [*leaves[:index], other, *leaves[index + 1 :]])
            others.append(state._replace(key=jax.random.wrap_key_data(state.key)))
    assert expected not in {step.digest(other) for other in others}
