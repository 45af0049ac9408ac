"""State and training step against NumPy, and digests of states."""

import copy
import dataclasses
import itertools
import shutil
import types
from collections.abc import Callable
from pathlib import Path
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
from resnet_jax.errors import UserError
from resnet_jax.models import Apply, Architecture, Execution, resnet
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.training import config, fine_tune, optimizer, sharding, step
from resnet_jax.training.config import Distillation, Experiment, Loss, Optimizer, Schedule
from resnet_jax.training.step import Batch, Learning, Metrics, TrainState
from resnet_jax.training.train import train
from resnet_jax.weights import Card, Pretrained, View, load_pretrained, saving

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


def focal(gamma: float) -> Callable[[np.ndarray], np.ndarray]:
    """- sum t (1 - p)^gamma log p. Lin et al. 2017, arXiv 1708.02002, Equation 4."""
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    return lambda targets: -(targets * (1 - p) ** gamma * np.log(p)).sum(axis=1)


KINDS = {"softmax": softmax, "binary": binary, "focal": focal(2), "focal(gamma=0.5)": focal(0.5), "focal(gamma=0)": softmax}


def of(targets: np.ndarray | None, **fields: Any) -> np.ndarray:
    batch = Batch(jnp.zeros((6, 1, 1, 1)), jnp.int32(LABELS), None if targets is None else jnp.float32(targets))
    return np.asarray(step.losses(jnp.float32(LOGITS), batch, Loss(**fields)))


def test_losses_equal_numpy() -> None:
    """Labels and mixed targets; smoothing after mixing is mixing smoothed targets."""
    for (kind, expected), smoothing in itertools.product(KINDS.items(), (0.0, 0.1)):
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


def test_gradient_of_the_focal_loss_is_finite_where_the_probability_is_1() -> None:
    """0.5 (1 - p)^-0.5 is infinite there."""
    batch = Batch(jnp.zeros((1, 1, 1, 1)), jnp.int32([0]))
    for gamma in (0, 0.5, 2):
        gradient = jax.grad(lambda x, loss: step.losses(x, batch, loss).sum())(
            jnp.float32([[200, 0, 0]]), Loss(kind=f"focal(gamma={gamma})")
        )
        np.testing.assert_array_equal(gradient, np.zeros((1, 3)), err_msg=str(gamma))


OWN = """
import jax, jax.numpy as jnp
def own(logits, targets, *, scale: float = 1.0):
    return -scale * (targets * jax.nn.log_softmax(logits)).sum(-1)
jitted = jax.jit(own)
def scalar(logits, targets): return own(logits, targets).mean()
def elementwise(logits, targets): return (logits - targets) ** 2
def counts(logits, targets): return logits.argmax(-1)
def undefined(logits, targets): return own(logits, targets) + 0 * jnp.log(logits.min(-1))
def slope(logits, targets): return own(logits, targets) + jnp.sqrt((logits[:, 0] - logits[:, 0]) ** 2)
def fails(logits, targets): return logits @ targets
"""


