"""Parameters, multiply-adds and projections of a network, from its traced program; nothing is computed or allocated."""

import math
from collections import Counter
from collections.abc import Iterator
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
    """One row of the table of ``summary``."""

    name: str
    units: int
    """Residual units."""
    output_shape: tuple[int, ...]
    """Height, width, features; of the head, classes."""
    parameters: int
    multiply_adds: int
    projections: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a network costs for one image."""

    parameters: int
    """Trainable values; running statistics are not among them."""
    multiply_adds: int
    """Of convolutions and matrix products, forward, one image: the papers' "FLOPs"."""
    projections: int
    """Shortcuts that own a convolution."""
    stages: tuple[StageCounts, ...]


def count(architecture: Architecture) -> Counts:
    """Counts a network at its ``input_shape``."""
    # Scanned units are traced once whatever the depth.
    execution = Execution(blocks="scan", convolution="plain")
    model = nnx.merge(*jax.eval_shape(lambda: nnx.split(architecture.build(rngs=nnx.Rngs(0), execution=execution))))
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, *architecture.input_shape), jnp.uint8)

    def both(state: Any, images: Any) -> Any:
        maps = (model := nnx.merge(graphdef, state)).features(images)
        with jax.named_scope("head"):
            return maps, model.head(maps[f"stage{len(model.stages)}"])

    traced = jax.make_jaxpr(both, return_shape=True)(state, images)
    multiply_adds: Counter[str] = Counter()
    _walk(traced[0].jaxpr, "", 1, multiply_adds)

    shapes = {name: tuple(x.shape[1:]) for name, x in traced[1][0].items()} | {"head": (architecture.num_classes,)}
    sections: dict[str, tuple[nnx.Module, ...]] = {"stem": (model.stem,), "head": (model.head,)}
    for index, (transition, stacks) in enumerate(zip(model.transitions, model.stages, strict=True)):
        sections[f"stage{index + 1}"] = (transition, *stacks)
    rows = tuple(
        StageCounts(
            name=name,
            units=sum(part.count for part in sections[name] if isinstance(part, Stack)),
            output_shape=shapes[name],
            parameters=sum(map(_parameters, sections[name])),
            multiply_adds=multiply_adds[name],
            projections=sum(part.count for part in sections[name] if isinstance(part, Stack) and _projects(part)),
        )
        for name in ("stem", *(f"stage{i + 1}" for i in range(len(model.stages))), "head")
    )
    assert sum(row.multiply_adds for row in rows) == sum(multiply_adds.values()), multiply_adds
    return Counts(
        parameters=sum(row.parameters for row in rows),
        multiply_adds=sum(row.multiply_adds for row in rows),
        projections=sum(row.projections for row in rows),
        stages=rows,
    )


def _parameters(module: nnx.Module) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def _projects(stack: Stack) -> bool:
    # A gate's convolution weighs what travels on the shortcut, it does not project it.
    modules = nnx.iter_modules(stack.stacked.shortcut)
    return any(isinstance(module, nnx.Conv) and "gate" not in path for path, module in modules)


def _walk(jaxpr: core.Jaxpr, scope: str, times: int, totals: "Counter[str]") -> None:
    for equation in jaxpr.eqns:
        # Inside a loop's body the name stack starts anew: the section is the outermost scope that was seen.
        section = scope or str(equation.source_info.name_stack).split("/")[0]
        output: Any = equation.outvars[0].aval
        inputs: list[Any] = [variable.aval for variable in equation.invars]
        if equation.primitive.name == "conv_general_dilated":
            kernel = inputs[1].shape  # HWIO, I per group
            totals[section] += times * math.prod(output.shape) * math.prod(kernel[:3])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            size = math.prod(inputs[0].shape[axis] for axis in contracted)
            totals[section] += times * math.prod(output.shape) * size
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in _subprograms(equation.params):
            _walk(inner, section, times * length, totals)


def _subprograms(parameters: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
