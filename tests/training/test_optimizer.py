"""The optimizer against the same arithmetic in NumPy, and the learning rate of every step that matters."""

import math
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


def steps_of(tx: Any, params: Any, gradients: Any, steps: int = 5) -> Any:
    """Parameters after some steps, the gradients being functions of the step."""
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(gradients(step), state, params, error=0.5)
        params = optax.apply_updates(params, updates)
    return params


def close(first: Any, second: Any) -> None:
    for path, value in written(second).items():
        np.testing.assert_allclose(written(first)[path], value, rtol=1e-6, atol=1e-6, err_msg=path)


KERNELS = {"kernel": True, "linear": True, "scale": False, "bias": False}


def optaxs(rule: str, decay: str, rate: float) -> Any:
    """The same rule as optax has it, what does not decay being left out of the trust ratios."""
    mask = KERNELS if decay == "kernels" else dict.fromkeys(KERNELS, True)
    if rule == "lars":
        return optax.lars(rate, weight_decay=0.05, weight_decay_mask=mask, trust_ratio_mask=mask, momentum=0.8, nesterov=True)
    if decay == "all":
        return optax.lamb(rate, b1=0.8, weight_decay=0.05)
    # optax's has no mask of the trust ratio: vectors then have Adam's updates.
    return optax.partition(
        {True: optax.lamb(rate, b1=0.8, weight_decay=0.05), False: optax.adam(rate, b1=0.8, eps=1e-6)},
        mask,
    )


@pytest.mark.parametrize("decay", ["all", "kernels"])
@pytest.mark.parametrize("rule", ["lars", "lamb"])
def test_lars_and_lamb_are_optaxs(rule: Any, decay: Any) -> None:
    """You et al. 2017 and 2019. With ``kernels``, vectors have neither decay nor trust ratio."""
    params = jax.tree.map(jnp.float32, draw(0))
    ours = optimizer.make(Optimizer(rule=rule, momentum=0.8, nesterov=rule == "lars", weight_decay=0.05, decay=decay), CONSTANT)

    def gradients(step: int) -> Any:
        return jax.tree.map(jnp.float32, draw(step + 1))

    expected = optaxs(rule, decay, 0.3)
    found = steps_of(ours, params, gradients)
    close(found, steps_of(optax.with_extra_args_support(expected), params, gradients))
    assert np.abs(found["kernel"] - params["kernel"]).max() > 1e-3


def test_lambs_first_step_is_as_long_as_the_parameter_is() -> None:
    """Arithmetic beside optax: without decay, Adam's first update is the gradient's sign; times norm of w over its norm, and the rate."""
    params, gradient = {"w": jnp.full((2, 8), 3.0)}, {"w": jnp.tile(jnp.array([1e-2, -5.0]), (2, 4))}
    tx = optimizer.make(Optimizer(rule="lamb", weight_decay=0.0), CONSTANT)
    updates, _ = tx.update(gradient, tx.init(params), params, error=0.5)
    np.testing.assert_allclose(updates["w"], np.tile([-0.3 * 3, 0.3 * 3], (2, 4)), rtol=2e-4)


def unstacked(tree: Any) -> dict[str, Any]:
    """Stacks taken apart: ``stages/0/1/stacked/...`` -> one array for each unit, under names without ``stacked``."""
    found = {}
    for path, leaf in written(tree).items():
        if "/stacked/" in path:
            found |= {path.replace("/stacked/", f"/{unit}/").replace("/", "."): array for unit, array in enumerate(leaf)}
        else:
            found[path.replace("/", ".")] = leaf
    return found


