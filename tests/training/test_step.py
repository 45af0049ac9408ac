"""Training steps against NumPy, and against other numbers of devices and steps per dispatch."""

import copy
import dataclasses
import functools
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
from resnet_jax.training import optimizer, program, sharding, step
from resnet_jax.training.config import Experiment, Optimizer, Schedule
from resnet_jax.training.program import Program
from resnet_jax.training.step import Batch, Learning, Metrics, TrainState

# Two stages: a unit that changes nothing, one that halves the image and widens, and two equal ones that can be scanned. Odd sizes.
ARCHITECTURE = Architecture(stages=(1, 3), features=(3, 5), shortcut=ZeroPad, input_shape=(7, 6, 2), num_classes=4)
RATE, MOMENTUM, DECAY, BATCH = 0.1, 0.9, 1e-2, 6
TX = optimizer.make(Optimizer(momentum=MOMENTUM, weight_decay=DECAY), Schedule(learning_rate=RATE, decay_steps=()))
QUICK = {"xla_backend_optimization_level": 0}


def apply_and_shapes(architecture: Architecture = ARCHITECTURE, execution: Execution = Execution()) -> tuple[Apply, Any, Any]:
    return jax.eval_shape(lambda: architecture.init(jax.random.key(0), execution=execution))


@pytest.fixture(scope="module")
def start() -> tuple[dict, dict]:
    """Parameters and running statistics drawn by NumPy: no scale is 1, no bias 0, no statistic at its initial value."""
    rng = np.random.default_rng(1)
    _, params, batch_stats = apply_and_shapes()
    shapes = each(lambda s: s.shape, params), each(lambda s: s.shape, batch_stats)
    return drawn(shapes[0], rng), each(lambda shape: rng.uniform(0.5, 2, size=shape), shapes[1])


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


def two_steps_from(start: tuple[dict, dict], architecture: Architecture, execution: Execution) -> list[tuple[TrainState, Metrics]]:
    """The states after one and two steps of ``train_step``, in the precision of the architecture, and their metrics."""
    dtype = jnp.dtype(architecture.dtype)
    apply, _, _ = apply_and_shapes(architecture, execution)
    params, batch_stats = (each(lambda leaf: jnp.asarray(leaf, dtype), tree) for tree in start)
    state = TrainState(jnp.int32(0), params, batch_stats, TX.init(params), jax.random.key(0), {}, {})
    train = jax.jit(lambda s, b: step.train_step(s, b, Learning(apply, TX)), compiler_options=QUICK)
    found = []
    for index in range(2):
        images, labels = batch(index)
        state, metrics = train(state, Batch(jnp.asarray(images, dtype), jnp.int32(labels)))
        found.append((state, metrics))
    return found


@pytest.fixture(
    scope="module",
    params=[Execution(blocks="loop", kernels="plain"), Execution(blocks="scan", kernels="cpu")],
    ids=["loop, plain gradients", "scan, explicit gradients"],
)
def two_steps(request: pytest.FixtureRequest, start: tuple[dict, dict]) -> list[tuple[TrainState, Metrics]]:
    return two_steps_from(start, ARCHITECTURE, request.param)


def momentum(state: TrainState) -> dict:
    return next(s for s in state.opt_state if isinstance(s, optax.TraceState)).trace


def assert_close(ours: dict, theirs: dict, rtol: float) -> None:
    """Every leaf within ``rtol`` of its own largest value: single precision has no more, and no gradient hides behind a bigger one."""
    ours, theirs = leaves(ours), leaves(theirs)
    assert ours.keys() == theirs.keys()
    for path, expected in theirs.items():
        np.testing.assert_allclose(np.asarray(ours[path], np.float64), expected, rtol=0, atol=rtol * np.abs(expected).max(), err_msg=path)


def test_two_steps_equal_numpy(two_steps: list[tuple[TrainState, Metrics]], reference: Reference, start: tuple[dict, dict]) -> None:
    """Sums of losses and errors, gradients, momentum, parameters, and running statistics (0.9 of the old, 0.1 of the new, biased)."""
    before = start[0]
    for index, (state, metrics) in enumerate(two_steps):
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
    gradients = each(lambda v, w: np.asarray(v, np.float64) - DECAY * w, momentum(two_steps[0][0]), before)
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
        (before, first), (state, second) = two_steps_from(start, architecture, Execution(blocks="scan"))
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
    return program.compiled(narrow, 1)


