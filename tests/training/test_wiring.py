"""Every field of a recipe that changes the arithmetic, through the training function, against NumPy.

Two steps on a training set of four images, or two, so that a batch is the whole set in some order. What a step
draws at random (order, pairs, microbatches, dropped branches) is searched: of all candidates the one that
explains the parameters after the step.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy_network import Tree, backward, each, forward, leaves
from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Mix
from resnet_jax.models import Architecture, StochasticDepth, component
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.training import fine_tune
from resnet_jax.training.config import Checkpointing, Data, Evaluation, Experiment, Loss, Optimizer, Schedule
from resnet_jax.training.train import train

SEED, IMAGES, CLASSES = 11, 4, 10
PLAIN = Experiment(
    name="wiring",
    model=Architecture(stages=(1, 1), features=(3, 4), shortcut=ZeroPad, input_shape=(8, 8, 1), num_classes=CLASSES),
    data=Data(name="digits", validation_examples=1437 - IMAGES, normalization="channel", pad=0, flip=False),
    optimizer=Optimizer(momentum=0.9, weight_decay=0.0),
    schedule=Schedule(learning_rate=0.1, decay_steps=()),
    steps=2,
    batch_size=IMAGES,
    evaluation=Evaluation(every=2),
    checkpointing=Checkpointing(every=1),
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A microbatch: images, targets, and the factors on the branches of the two blocks."""

    images: np.ndarray
    targets: np.ndarray
    branches: tuple[float, ...] = (1.0, 1.0)


Candidate = tuple[Part, ...]


def gradient(params: Tree, stats: Tree, part: Part, loss: Loss, examples: int) -> tuple[Tree, Tree]:
    """Gradient of the microbatch's share of the mean loss over ``examples``, and running statistics after the microbatch."""
    logits, new_stats, saved = forward(params, stats, part.images, part.branches)
    targets = (1 - loss.smoothing) * part.targets + loss.smoothing / CLASSES
    if loss.kind == "softmax":
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        dlogits = exponentials / exponentials.sum(axis=1, keepdims=True) - targets
    else:
        targets = targets if loss.threshold is None else (targets > loss.threshold).astype(float)
        dlogits = (1 / (1 + np.exp(-logits)) - targets) / CLASSES
    return backward(params, saved, dlogits / examples), new_stats


@dataclasses.dataclass
class State:
    """The state of a run in NumPy."""

    params: Tree
    stats: Tree
    velocity: Tree
    average: Tree


def update(state: State, candidate: Candidate, experiment: Experiment, rate: float) -> State:
    """One step of SGD with momentum."""
    optimizer = experiment.optimizer
    parts = [gradient(state.params, state.stats, part, experiment.loss, experiment.batch_size) for part in candidate]
    total = each(lambda *arrays: np.sum(arrays, axis=0), *(gradients for gradients, _ in parts))
    stats = each(lambda *arrays: np.mean(arrays, axis=0), *(moved for _, moved in parts))
    if optimizer.clip:
        length = math.sqrt(sum(float((leaf**2).sum()) for leaf in leaves(total).values()))
        total = each(lambda leaf: leaf * min(1.0, optimizer.clip / length), total)
    decays = {path: optimizer.weight_decay * (optimizer.decay == "all" or path.endswith("kernel")) for path in leaves(total)}
    factors = dict.fromkeys(decays, 1.0)
    for beginning, factor in sorted(optimizer.rates, key=lambda pair: len(pair[0])):
        factors |= {path: factor for path in factors if path.startswith(f"{beginning}/")}
    params, velocity = each(np.copy, state.params), each(np.copy, state.velocity)
    flat_params, flat_velocity = leaves(params), leaves(velocity)
    for path, slope in leaves(total).items():
        decayed = slope + decays[path] * flat_params[path]
        flat_velocity[path][...] = optimizer.momentum * flat_velocity[path] + decayed
        moved = optimizer.momentum * flat_velocity[path] + decayed if optimizer.nesterov else flat_velocity[path]
        flat_params[path][...] -= rate * factors[path] * moved
    average = each(lambda old, new: optimizer.ema * old + (1 - optimizer.ema) * new, state.average, params)
    return State(params, stats, velocity, average)


@pytest.fixture(scope="module")
def digits(digits_dir: str) -> tuple[np.ndarray, np.ndarray]:
    """The first four training images, and their labels, one-hot."""
    examples = datasets.read(datasets.describe("digits", digits_dir), "train")
    return np.float64(examples.images[:IMAGES]), np.eye(CLASSES)[examples.labels[:IMAGES]]


def normalized(images: np.ndarray) -> np.ndarray:
    return (images - images.mean()) / images.std()


