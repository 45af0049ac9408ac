"""Responses of layers and residual branches: He et al. 2015, Section 4.2 and Figure 7."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from resnet_jax.analysis import subjects
from resnet_jax.analysis.subjects import Columns, Network
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.models import Execution, StochasticDepth, activations, components, norms
from resnet_jax.models.orders import Norm, Order
from resnet_jax.models.resnet import Variables
from resnet_jax.terminal import Table
from resnet_jax.training.run_dir import Record
from resnet_jax.weights import loading
from resnet_jax.weights.loading import Pretrained

EXECUTION = Execution(blocks="loop", kernels="plain")


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Options):
    """Responses of 3x3 layers (He et al. 2015, Figure 7); strength and gradient of blocks."""

    steps: tuple[int, ...] = ()
    """Kept checkpoints to compare, 0: initialization; with statistics of the analyzed images."""


def run(options: Options) -> subjects.Outcome:
    return subjects.analyze(
        options,
        measure,
        draw,
        tabulate_blocks,
        title="Responses of layers",
        heading="standard deviation of the responses of 3x3 layers",
        caption="Standard deviation of the responses of 3x3 layers, after BN and before the "
        "nonlinearity, in the order of the layers and sorted by magnitude. After He et al. 2015, "
        "Figure 7.",
        steps=options.steps,
    )


class Responses(NamedTuple):
    """Responses of a network in inference mode."""

    layers: tuple[str, ...]
    """Names as in ``models.activations``."""
    deviation: Float[np.ndarray, "layers"]
    """Standard deviation over images, pixels and channels."""
    ratio: Float[np.ndarray, "blocks"]
    """Norm of the branch over the norm of the block's input; mean over images."""
    cosine: Float[np.ndarray, "blocks"]
    """Cosine between branch and shortcut, mean over images; NaN without one or an addition."""
    gradient: Float[np.ndarray, "blocks"]
    """Norm of the gradient by a block's parameters, of the first batch's mean training loss."""

    def summary(self) -> Record:
        deviation = self.deviation
        return {
            "layers": len(deviation),
            "mean": deviation.mean(),
            "median": np.median(deviation),
            "minimum": deviation.min(),
            "maximum": deviation.max(),
        }

    def columns(self) -> Columns:
        return {"layer": self.layers, "standard deviation": self.deviation}


def with_batch_statistics(weights: Pretrained, examples: Examples) -> Pretrained:
    """Replaces the running BatchNorm statistics by those of the images, as one batch."""
    architecture = dataclasses.replace(weights.architecture, stochastic_depth=StochasticDepth())
    apply, *_ = loading.abstract(architecture, Execution())
    network = subjects.network(weights)._replace(apply=apply)
    return dataclasses.replace(weights, batch_stats=_statistics(network, examples.images))


@jax.jit
def _statistics(network: Network, images: Array) -> Variables:
    variables = network.params, network.batch_stats
    model: Any = nnx.merge(network.apply.graphdef, *variables, copy=True)
    norms.set_momentum_aside(model)
    model(network.constants(images), True, key=jax.random.key(0))
    return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def measure(weights: Pretrained, examples: Examples, options: Options = Options()) -> Responses:
    """Measures "the outputs of each 3x3 layer, after BN and before other nonlinearity".

    Without a normalization the output of the convolution counts.
    """
    if options.steps:
        weights = with_batch_statistics(weights, examples)
    names, network = layers(weights), subjects.network(weights, EXECUTION)
    if not names:
        raise UserError(f"{weights.card.source} has no 3x3 convolution.")
    batches = subjects.batches(examples, options.batch_size)
    mean, square, ratio, cosine = subjects.mean(
        _responses(network, images, names=names) for images, _ in batches
    )
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    gradient = np.asarray(_gradient(network, *batches[0]))
    return Responses(names, deviation, ratio, cosine, gradient)


