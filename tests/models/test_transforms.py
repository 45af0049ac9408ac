"""Transformations of JAX and Flax on one network of every family, which has no custom derivative outside of the trainer."""

import copy
import dataclasses
import functools
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax import export, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from resnet_jax.errors import UserError
from resnet_jax.kernels import quick_to_compile
from resnet_jax.models import NETWORKS, PLAIN, Apply, Architecture, Execution, ResNet, StochasticDepth
from resnet_jax.models.components import component, parts
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Fixup
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.models.stems import SmallImageStem

from oracle import close, filled, network, random, variables

FAMILIES = ("resnet50", "cifar_plain20", "cifar_fixup110", "cifar_preresnet110", "cifar_stochastic110", "seresnext50_32x4d")
FAMILIES += ("cifar_densenet40_12", "wrn16_8_dropout")


def reduced(name: str) -> Architecture:
    """Two stages of one block, narrower, on small images."""
    full = NETWORKS[name]
    features = full.features
    while features[0] > 32:
        features = tuple(wide // 2 for wide in features)
    side = 8 if full.stem is SmallImageStem else 32
    return dataclasses.replace(full, stages=(1, 1), features=features[:2], input_shape=(side, side, 3), num_classes=7)


@pytest.mark.parametrize("name", FAMILIES)
def test_network_has_finite_logits_and_gradients(name: str) -> None:
    """In bfloat16. No gradient is zero but Fixup's (its last weights and its classifier begin at zero) and those of dropped branches."""
    small = dataclasses.replace(reduced(name), dtype="bfloat16")

    def run(key: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        apply, params, batch_stats = small.init(key)

        def loss_of(params: Any) -> tuple[jax.Array, jax.Array]:
            logits, _ = apply(params, batch_stats, images, train=True, key=key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

        gradients, logits = jax.grad(loss_of, has_aux=True)(params)
        return logits, jax.tree.map(lambda g: jnp.linalg.norm(g.astype(jnp.float32).ravel()), gradients)

    images = np.random.default_rng(3).normal(size=(4, *small.input_shape)).astype(np.float32)
    logits, norms = jax.jit(run, compiler_options=quick_to_compile())(jax.random.key(0), images, jnp.arange(4))
    assert (logits.shape, logits.dtype) == ((4, 7), jnp.float32)
    assert np.isfinite(logits).all()
    assert np.isfinite(jax.tree.leaves(norms)).all()
    if small.order is not Fixup:
        assert np.ptp(logits) > 0.1
        zero = [path for path, norm in jax.tree.leaves_with_path(norms) if norm == 0]
        assert not zero or small.stochastic_depth.survival < 1
    assert any(jax.tree.leaves(norms))


def same(actual: Any, expected: Any) -> None:
    """Equal trees, every array to 1e-5 of the largest value of all."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for (path, one), other in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * largest, err_msg=jax.tree_util.keystr(path))


def loss_of(apply: Apply, stats: Any, train: bool, params: Any, images: Any, weights: Any) -> jax.Array:
    logits, _ = apply(params, stats, images, train=train, key=jax.random.key(2))
    return jnp.sum(jax.nn.log_softmax(logits) * weights)


def dot(one: Any, other: Any) -> float:
    return sum(np.vdot(np.float64(a), np.float64(b)) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def run(function: Any, *arguments: Any) -> Any:
    return jax.jit(function, compiler_options=quick_to_compile())(*arguments)


def gradients_agree(architecture: Architecture, *, quick: bool = False) -> None:
    """On four devices and in JAX's transformations, with those of one program; from drawn variables."""
    architecture = dataclasses.replace(architecture, branch=component(architecture.branch, dropout=0.0))
    synced = architecture
    if parts(architecture.norm)[0] is BatchNorm:
        synced = dataclasses.replace(architecture, norm=component(architecture.norm, axis_name="data"))
    model = filled(lambda rngs: ResNet(architecture, rngs=rngs))
    params, stats = (nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat))
    networks = {"plain": (architecture, PLAIN), "trainer": (architecture, Execution()), "synced": (synced, PLAIN)}
    applies = {
        name: jax.eval_shape(functools.partial(network.init, execution=execution), jax.random.key(0))[0]
        for name, (network, execution) in networks.items()
    }
    losses = {name: functools.partial(loss_of, apply, stats, True) for name, apply in applies.items()}
    loss, data = losses["plain"], (jnp.asarray(random(8, *architecture.input_shape)), jnp.asarray(random(8, 7, seed=1)))
    gradient, local = jax.grad(loss), jax.grad(losses["synced"])
    # Forward mode: J v is the gradient along v.
    u, v = (jax.tree.map(lambda p, seed=seed: jnp.asarray(random(*p.shape, seed=seed)), params) for seed in (5, 6))
    expected, slope = run(lambda p: (gradient(p, *data), jax.jvp(lambda p: loss(p, *data), (p,), (v,))[1]), params)
    np.testing.assert_allclose(slope, dot(expected, v), rtol=1e-3, atol=1e-4 * np.sqrt(dot(expected, expected) * dot(v, v)))
    for kind in (AxisType.Explicit,) if quick else (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            inputs = jax.device_put(params, NamedSharding(mesh, P())), *jax.device_put(data, NamedSharding(mesh, P("data")))
            same(run(gradient, *inputs), expected)
            if kind is AxisType.Explicit:
                same(run(jax.shard_map(local, in_specs=(P(), P("data"), P("data")), out_specs=P()), *inputs), expected)
    # Others: two are traced for every family, all have their values for one network.
    evaluated = functools.partial(loss_of, applies["plain"], stats, False)
    one = jax.grad(lambda p, x, w: evaluated(p, x[None], w[None]))
    both = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)

    def others(p: Any) -> Any:
        hessian = [jax.jvp(lambda p: gradient(p, *data), (p,), (d,))[1] for d in (u, v)]
        again = jax.grad(jax.checkpoint(loss))(p, *data)
        examples = jax.tree.map(lambda g: g.sum(0), jax.vmap(one, (None, 0, 0))(p, *data))
        forward, reverse = (of(lambda t: loss(p, t * data[0], data[1]))(1.0) for of in (jax.jacfwd, jax.jacrev))
        return hessian, again, examples, forward, reverse, jax.vmap(lambda p: loss(p, *data))(both)

    if quick:
        (hu, hv), again, examples, forward, reverse, ensemble = run(others, params)
        np.testing.assert_allclose(dot(hu, v), dot(hv, u), rtol=1e-2, atol=1e-4 * np.sqrt(dot(hu, hu) * dot(v, v)))
        same(again, expected)
        same(examples, run(jax.grad(evaluated), params, *data))
        np.testing.assert_allclose(forward, reverse, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(ensemble[1], run(loss, jax.tree.map(lambda p: 0.5 * p, params), *data), rtol=1e-4)
        return
    hessian = functools.partial(jax.jvp, jax.grad(lambda p: jax.checkpoint(loss)(p, *data)))
    jax.eval_shape(lambda p: (hessian((p,), (v,)), jax.vmap(one, (None, 0, 0))(p, *data)), params)
    same(run(jax.grad(losses["trainer"]), params, *data), expected)
    split = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), data)
    mapped = jax.pmap(lambda *inputs: lax.psum(local(*inputs), "data"), "data", in_axes=(None, 0, 0), devices=jax.devices()[:4])
    same(jax.tree.map(lambda g: g[0], mapped(params, *split)), expected)

    # Forward pass for other platforms, with a symbolic batch and resolution.
    def forward(images: jax.Array) -> jax.Array:
        return applies["plain"](params, stats, images, train=False)[0]

    shape = (*export.symbolic_shape("batch, height, width"), architecture.input_shape[2])
    exported = export.export(jax.jit(forward), platforms=("cpu", "cuda", "tpu"))(jax.ShapeDtypeStruct(shape, jnp.float32))
    np.testing.assert_allclose(exported.call(data[0][:3]), run(forward, data[0][:3]), rtol=1e-4, atol=1e-4)


def test_gradients_agree_in_all_transformations() -> None:
    gradients_agree(Architecture(stages=(1,), features=(4,), input_shape=(6, 6, 3), num_classes=7), quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_families_agree_in_all_transformations(name: str) -> None:
    gradients_agree(reduced(name))


def test_forward_derivative_matches_differences_of_numpy() -> None:
    """Central differences of the float64 formula, in training."""
    architecture = Architecture(stages=(1, 1), features=(3, 4), shortcut=ZeroPad, input_shape=(5, 4, 2), num_classes=3)
    model = filled(lambda rngs: ResNet(architecture, rngs=rngs))
    x, direction, values = random(2, 5, 4, 2), random(2, 5, 4, 2, seed=4), variables(model)
    slope = run(lambda *inputs: jax.jvp(lambda x: nnx.clone(model)(x, train=True), inputs[:1], inputs[1:])[1], x, direction)
    high, low = (network(values, x + sign * 1e-6 * np.float64(direction), (1, 1), train=True)[1] for sign in (1, -1))
    close(slope, (high - low) / 2e-6, tolerance=1e-4)


SMALL: dict[str, Any] = dict(stages=(2,), features=(4,), stem_features=3, input_shape=(8, 8, 3), num_classes=5)


def test_model_is_a_citizen_of_flax(tmp_path: Path) -> None:
    model, images = Architecture(**SMALL).build(), jnp.asarray(random(4, 8, 8, 3))
    forward = nnx.jit(lambda model, images: model(images))
    logits = forward(model, images)
    assert "ResNet" in nnx.tabulate(model, images)
    graphdef, state = nnx.split(model)
    copies = [model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.to_pure_dict(state))
        checkpointer.wait_until_finished()
        copies.append(nnx.merge(graphdef, checkpointer.restore(tmp_path / "state", nnx.to_pure_dict(state))))
    for other in copies:
        np.testing.assert_allclose(forward(other, images), logits, rtol=1e-5, atol=1e-5)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    model.train()

    @nnx.jit
    def step(model: ResNet, optimizer: nnx.Optimizer) -> jax.Array:
        value, gradients = nnx.value_and_grad(lambda model: nnx.remat(lambda m, x: m(x))(model, images)[:, 0].mean())(model)
        optimizer.update(model, gradients)
        return value

    assert step(model, optimizer) > step(model, optimizer)


class Users(nnx.Module):
    """A user's shortcut that needs a mode."""

    def __init__(self, in_features: int, out_features: int, stride: int, *, rngs: nnx.Rngs):
        self.calls = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x: jax.Array, branch: jax.Array, *, train: bool) -> jax.Array:
        self.calls[...] += 1.0 if train else 0.0
        return branch


@pytest.mark.parametrize("norm", ["BatchNorm", functools.partial(nnx.BatchNorm, momentum=0.5)], ids=str)
def test_modes_are_those_of_flax(norm: Any) -> None:
    """An explicit ``train`` wins; without one train() and eval() count, at first evaluation, and those of single layers."""
    model = Architecture(**SMALL, norm=norm, shortcut=Users).build(rngs=jax.random.key(1))
    assert not model.stages[0][0].stacked.shortcut.calls[...], "construction calls the network and changes nothing"
    images = jnp.asarray(random(4, 8, 8, 3))
    run = nnx.jit(lambda model, images, train: model(images, train), static_argnums=2)

    def moves(train: bool | None) -> tuple[bool, bool]:
        """Whether running means, and the user's counts, change."""
        before = jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
        run(model, images, train)
        after = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
        changes = {path[-1].key: np.any(a != b) for (path, a), b in zip(before, after, strict=True)}
        return bool(changes["mean"]), bool(changes["calls"])

    assert [moves(train) for train in (None, False, True)] == [(False, False), (False, False), (True, True)]
    np.testing.assert_allclose(run(model, images, None)[:1], run(model, images[:1], None), rtol=1e-4, atol=1e-5)
    model.train()
    assert [moves(train) for train in (None, False, True)] == [(True, True), (False, False), (True, True)]
    model.set_attributes(type(model.stem.after.layers[0]), use_running_average=True)
    assert moves(None) == (False, True)
    model.eval()
    assert moves(None) == (False, False)


def test_random_parts_follow_the_mode() -> None:
    for fields in (
        dict(stochastic_depth=StochasticDepth(survival=0.5)),
        dict(branch="Basic(dropout=0.5)"),
        dict(shortcut="DropoutShortcut(resize='project')"),
    ):
        model = nnx.merge(*jax.eval_shape(lambda f=fields: nnx.split(ResNet(Architecture(**SMALL | f)))))

        def draws(model: ResNet = model, **options: Any) -> bool:
            graphdef, state = nnx.split(model)
            images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
            return "random_bits" in str(jax.make_jaxpr(lambda s, x: nnx.merge(graphdef, s)(x, **options))(state, images))

        assert not draws()
        model.train()
        assert draws(key=jax.random.key(0))
        assert not draws(train=False)
        with pytest.raises(UserError, match="is random in training"):
            draws()
