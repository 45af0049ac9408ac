"""Blocks as a loop or as one scan: equal values from equal variables, lesions without recompilation, programs that do not grow."""

import collections
import dataclasses
import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from resnet_jax import kernels
from resnet_jax.errors import UserError
from resnet_jax.kernels import quick_to_compile, quick_to_run
from resnet_jax.models import Apply, Architecture, Execution, StochasticDepth, cifar_architecture
from resnet_jax.models.blocks import Basic, Bottleneck, SingleLayer
from resnet_jax.models.components import component
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.models.shortcuts import Concatenation, DropoutShortcut, PooledProjection, ProjectionEverywhere, ShortcutOnlyGating, ZeroPad
from resnet_jax.models.stems import DenseTransition, ImageNetStem

from oracle import all_statistics, close, network, random, same_statistics, variables

LOOP, SCAN = Execution(blocks="loop"), Execution(blocks="scan")
LOOP_AGAIN, SCAN_AGAIN = (dataclasses.replace(how, remat=True) for how in (LOOP, SCAN))
HOW = {"loop": LOOP, "scan": SCAN}

# One block that changes the width, then two alike.
SHORT = Architecture(stages=(3,), features=(4,), stem_features=3, shortcut=ZeroPad, input_shape=(5, 4, 3), num_classes=4)


def state_of(architecture: Architecture, how: Execution) -> tuple[Apply, Any, Any]:
    """The network as a function, and NumPy's numbers for its parameters and statistics."""
    apply, params, stats = jax.eval_shape(lambda key: architecture.init(key, execution=how), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.float32(rng.normal(0, 0.4, p.shape)), params)
    return apply, params, jax.tree.map(lambda s: jnp.float32(rng.uniform(0.5, 1.5, s.shape)), stats)


def differentiated(architecture: Architecture, how: Execution, **options: Any) -> tuple[Any, Any, Any]:
    """Logits, batch statistics and the parameters' gradients of one training step."""
    apply, params, stats = state_of(architecture, how)
    images, weights = jnp.asarray(random(4, *architecture.input_shape)), random(4, architecture.num_classes, seed=1)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, after = apply(params, stats, images, train=True, **options)
        return jnp.sum(jax.nn.log_softmax(logits) * weights), (logits, after)

    gradients, (logits, after) = jax.jit(jax.grad(loss, has_aux=True), compiler_options=quick_to_compile())(params)
    return logits, after, gradients