@pytest.mark.quick(1)
@pytest.mark.parametrize("fields", [{"rule": "lars"}, {"rule": "lamb"}, {"rule": "lamb", "decay": "all"}, {"clip": 0.01}], ids=str)
def test_units_of_a_stack_learn_as_if_they_were_not_stacked(fields: dict[str, Any]) -> None:
    """A trust ratio is that of a unit's own array; a norm that is clipped is the same however arrays lie."""
    model = Architecture(stages=(3, 2), features=(4, 8))
    _, shapes, _ = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    # Units that differ in size by orders of magnitude, as a ratio over all of them would not.
    network = jax.tree.map(
        lambda a: jnp.float32(rng.normal(size=a.shape) * 10.0 ** rng.integers(-2, 2, (len(a), *[1] * (a.ndim - 1)))), shapes
    )
    assert any("/stacked/" in path for path in written(network))

    def gradients(step: int) -> Any:
        return jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype) * 1.7 + step).reshape(p.shape), network)

    tx = optimizer.make(Optimizer(**({"decay": "kernels", "weight_decay": 0.05} | fields)), CONSTANT)
    stacked = unstacked(steps_of(tx, network, gradients))
    apart = steps_of(tx, unstacked(network), lambda step: unstacked(gradients(step)))
    for path, value in apart.items():
        np.testing.assert_allclose(stacked[path], value, rtol=1e-5, atol=1e-7, err_msg=path)


@pytest.mark.parametrize(("norm", "factor"), [(0.0, 1.0), (2.0, 0.4), (5.0, 1.0), (7.0, 1.0)])
def test_a_gradient_longer_than_the_clip_is_made_so_long_before_anything_else(norm: float, factor: float) -> None:
    """All parameters together: (3, 0) and (4) are 5 long. Weight decay is added behind it."""
    params, gradient = {"a": jnp.ones(2), "b": jnp.ones(1)}, {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    tx = optimizer.make(Optimizer(weight_decay=0.5, clip=norm), Schedule(learning_rate=1.0, decay_steps=()))
    updates, _ = tx.update(gradient, tx.init(params), params, error=0.5)
    np.testing.assert_allclose(updates["a"], [-3 * factor - 0.5, -0.5], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [-4 * factor - 0.5], rtol=1e-6)


def test_a_frozen_parameter_does_not_count_in_the_norm_that_is_clipped() -> None:
    params, gradient = {"a": jnp.ones(1), "b": jnp.ones(1)}, {"a": jnp.array([3.0]), "b": jnp.array([400.0])}
    tx = optimizer.make(Optimizer(weight_decay=0.0, clip=1.5, frozen=("b",)), Schedule(learning_rate=1.0, decay_steps=()))
    updates, _ = tx.update(gradient, tx.init(params), params, error=0.5)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-1.5, 0], rtol=1e-6)


@pytest.mark.quick(1)
@pytest.mark.parametrize("rule", ["lars", "lamb"])
def test_frozen_parameters_and_rates_work_with_every_rule(network: Any, rule: Any) -> None:
    """Frozen ones stay to the bit, others move by the factor of what they move without; trust ratios are of arrays of their own."""
    fields: Any = {"rule": rule, "weight_decay": 0.05, "decay": "kernels"}
    given = optimizer.make(Optimizer(**fields, frozen=("stem",), rates=(("stages/1", 0.25),)), CONSTANT)
    plain = optimizer.make(Optimizer(**fields), CONSTANT)
    gradients = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), network)
    states, updates = [given.init(network), plain.init(network)], []
    for i, tx in enumerate((given, plain)):
        for _ in range(2):
            found, states[i] = tx.update(gradients, states[i], network, error=0.5)
        updates.append(written(found))
    for path, update in updates[0].items():
        factor = 0.0 if path.startswith("stem/") else 0.25 if path.startswith("stages/1/") else 1.0
        np.testing.assert_allclose(update, factor * updates[1][path], rtol=1e-5, err_msg=path)
        assert np.any(updates[1][path])
    found = [s for s in jax.tree.leaves(states[0], is_leaf=lambda s: isinstance(s, ScheduleState)) if isinstance(s, ScheduleState)]
    assert [int(s.step) for s in found] == [2]


def test_a_linear_warmup_rises_from_the_first_step_to_the_rate() -> None:
    """Goyal et al. 2017, Section 2.2: by as much at every step; the first has the low rate, the step behind the warm-up the full one."""
    schedule = Schedule(learning_rate=0.5, decay_steps=(6,), warmup_learning_rate=0.1, warmup_steps=4, linear_warmup=True)
    assert rates(schedule, [1.0] * 8) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.05, 0.05], rel=1e-5)


