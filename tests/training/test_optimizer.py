"""Rules and masks of the optimizer, and the learning rate of every step that matters; test_wiring.py has SGD against NumPy."""

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from numpy_network import leaves
from resnet_jax.data import datasets
from resnet_jax.errors import UserError
from resnet_jax.models import Apply
from resnet_jax.training import optimizer
from resnet_jax.training import step as step_lib
from resnet_jax.training.config import Optimizer, Schedule

CONSTANT = Schedule(learning_rate=0.3, decay_steps=())


def draw(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (3, 3, 2, 4), "linear": (4, 5), "scale": (4,), "bias": (5,)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def updates_of(tx: Any, params: Any, gradients: Any, steps: int = 1) -> tuple[list[Any], Any]:
    """The updates of some steps at fixed parameters, and the state after them; compiled once."""
    state, found = jax.jit(tx.init)(params), []
    update = jax.jit(lambda gradient, state: tx.update(gradient, state, params, error=0.5, grad_fn=lambda *_: gradient))
    for step in range(steps):
        updates, state = update(gradients(step), state)
        found.append(leaves(updates))
    return found, state


def steps_of(tx: Any, params: Any, gradients: Any, steps: int = 5) -> Any:
    """Parameters after some steps; gradients are functions of the step."""
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(gradients(step), state, params, error=0.5)
        params = optax.apply_updates(params, updates)
    return params


def waves(params: Any, step: int = 0) -> Any:
    return jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype) * 1.7 + step).reshape(p.shape), params)


@pytest.fixture(scope="module")
def small() -> Any:
    """A few arrays under the paths of a network."""
    rng = np.random.default_rng(3)
    norm = {"scale": (4,), "bias": (4,)}
    shapes = {
        "stem": {"conv": {"kernel": (3, 3, 1, 4)}},
        "stages": {"0": {"0": {"kernel": (2, 4)}}, "1": {"0": {"stacked": {"kernel": (2, 3, 4), "scale": (2, 4)}}}},
        "head": {"linear": {"kernel": (4, 2), "bias": (2,)}, "norm": norm},
    }
    return jax.tree.map(lambda shape: jnp.float32(rng.normal(size=shape)), shapes, is_leaf=lambda x: isinstance(x, tuple))


# Fields, and what an update is multiplied by at a path. The longest prefix counts, whatever the order.
FACTORS: list[tuple[dict[str, Any], dict[str, float]]] = [
    ({"frozen": ("stem", "stages/")}, {"stem/": 0.0, "stages/": 0.0}),
    ({"frozen": ("stages/1/0", "head/linear/bias")}, {"stages/1/": 0.0, "head/linear/bias": 0.0}),
    ({"rates": (("head/linear/kernel", 7.0), ("stem", 0.0))}, {"head/linear/kernel": 7.0, "stem/": 0.0}),
    ({"frozen": ("stem",), "rates": (("stages", 0.1), ("stages/1", 0.3))}, {"stem/": 0.0, "stages/1/": 0.3, "stages/": 0.1}),
    ({"frozen": ("stem",), "rates": (("stages/1/", 0.3), ("stages", 0.1))}, {"stem/": 0.0, "stages/1/": 0.3, "stages/": 0.1}),
]


@pytest.mark.parametrize("rules", ["sgd lamb adamw", pytest.param("lars sam prodigy muon", marks=pytest.mark.slow)])
def test_frozen_parameters_and_rates_scale_the_update_exactly(small: Any, rules: str) -> None:
    """With every rule; momentum, decay and trust ratios are as without them. Frozen parameters have no momentum."""
    for rule in rules.split():
        fields: Any = {"rule": rule}
        if rule in ("sgd", "lars"):
            fields |= {"weight_decay": 0.05, "nesterov": True}
        plain, _ = updates_of(optimizer.make(Optimizer(**fields), CONSTANT), small, functools.partial(waves, small), 2)
        for changes, factors in FACTORS if rule == "sgd" else FACTORS[-1:]:

            def factor(path: str, factors: dict[str, float] = factors) -> float:
                return next((value for prefix, value in factors.items() if path.startswith(prefix)), 1.0)

            scaled, state = updates_of(optimizer.make(Optimizer(**fields, **changes), CONSTANT), small, functools.partial(waves, small), 2)
            for ours, theirs in zip(scaled, plain, strict=True):
                for path, update in ours.items():
                    np.testing.assert_array_equal(update, theirs[path] * np.float32(factor(path)), err_msg=f"{path}, {rule}, {changes}")
                    assert np.any(theirs[path])
            trained = sum(leaf.size for path, leaf in leaves(small).items() if "frozen" not in changes or factor(path))
            arrays = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
            # Muon has one for its matrices and Adam's two for the rest.
            assert rule == "muon" or arrays == trained * {"lamb": 2, "adamw": 2, "prodigy": 4}.get(rule, 1)
            assert int(optax.tree_utils.tree_get(state, "step")) == 2