def same(ours: Any, theirs: Any) -> None:
    """Equal trees, every array to 2e-5 of its largest value, and of the largest of all to a hundredth of that."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for (path, one), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        atol = 2e-5 * max(np.abs(other).max(), 0.01 * largest)
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


COMBINATIONS = {
    "two-stages": dict(stages=(2, 3), features=(3, 5), stem_features=0),
    "D-full-preactivation-bottleneck": dict(shortcut=PooledProjection, order=FullPreactivation, branch=Bottleneck),
    "gates-excitation-groups": dict(shortcut=ShortcutOnlyGating, branch=component(SingleLayer, reduction=2, groups=2), stem_features=2),
    "dense": dict(
        shortcut=Concatenation, order=FullPreactivation, branch=SingleLayer, stages=(1, 2), features=(2, 2), transition=DenseTransition
    ),
    "random": dict(
        shortcut=DropoutShortcut, branch=component(Basic, dropout=0.3), stochastic_depth=StochasticDepth(survival=0.5, drops="image")
    ),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_scan_is_the_loop_in_logits_statistics_and_gradients(name: str) -> None:
    """From equal parameters, in float32, and with one key; so is remat."""
    architecture = dataclasses.replace(SHORT, **COMBINATIONS[name])
    options = {"key": jax.random.key(7)} if name == "random" else {}
    loop, scan = (differentiated(architecture, how, **options) for how in (LOOP, SCAN))
    same(scan, loop)
    if name == "random":
        same(differentiated(architecture, SCAN_AGAIN, **options), loop)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(loop))
    before, after = jax.tree.leaves(state_of(architecture, SCAN)[2]), jax.tree.leaves(scan[1])
    # Every block's statistics change, each in its own way.
    assert all(np.all(a != b) for a, b in zip(before, after, strict=True))
    rows = [row.tobytes() for leaf in after for row in np.asarray(leaf).reshape(-1, leaf.shape[-1])]
    assert len(set(rows)) == len(rows)


# Lesions ------------------------------------------------------------------------------------------------------------------------

STAGES, BLOCKS = (3, 3), 6
LESIONED = Architecture(stages=STAGES, features=(3, 4), shortcut=ZeroPad, input_shape=(5, 4, 2), num_classes=3)
IMAGES = random(4, *LESIONED.input_shape)
ONES, IDENTITY = np.ones(BLOCKS), np.arange(BLOCKS)


@pytest.mark.parametrize("blocks", HOW)
def test_lesions_match_numpy_and_share_one_compilation(blocks: str) -> None:
    """Veit et al. 2016 (arXiv 1605.06431): "deleting individual layers" (Section 4.1), exchanged blocks (Section 4.3).

    Multipliers belong to positions, statistics to blocks.
    """
    apply, params, stats = state_of(LESIONED, HOW[blocks])
    traces = []

    @functools.partial(jax.jit, static_argnames="train", compiler_options=quick_to_compile())
    def run(multipliers: Any, permutation: Any, train: bool) -> Any:
        traces.append(train)
        return apply(params, stats, jnp.asarray(IMAGES), train=train, multipliers=multipliers, permutation=permutation)

    def logits_of(multipliers: Any = ONES, permutation: Any = IDENTITY, train: bool = False) -> np.ndarray:
        """Logits, compared with NumPy; statistics of training too."""
        logits, after = run(jnp.asarray(multipliers, jnp.float32), jnp.asarray(permutation, jnp.int32), train)
        lesions = dict(multipliers=multipliers, permutation=permutation)
        start, end = (variables(nnx.merge(apply.graphdef, params, statistics)) for statistics in (stats, after))
        _, expected, statistics = network(start, IMAGES, STAGES, **lesions, train=train)
        close(logits, expected)
        same_statistics(all_statistics(end), statistics)
        return np.asarray(logits)

    whole, turned = logits_of(), [2, 0, 1, 3, 5, 4]
    intact = apply(params, stats, jnp.asarray(IMAGES), train=False)[0]
    np.testing.assert_allclose(whole, intact, rtol=0, atol=1e-6 * np.abs(whole).max())
    deletions = [np.where(block == IDENTITY, 0, 1) for block in range(BLOCKS)]
    distinct = [whole, *map(logits_of, deletions), logits_of(permutation=turned)]
    assert len({logits.tobytes() for logits in distinct}) == BLOCKS + 2
    logits_of(deletions[3], train=True)
    logits_of([1, 0.5, 1, 1, 0, 2], turned, train=True)
    assert len(traces) == 2
    # One multiplier per image.
    logits_of(np.random.default_rng(3).choice([0, 0.5, 1, 2], (BLOCKS, 4)))


def test_invalid_permutations_and_multipliers_are_rejected_in_one_sentence() -> None:
    """Wrong shapes of traced arrays, too."""
    apply, params, stats = state_of(LESIONED, SCAN)
    cases: list[tuple[dict[str, Any], str, bool]] = [
        (dict(permutation=np.array([3, 1, 2, 0, 4, 5])), "exchange blocks of equal structure: only 0 to 2, 4 to 5", False),
        (dict(permutation=np.array([0, 1, 2, 4, 3, 5])), "exchange blocks of equal structure", False),
        (dict(permutation=np.array([0, 0, 2, 3, 4, 5])), "exchange blocks", False),
        (dict(permutation=np.arange(7)), "permutation must have length 6", True),
        (dict(multipliers=np.ones(5)), r"multipliers must have shape \(6,\) or \(6, 4\), got \(5,\)", True),
        (dict(multipliers=np.ones((4, 6))), r"multipliers must have shape .*, got \(4, 6\)", True),
    ]

    def run(arrays: Any) -> Any:
        return apply(params, stats, jnp.asarray(IMAGES), train=False, **arrays)

    for options, message, traced in cases:
        arrays = {name: jnp.asarray(value, "int32" if name == "permutation" else "float32") for name, value in options.items()}
        for call in (lambda a=arrays: jax.eval_shape(lambda: run(a)), *([lambda a=arrays: jax.eval_shape(run, a)] if traced else [])):
            with pytest.raises(UserError, match=message) as error:
                call()
            assert "\n" not in str(error.value)


def test_exchangeable_are_runs_of_equal_blocks() -> None:
    shared = dataclasses.replace(LESIONED, order=FullPreactivation)
    for architecture, ends in ((LESIONED, (0, 3, 4, 6)), (shared, (0, 1, 3, 4, 6))):
        model = nnx.merge(*jax.eval_shape(lambda a=architecture: nnx.split(a.build(rngs=nnx.Rngs(0)))))
        assert model.exchangeable() == [range(*run) for run in itertools.pairwise(ends)]


# Programs ------------------------------------------------------------------------------------------------------------------------


def test_initialization_does_not_depend_on_execution() -> None:
    """Blocks of equal structure are stored stacked, whatever the execution."""

    def program(how: Execution) -> tuple[Any, str]:
        def variables(key: jax.Array) -> Any:
            return LESIONED.init(key, execution=how)[1:]

        shapes = jax.eval_shape(variables, jax.random.key(0))
        return shapes, jax.jit(variables).lower(jax.random.key(0)).as_text()

    first = program(LOOP)
    assert all(program(how) == first for how in (SCAN, SCAN_AGAIN, LOOP_AGAIN, dataclasses.replace(SCAN, kernels="plain")))


def training_step(architecture: Architecture, how: Execution) -> jax.stages.Lowered:
    """Gradient and SGD update of all parameters, lowered."""
    apply, params, stats = jax.eval_shape(lambda key: architecture.init(key, execution=how), jax.random.key(0))
    images, labels = jax.ShapeDtypeStruct((2, *architecture.input_shape), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)

    def step(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, after = apply(params, stats, images, train=True)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean(), after

        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), after, value

    return jax.jit(step).lower(params, stats, images, labels)


def operations(lowered: jax.stages.Lowered) -> collections.Counter[str]:
    return collections.Counter(re.findall(r"\b(stablehlo\.\w+|func\.func|call @)", lowered.as_text()))


def test_scanned_training_step_has_the_same_program_at_any_depth() -> None:
    """As many operations of every kind with 20 and 1202 layers; a loop has more with every block."""
    small = dict(input_shape=(8, 8, 3), features=(4, 5, 6))
    counts = {depth: operations(training_step(cifar_architecture(depth, **small), SCAN)) for depth in (20, 1202)}
    assert sum(counts[20].values()) > 300
    assert counts[1202] == counts[20]
    # The stem; the body of stage 1; first block and body of stages 2 and 3: thrice but for the stem's input.
    assert counts[20]["stablehlo.convolution"] == 3 * (1 + 2 + 4 + 4) - 1
    loop = operations(training_step(cifar_architecture(14, **small), LOOP))
    assert loop["stablehlo.convolution"] == 3 * 13 - 1


def scans(jaxpr: Any) -> list[Any]:
    """All scans of a program, those of its parts too."""
    equations = []
    for equation in jaxpr.eqns:
        inside = [part for value in equation.params.values() for part in (value if isinstance(value, tuple | list) else [value])]
        equations += [equation] * (equation.primitive.name == "scan")
        equations += [inner for part in inside if hasattr(part, "eqns") for inner in scans(getattr(part, "jaxpr", part))]
    return equations


@pytest.mark.parametrize("kernels", ["plain", "cpu"])
def test_scan_saves_block_inputs_and_convolution_results(kernels: Any) -> None:
    """And random bits; no normalized, rectified or masked copy, and no mask."""
    for fields, saved in (({"order": FullPreactivation}, 2), ({"branch": component(Basic, dropout=0.3)}, 4)):
        apply, params, stats = state_of(dataclasses.replace(SHORT, **fields), dataclasses.replace(SCAN, kernels=kernels))

        def loss(params: Any, apply: Any = apply, stats: Any = stats) -> Any:
            return apply(params, stats, jnp.zeros((2, 5, 4, 3)), train=True, key=jax.random.key(0))[0].sum()

        program = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
        forward, backward = [equation for equation in scans(program) if equation.params["length"] == 2]
        assert (forward.params["reverse"], backward.params["reverse"]) == (False, True)
        # The carry has no axis of blocks.
        shapes = [variable.aval.shape for variable in forward.outvars if variable.aval.ndim == 5]
        assert [shape[:4] for shape in shapes].count((2, 2, 5, 4)) == saved


def odd_layouts(kernels: Any, size: int) -> list[str]:
    """Convolutions of the compiled training step of 14 layers in scans whose layout is slow on CPU."""
    architecture = cifar_architecture(14, input_shape=(size, size, 3), features=(4, 5, 6))
    how = dataclasses.replace(SCAN, kernels=kernels)
    text = training_step(architecture, how).compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()
    lines = [line for line in text.splitlines() if re.search(r"= \S+ convolution\(", line) or 'custom_call_target="__onednn$conv' in line]
    assert len(lines) > 20

    def odd(line: str) -> bool:
        groups = re.search(r"(feature|batch)_group_count=(\d+)", line)
        labels = re.search(r"dim_labels=(\S+?)[,\s]", line + " ")
        return labels is None or labels[1] != "b01f_01io->b01f" or (groups is not None and groups[2] != "1")

    return [line for line in lines if odd(line)]


def test_scanned_cpu_training_step_has_fast_convolution_layouts() -> None:
    """XLA:CPU canonicalizes layouts outside of loops only. Autodiff leaves odd ones in the loop."""
    assert not odd_layouts("auto", 8)
    assert [line for line in odd_layouts("plain", 16) if "while/body" in line]


def test_kernels_reach_all_layers() -> None:
    """Convolutions of the stem, three per block with projections, as many normalizations; pooling; on GPU ReLU after additions."""

    def custom(kernels: Any) -> int:
        fields = dict(stages=(1, 1), shortcut=ProjectionEverywhere, stem=ImageNetStem, input_shape=(16, 16, 2))
        architecture = dataclasses.replace(LESIONED, **fields)
        execution = Execution(kernels=kernels, blocks="loop")
        apply, params, stats = jax.eval_shape(lambda key: architecture.init(key, execution=execution), jax.random.key(0))
        images = jax.ShapeDtypeStruct((2, 16, 16, 2), jnp.float32)
        return str(jax.make_jaxpr(lambda p, s, x: apply(p, s, x, train=True))(params, stats, images)).count("custom_vjp_call[")

    assert {kernels: custom(kernels) for kernels in ("plain", "gpu", "cpu", "auto")} == {"plain": 0, "gpu": 10, "cpu": 15, "auto": 15}


def test_compiler_options_are_those_of_the_platform_unless_the_user_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    options = quick_to_run()
    assert options
    assert [quick_to_run(platform) for platform in ("cpu", "tpu")] == [options, None]
    assert jax.jit(lambda x: x.sum(), compiler_options=options)(jnp.ones(3)) == 3  # this jaxlib knows them
    (graphs,) = (quick_to_run("gpu") or {"": "WHILE"}).values()  # None: XLA does not know all of them
    assert graphs.endswith("WHILE")
    monkeypatch.setenv("XLA_FLAGS", f"--{next(iter(options))}=reduce,individual_convolution")
    assert quick_to_run() is None
    monkeypatch.delenv("XLA_FLAGS")
    for unknown in (("xla_cpu_no_such_option", "1"), ("xla_gpu_enable_command_buffer", "NO_SUCH_COMMAND")):
        monkeypatch.setitem(kernels._OPTIONS, "cpu", unknown)
        assert quick_to_run() is None


@pytest.mark.parametrize("blocks", HOW)
def test_remat_recomputes_the_blocks(blocks: str) -> None:
    def checkpoints(how: Execution) -> int:
        apply, params, stats = state_of(SHORT, how)
        text = str(jax.make_jaxpr(lambda p: apply(p, stats, jnp.ones((1, 5, 4, 3)), train=True)[0])(params))
        return text.count("policy=None")

    again = checkpoints(dataclasses.replace(HOW[blocks], remat=True))
    assert (checkpoints(HOW[blocks]), again) == (0, 3 if blocks == "loop" else 2)


def test_every_block_of_a_stack_has_its_own_initial_values() -> None:
    initialize = jax.jit(lambda key: LESIONED.init(key)[1], compiler_options=quick_to_compile())
    first, again, other = (initialize(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, again, first)
    stacked = [leaf for params in (first, other) for leaf in jax.tree.leaves(params["stages"]) if leaf.ndim == 5]
    kernels = [np.asarray(kernel).tobytes() for leaf in stacked for kernel in leaf]
    assert len(set(kernels)) == len(kernels) == 2 * 2 * BLOCKS


def test_auto_scans_on_cpu_and_elsewhere_above_100_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = Execution()
    assert auto.scans(1)  # the tests run on CPU
    for backend in ("gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert [auto.scans(num_blocks) for num_blocks in (9, 100, 101, 600)] == [False, False, True, True]
        assert (SCAN.scans(1), LOOP.scans(600)) == (True, False)


def test_invalid_execution_is_rejected() -> None:
    for field, value in {"blocks": "lop", "kernels": "lop", "steps_per_dispatch": -1, "images_per_device": -1}.items():
        with pytest.raises((UserError, TypeError), match=field):  # TypeError: of checked annotations
            Execution(**{field: value})
