"""State and training step against NumPy, and digests of states."""

import copy
import dataclasses
import functools
import itertools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from numpy_network import Pass, Sgd, drawn, each, forward_backward, leaves
from resnet_jax import kernels
from resnet_jax.data import augment_device, datasets
from resnet_jax.models import Apply, Architecture, Execution, resnet
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.training import optimizer, sharding, step
from resnet_jax.training.config import Experiment, Loss, Optimizer, Schedule
from resnet_jax.training.sharding import Program
from resnet_jax.training.step import Batch, Learning, Metrics, TrainState

# Two stages: a unit that changes nothing, one that halves the image and widens, and two equal ones that can be scanned. Odd sizes.
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


@dataclasses.dataclass
class Reference:
    """Two steps in NumPy."""

    passes: list[Pass]
    params: list[dict]
    velocity: list[dict]


@pytest.fixture(scope="module")
def reference(start: tuple[dict, dict]) -> Reference:
    params, batch_stats = start
    velocity, sgd = each(np.zeros_like, params), Sgd(RATE, MOMENTUM, DECAY)
    found = Reference([], [], [])
    for index in range(2):
        found.passes.append(forward_backward(params, batch_stats, *batch(index)))
        params, velocity = sgd(params, velocity, found.passes[-1].gradients)
        batch_stats = found.passes[-1].batch_stats
        found.params.append(params)
        found.velocity.append(velocity)
    return found


def test_numpy_reference_agrees_with_finite_differences(start: tuple[dict, dict]) -> None:
    """The second opinion deserves its own: central differences of its loss, 40 parameters of every kind."""
    params, batch_stats = start
    images, labels = batch(0)
    gradients = leaves(forward_backward(params, batch_stats, images, labels).gradients)
    assert gradients.keys() == leaves(params).keys()
    rng = np.random.default_rng(2)
    checked = 0
    for path, gradient in gradients.items():
        for _ in range(2):
            place, h = tuple(rng.integers(0, n) for n in gradient.shape), 1e-6
            losses = []
            for sign in (1, -1):
                moved = each(np.copy, params)
                leaves(moved)[path][place] += sign * h
                losses.append(forward_backward(moved, batch_stats, images, labels).loss / BATCH)
            assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(gradient[place], rel=1e-5, abs=1e-8), path
            checked += 1
    assert checked >= 40


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
    return next(s for s in state.opt_state if isinstance(s, optax.TraceState)).trace


def assert_close(ours: dict, theirs: dict, rtol: float) -> None:
    """Every leaf within ``rtol`` of its own largest value: single precision has no more, and no gradient hides behind a bigger one."""
    ours, theirs = leaves(ours), leaves(theirs)
    assert ours.keys() == theirs.keys()
    for path, expected in theirs.items():
        np.testing.assert_allclose(np.asarray(ours[path], np.float64), expected, rtol=0, atol=rtol * np.abs(expected).max(), err_msg=path)


@pytest.mark.parametrize("execution", [Execution(blocks="loop", kernels="plain"), Execution(blocks="scan", kernels="cpu")], ids=str)
def test_two_steps_equal_numpy(execution: Execution, reference: Reference, start: tuple[dict, dict]) -> None:
    """Sums of losses and errors, gradients, momentum, parameters, and running statistics (0.9 of the old, 0.1 of the new, biased)."""
    before, steps = start[0], two_steps(start, execution)
    for index, (state, metrics) in enumerate(steps):
        expected = reference.passes[index]
        assert float(metrics.loss) == pytest.approx(expected.loss, rel=1e-5)
        assert (int(metrics.errors), int(metrics.examples), int(state.step)) == (expected.errors, BATCH, index + 1)
        assert metrics.errors.dtype == metrics.examples.dtype == jnp.int32
        assert float(metrics.learning_rate) == pytest.approx(RATE, rel=1e-7)
        assert 0 < expected.errors < BATCH
        assert_close(momentum(state), reference.velocity[index], 5e-5)
        assert_close(state.batch_stats, expected.batch_stats, 1e-5)
        assert_close(state.params, reference.params[index], 1e-5)
        # What changed, too: a step that did nothing would pass a comparison of parameters that barely move.
        difference = each(lambda after, before: np.asarray(after, np.float64) - before, state.params, before)
        assert_close(difference, each(np.subtract, reference.params[index], before), 1e-4)
    # The momentum after the first step is the gradient plus the decayed weights.
    gradients = each(lambda v, w: np.asarray(v, np.float64) - DECAY * w, momentum(steps[0][0]), before)
    assert_close(gradients, reference.passes[0].gradients, 5e-5)


