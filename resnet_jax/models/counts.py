"""Parameters, multiply-adds and projections of a network from its trace."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from resnet_jax.models.resnet import Architecture, Execution, Stack


@dataclass(frozen=True, kw_only=True)
class StageCounts:
    """Counts of the stem, a stage or the head."""

    name: str
    num_blocks: int
    output_shape: tuple[int, ...]
    """Height, width, features; of the head, classes."""
    parameters: int
    multiply_adds: int
    projections: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of a network for one image."""

    parameters: int
    """Trainable values."""
    multiply_adds: int
    """Of convolutions and matrix products in the forward pass: the papers' FLOPs."""
    projections: int
    """Shortcuts that own a convolution."""
    stages: tuple[StageCounts, ...]


def count(architecture: Architecture) -> Counts:
    """Counts a network at its ``input_shape``."""
    # Scanned blocks are traced once whatever the depth.
    execution = Execution(blocks="scan", kernels="plain")
    model = nnx.eval_shape(lambda: architecture.build(rngs=nnx.Rngs(0), execution=execution))
    graphdef, state = nnx.split(model)

    def forward(state: Any, images: Any) -> Any:
        model = nnx.merge(graphdef, state)
        maps = model.features(images)
        with jax.named_scope("head"):
            return maps | {"head": model.head(maps[f"stage{len(model.stages)}"])}

    images = jax.ShapeDtypeStruct((1, *architecture.input_shape), jnp.uint8)
    traced, maps = jax.make_jaxpr(forward, return_shape=True)(state, images)
    multiply_adds: Counter[str] = Counter()
    _add(traced.jaxpr, "", 1, multiply_adds)
    stages = zip(model.transitions, model.stages, strict=True)
    sections = [
        [model.stem],
        *([transition, *stacks] for transition, stacks in stages),
        [model.head],
    ]
    rows = []
    for name, modules in zip([*model.widths, "head"], sections, strict=True):
        stacks = [module for module in modules if isinstance(module, Stack)]
        params = jax.tree.leaves([nnx.state(module, nnx.Param) for module in modules])
        rows.append(
            StageCounts(
                name=name,
                num_blocks=sum(stack.count for stack in stacks),
                output_shape=maps[name].shape[1:],
                parameters=sum(math.prod(leaf.shape) for leaf in params),
                multiply_adds=multiply_adds.pop(name, 0),
                projections=sum(stack.count for stack in stacks if _projects(stack)),
            )
        )
    assert not multiply_adds
    fields = ("parameters", "multiply_adds", "projections")
    totals = {field: sum(getattr(row, field) for row in rows) for field in fields}
    return Counts(**totals, stages=tuple(rows))


def _projects(stack: Stack) -> bool:
    # A gate's convolution does not project x.
    modules = nnx.iter_modules(stack.stacked.shortcut)
    return any(isinstance(module, nnx.Conv) and "gate" not in path for path, module in modules)


def _add(jaxpr: core.Jaxpr, scope: str, times: int, totals: Counter[str]) -> None:
    for equation in jaxpr.eqns:
        # The name stack of a loop's body lacks the outer scopes.
        section = scope or str(equation.source_info.name_stack).split("/")[0]
        primitive, parameters = equation.primitive.name, equation.params
        variables = (*equation.outvars[:1], *equation.invars)
        shapes: list[tuple[int, ...]] = [
            getattr(variable.aval, "shape", ()) for variable in variables
        ]
        if primitive == "conv_general_dilated":  # HWIO, I per group
            totals[section] += times * math.prod(shapes[0]) * math.prod(shapes[2][:3])
        elif primitive == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            terms = math.prod(shapes[1][axis] for axis in contracted)
            totals[section] += times * math.prod(shapes[0]) * terms
        length = parameters["length"] if primitive == "scan" else 1
        for inner in jax.tree.leaves(list(parameters.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                _add(getattr(inner, "jaxpr", inner), section, times * length, totals)


def _is_jaxpr(value: object) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