def follow(
    experiment: Experiment, directory: Path, digits_dir: str, candidates: Callable[[int], Iterable[Candidate]], rates: tuple[float, float]
) -> list[int]:
    """Trains, and returns which candidate explains each step; fails where none does."""
    train(experiment, SEED, directory, data_dir=digits_dir, devices=1)
    _, params, stats = jax.jit(lambda key: experiment.model.init(jax.random.fold_in(key, 0)))(jax.random.key(SEED))
    params, stats = (each(np.float64, jax.device_get(tree)) for tree in (params, stats))
    state, chosen = State(params, stats, each(np.zeros_like, params), params), []
    for step in (1, 2):
        weights = fine_tune.weights_of(directory, step)
        observed = leaves(each(np.float64, jax.device_get(weights.params)))
        before = leaves(state.average if experiment.optimizer.ema else state.params)
        errors = []
        for candidate in candidates(step - 1):
            state_after = update(state, candidate, experiment, rates[step - 1])
            expected = leaves(state_after.average if experiment.optimizer.ema else state_after.params)
            # The largest difference of a leaf, over the largest change of that leaf; float32 rounds values near 1 by 6e-8.
            errors.append(
                max(
                    np.abs(observed[path] - expected[path]).max() / max(np.abs(expected[path] - before[path]).max(), 2e-5)
                    for path in expected
                )
            )
        best = int(np.argmin(errors))
        assert errors[best] < 5e-3, f"step {step}: the best of {len(errors)} candidates differs by {errors[best]:.3g} of the change"
        chosen.append(best)
        state = update(state, list(candidates(step - 1))[best], experiment, rates[step - 1])
        statistics = leaves(each(np.float64, jax.device_get(weights.batch_stats)))
        if experiment.evaluation.statistics_batches:
            # Those of one batch under the averaged parameters; a running statistic that starts at 0 has a tenth of it.
            zeros = each(np.zeros_like, state.stats)
            batches = (gradient(state.average, zeros, candidate[0], experiment.loss, 1)[1] for candidate in candidates(step - 1))
            expected_statistics = [leaves(each(lambda leaf: 10 * leaf, moved)) for moved in batches]
        else:
            expected_statistics = [leaves(state.stats)]
        distances = [max(np.abs(statistics[path] - leaf).max() for path, leaf in tree.items()) for tree in expected_statistics]
        assert min(distances) < 1e-3, f"step {step}: statistics differ by {min(distances):.3g}"
    return chosen


def test_training_applies_loss_and_optimizer(digits: tuple[np.ndarray, np.ndarray], digits_dir: str, tmp_path: Path) -> None:
    images, labels = normalized(digits[0]), digits[1]
    whole = [(Part(images, labels),)]
    recipes = {
        "smoothing, decay mask, clipping": (
            replace(PLAIN, loss=Loss(smoothing=0.2), optimizer=Optimizer(weight_decay=0.1, decay="kernels", clip=0.5)),
            (0.1, 0.1),
        ),
        "binary loss, decay of all, rates, nesterov, schedule": (
            replace(
                PLAIN,
                loss=Loss(kind="binary", smoothing=0.1),
                optimizer=Optimizer(weight_decay=0.1, nesterov=True, rates=(("stages", 0.5), ("stages/1", 0.25))),
                schedule=Schedule(learning_rate=0.4, decay_steps=(), warmup_learning_rate=0.03, warmup_steps=1, cosine_steps=4),
            ),
            (0.03, 0.4 * (1 + math.cos(math.pi / 4)) / 2),
        ),
    }
    for name, (experiment, rates) in recipes.items():
        follow(experiment, tmp_path / name, digits_dir, lambda _: whole, rates)


def test_training_learns_mixed_targets_and_averages_parameters(
    digits: tuple[np.ndarray, np.ndarray], digits_dir: str, tmp_path: Path
) -> None:
    """For two images, cutmix with Beta(1e6, 1e6) exchanges a square of 4x4 pixels, clipped at the border."""
    images, labels = normalized(digits[0][:2]), digits[1][:2]

    def mixed(row: int, column: int) -> Candidate:
        inside = np.zeros((8, 8, 1))
        inside[max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = 1
        share = 1 - inside.mean()
        return (Part((1 - inside) * images + inside * images[::-1], share * labels + (1 - share) * labels[::-1]),)

    mixtures = [mixed(row, column) for row in range(8) for column in range(8)]
    mix = component(Mix, mixup=0, cutmix=1e6, group=0)
    experiment = replace(
        PLAIN,
        data=replace(PLAIN.data, mix=mix, validation_examples=1437 - 2),
        batch_size=2,
        optimizer=Optimizer(weight_decay=0.0, ema=0.6),
        evaluation=Evaluation(every=2, statistics_batches=1),
    )
    follow(experiment, tmp_path / "run", digits_dir, lambda _: mixtures, (0.1, 0.1))


def test_training_accumulates_and_drops_branches_by_microbatch_and_step(
    digits: tuple[np.ndarray, np.ndarray], digits_dir: str, tmp_path: Path
) -> None:
    images, labels = normalized(digits[0]), digits[1]
    halves = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
    factors = list(itertools.product((0.0, 2.0), repeat=2))
    drops = list(itertools.product(factors, factors))
    candidates = [
        tuple(Part(images[list(half)], labels[list(half)], branches) for half, branches in zip(pair, drop, strict=True))
        for pair in halves
        for drop in drops
    ]
    depth = StochasticDepth(survival=0.5, rule="uniform", scaled="training")
    experiment = replace(PLAIN, model=replace(PLAIN.model, stochastic_depth=depth), optimizer=Optimizer(weight_decay=0.0, accumulation=2))
    drawn = [drops[index % len(drops)] for index in follow(experiment, tmp_path / "run", digits_dir, lambda _: candidates, (0.1, 0.1))]
    assert any(first != second for first, second in drawn), "microbatches share a key"
    # Which microbatch came first is unknown.
    assert sorted(drawn[0]) != sorted(drawn[1]), "steps share a key"
