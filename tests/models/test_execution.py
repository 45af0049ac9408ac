"""A stage as a loop or as one scan: the same values, the same variables, a program that does not grow."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_convolution import random
from test_layers import filled

from resnet_jax.models import Architecture, Execution, cifar_architecture, execution
from resnet_jax.models.execution import quick_to_compile
from resnet_jax.models.shortcuts import OPTIONS

LOOP, SCAN = Execution(blocks="loop"), Execution(blocks="scan")


def small(option: str) -> Architecture:
    """Stage 1 is one run of equal units whatever the option (unless it projects); stage 2 begins with an odd one."""
    return Architecture(stages=(2, 3), features=(3, 5), shortcut=OPTIONS[option], input_shape=(6, 6, 3), num_classes=4)


def state_of(architecture: Architecture, how: Execution) -> tuple[Any, Any, Any]:
    """The network as a function, and NumPy's numbers for its parameters and statistics."""
    apply, params, stats = jax.eval_shape(lambda key: architecture.init(key, execution=how), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.float32(rng.normal(0, 0.4, p.shape)), params)
    return apply, params, jax.tree.map(lambda s: jnp.float32(rng.uniform(0.5, 1.5, s.shape)), stats)


def differentiated(architecture: Architecture, how: Execution) -> tuple[Any, Any, Any]:
    """Logits, batch statistics and the parameters' gradients of one training step."""
    apply, params, stats = state_of(architecture, how)
    images, weights = jnp.asarray(random(4, *architecture.input_shape)), random(4, architecture.num_classes, seed=1)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, after = apply(params, stats, images, train=True)
        return jnp.sum(jax.nn.log_softmax(logits) * weights), (logits, after)

    gradients, (logits, after) = jax.jit(jax.grad(loss, has_aux=True), compiler_options=quick_to_compile())(params)
    return logits, after, gradients


@pytest.mark.parametrize("option", OPTIONS)
def test_scan_is_the_loop_in_logits_statistics_and_gradients(option: str) -> None:
    """From equal parameters, in float32; plain and with options A, B, C. Every unit's own statistics move."""
    loop, scan = (differentiated(small(option), how) for how in (LOOP, SCAN))
    assert jax.tree.structure(loop) == jax.tree.structure(scan)
    for (path, one), other in zip(jax.tree.leaves_with_path(loop), jax.tree.leaves(scan), strict=True):
        scale = np.abs(one).max()
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-5 * scale, err_msg=jax.tree_util.keystr(path))
        assert scale > 0
    before, after = jax.tree.leaves(state_of(small(option), SCAN)[2]), jax.tree.leaves(scan[1])
    assert len(before) == len(after) > 20
    assert all(np.all(a != b) for a, b in zip(before, after, strict=True))
    assert len({np.asarray(leaf).tobytes() for leaf in after}) == len(after)  # each has its own


def test_a_loop_and_a_scan_start_as_the_same_tree_from_the_same_program() -> None:
    """Parameters are stored unit by unit, and the initialisation does not know how the network will be run."""

    def program(how: Execution) -> tuple[Any, str]:
        def variables(key: jax.Array) -> Any:
            return small("B").init(key, execution=how)[1:]

        shapes = jax.eval_shape(variables, jax.random.key(0))
        return shapes, jax.jit(variables).lower(jax.random.key(0)).as_text()

    assert program(LOOP) == program(SCAN)
    stages = program(SCAN)[0][0]["stages"]
    assert [list(units) for units in stages.values()] == [[0, 1], [0, 1, 2]]
    assert stages[1][2]["conv1"]["kernel"].shape == (3, 3, 5, 5)


@pytest.mark.parametrize("train", [True, False])
def test_a_scanned_network_lowers_to_as_many_convolutions_at_any_depth(train: bool) -> None:
    """20 and 56 layers: a loop has one convolution a layer beside the last, a scan one for each of the bodies and first units."""

    def convolutions(depth: int, how: Execution) -> int:
        architecture = cifar_architecture(depth, input_shape=(8, 8, 3), features=(4, 5, 6))
        apply, params, stats = jax.eval_shape(lambda key: architecture.init(key, execution=how), jax.random.key(0))
        images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)

        def run(params: Any, stats: Any, images: jax.Array) -> Any:
            return apply(params, stats, images, train=train)[0].sum()

        return jax.jit(jax.grad(run) if train else run).lower(params, stats, images).as_text().count("stablehlo.convolution(")

    # The stem; the body of stage 1; first unit and body of stages 2 and 3: two convolutions each but in the stem.
    forward = {20: 1 + 2 + 4 + 4, 56: 1 + 2 + 4 + 4}
    # A gradient has three in the place of one; the stem's input needs none.
    expected = {depth: 3 * n - 1 if train else n for depth, n in forward.items()}
    assert {depth: convolutions(depth, SCAN) for depth in expected} == expected
    assert convolutions(20, LOOP) == (3 * 19 - 1 if train else 19)