def test_losses_of_a_file_are_used_or_rejected(tmp_path: Path, tiny: Experiment) -> None:
    """Before anything is written, as an unknown name and arguments that a loss does not take. A file counts without its folder."""
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    for name in ("own", "jitted"):
        np.testing.assert_allclose(of(MIXED, kind=f"{file}:{name}(scale=3)", smoothing=0.0), 3 * softmax(MIXED), rtol=1e-5)
    loss = Loss(kind=f"{file}:own(scale=3)")
    assert (loss.kind, loss.label, Loss(kind="focal(gamma=2)").kind) == (
        f"{file}:own(scale=3.0)",
        "mine.py:own(scale=3.0)",
        "focal(gamma=2.0)",
    )
    assert config.identity(dataclasses.replace(tiny, loss=loss), 0)["loss"]["kind"] == loss.label
    sharding.compiled(dataclasses.replace(tiny, loss=loss), 1)
    for kind, message in {
        f"{file}:scalar": r"^loss\.kind mine\.py:scalar must return a float per image, of shape \(8,\), got float32 of \(\)\.",
        f"{file}:elementwise": r"of shape \(8,\), got float32 of \(8, 10\)",
        f"{file}:counts": "must return a float per image, .*got int32",
        f"{file}:undefined": "mine.py:undefined has non-finite values or gradients for finite logits",
        f"{file}:slope": "mine.py:slope has non-finite values or gradients",
        f"{file}:fails": r"the experiment cannot be traced: .*mine\.py, line 11: TypeError",
        f"{file}:owm": "has no 'owm'; did you mean own",
        f"{file}:own(scales=3)": "own takes no argument 'scales'; did you mean scale",
        "focl": "'focl' is no known function; did you mean focal.; for your own write FILE.py:FUNCTION",
        "focal(gamma=-1)": "gamma must be a finite number of at least 0, got -1.0",
        "focal(2)": r"write focal\(argument=value",
    }.items():
        with pytest.raises(UserError, match=message):
            sharding.compiled(dataclasses.replace(tiny, loss=Loss(kind=kind)), 1)


def test_distilled_loss_equals_numpy() -> None:
    """(1 - w) l + w T^2 KL(teacher || student) + v mean (m_t - m_s)^2, in double precision; T = 1000 is w / (2 K) sum (z_t - z)^2,
    of centered logits (Hinton et al. 2015, Section 2.1)."""
    rng = np.random.default_rng(1)
    taught, values = rng.normal(scale=3, size=LOGITS.shape), rng.uniform(size=6)
    ours, theirs = rng.normal(size=(2, 6, 3, 3, 4))

    def found(**fields: Any) -> np.ndarray:
        outputs, targets = (LOGITS, {"stage1": ours, "stage2": 0}), (taught, {"stage1": theirs})
        return np.asarray(step.distill(*jax.tree.map(jnp.asarray, (values, outputs, targets)), Distillation(**fields)))

    def p(logits: np.ndarray, temperature: float) -> np.ndarray:
        return np.exp(logits / temperature) / np.exp(logits / temperature).sum(axis=1, keepdims=True)

    with jax.enable_x64(True):
        for temperature, weight in ((1.0, 1.0), (4.0, 0.9), (0.5, 0.25)):
            target = p(taught, temperature)
            divergence = (target * np.log(target / p(LOGITS, temperature))).sum(axis=1)
            expected = (1 - weight) * values + weight * temperature**2 * divergence
            np.testing.assert_allclose(found(temperature=temperature, weight=weight), expected, rtol=1e-12)
            matched = found(temperature=temperature, weight=weight, maps=("stage1",), maps_weight=0.3)
            np.testing.assert_allclose(matched, expected + 0.3 * ((theirs - ours) ** 2).mean(axis=(1, 2, 3)), rtol=1e-6)
        centered = (taught - taught.mean(axis=1, keepdims=True)) - (LOGITS - LOGITS.mean(axis=1, keepdims=True))
        np.testing.assert_allclose(found(temperature=1e3, weight=1.0), (centered**2).mean(axis=1) / 2, rtol=0.02)
        np.testing.assert_array_equal(found(weight=0.0), values)


def teacher_file(path: Path, model: Architecture, scale: float = 1.0) -> Path:
    """Weights drawn at random, whose images have another normalization than the student's."""
    _, params, batch_stats = jax.jit(model.init)(jax.random.key(1))
    channels = model.input_shape[2]
    card = Card(architecture=model, view=View(mean=(0.3,) * channels, deviation=(0.5 * scale,) * channels), source="drawn")
    return saving.save(Pretrained(card, params, batch_stats), path)