def test_half_a_cosine_from_the_start_and_its_final_rate() -> None:
    """Loshchilov and Hutter 2016, eq. 5: at 0, 1/4, 1/2, 3/4 and 1 of the way; the final rate stays."""
    schedule = Schedule(learning_rate=1.0, decay_steps=(), cosine_steps=4)
    assert rates(schedule, [1.0] * 6) == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0], abs=1e-6)
    lifted = Schedule(learning_rate=1.0, decay_steps=(), cosine_steps=4, final_learning_rate=0.2)
    assert rates(lifted, [1.0] * 6) == pytest.approx([1, 0.2 + 0.4 * (1 + 0.5**0.5), 0.6, 0.2 + 0.4 * (1 - 0.5**0.5), 0.2, 0.2], abs=1e-6)


@pytest.mark.parametrize(
    ("begin", "linear", "expected"),
    [
        # Of 8 steps: timm's cosine is at 2 / 8 when a warm-up of 2 ends, torchvision's at its beginning; both end at step 8.
        ("start", True, [0.2, 0.6, *[(1 + math.cos(math.pi * step / 8)) / 2 for step in range(2, 8)], 0]),
        ("warmup", True, [0.2, 0.6, *[(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)], 0]),
        ("warmup", False, [0.2, 0.2, *[(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)], 0]),
    ],
)
def test_a_cosine_begins_with_the_run_or_behind_the_warmup(begin: Any, linear: bool, expected: list[float]) -> None:
    schedule = Schedule(
        learning_rate=1.0,
        decay_steps=(),
        cosine_steps=8,
        cosine_from=begin,
        warmup_learning_rate=0.2,
        warmup_steps=2,
        linear_warmup=linear,
    )
    assert rates(schedule, [1.0] * 9) == pytest.approx(expected, abs=1e-6)
    assert rates(schedule, [1.0], first=100) == pytest.approx([0], abs=1e-6)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Optimizer(clip=-1.0), r"^optimizer\.clip is -1\.0; "),
        (Optimizer(clip=float("inf")), r"^optimizer\.clip is inf; .*0 for any"),
        (Optimizer(rule="lamb", nesterov=True), r"^optimizer\.nesterov is True.*'lamb'"),
        (Schedule(linear_warmup=True, warmup_until_error=0.8), r"^schedule\.linear_warmup .*warmup_until_error is 0\.8"),
        (Schedule(decay_steps=(), cosine_steps=-1), r"^schedule\.cosine_steps is -1"),
        (Schedule(decay_steps=(), cosine_steps=5, warmup_steps=5), r"^schedule\.cosine_steps is 5.* more than the 5 steps of the warm-up"),
        (Schedule(cosine_steps=100), r"^schedule\.cosine_steps is 100 and schedule\.decay_steps \(32000, 48000\)"),
        (Schedule(decay_steps=(), cosine_steps=9, final_learning_rate=0.2), r"^schedule\.final_learning_rate is 0\.2; .* 0\.1 "),
        (Schedule(decay_steps=(), cosine_steps=9, final_learning_rate=-0.2), r"^schedule\.final_learning_rate is -0\.2; "),
        (Schedule(decay_steps=(), cosine_steps=9, learning_rate=0.0), r"learning_rate, which is 0\.0 and must be more"),
    ],
)
def test_what_does_not_go_together_is_refused(made: Optimizer | Schedule, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made.check()


@pytest.mark.parametrize(
    "made",
    [
        Optimizer(clip=1.0, rule="lamb"),
        Optimizer(rule="lars", nesterov=True),
        Schedule(decay_steps=(), cosine_steps=6, warmup_steps=5, final_learning_rate=0.1),
        Schedule(linear_warmup=True),
        Schedule(warmup_until_error=0.8),
    ],
    ids=repr,
)
def test_what_goes_together_passes(made: Optimizer | Schedule) -> None:
    made.check()