def layers(weights: Pretrained) -> tuple[str, ...]:
    """Returns the activations with the responses of 3x3 convolutions of stem and branches."""
    model: Any = weights.build()
    order: type[Order] = components.parts(weights.architecture.order)[0]
    names = []
    if getattr(getattr(model.stem, "conv", None), "kernel_size", ()) == (3, 3):
        names.append("stem/after/layers/0" if order.after_stem[:1] == (Norm,) else "stem/conv")
    stacks = (stack for stage in model.stages for stack in stage)
    blocks = (stack.stacked for stack in stacks for _ in range(stack.count))
    for number, block in enumerate(blocks):
        convs = getattr(block.branch, "convs", ())
        following = [order.after_convolution + order.before_convolution] * len(convs)
        following[-1:] = [order.after_last_convolution]
        for index, (conv, after) in enumerate(zip(convs, following, strict=True)):
            if conv.kernel_size == (3, 3):
                place = f"after/{index}/layers/0" if after[:1] == (Norm,) else f"convs/{index}"
                names.append(f"block{number}/branch/{place}")
    return tuple(names)


def forward(
    network: Network, images: Float[Array, "n h w c"], names: Sequence[str] = ()
) -> tuple[list[Array], list[list[Array]]]:
    """Returns named activations, and (branch, merged branch, input) of each block, in float32."""
    parts = "/branch", "/shortcut", activations.INPUT
    _, taps = activations.of(*network[:3], images, (*names, *(f"block*{part}" for part in parts)))
    taps = {name: value.astype(jnp.float32) for name, value in taps.items()}
    blocks = []
    while f"block{len(blocks)}/branch" in taps:
        blocks.append([taps[f"block{len(blocks)}{part}"] for part in parts])
    return [taps[name] for name in names], blocks


def norm(x: Float[Array, "n h w c"]) -> Float[Array, "n"]:
    """Returns the L2 norm of each image or activation."""
    return jnp.sqrt(jnp.square(x).sum((1, 2, 3)))


@functools.partial(jax.jit, static_argnames="names")
def _responses(
    network: Network, images: Array, names: tuple[str, ...]
) -> tuple[Float[Array, "_ n"], ...]:
    """Returns mean and mean square per layer, ratio and cosine per block, for every image."""
    taps, blocks = forward(network, network.constants(images), names)
    means = (jnp.stack([(x**power).mean((1, 2, 3)) for x in taps]) for power in (1, 2))
    ratios, cosines = [], []
    for branch, merged, x in blocks:
        shortcut = merged - branch if merged.shape == branch.shape else jnp.zeros_like(branch)
        ratios.append(norm(branch) / norm(x))
        cosines.append((branch * shortcut).sum((1, 2, 3)) / (norm(branch) * norm(shortcut)))
    return *means, jnp.stack(ratios), jnp.stack(cosines)


@jax.jit
def _gradient(network: Network, images: Array, labels: Array) -> Float[Array, "blocks"]:
    apply, params, batch_stats, constants = network

    def loss(params: Variables) -> Array:
        key = jax.random.key(0)
        logits, _ = apply(params, batch_stats, constants(images), train=True, key=key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    stages = jax.grad(loss)(params)["stages"]
    # The first axis of every leaf of a stack is its blocks.
    stacks = [jax.tree.leaves(stack) for stage in stages.values() for stack in stage.values()]
    flat = (jnp.concatenate([x.reshape(len(x), -1) for x in stack], axis=1) for stack in stacks)
    return jnp.concatenate([jnp.linalg.norm(stack, axis=1) for stack in flat])


def tabulate_blocks(name: str, result: Responses) -> Table:
    columns = ("block", "branch over input", "cosine with the shortcut", "gradient")
    values = zip(result.ratio, result.cosine, result.gradient, strict=True)
    rows = tuple((str(block), *numbers) for block, numbers in enumerate(values))
    return Table(f"{name}, per block", columns, rows)


def draw(results: Mapping[str, Responses]) -> Figure:
    """Draws Figure 7 of He et al. 2015."""
    labels = ["layer", "layer, sorted by magnitude"], ["standard deviation of the response"]
    figure, (ordered, by_size) = subjects.panels(*labels, sharey=True)
    for (name, result), style in subjects.styled(results.items()):
        layers = np.arange(1, len(result.deviation) + 1)
        ordered.plot(layers, result.deviation, **style)
        by_size.plot(layers, np.sort(result.deviation)[::-1], label=name, **style)
    ordered.set_ylim(bottom=0)
    by_size.legend()
    return figure