@pytest.mark.slow
def test_student_learns_from_the_teacher(tiny: Experiment, digits: datasets.Examples, tmp_path: Path) -> None:
    """The gradient in NumPy: (1 - w) (p - t) + w T (p(z / T) - p(z_t / T)), of a teacher that the public module evaluates on
    images with its own normalization. Microbatches have the same."""
    model = dataclasses.replace(ARCHITECTURE, input_shape=(8, 8, 1), num_classes=10)
    file = teacher_file(tmp_path / "teacher.safetensors", tiny.model)
    experiment = dataclasses.replace(
        tiny,
        model=model,
        data=dataclasses.replace(tiny.data, normalization="channel", pad=0),
        optimizer=Optimizer(momentum=0.0, weight_decay=0.0),
        schedule=Schedule(learning_rate=0.5, decay_steps=()),
        distillation=Distillation(teacher=str(file), temperature=3, weight=0.7),
        batch_size=len(digits.labels[:40]),
    )
    images, labels = digits.images[:40], digits.labels[:40]
    experiment, teacher = fine_tune.with_teacher(experiment)
    program = sharding.compiled(experiment, 1)
    constants = augment_device.fit(images, "channel")
    start = jax.device_get(program.init(jax.random.key(3))._replace(key=()))
    after, metrics = program.train(
        program.init(jax.random.key(3)), *program.put((Batch(images, labels), constants)), 1, teacher=program.put(teacher)
    )
    params, batch_stats = (each(np.float64, tree) for tree in (start.params, start.batch_stats))
    logits, _, saved = forward(params, batch_stats, np.float64((images / 255 - constants.mean) / constants.deviation))
    taught = np.float64(load_pretrained(file).build()(jnp.float32((images / 255 - 0.3) / 0.5)))

    def p(logits: np.ndarray) -> np.ndarray:
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    targets = np.eye(10)[labels]
    soft = 0.7 * 3 * (p(logits / 3) - p(taught / 3))
    gradients = backward(params, saved, (0.3 * (p(logits) - targets) + soft) / 40)
    updates = each(lambda new, old: (old - new) / 0.5, jax.device_get(after.params), params)
    assert_close(updates, gradients, 2e-4)
    divergence = (p(taught / 3) * np.log(p(taught / 3) / p(logits / 3))).sum()
    assert metrics.loss[0] == pytest.approx(-0.3 * (targets * np.log(p(logits))).sum() + 0.7 * 9 * divergence, rel=1e-4)


@pytest.mark.slow
def test_teachers_that_do_not_fit_are_rejected(tiny: Experiment, digits_dir: str, tmp_path: Path) -> None:
    """Before the run directory is claimed. A run belongs to its teacher's weights, wherever they lie."""
    files = {
        "good": tiny.model,
        "classes": dataclasses.replace(tiny.model, num_classes=7),
        "channels": dataclasses.replace(tiny.model, input_shape=(8, 8, 3)),
        "wide": dataclasses.replace(tiny.model, features=(4, 8, 16)),
    }
    paths = {name: teacher_file(tmp_path / f"{name}.safetensors", model) for name, model in files.items()}
    for name, fields, message in (
        ("classes", {}, "^the teacher .*classes.safetensors has 7 classes, the student 10"),
        ("channels", {}, "has 3 channels, the student 1"),
        ("missing", {}, "missing.safetensors"),
        ("wide", {"maps": ("stage2", "stage3")}, r"stage3 is \(2, 2, 8\) in the student, \(2, 2, 16\) in the teacher; choose maps"),
        ("good", {"maps": ("stage4",)}, "^distillation.maps: no map 'stage4'; did you mean stage"),
    ):
        distillation = Distillation(teacher=str(paths.get(name, tmp_path / "missing.safetensors")), **fields)
        with pytest.raises(UserError, match=message):
            train(dataclasses.replace(tiny, distillation=distillation), 0, tmp_path / "run", data_dir=digits_dir, devices=1)
    assert not (tmp_path / "run").exists()
    others = teacher_file(tmp_path / "scaled.safetensors", tiny.model, 2), shutil.copy(paths["good"], tmp_path / "moved.safetensors")
    first, scaled, moved = (
        config.identity(fine_tune.with_teacher(dataclasses.replace(tiny, distillation=Distillation(teacher=str(file))))[0], 0)
        for file in (paths["good"], *others)
    )
    assert first == moved != scaled
    assert "distillation" not in config.identity(tiny, 0)


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
