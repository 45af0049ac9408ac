"""The convolutions of a network one by one: forward, and both gradients in both forms, beside torch's."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.bench import rounds
from resnet_jax.bench.peers import torch_networks
from resnet_jax.models import Architecture, Execution, convolution
from resnet_jax.models.execution import quick_to_run
from resnet_jax.plan import arithmetic


@dataclass(frozen=True)
class Layer:
    """A convolution, NHWC and HWIO."""

    images: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int

    def __str__(self) -> str:
        (_, height, width, come), (tall, wide, _, go) = self.images, self.kernel
        rest = f"/{self.strides[0]}" * (self.strides != (1, 1)) + f", {self.groups} groups" * (self.groups > 1)
        return f"{tall}x{wide}{rest}, {come} to {go}, on {height}x{width}"


def of(network: Architecture, batch_size: int) -> Counter[Layer]:
    """The convolutions that a forward pass traces, and how often; those of units that a scan runs count for each."""
    apply, params, stats = jax.eval_shape(functools.partial(network.init, execution=Execution(blocks="loop", convolution="plain")), _key())
    images = jax.ShapeDtypeStruct((batch_size, *network.input_shape), jnp.dtype(network.dtype))
    traced = jax.make_jaxpr(lambda *given: apply(*given, train=False)[0])(params, stats, images)
    return Counter(_found(traced.jaxpr))


def measure(network: Architecture, batch_size: int, count: int) -> Iterator[dict[str, Any]]:
    """Yields a row for each of them, of ``count`` interleaved rounds: the median seconds of ``forward``, of the gradients of the images
    (``images``) and of the kernel (``kernel``), the latter under XLA's own (``kernel_plain``) as well, and torch's where it is installed
    (``torch_forward``, ``torch_images``, ``torch_kernel``). ``times`` says how often the network has it.
    """
    for layer, times in of(network, batch_size).items():
        contestants = _ours(layer, network.dtype) | (_torch(layer, network.dtype) if torch_networks.installed() else {})
        spent = rounds.interleaved(list(contestants.values()), count)
        named = {name: rounds.spread(each)["seconds"] for name, each in zip(contestants, spent, strict=True)}
        yield {"layer": str(layer), "times": times, "batch_size": batch_size, "dtype": network.dtype, "rounds": count} | named


def _ours(layer: Layer, dtype: str) -> dict[str, Callable[[], Any]]:
    form = convolution.form_of("auto", convolution.WRITTEN_FOR)
    images, kernel = (jax.random.normal(_key(), shape, dtype) for shape in (layer.images, layer.kernel))

    def convolve(by: str, images: Any, kernel: Any) -> Any:
        options: Any = {"rhs_dilation": layer.dilation, "feature_group_count": layer.groups, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        return getattr(convolution, by)(images, kernel, layer.strides, layer.padding, **options)

    cotangent = jnp.ones(jax.eval_shape(functools.partial(convolve, form), images, kernel).shape, dtype)

    def slope(by: str, of: int, images: Any, kernel: Any, cotangent: Any) -> Any:
        return jax.vjp(functools.partial(convolve, by), images, kernel)[1](cotangent)[of]

    def ready(function: Callable[..., Any], *given: Any) -> Callable[[], Any]:
        compiled = jax.jit(function, compiler_options=quick_to_run())
        return lambda: jax.block_until_ready(compiled(*given))

    found = {"forward": ready(functools.partial(convolve, form), images, kernel)}
    for name, by, of in (("images", form, 0), ("kernel", form, 1), ("kernel_plain", "plain", 1)):
        found[name] = ready(functools.partial(slope, by, of), images, kernel, cotangent)
    return found


def _torch(layer: Layer, dtype: str) -> dict[str, Callable[[], Any]]:
    import torch  # pyright: ignore[reportMissingImports]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    (number, height, width, come), (tall, wide, inner, go) = layer.images, layer.kernel
    made = functools.partial(torch.randn, device=device, dtype=getattr(torch, dtype))
    images, kernel = made(number, come, height, width), made(go, inner, tall, wide)
    # What XLA pads unevenly, torch cannot: none of ours.
    padding = [low for low, _ in layer.padding]
    given = (list(layer.strides), padding, list(layer.dilation))
    cotangent = torch.ones_like(torch.nn.functional.conv2d(images, kernel, None, *given, layer.groups))

    def ready(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            with torch.inference_mode():
                function()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    def slope(of: int) -> Any:
        wanted = [each == of for each in range(3)]
        return torch.ops.aten.convolution_backward(cotangent, images, kernel, None, *given, False, [0, 0], layer.groups, wanted)

    forward = functools.partial(torch.nn.functional.conv2d, images, kernel, None, *given, layer.groups)
    return {"torch_forward": ready(forward), "torch_images": ready(lambda: slope(0)), "torch_kernel": ready(lambda: slope(1))}


def _found(jaxpr: Any) -> Iterator[Layer]:
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "conv_general_dilated":
            images, kernel = (tuple(variable.aval.shape) for variable in equation.invars)
            yield Layer(
                images, kernel, params["window_strides"], tuple(params["padding"]), params["rhs_dilation"], params["feature_group_count"]
            )
        for each in arithmetic.inside(params):
            yield from _found(getattr(each, "jaxpr", each))


def _key() -> Any:
    return jax.random.key(0)
