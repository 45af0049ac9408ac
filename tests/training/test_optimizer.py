"""The optimizer against the same arithmetic in NumPy, and the learning rate of every step that matters."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models import Architecture
from resnet_jax.models.branches import Basic
from resnet_jax.models.shortcuts import ShortcutOnlyGating
from resnet_jax.training import optimizer
from resnet_jax.training.experiment import Optimizer, Schedule
from resnet_jax.training.optimizer import ScheduleState

CONSTANT = Schedule(learning_rate=0.3, decay_steps=())


def draw(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (3, 3, 2, 4), "linear": (4, 5), "scale": (4,), "bias": (5,)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def numpys(*, momentum: float, nesterov: bool, decay: float, decayed: set[str], rate: float) -> Iterator[dict[str, np.ndarray]]:
    """Parameters after 1, 2, ... steps: v = m v + g + d w; w = w - rate v, or with Nesterov w - rate (g + d w + m v)."""
    params = draw(0)
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    seed = 0
    while True:
        seed += 1
        for name, gradient in draw(seed).items():
            pull = gradient + (decay * params[name] if name in decayed else 0)
            velocity[name] = momentum * velocity[name] + pull
            params[name] = params[name] - rate * (pull + momentum * velocity[name] if nesterov else velocity[name])
        yield dict(params)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("decay", "decayed"), [("all", {"kernel", "linear", "scale", "bias"}), ("kernels", {"kernel", "linear"})], ids=["all", "kernels"]
)
def test_five_steps_are_numpys(nesterov: bool, momentum: float, decay: Any, decayed: set[str]) -> None:
    """Momentum, weight decay on all parameters or on those of two dimensions and more, Nesterov."""
    tx = optimizer.make(Optimizer(momentum=momentum, nesterov=nesterov, weight_decay=0.05, decay=decay), CONSTANT)
    params = jax.tree.map(jnp.float32, draw(0))
    state = tx.init(params)
    update = jax.jit(tx.update)
    expected = numpys(momentum=momentum, nesterov=nesterov, decay=0.05, decayed=decayed, rate=0.3)
    for seed in range(1, 6):
        updates, state = update(jax.tree.map(jnp.float32, draw(seed)), state, params, error=0.5)
        params = optax.apply_updates(params, updates)
        for name, value in next(expected).items():
            np.testing.assert_allclose(params[name], value, rtol=1e-5, atol=1e-5, err_msg=f"{name}, step {seed}")


def test_kernels_only_leaves_one_dimensional_parameters_alone() -> None:
    """Without a gradient, only kernels shrink; and all parameters do where all decay."""
    params = jax.tree.map(jnp.float32, draw(0))
    nothing = jax.tree.map(jnp.zeros_like, params)
    moved = {}
    for decay in ("kernels", "all"):
        tx = optimizer.make(Optimizer(weight_decay=0.05, decay=decay), CONSTANT)
        updates, _ = tx.update(nothing, tx.init(params), params, error=0.5)
        moved[decay] = {name for name, value in updates.items() if np.any(value)}
        np.testing.assert_allclose(updates["kernel"], -0.3 * 0.05 * draw(0)["kernel"], rtol=1e-5)
    assert moved == {"kernels": {"kernel", "linear"}, "all": {"kernel", "linear", "scale", "bias"}}


@pytest.fixture(scope="module")
def network() -> Any:
    """Parameters of a network with everything that has parameters: stacked units, projections, gates, squeeze-and-excitation."""
    model = Architecture(
        stages=(2, 2), features=(4, 8), branch=configured(Basic, reduction=2), shortcut=configured(ShortcutOnlyGating, resize="project")
    )
    _, params, _ = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), params)


def written(tree: Any) -> dict[str, Any]:
    """Paths as ``stages/0/0/...`` -> leaf."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def test_kernels_of_a_network_are_its_convolutions_and_matrices(network: Any) -> None:
    """Scales and biases of stacked units have two dimensions, the first counting units: kernels they are not."""
    tx = optimizer.make(Optimizer(weight_decay=0.05, decay="kernels"), CONSTANT)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, network), tx.init(network), network, error=0.5)
    decayed = {path for path, value in written(updates).items() if np.any(value)}
    assert decayed == {path for path in written(network) if path.endswith("/kernel")}
    assert {path.split("/")[-1] for path in written(network)} == {"kernel", "bias", "scale", "gate_bias"}


FROZEN: dict[tuple[str, ...], Any] = {
    ("stem",): lambda path: path.startswith("stem/"),
    ("stages/0",): lambda path: path.startswith("stages/0/"),
    ("stages/0/",): lambda path: path.startswith("stages/0/"),
    ("stem", "stages"): lambda path: not path.startswith("head/"),
    ("stages/1/0", "head/linear/bias"): lambda path: path.startswith("stages/1/0/") or path == "head/linear/bias",
}