def test_prefix_without_parameters_is_rejected(small: Any) -> None:
    """Whole names only: stage is no prefix of stages."""
    for name in ("stm", "stages/3", "stages/00", "stage", "", "/", "stem/conv/kernel/0"):
        for option, fields in (("frozen", {"frozen": ("stem", name)}), ("rates", {"rates": ((name, 0.3),), "frozen": ("stem",)})):
            init, update = optimizer.make(Optimizer(**fields), CONSTANT)
            with pytest.raises(UserError, match=rf"^optimizer\.{option}: no parameter lies below '{name}'; "):
                update(small, init(small), small, error=0.0)
    with pytest.raises(UserError, match="did you mean stem"):
        optimizer.make(Optimizer(frozen=("stm",)), CONSTANT).init(small)


def rates(schedule: Schedule, errors: list[float], *, first: int = 0) -> list[float]:
    """Returns the rates of the steps from ``first`` on, as updates of a gradient of 1; the state has the same."""
    tx = optimizer.make(Optimizer(momentum=0.0, weight_decay=0.0), schedule)
    params = {"w": jnp.ones(())}
    state = optax.tree_utils.tree_set(tx.init(params), step=jnp.int32(first))
    update, found = jax.jit(tx.update), []
    for error in errors:
        updates, state = update({"w": jnp.ones(())}, state, params, error=jnp.float32(error))
        found.append(-float(updates["w"]))
        assert float(state.hyperparams["learning_rate"]) == pytest.approx(found[-1], rel=1e-6)
    assert int(optax.tree_utils.tree_get(state, "step")) == first + len(errors)
    return found


KERNELS = {"kernel": True, "linear": True, "scale": False, "bias": False}


def optaxs(rule: str, decay: str, rate: float) -> Any:
    """The same rule as optax has it, what does not decay being left out of the trust ratios."""
    mask = KERNELS if decay == "kernels" else dict.fromkeys(KERNELS, True)
    if rule == "sgd":
        return optax.chain(optax.add_decayed_weights(0.05, mask), optax.sgd(rate, 0.8, nesterov=True))
    if rule == "lars":
        return optax.lars(rate, weight_decay=0.05, weight_decay_mask=mask, trust_ratio_mask=mask, momentum=0.8, nesterov=True)
    if decay == "all":
        return optax.lamb(rate, b1=0.8, weight_decay=0.05)
    # optax's has no mask of the trust ratio: vectors then have Adam's updates.
    return optax.partition(
        {True: optax.lamb(rate, b1=0.8, weight_decay=0.05), False: optax.adam(rate, b1=0.8, eps=1e-6)},
        mask,
    )


