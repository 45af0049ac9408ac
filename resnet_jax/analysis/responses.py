"""Responses of layers and residual branches: He et al. 2015, Section 4.2 and Figure 7."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from resnet_jax.analysis import plots, subjects
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.models import Apply, Execution, activations
from resnet_jax.models.orders import Norm
from resnet_jax.studies.findings import Finding, Table
from resnet_jax.weights.loading import Pretrained


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Options):
    """Standard deviation of the responses of 3x3 layers (He et al. 2015, Figure 7); strength and gradient of blocks."""

    steps: tuple[int, ...] = ()
    """Checkpoints to compare, with the statistics of the analyzed images: 0 (initialization) and steps that the run kept
    (--checkpointing.keep-every K). Default: the newest step, running statistics."""


def run(options: Options, arguments: Sequence[str]) -> None:
    """Runs ``resnet-jax analyze responses``."""
    if any(step < 0 for step in options.steps):
        raise UserError(f"--steps must be 0 or more, got {list(options.steps)}.")
    results, images = {}, 0
    for name, source in zip(subjects.short_names(options.sources), options.sources, strict=True):
        for step in options.steps or (None,):
            weights, examples = subjects.load(source, options, step)
            label, images = name, len(examples)
            if step is not None:
                weights, label = (
                    subjects.with_batch_statistics(weights, examples),
                    f"{name}, step {step}",
                )
            results[label] = measure(weights, examples, batch_size=options.batch_size)
    subjects.show(
        describe(results, images), lambda: draw(results), options, options.sources, arguments
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
    """Cosine between branch and shortcut, mean over images; NaN without a shortcut or an addition."""
    gradient: Float[np.ndarray, "blocks"]
    """Norm of the gradient of the first batch's mean loss, in training mode, by the block's parameters."""


def measure(weights: Pretrained, examples: Examples, *, batch_size: int = 200) -> Responses:
    """Measures the responses of a network.

    "The responses are the outputs of each 3x3 layer, after BN and before other nonlinearity (ReLU/addition)" (Section
    4.2). Without a normalization the output of the convolution counts.
    """
    variables, constants = subjects.inputs(weights, examples)
    apply = weights.apply(Execution(blocks="loop", kernels="plain"))
    names = layers(weights)
    if not names:
        raise UserError(
            f"{weights.card.source} has no 3x3 convolution, whose responses Figure 7 shows."
        )
    blocks, sums = sum(weights.architecture.stages), []
    for start in range(0, len(examples), batch_size):
        images = examples.images[start : start + batch_size]
        sums.append(
            jax.device_get(
                _sums(variables, constants, images, apply=apply, names=names, blocks=blocks)
            )
        )
    values, squares, sizes, ratio, cosine = (
        np.sum([np.float64(batch[i]) for batch in sums], 0) for i in range(5)
    )
    mean, count = values / sizes, len(examples)
    gradient = _gradient(
        variables,
        constants,
        examples.images[:batch_size],
        examples.labels[:batch_size],
        apply=apply,
    )
    return Responses(
        names,
        np.sqrt(np.maximum(squares / sizes - mean**2, 0)),
        ratio / count,
        cosine / count,
        _by_block(jax.device_get(gradient)),
    )


def layers(weights: Pretrained) -> tuple[str, ...]:
    """Returns the activations that hold the responses of the 3x3 convolutions of stem and branches."""
    order, names = weights.architecture.order, []
    model: Any = weights.build()
    if getattr(model.stem, "conv", None) is not None and model.stem.conv.kernel_size == (3, 3):
        names.append("stem/after/layers/0" if order.after_stem[:1] == (Norm,) else "stem/conv")
    blocks = (
        stack.stacked for stacks in model.stages for stack in stacks for _ in range(stack.count)
    )
    for number, block in enumerate(blocks):
        convs = getattr(block.branch, "convs", ())
        for index, conv in enumerate(convs):
            last = index == len(convs) - 1
            after = (
                order.after_last_convolution
                if last
                else order.after_convolution + order.before_convolution
            )
            if conv.kernel_size == (3, 3):
                place = f"after/{index}/layers/0" if after[:1] == (Norm,) else f"convs/{index}"
                names.append(f"block{number}/branch/{place}")
    return tuple(names)


@functools.partial(jax.jit, static_argnames=("apply", "names", "blocks"))
def _sums(
    variables: tuple[Any, Any],
    constants: Preprocessing,
    images: Array,
    *,
    apply: Apply,
    names: tuple[str, ...],
    blocks: int,
) -> Any:
    patterns = (*names, *(f"block*{part}" for part in ("/branch", "/shortcut", activations.INPUT)))
    _, taps = activations.of(apply, *variables, constants(images), patterns)
    wide = {name: value.astype(jnp.float32) for name, value in taps.items()}
    values, squares = (
        jnp.stack([(wide[name] ** power).sum() for name in names]) for power in (1, 2)
    )
    ratios, cosines = [], []
    for block in range(blocks):
        branch, merged, x = (
            wide[f"block{block}{part}"] for part in ("/branch", "/shortcut", activations.INPUT)
        )
        ratios.append((norm(branch) / norm(x)).sum())
        shortcut = merged - branch if merged.shape == branch.shape else jnp.zeros_like(branch)
        dot = (branch * shortcut).sum((1, 2, 3))
        cosines.append((dot / (norm(branch) * norm(shortcut))).sum())
    return (
        values,
        squares,
        jnp.asarray([wide[name].size for name in names]),
        jnp.stack(ratios),
        jnp.stack(cosines),
    )


@functools.partial(jax.jit, static_argnames=("apply",))
def _gradient(
    variables: tuple[Any, Any],
    constants: Preprocessing,
    images: Array,
    labels: Array,
    *,
    apply: Apply,
) -> Any:
    def loss(params: Any) -> Array:
        logits, _ = apply(
            params, variables[1], constants(images), train=True, key=jax.random.key(0)
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.grad(loss)(variables[0])["stages"]


def _by_block(gradient: Any) -> Float[np.ndarray, "blocks"]:
    """Norms from gradients by stage and stack, whose blocks are the first axis."""
    squares = [
        sum(
            np.square(np.float64(leaf)).reshape(len(leaf), -1).sum(1)
            for leaf in jax.tree.leaves(stack)
        )
        for stacks in gradient.values()
        for stack in stacks.values()
    ]
    return np.sqrt(np.concatenate(squares))


def norm(x: Float[Array, "n h w c"]) -> Float[Array, "n"]:
    """Returns the L2 norm of each image or activation."""
    return jnp.sqrt(jnp.square(x).sum((1, 2, 3)))


def describe(results: Mapping[str, Responses], images: int) -> Finding:
    """Returns tables and numbers."""
    summary = [
        (
            name,
            images,
            len(result.layers),
            *(float(f(result.deviation)) for f in (np.mean, np.median, np.min, np.max)),
        )
        for name, result in results.items()
    ]
    headings = ("network", "images", "layers", "mean", "median", "minimum", "maximum")
    blocks = [
        Table(
            f"{name}, per block",
            ("block", "branch over input", "cosine with the shortcut", "gradient"),
            tuple(
                (str(i), *map(float, row))
                for i, row in enumerate(
                    zip(result.ratio, result.cosine, result.gradient, strict=True)
                )
            ),
        )
        for name, result in results.items()
    ]
    return Finding(
        name="responses",
        title="Responses of layers",
        caption="Standard deviation of the responses of 3x3 layers, after BN and before the nonlinearity, in the order of the layers "
        f"and sorted by magnitude; {images:,} images. After He et al. 2015, Figure 7.",
        tables=(
            Table("standard deviation of the responses of 3x3 layers", headings, tuple(summary)),
            *blocks,
        ),
        rows=[
            {"network": name, "layer": layer, "standard deviation": value}
            for name, result in results.items()
            for layer, value in zip(result.layers, result.deviation.tolist(), strict=True)
        ],
    )


def draw(results: Mapping[str, Responses]) -> Figure:
    """Draws Figure 7 of He et al. 2015."""
    figure, panels = plots.panels("layer", "layer, sorted by magnitude", sharey=True)
    for name, result, style in plots.styled(results):
        for panel, values in zip(
            panels, (result.deviation, np.sort(result.deviation)[::-1]), strict=True
        ):
            panel.plot(np.arange(1, len(values) + 1), values, label=name, **style)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("standard deviation of the response")
    panels[1].legend(frameon=False)
    return figure
