"""Parameters, multiply-adds and projections of a network from its trace; nothing is computed or allocated."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from resnet_jax.models.architecture import Architecture
from resnet_jax.models.execution import Execution, Stack


@dataclass(frozen=True, kw_only=True)
class StageCounts:
    """Counts of the stem, a stage or the head."""

    name: str
    num_blocks: int
    """Residual blocks."""
    output_shape: tuple[int, ...]
    """Height, width, features; of the head, classes."""
    parameters: int
    multiply_adds: int
    projections: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of a network for one image."""

    parameters: int
    """Trainable values, without running statistics."""
    multiply_adds: int
    """Multiply-adds of convolutions and matrix products in the forward pass: the papers' "FLOPs"."""
    projections: int
    """Shortcuts that own a convolution."""
    stages: tuple[StageCounts, ...]


def count(architecture: Architecture) -> Counts:
    """Counts a network at its ``input_shape``."""
    # Scanned blocks are traced once whatever the depth.
    execution = Execution(blocks="scan", kernels="plain")
    graphdef, state = jax.eval_shape(
        lambda: nnx.split(architecture.build(rngs=nnx.Rngs(0), execution=execution))
    )
    model = nnx.merge(graphdef, state)

    def forward(state: Any, images: Any) -> Any:
        model = nnx.merge(graphdef, state)
        maps = model.features(images)
        with jax.named_scope("head"):
            return maps, model.head(maps[f"stage{len(model.stages)}"])

    images = jax.ShapeDtypeStruct((1, *architecture.input_shape), jnp.uint8)
    traced, (maps, _) = jax.make_jaxpr(forward, return_shape=True)(state, images)
    multiply_adds: Counter[str] = Counter()
    _walk(traced.jaxpr, "", 1, multiply_adds)
    shapes = {name: tuple(x.shape[1:]) for name, x in maps.items()} | {
        "head": (architecture.num_classes,)
    }
    sections: dict[str, tuple[Any, ...]] = {"stem": (model.stem,)}
    for index, (transition, stacks) in enumerate(zip(model.transitions, model.stages, strict=True)):
        sections[f"stage{index + 1}"] = (transition, *stacks)
    sections["head"] = (model.head,)
    rows = []
    for name, parts in sections.items():
        stacks = [part for part in parts if isinstance(part, Stack)]
        rows.append(
            StageCounts(
                name=name,
                num_blocks=sum(stack.count for stack in stacks),
                output_shape=shapes[name],
                parameters=sum(
                    math.prod(leaf.shape)
                    for part in parts
                    for leaf in jax.tree.leaves(nnx.state(part, nnx.Param))
                ),
                multiply_adds=multiply_adds[name],
                projections=sum(stack.count for stack in stacks if _projects(stack)),
            )
        )
    totals = {
        name: sum(getattr(row, name) for row in rows)
        for name in ("parameters", "multiply_adds", "projections")
    }
    assert totals["multiply_adds"] == sum(multiply_adds.values()), multiply_adds
    return Counts(**totals, stages=tuple(rows))


def _projects(stack: Stack) -> bool:
    # A gate's convolution does not project x.
    return any(
        isinstance(module, nnx.Conv) and "gate" not in path
        for path, module in nnx.iter_modules(stack.stacked.shortcut)
    )


def _walk(jaxpr: core.Jaxpr, scope: str, times: int, totals: Counter[str]) -> None:
    for equation in jaxpr.eqns:
        # A loop's body has a name stack of its own: the section is the outermost scope.
        section = scope or str(equation.source_info.name_stack).split("/")[0]
        shapes: list[Any] = [
            getattr(variable.aval, "shape", ())
            for variable in (equation.outvars[0], *equation.invars)
        ]
        if equation.primitive.name == "conv_general_dilated":
            totals[section] += (
                times * math.prod(shapes[0]) * math.prod(shapes[2][:3])
            )  # HWIO, I per group
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            totals[section] += (
                times * math.prod(shapes[0]) * math.prod(shapes[1][axis] for axis in contracted)
            )
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                _walk(getattr(inner, "jaxpr", inner), section, times * length, totals)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