@pytest.mark.parametrize("beginnings", FROZEN)
@pytest.mark.parametrize("nesterov", [False, True])
def test_frozen_parameters_get_no_update_no_decay_and_no_momentum(network: Any, beginnings: tuple[str, ...], nesterov: bool) -> None:
    """The others get those that they get without frozen ones, step after step."""
    frozen, free = (optimizer.make(Optimizer(weight_decay=0.05, nesterov=nesterov, frozen=some), CONSTANT) for some in (beginnings, ()))
    states, params = [frozen.init(network), free.init(network)], [network, network]
    for step in range(3):
        gradients = jax.tree.map(lambda p, s=step: jnp.cos(jnp.arange(p.size, dtype=p.dtype) + s).reshape(p.shape), network)
        for i, tx in enumerate((frozen, free)):
            updates, states[i] = tx.update(gradients, states[i], params[i], error=0.5)
            params[i] = optax.apply_updates(params[i], updates)
    still = {path for path in written(network) if FROZEN[beginnings](path)}
    assert 0 < len(still) < len(written(network))
    for path, ours in written(params[0]).items():
        expected = written(network)[path] if path in still else written(params[1])[path]
        assert np.asarray(ours).tobytes() == np.asarray(expected).tobytes(), path
        assert path in still or np.any(ours != written(network)[path])
    kept = sum(leaf.size for leaf in jax.tree.leaves(states[0]) if leaf.ndim)
    assert kept == sum(leaf.size for path, leaf in written(network).items() if path not in still and leaf.ndim)


@pytest.mark.parametrize("name", ["stm", "stages/3", "stages/00", "stage", "stages/0/0/stacked/branches", "", "/", "stem/conv/kernel/0"])
def test_a_beginning_below_which_nothing_lies_is_refused(network: Any, name: str) -> None:
    """Whole names only: stage is no beginning of stages."""
    with pytest.raises(UserError, match=rf"^optimizer\.frozen: no parameter lies below '{name}'; "):
        optimizer.make(Optimizer(frozen=("stem", name)), CONSTANT).init(network)
    with pytest.raises(UserError, match="did you mean stem"):
        optimizer.make(Optimizer(frozen=("stm",)), CONSTANT).init(network)


def rates(schedule: Schedule, errors: list[float], *, first: int = 0) -> list[float]:
    """The rates of the steps from ``first`` on, read from what they do to a gradient of 1, and as the state tells them."""
    tx = optimizer.make(Optimizer(momentum=0.0, weight_decay=0.0), schedule)
    params = {"w": jnp.ones(())}
    state = tuple(s._replace(step=jnp.int32(first)) if isinstance(s, ScheduleState) else s for s in tx.init(params))
    update, found = jax.jit(tx.update), []
    for error in errors:
        updates, state = update({"w": jnp.ones(())}, state, params, error=jnp.float32(error))
        found.append(-float(updates["w"]))
        assert float(state[-1].learning_rate) == pytest.approx(found[-1], rel=1e-6)
    assert int(state[-1].step) == first + len(errors)
    return found


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001), (63_999, 0.001)],
)
def test_default_schedule_is_the_papers(step: int, rate: float) -> None:
    """Steps count from 0: 32,000 steps at 0.1, then 16,000 at 0.01, then 0.001; no warm-up."""
    assert rates(Schedule(), [1.0], first=step) == pytest.approx([rate], rel=1e-5)


def test_two_decays_of_one_step_are_two_decays() -> None:
    """Shortened schedules can bring them together: 3 steps of He et al.'s schedule decay twice after the second."""
    found = rates(Schedule(learning_rate=1.0, decay_steps=(2, 2)), [1.0] * 3)
    assert found == pytest.approx([1, 1, 0.01], rel=1e-5)


def test_warmup_by_steps_lasts_exactly_that_many_steps() -> None:
    """He et al. 2016: 400 of them at 0.01, then 0.1."""
    schedule = Schedule(warmup_steps=400)
    assert rates(schedule, [1.0] * 3, first=398) == pytest.approx([0.01, 0.01, 0.1], rel=1e-5)
    assert rates(schedule, [0.0] * 2) == pytest.approx([0.01, 0.01], rel=1e-5), "however good the network is already"


def test_decay_steps_count_from_the_beginning_of_the_run() -> None:
    """Not from the end of the warm-up; and the warm-up's own rate does not decay."""
    schedule = Schedule(learning_rate=1.0, decay_steps=(2, 5), warmup_learning_rate=0.25, warmup_steps=4)
    assert rates(schedule, [1.0] * 6) == pytest.approx([0.25, 0.25, 0.25, 0.25, 0.1, 0.01], rel=1e-5)


def averages(errors: list[float]) -> list[float]:
    """The running average of the training error: 0.98 of the old and 0.02 of the new, from 1 on."""
    found, average = [], 1.0
    for error in errors:
        average = 0.98 * average + 0.02 * error
        found.append(average)
    return found