def test_rules_of_the_recipes_equal_optax() -> None:
    """20 steps in float64; You et al. 2017 and 2019. With ``kernels``, vectors have neither decay nor trust ratio."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, draw(0))
        for rule, decay in (("sgd", "all"), ("lars", "kernels"), ("lamb", "all"), ("lamb", "kernels")):
            fields: Any = {"rule": rule, "nesterov": rule != "lamb", "decay": decay}
            found = steps_of(optimizer.make(Optimizer(momentum=0.8, weight_decay=0.05, **fields), CONSTANT), params, draw, 20)
            # The learning rate is a float32.
            expected = steps_of(optax.with_extra_args_support(optaxs(rule, decay, float(np.float32(0.3)))), params, draw, 20)
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=f"{name}, {rule}, {decay}")
            assert np.abs(found["kernel"] - params["kernel"]).max() > 1e-3


RATE = float(np.float32(0.05))
CONVOLUTION = {"stages": {"0": {"0": {"kernel": (3, 3, 1, 4), "scale": (4,)}}}, "head": {"linear": {"kernel": (4, 10), "bias": (10,)}}}


@dataclasses.dataclass(frozen=True)
class OneConvolution(Apply):
    """Convolution, scale, ReLU, average, classifier; its statistic is the mean of its features."""

    def __call__(self, params: Any, batch_stats: Any, images: jax.Array, **_: Any) -> tuple[jax.Array, Any]:
        block, linear = params["stages"]["0"]["0"], params["head"]["linear"]
        x = jax.lax.conv_general_dilated(images, block["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x * block["scale"]).mean((1, 2))
        return x @ linear["kernel"] + linear["bias"], {"mean": x.mean()}


def without_head(params: Any, *arguments: Any) -> Any:
    """The head has no gradient."""
    fixed = {"head": jax.lax.stop_gradient(params["head"])}
    return OneConvolution(nnx.split(nnx.Module())[0])(params | fixed, *arguments, train=True)


def plain_loop(tx: Any, params: Any, batches: list[Any], apply: Any, radius: float = 0.0) -> tuple[Any, Any, float]:
    """Returns parameters, state and the last statistic; ``radius``: of sharpness-aware minimization."""

    def loss(params: Any, images: Any, labels: Any) -> Any:
        logits, stats = apply(params, {}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats["mean"]

    @jax.jit
    def step(params: Any, state: Any, images: Any, labels: Any) -> Any:
        gradient, statistic = jax.grad(loss, has_aux=True)(params, images, labels)
        if radius:
            norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
            perturbed = jax.tree.map(lambda w, g: w + radius * g / norm, params, gradient)
            gradient, _ = jax.grad(loss, has_aux=True)(perturbed, images, labels)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, statistic

    state, statistic = tx.init(params), 0.0
    for images, labels in batches:
        params, state, statistic = step(params, state, images, labels)
    return params, state, float(statistic)


@pytest.mark.slow
def test_rules_of_optax_equal_a_plain_loop(digits_dir: str) -> None:
    """40 training steps on digits in float64, to 1e-12; SAM in two microbatches, SAM and schedule-free with a frozen head."""
    examples, rng = datasets.read(datasets.describe("digits", digits_dir), "train"), np.random.default_rng(5)
    rows = rng.integers(0, 1437, (40, 16))
    kernels = jax.tree.map(lambda shape: len(shape) > 1, CONVOLUTION, is_leaf=lambda x: isinstance(x, tuple))
    matrix = optax.contrib.MuonDimensionNumbers((0, 1, 2), (3,))
    dimensions = {"stages": {"0": {"0": {"kernel": matrix, "scale": None}}}, "head": {"linear": {"kernel": None, "bias": None}}}
    decayed = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(RATE, 0.9))
    momentum = optax.partition({0: decayed, 1: optax.set_to_zero()}, {"stages": 0, "head": 1})
    contrib = optax.contrib
    with jax.enable_x64(True):
        start = jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape)), CONVOLUTION, is_leaf=lambda x: isinstance(x, tuple))
        batches = [(jnp.float64(examples.images[i]) / 255, jnp.int32(examples.labels[i])) for i in rows]
        for rule, fields, tx, radius in (
            ("adamw(weight_decay=0.05)", {"decay": "kernels"}, optax.adamw(RATE, weight_decay=0.05, mask=kernels), 0.0),
            ("optax.contrib.muon", {}, contrib.muon(RATE, muon_weight_dimension_numbers=dimensions), 0.0),
            ("sam(rho=0.1)", {"accumulation": 2, "frozen": ("head",)}, momentum, 0.1),
            ("schedule_free_sgd", {"frozen": ("head",)}, contrib.schedule_free_sgd(RATE), 0.0),
            ("prodigy", {}, contrib.prodigy(RATE), 0.0),
            ("scale_by_adam(b1=0.8)", {}, optax.adam(RATE, b1=0.8), 0.0),
        ):
            settings = Optimizer(rule=rule, **fields)
            ours = optimizer.make(settings, Schedule(learning_rate=RATE, decay_steps=()))
            apply = OneConvolution(nnx.split(nnx.Module())[0])
            learning = step_lib.Learning(apply, ours, accumulation=settings.accumulation)
            state = ours.init(start)
            ema = start if optimizer.averages(state) else {}
            found = step_lib.TrainState(jnp.int32(0), start, {"mean": jnp.float64(0)}, state, jax.random.key(0), ema, {})
            train = jax.jit(functools.partial(step_lib.train_step, learning=learning))
            for batch in batches:
                found, metrics = train(found, step_lib.Batch(*batch))
            reference = without_head if settings.frozen else apply
            params, state, statistic = plain_loop(tx, start, batches, reference, radius)
            evaluated = contrib.schedule_free_eval_params(state, params) if rule == "schedule_free_sgd" else params
            for one, other in ((found.params, params), (found.scored()[0], evaluated)):
                np.testing.assert_allclose(ravel_pytree(one)[0], ravel_pytree(other)[0], rtol=1e-12, atol=1e-12, err_msg=rule)
            assert float(found.batch_stats["mean"]) == pytest.approx(statistic, rel=1e-12), "of the perturbed pass"
            assert float(metrics.learning_rate) == RATE


def test_unusable_rules_are_rejected_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import optax\n\ndef rule(learning_rate, power=1.0):\n    return optax.sgd(learning_rate * power)\n\n"
        "def late(step, start=0.2):\n    return start - 0.01 * step\n\ndef none(learning_rate):\n    return 3\n"
    )
    mine = f"{tmp_path}/mine.py"
    assert Optimizer(rule="optax.contrib.muon( beta = 0.9)") == Optimizer(rule="muon(beta=0.9)")
    assert Optimizer(rule=f"{mine}:rule( power=2 )").rule == f"{mine}:rule(power=2)"
    assert str(Schedule(rule=f"{mine}:late", warmup_steps=2)) == f"learning rate {mine}:late, warm-up at 0.01: 2 steps"
    for rule, fields, message in (
        ("adam_w", {}, "'adam_w' is no known function; did you mean adamw"),
        ("l2_loss", {}, "no known function"),
        (f"{mine}:rules", {}, "did you mean rule"),
        ("adamw(decay=1)", {}, "adamw takes no argument 'decay'; "),
        ("adamw(b1='x')", {}, r"adamw\(b1='x'\): give a number"),
        ("adamw(", {}, "cannot be read: write adamw"),
        ("adamw(learning_rate=0.1)", {}, "learning rate is that of the schedule"),
        ("sgd(momentum=0.5)", {}, "give momentum as own options"),
        ("adamw", {"momentum": 0.8, "weight_decay": 0.1}, r"not use momentum, weight_decay: .* --optimizer\.weight-decay 0\.0001\.$"),
        ("lamb", {"nesterov": True}, "'lamb' does not use nesterov: .* --optimizer.no-nesterov"),
        ("prodigy", {"decay": "kernels"}, r"optimizer\.decay must be 'all' for prodigy, which has no mask"),
    ):
        with pytest.raises(UserError, match=message):
            Optimizer(rule=rule, **fields)
    for rule, fields, message in (
        ("schedule_free_sgd", {"rates": (("a", 0.5),)}, r"optimizer\.rates must be empty for schedule_free_sgd"),
        (f"{mine}:none", {}, "returned int, no optax transformation"),
        ("sam(rho=-1.0)", {}, "rho must be a positive finite number"),
    ):
        with pytest.raises(UserError, match=message):
            optimizer.make(Optimizer(rule=rule, **fields), CONSTANT).init({"a": jnp.ones(2)})
    for rule, fields, message in (
        ("cosine_decay", {}, "did you mean cosine_decay_schedule"),
        ("constant_schedule(value=0.1)", {"cosine_steps": 5}, r"does not use cosine_steps: .* --schedule\.cosine-steps 0\.$"),
        (f"{mine}:late", {}, r"late returns -0\.01 at step 21; rates must be"),
        ("constant_schedule(value=(1.0, 2.0))", {}, "give a number"),
    ):
        with pytest.raises(UserError, match=message):
            Schedule(rule=rule, **fields).check_rates(30)
    Schedule(rule=f"{mine}:late").check_rates(21)
    mine_rates = rates(Schedule(rule=f"{mine}:late(start=0.3)", warmup_steps=1), [1.0] * 3)
    assert mine_rates == pytest.approx([0.01, 0.29, 0.28])
    cosine = "warmup_cosine_decay_schedule(init_value=0.0, peak_value=1.0, warmup_steps=1, decay_steps=3)"
    assert rates(Schedule(rule=cosine), [1.0] * 4) == pytest.approx([0.0, 1.0, 0.5, 0.0], abs=1e-6)


def test_stacked_blocks_have_separate_trust_ratios_and_one_norm() -> None:
    """A trust ratio is that of a block's own array; a norm that is clipped is the same however arrays lie."""
    rng = np.random.default_rng(0)
    # Blocks that differ in size by orders of magnitude, as a ratio over all of them would not.
    sizes = 10.0 ** np.arange(-2, 1)
    kernel, scale = jnp.float32(rng.normal(size=(3, 4, 4)) * sizes[:, None, None]), jnp.float32(rng.normal(size=(3, 4)) * sizes[:, None])
    stacked = {"stacked": {"kernel": kernel, "scale": scale}}

    def apart(tree: Any) -> Any:
        return {f"{name}{block}": array for name, arrays in tree["stacked"].items() for block, array in enumerate(arrays)}

    for fields in ({"rule": "lars"}, {"rule": "lamb"}, {"rule": "lamb", "decay": "all"}, {"clip": 0.01}):
        tx = optimizer.make(Optimizer(**({"decay": "kernels", "weight_decay": 0.05} | fields)), CONSTANT)
        found = apart(steps_of(tx, stacked, functools.partial(waves, stacked)))
        expected = steps_of(tx, apart(stacked), lambda step: apart(waves(stacked, step)))
        for path, value in expected.items():
            np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-7, err_msg=f"{path}, {fields}")


