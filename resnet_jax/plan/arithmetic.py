"""FLOPs of a traced program: two for every multiply-add of its convolutions and matrix products, and nothing else.

They are counted before compilation, so they do not depend on the machine, and loops count as often as they run. Products with padding and
with the holes of a dilated operand are no FLOPs: the gradients of a strided convolution cost what the convolution costs.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core


def flops(jaxpr: Any) -> int:
    """Of a (closed) jaxpr over all devices together. Of a conditional the costliest branch; of a loop whose end is data one pass."""
    found = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        kind, params = equation.primitive.name, equation.params
        if kind == "conv_general_dilated":
            found += 2 * _convolution(equation)
        elif kind == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            found += 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif kind == "cond":
            found += max(flops(branch) for branch in params["branches"])
        else:
            inner = sum(flops(each) for each in inside(params))
            if kind == "scan":
                inner *= params["length"]
            elif kind == "shard_map":
                # Inside, shapes are those of a device's part.
                inner *= math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
            found += inner
    return found


def inside(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation with these parameters runs."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.Jaxpr | core.ClosedJaxpr):
                yield each


def _convolution(equation: Any) -> int:
    """Multiply-adds that meet a value of the input."""
    params = equation.params
    numbers = params["dimension_numbers"]
    given, kernel, made = (variable.aval.shape for variable in (*equation.invars, *equation.outvars))
    pairs = 1
    for axis in range(len(params["window_strides"])):
        pairs *= meetings(
            given[numbers.lhs_spec[2 + axis]],
            kernel[numbers.rhs_spec[2 + axis]],
            made[numbers.out_spec[2 + axis]],
            stride=params["window_strides"][axis],
            before=params["padding"][axis][0],
            holes=params["lhs_dilation"][axis],
            dilation=params["rhs_dilation"][axis],
        )
    out_features, per_group = kernel[numbers.rhs_spec[0]], kernel[numbers.rhs_spec[1]]
    return given[numbers.lhs_spec[0]] // params["batch_group_count"] * out_features * per_group * pairs


def meetings(size: int, taps: int, out: int, *, stride: int = 1, before: int = 0, holes: int = 1, dilation: int = 1) -> int:
    """Pairs of an output position and a tap of the kernel, along one axis, at which there is a value of the input.

    Args:
      size, taps, out: lengths of input, kernel and output.
      stride: of the window.
      before: padding in front.
      holes: the input's dilation.
      dilation: the kernel's.
    """
    reach = (size - 1) * holes
    places = (at * stride + tap * dilation - before for at in range(out) for tap in range(taps))
    return sum(0 <= place <= reach and place % holes == 0 for place in places)