def trained(found: Program, digits: datasets.Examples, counts: list[int], seed: int = 3) -> tuple[TrainState, list[Metrics]]:
    """The state after dispatches of these numbers of steps, and their metrics."""
    data = found.put((Batch(digits.images, digits.labels), augment_device.fit(digits.images, "pixel_mean")))
    state, metrics = found.init(jax.random.key(seed)), []
    for count in counts:
        state, more = found.train(state, *data, count)
        metrics.append(jax.device_get(more))
    return state, metrics


def test_eight_devices_equal_one(narrow: Experiment, one_device: Program, digits: datasets.Examples) -> None:
    """Parameters, statistics and momentum after 3 steps within 1e-5; 5 of the 40 images on each device, BatchNorm over all of them."""
    eight_devices = program.compiled(narrow, 8)
    assert one_device.mesh.size == 1
    assert eight_devices.mesh.size == 8
    one, metrics_one = trained(one_device, digits, [1, 1, 1])
    eight, metrics_eight = trained(eight_devices, digits, [1, 1, 1])
    assert len(jax.tree.leaves(eight.params)[0].sharding.device_set) == 8
    for ours, theirs in ((eight.params, one.params), (eight.batch_stats, one.batch_stats), (momentum(eight), momentum(one))):
        np.testing.assert_allclose(ravel_pytree(ours)[0], ravel_pytree(theirs)[0], rtol=0, atol=1e-5)
    for ours, theirs in zip(metrics_eight, metrics_one, strict=True):
        assert (ours.errors, ours.examples) == (theirs.errors, theirs.examples)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    moved = np.abs(ravel_pytree(one.params)[0] - ravel_pytree(one_device.init(jax.random.key(3)).params)[0]).max()
    assert moved > 1e-2, "the tolerance means something only where parameters move further than it"


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


def test_images_of_a_step_are_normalized_examples(digits: datasets.Examples) -> None:
    """Without augmentation: every image shown is one of the set's minus the mean image, and none is shown twice within an epoch."""
    preprocessing = augment_device.fit(digits.images, "pixel_mean")
    (shown,) = seen(digits, 1, first=[3], pad=0, flip=False, preprocessing=preprocessing)
    mean = digits.images.mean(axis=0, dtype=np.float64) / 255
    pixels = np.rint((shown.astype(np.float64) + mean) * 255).astype(np.uint8)
    np.testing.assert_allclose(shown, pixels / 255 - mean, rtol=0, atol=1e-6)
    places = [np.flatnonzero((digits.images == image).all(axis=(1, 2, 3))) for image in pixels]
    assert all(len(place) for place in places)
    assert len({int(place[0]) for place in places}) == 40


def test_accumulation_applies_the_network_to_one_microbatch_at_a_time(digits: datasets.Examples) -> None:
    """Three microbatches of 8 images have each of 24 images once, in whole groups of 4."""
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Counting(Apply):
        def __call__(self, params: Any, batch_stats: Any, images: jax.Array, *, train: bool, **_: Any) -> tuple[jax.Array, Any]:
            del train
            jax.debug.callback(lambda part: seen.append(part), images[:, 0, 0, 0])
            return jnp.zeros((images.shape[0], 10)) * params["w"], batch_stats

    params = {"w": jnp.float32(1)}
    state = TrainState(jnp.int32(0), params, {}, TX.init(params), jax.random.key(0), {}, {})
    images = jnp.broadcast_to(jnp.arange(24.0)[:, None, None, None], (24, 8, 8, 1))
    learning = Learning(Counting(apply_and_shapes()[0].graphdef), TX, accumulation=3, group_size=4)
    _, metrics = step.train_step(state, Batch(images, jnp.zeros(24, jnp.int32)), learning)
    jax.effects_barrier()
    parts = [np.asarray(part).astype(int).tolist() for part in seen]
    assert [len(part) for part in parts] == [8, 8, 8]
    together = np.concatenate(parts)
    assert sorted(together) == list(range(24))
    groups = together.reshape(6, 4)
    np.testing.assert_array_equal(groups, groups[:, :1] + np.arange(4))
    assert set(groups[:, 0] % 4) == {0}
    assert int(metrics.examples) == 24
    assert float(metrics.loss) == pytest.approx(24 * np.log(10), rel=1e-5)