def test_two_steps_in_double_precision_equal_numpy(start: tuple[dict, dict], reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to twelve digits before the first update, to seven after it: the learning
    rate is a float32. BatchNorm and the classifier's average compute in float32 too: not here.
    """
    architecture = copy.copy(ARCHITECTURE)
    object.__setattr__(architecture, "dtype", "float64")  # not by replace: no experiment may ask for it
    for module in (kernels, resnet):
        monkeypatch.setattr(module, "jnp", types.SimpleNamespace(**vars(jnp) | {"float32": jnp.float64}))
    with jax.enable_x64(True):
        (before, first), (state, second) = two_steps(start, Execution(blocks="scan"), architecture)
        assert all(leaf.dtype == jnp.float64 for leaf in leaves(state.params).values())
        assert float(first.loss) == pytest.approx(reference.passes[0].loss, rel=1e-12)
        assert_close(before.batch_stats, reference.passes[0].batch_stats, 1e-12)
        assert_close(momentum(before), reference.velocity[0], 1e-12)
        assert float(second.loss) == pytest.approx(reference.passes[1].loss, rel=1e-7)
        assert_close(momentum(state), reference.velocity[1], 2e-7)
        assert_close(state.params, reference.params[1], 2e-7)
        assert_close(state.batch_stats, reference.passes[1].batch_stats, 2e-7)


@pytest.fixture(scope="module")
def narrow(tiny: Experiment) -> Experiment:
    """``tiny``, but 40 images a step: 1,437 images are no multiple of it, and 8 devices share it."""
    return dataclasses.replace(tiny, batch_size=40)


@pytest.fixture(scope="module")
def digits(digits_dir: str) -> datasets.Examples:
    return datasets.read(datasets.describe("digits", digits_dir), "train")


@pytest.fixture(scope="module")
def one_device(narrow: Experiment) -> Program:
    return sharding.compiled(narrow, 1)


def trained(found: Program, digits: datasets.Examples, counts: list[int], seed: int = 3) -> tuple[TrainState, list[Metrics]]:
    """The state after dispatches of these numbers of steps, and their metrics."""
    data = found.put((Batch(digits.images, digits.labels), augment_device.fit(digits.images, "pixel_mean")))
    state, metrics = found.init(jax.random.key(seed)), []
    for count in counts:
        state, more = found.train(state, *data, count)
        metrics.append(jax.device_get(more))
    return state, metrics


def test_five_steps_of_one_dispatch_equal_five_dispatches(one_device: Program, digits: datasets.Examples) -> None:
    """The loop around the step is another program, so to rounding: 1e-5; the metrics are those of the steps, in order."""
    one_by_one, single = trained(one_device, digits, [1] * 5)
    together, (metrics,) = trained(one_device, digits, [5])
    assert int(together.step) == int(one_by_one.step) == 5
    assert metrics.loss.shape == metrics.errors.shape == metrics.examples.shape == metrics.learning_rate.shape == (5,)
    assert metrics.examples.tolist() == [40] * 5
    np.testing.assert_allclose(ravel_pytree(together.params)[0], ravel_pytree(one_by_one.params)[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ravel_pytree(together.batch_stats)[0], ravel_pytree(one_by_one.batch_stats)[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(metrics.loss, np.concatenate([m.loss for m in single]), rtol=1e-5)
    assert metrics.errors.tolist() == [int(m.errors[0]) for m in single]
    np.testing.assert_allclose(metrics.learning_rate, [0.01, 0.01, 0.05, 0.05, 0.05], rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Spy(Apply):
    """A network that learns nothing and keeps the images it was shown, in place of its batch statistics."""

    def __call__(self, params: Any, batch_stats: Any, images: jax.Array, *, train: bool, **_: Any) -> tuple[jax.Array, Any]:
        del batch_stats, train
        return jnp.zeros((images.shape[0], 10)) * params["w"], {"seen": images}


def seen(
    digits: datasets.Examples, devices: int, *, first: list[int], pad: int, flip: bool, preprocessing: augment_device.Preprocessing
) -> list[np.ndarray]:
    """The 40 images of the step after ``first`` steps, for each of ``first``, on a number of devices."""
    over = sharding.make(devices)
    params = {"w": jnp.float32(1)}
    data = jax.device_put((Batch(digits.images, digits.labels), preprocessing), sharding.replicated(over))
    augmentation = augment_device.Augmentation(pad=pad, flip=flip)
    spy = Spy(apply_and_shapes()[0].graphdef)
    learning = Learning(spy, TX, augmentation=augmentation, classes=10, batch_size=40, sharding=sharding.batch(over))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def one(state: TrainState, data: tuple[Batch, augment_device.Preprocessing]) -> TrainState:
        return step.train_steps(state, *data, 1, learning)[0]

    found = []
    for done in first:
        state = TrainState(jnp.int32(done), params, {"seen": jnp.zeros((40, 8, 8, 1))}, TX.init(params), jax.random.key(5), {}, {})
        found.append(one(jax.device_put(state, sharding.replicated(over)), data).batch_stats["seen"])
    assert len(found[0].sharding.device_set) == devices
    return jax.device_get(found)


def test_augmentation_differs_between_images_and_steps(digits: datasets.Examples) -> None:
    """A set of one image: what differs between the images of a step, and between steps, is the augmentation."""
    single = datasets.Examples(digits.images[:1], digits.labels[:1])
    preprocessing = augment_device.fit(digits.images, "pixel_mean")
    found = seen(single, 1, first=[0, 1], pad=2, flip=True, preprocessing=preprocessing)
    assert found[0].tobytes() != found[1].tobytes()
    assert all(len({image.tobytes() for image in images}) > 20 for images in found)


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


def timm_smoothed(targets: np.ndarray, smoothing: float) -> np.ndarray:
    """timm's ``mixup_target``: the shares of two one-hot targets with these values for on and off."""
    off = smoothing / 5
    return targets * (1 - smoothing + off) + (1 - targets) * off


def of(targets: np.ndarray | None, **fields: Any) -> np.ndarray:
    batch = Batch(jnp.zeros((6, 1, 1, 1)), jnp.int32(LABELS), None if targets is None else jnp.float32(targets))
    return np.asarray(step.losses(jnp.float32(LOGITS), batch, Loss(**fields)))


def test_losses_equal_numpy() -> None:
    """Labels and mixed targets; smoothing after mixing is mixing smoothed targets."""
    for (kind, expected), smoothing in itertools.product((("softmax", softmax), ("binary", binary)), (0.0, 0.1)):
        for targets, shares in ((None, ONE_HOT), (ONE_HOT, ONE_HOT), (MIXED, MIXED)):
            found = of(targets, kind=kind, smoothing=smoothing)
            assert found.shape == (6,)
            np.testing.assert_allclose(found, expected(timm_smoothed(shares, smoothing)), rtol=1e-5)


def test_targets_above_the_threshold_count_as_one() -> None:
    """Half a target is not above 0.5. timm smooths first: with e = 0.1 a share of 0.21 is 0.9 x 0.21 + 0.02 = 0.209."""
    for threshold in (0.0, 0.2, 0.5):
        expected = np.where(threshold < MIXED, 1.0, 0.0)
        np.testing.assert_allclose(of(MIXED, kind="binary", threshold=threshold), binary(expected), rtol=1e-5)
    targets = np.zeros((6, 5))
    targets[:, 0], targets[:, 1] = 0.79, 0.21
    both = np.zeros((6, 5))
    both[:, :2] = 1
    np.testing.assert_allclose(of(targets, kind="binary", smoothing=0.1, threshold=0.2), binary(both), rtol=1e-5)
    np.testing.assert_allclose(of(targets, kind="binary", smoothing=0.1, threshold=0.2095), binary(np.eye(5)[[0] * 6]), rtol=1e-5)
    np.testing.assert_allclose(of(targets, kind="binary", threshold=0.2095), binary(both), rtol=1e-5)


def small(seed: int = 0) -> TrainState:
    rng = np.random.default_rng(seed)
    params = {"conv": {"kernel": np.float32(rng.normal(size=(2, 3)))}, "norm": {"scale": np.float32(rng.normal(size=3))}}
    opt_state = ((), jax.tree.map(lambda p: 3 * p, params), (np.int32(7), np.float32(0.1), np.bool_(True)))
    stats = [{"norm": {"mean": np.float32(rng.normal(size=3))}} for _ in range(2)]
    ema = jax.tree.map(lambda p: 0.5 * p, params)
    return TrainState(np.int32(7), params, stats[0], opt_state, jax.random.key(seed), ema, stats[1])


def with_leaf(index: int, leaf: np.ndarray) -> TrainState:
    """``small()`` with one of its leaves, the key being its two numbers, exchanged."""
    leaves, treedef = jax.tree.flatten(step.plain(small()))
    leaves[index] = leaf
    return step.from_plain(jax.tree.unflatten(treedef, leaves))


def test_digest_changes_with_any_single_bit() -> None:
    """About 1,200 bits of step, parameters, statistics, optimizer state, key and averages: no two digests are equal."""
    digests = {step.digest(small())}
    bits = 0
    for index, leaf in enumerate(jax.tree.leaves(step.plain(small()))):
        content = np.asarray(leaf).tobytes()
        dtype = np.asarray(leaf).dtype
        for bit in range(8 * len(content) if dtype != np.bool_ else 1):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            digests.add(step.digest(with_leaf(index, np.frombuffer(bytes(changed), dtype).reshape(leaf.shape))))
            bits += 1
    assert bits > 1100
    assert len(digests) == bits + 1


def test_digest_of_equal_states_is_equal_on_any_devices() -> None:
    """In NumPy, on one device, on eight."""
    expected = step.digest(small())
    assert len(expected) == 64
    for devices in (1, 8):
        placed = jax.device_put(small(), sharding.replicated(sharding.make(devices)))
        assert len(placed.params["norm"]["scale"].sharding.device_set) == devices
        assert step.digest(placed) == expected


def test_digest_distinguishes_names_dtypes_and_shapes_of_equal_bytes() -> None:
    for other in (
        small()._replace(params={"conv": small().params["conv"], "other": small().params["norm"]}),
        small()._replace(params=jax.tree.map(lambda p: p.view(np.int32), small().params)),
        small()._replace(params=jax.tree.map(lambda p: p.reshape(-1, 3, 1), small().params)),
        small()._replace(step=np.array([7], np.int32)),
    ):
        bytes_of = [b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(step.plain(each))) for each in (other, small())]
        assert bytes_of[0] == bytes_of[1]
        assert step.digest(other) != step.digest(small())


def test_scored_prefers_average_and_precise_statistics() -> None:
    full = small()
    assert full.scored() == (full.ema, full.statistics)
    assert full._replace(ema={}).scored() == (full.params, full.statistics)
    assert full._replace(statistics={}).scored() == (full.ema, full.batch_stats)
    assert full._replace(ema={}, statistics={}).scored() == (full.params, full.batch_stats)