def test_clip_scales_the_gradient_before_anything_else() -> None:
    """All trained parameters together: (3, 0) and (4) are 5 long. Weight decay is added behind it."""
    params, gradient = {"a": jnp.ones(2), "b": jnp.ones(1)}, {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    one = Schedule(learning_rate=1.0, decay_steps=())
    for norm, factor in ((0.0, 1.0), (2.0, 0.4), (5.0, 1.0), (7.0, 1.0)):
        (updates,), _ = updates_of(optimizer.make(Optimizer(weight_decay=0.5, clip=norm), one), params, lambda _: gradient)
        np.testing.assert_allclose(updates["a"], [-3 * factor - 0.5, -0.5], rtol=1e-6)
        np.testing.assert_allclose(updates["b"], [-4 * factor - 0.5], rtol=1e-6)
    (updates,), _ = updates_of(optimizer.make(Optimizer(weight_decay=0.0, clip=1.5, frozen=("b",)), one), params, lambda _: gradient)
    np.testing.assert_allclose([*updates["a"], *updates["b"]], [-1.5, 0, 0], rtol=1e-6)


def test_schedule_has_the_rates_of_the_papers() -> None:
    """Steps count from 0; a training error of 1 throughout, so that only steps end the warm-up."""
    linear: Any = {"warmup_learning_rate": 0.2, "warmup_steps": 2, "linear_warmup": True}
    half = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(5)]
    for schedule, first, expected in (
        # He et al. 2015: 32,000 steps at 0.1, then 16,000 at 0.01, then 0.001. He et al. 2016: 400 steps at 0.01.
        (Schedule(), 0, [0.1]),
        (Schedule(), 31_999, [0.1, 0.01]),
        (Schedule(), 47_999, [0.01, 0.001]),
        (Schedule(warmup_steps=400), 398, [0.01, 0.01, 0.1]),
        # A shortened schedule can decay twice at one step.
        (Schedule(learning_rate=1.0, decay_steps=(2, 2)), 0, [1, 1, 0.01]),
        # Goyal et al. 2017, Section 2.2: from the low rate at the first step to the full one after the warm-up.
        (Schedule(learning_rate=1.0, decay_steps=(4,), **linear), 0, [0.2, 0.6, 1.0, 1.0, 0.1]),
        # Loshchilov and Hutter 2016, eq. 5, and its end.
        (Schedule(learning_rate=1.0, decay_steps=(), cosine_steps=4), 0, [*half, 0]),
        (
            Schedule(learning_rate=1.0, decay_steps=(), cosine_steps=4, final_learning_rate=0.2),
            0,
            [0.2 + 0.8 * rate for rate in (*half, 0)],
        ),
        # timm: the warm-up replaces the first steps; torchvision: the cosine follows it.
        (Schedule(learning_rate=1.0, decay_steps=(), cosine_steps=4, **linear), 0, [0.2, 0.6, *half[2:]]),
        (Schedule(learning_rate=1.0, decay_steps=(), cosine_steps=6, cosine_from="warmup", **linear), 0, [0.2, 0.6, *half]),
    ):
        assert rates(schedule, [1.0] * len(expected), first=first) == pytest.approx(expected, rel=1e-5, abs=1e-6), schedule


def test_warmup_until_error_ends_once() -> None:
    """He et al. 2015, n=18: 0.01 until the average training error is below 80 %. Neither a good batch nor a bad one later counts."""
    errors = [0.9, 0.1, *[0.6] * 40, *[1.0] * 100]
    averages = itertools.accumulate(errors, lambda average, error: 0.98 * average + 0.02 * error, initial=1.0)
    below = next(step for step, average in enumerate(averages) if average < 0.8) - 1
    assert 10 < below < 40
    expected = [0.01] * below + [0.1] * (len(errors) - below)
    assert rates(Schedule(warmup_until_error=0.8), errors) == pytest.approx(expected, rel=1e-5)
    assert rates(Schedule(warmup_steps=2), [0.0] * 2) == pytest.approx([0.01] * 2), "however good the network is"