@pytest.mark.parametrize(("blocks", "written"), [("loop", 11), ("scan", 7)])
def test_the_form_of_the_convolutions_reaches_all_of_them(blocks: Any, written: int) -> None:
    """Written gradients: all 3x3 convolutions of stem and five units, or of stem, stage 1's body, stage 2's first unit and its body."""

    def custom(form: Any) -> int:
        apply, params, stats = jax.eval_shape(
            lambda key: small("C").init(key, execution=Execution(blocks=blocks, convolution=form)), jax.random.key(0)
        )
        images = jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32)
        return str(jax.make_jaxpr(lambda p, s, x: apply(p, s, x, train=True))(params, stats, images)).count("custom_vjp_call[")

    assert {form: custom(form) for form in ("plain", "explicit", "auto")} == {"plain": 0, "explicit": written, "auto": written}


class Step(nnx.Module):
    """x -> factor * x + shift. The factor is structure, the shift a variable."""

    def __init__(self, factor: float, shift: float):
        self.factor, self.shift, self.seen = factor, nnx.Param(jnp.float32(shift)), nnx.BatchStat(jnp.float32(0))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if train:
            self.seen[...] = x[0]
        return self.factor * x + self.shift[...]


@pytest.mark.parametrize("scan", [True, False])
def test_units_run_in_order_and_only_neighbours_of_equal_structure_share_a_loop(scan: bool) -> None:
    """By hand: 1 -> 2*1+1 = 3 -> 2*3+2 = 8 -> 3*8+3 = 27 -> 2*27+4 = 58 -> 2*58+5 = 121 -> 2*121+6 = 248."""
    units = [Step(factor, shift) for shift, factor in enumerate((2.0, 2.0, 3.0, 2.0, 2.0, 2.0), 1)]
    assert float(execution.run(units, jnp.ones(1), train=False, scan=scan)[0]) == 248
    assert [float(unit.seen[...]) for unit in units] == [0] * 6
    assert float(execution.run(units, jnp.ones(1), train=True, scan=scan)[0]) == 248
    assert [float(unit.seen[...]) for unit in units] == [1, 3, 8, 27, 58, 121]
    scans = str(jax.make_jaxpr(lambda x: execution.run(units, x, train=False, scan=scan))(jnp.ones(1))).count(" scan[")
    assert scans == (2 if scan else 0)


def test_repeat_gives_every_unit_its_own_initial_values() -> None:
    @functools.partial(jax.jit, compiler_options=quick_to_compile())
    def kernels(key: jax.Array) -> list[list[jax.Array]]:
        """Of two stages, four units and two, from one stream."""
        rngs = nnx.Rngs(key)
        stages = [execution.repeat(lambda r: nnx.Linear(3, 4, rngs=r), count, rngs) for count in (4, 2)]
        return [[unit.kernel[...] for unit in units] for units in stages]  # pyright: ignore[reportAttributeAccessIssue]

    first, again, other = (np.concatenate([np.stack(stage) for stage in kernels(jax.random.key(seed))]) for seed in (0, 0, 1))
    assert first.shape == (6, 3, 4)
    assert len(np.unique(first)) == first.size
    np.testing.assert_array_equal(again, first)
    assert np.all(other != first)
    assert execution.repeat(lambda r: nnx.Linear(3, 4, rngs=r), 0, nnx.Rngs(0)) == []


def test_units_that_repeat_has_made_share_one_loop_and_no_variable() -> None:
    units = [filled(lambda rngs: nnx.List(execution.repeat(lambda r: nnx.BatchNorm(2, rngs=r), 3, rngs)))[i] for i in range(3)]
    assert len({execution._structure(unit)[0] for unit in units}) == 1
    units[0].scale[...] = jnp.zeros(2)
    assert all(np.all(np.asarray(unit.scale[...]) > 0) for unit in units[1:])


def test_auto_scans_on_cpu_and_elsewhere_above_100_units(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = Execution()
    assert auto.scans(1)  # the tests run on CPU
    for backend in ("gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert [auto.scans(units) for units in (9, 100, 101, 600)] == [False, False, True, True]
        assert (SCAN.scans(1), LOOP.scans(600)) == (True, False)