def test_warmup_until_error_ends_when_the_average_error_falls_below_it() -> None:
    """He et al. 2015, n=18: 0.01 until the training error is below 80 %; a single good batch is not enough."""
    errors = [0.9, 0.1, *[0.6] * 40]
    below = next(step for step, average in enumerate(averages(errors)) if average < 0.8)
    assert 10 < below < 40, "neither the lucky batch nor never"
    found = rates(Schedule(warmup_until_error=0.8), errors)
    assert found == pytest.approx([0.01] * below + [0.1] * (len(errors) - below), rel=1e-5)


def test_warmup_that_has_ended_does_not_come_back() -> None:
    """However bad the network gets at the higher rate."""
    errors = [*[0.0] * 20, *[1.0] * 100]
    assert averages(errors)[-1] > 0.9
    found = rates(Schedule(warmup_until_error=0.8), errors)
    ended = found.index(next(rate for rate in found if rate > 0.05))
    assert ended == next(step for step, average in enumerate(averages(errors)) if average < 0.8)
    assert found[ended:] == pytest.approx([0.1] * (len(errors) - ended), rel=1e-5)


def test_warmup_by_steps_and_error_lasts_until_both_have_ended() -> None:
    late = next(step for step, average in enumerate(averages([0.5] * 60)) if average < 0.8)
    steps_last = rates(Schedule(warmup_until_error=0.8, warmup_steps=late + 5), [0.5] * 60)
    error_last = rates(Schedule(warmup_until_error=0.8, warmup_steps=5), [0.5] * 60)
    assert steps_last == pytest.approx([0.01] * (late + 5) + [0.1] * (55 - late), rel=1e-5)
    assert error_last == pytest.approx([0.01] * late + [0.1] * (60 - late), rel=1e-5)


def test_defaults_have_no_warmup_however_bad_the_network_is() -> None:
    assert rates(Schedule(), [1.0] * 3) == pytest.approx([0.1] * 3, rel=1e-5)


def test_training_error_of_the_state_is_the_running_average() -> None:
    tx = optimizer.make(Optimizer(), Schedule())
    params, errors = {"w": jnp.ones(())}, [0.9, 0.2, 0.4]
    state = tx.init(params)
    for error, average in zip(errors, averages(errors), strict=True):
        _, state = tx.update({"w": jnp.ones(())}, state, params, error=error)
        assert float(state[-1].training_error) == pytest.approx(average, rel=1e-6)


# Factors by beginnings of paths, and by whole paths what they come to.
RATES: dict[tuple[tuple[str, float], ...], Any] = {
    (("stages", 0.1), ("stages/1", 0.3)): lambda path: 0.3 if path.startswith("stages/1/") else 0.1 if path.startswith("stages/") else 1.0,
    (("stages/1/", 0.3), ("stages", 0.1)): lambda path: 0.3 if path.startswith("stages/1/") else 0.1 if path.startswith("stages/") else 1.0,
    (("head/linear/kernel", 7.0), ("stem", 0.0)): lambda path: {"head/linear/kernel": 7.0}.get(path, 0.0 if path[:4] == "stem" else 1.0),
}


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("rates", RATES, ids=str)
@pytest.mark.parametrize("frozen", [(), ("stages/0",)], ids=str)
def test_a_rate_is_exactly_a_factor_on_the_update(network: Any, rates: Any, frozen: tuple[str, ...], nesterov: bool) -> None:
    """The longest beginning counts, whatever the order; momentum and weight decay are as without it."""
    scaled, plain = (
        optimizer.make(Optimizer(weight_decay=0.05, nesterov=nesterov, frozen=frozen, rates=given), CONSTANT) for given in (rates, ())
    )
    states = [scaled.init(network), plain.init(network)]
    for step in range(3):
        gradients = jax.tree.map(lambda p, s=step: jnp.cos(jnp.arange(p.size, dtype=p.dtype) + s).reshape(p.shape), network)
        updates = []
        for i, tx in enumerate((scaled, plain)):
            found, states[i] = tx.update(gradients, states[i], network, error=0.5)
            updates.append(written(found))
        assert updates[0].keys() == updates[1].keys()
        for path, update in updates[0].items():
            np.testing.assert_array_equal(update, updates[1][path] * np.float32(RATES[rates](path)), err_msg=path)


def test_without_rates_the_state_is_that_of_before(network: Any) -> None:
    """Checkpoints of earlier runs are restored by structure."""
    before = optimizer.make(Optimizer(), CONSTANT).init(network)
    assert [type(part).__name__ for part in before] == ["EmptyState", "TraceState", "ScheduleState"]


@pytest.mark.parametrize("frozen", [(), ("stem",)])
def test_a_rate_of_no_parameter_is_an_error_before_the_first_step(network: Any, frozen: tuple[str, ...]) -> None:
    made = optimizer.make(Optimizer(rates=(("stages", 0.1), ("stage/1", 0.3)), frozen=frozen), CONSTANT)
    with pytest.raises(UserError, match=r"optimizer\.rates: no parameter lies below 'stage/1'; did you mean stages/1"):
        made.init(network)
