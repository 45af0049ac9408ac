"""How strongly layers and branches answer: He et al. 2015, Section 4.2 and Figure 7, and the same of whole units."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.models import Apply, Execution, activations
from resnet_jax.models.orders import Norm
from resnet_jax.models.pretrained.loading import Pretrained


class Responses(NamedTuple):
    """Of a network on some images, in inference."""

    layers: tuple[str, ...]
    """Names, as of ``models.activations``, from the image to the classifier."""
    deviation: Float[np.ndarray, "layers"]
    """Standard deviation of each layer's response over images, pixels and channels."""
    ratio: Float[np.ndarray, "units"]
    """Length of a unit's branch over that of its input, both over all values of an image; mean over images."""
    cosine: Float[np.ndarray, "units"]
    """Between the branch and what travels beside it, mean over images; not a number where nothing does, or where it is not added."""
    gradient: Float[np.ndarray, "units"]
    """Length of the gradient of the mean loss of the first batch, in training mode, by a unit's parameters."""


def measure(weights: Pretrained, examples: Examples, *, batch_size: int = 200) -> Responses:
    """Measures a network's responses.

    "The responses are the outputs of each 3x3 layer, after BN and before other nonlinearity (ReLU/addition)" (Section 4.2). Where no
    normalisation follows a convolution, its own output counts.

    Args:
      weights: the network, and how its images are prepared.
      examples: uint8 images of the network's size, and their classes.
      batch_size: images at once.

    Raises:
      UserError: where there are no images, or the network has no 3x3 convolutions.
    """
    network = weights.architecture
    if not len(examples.labels):
        raise UserError("there are no images to measure responses on: give at least one")
    apply = weights.apply(Execution(blocks="loop", convolution="plain"))
    names = layers(weights)
    if not names:
        raise UserError(f"{weights.card.source} has no 3x3 convolution in its stem and branches, whose responses Figure 7 is about")
    variables, constants = (weights.params, weights.batch_stats), Preprocessing(*weights.card.constants())
    units, sums = sum(network.stages), []
    for start in range(0, len(examples.labels), batch_size):
        images = examples.images[start : start + batch_size]
        sums.append(jax.device_get(_sums(variables, constants, images, apply=apply, names=names, units=units)))
    values, squares, sizes, ratio, cosine = (np.sum([np.float64(each[i]) for each in sums], 0) for i in range(5))
    mean, count = values / sizes, len(examples.labels)
    slopes = _gradient(variables, constants, examples.images[:batch_size], examples.labels[:batch_size], apply=apply)
    return Responses(
        names, np.sqrt(np.maximum(squares / sizes - mean**2, 0)), ratio / count, cosine / count, _by_unit(jax.device_get(slopes))
    )


def layers(weights: Pretrained) -> tuple[str, ...]:
    """Where the responses of the 3x3 convolutions of the stem and of the branches are found."""
    order, model, found = weights.architecture.order, weights.build(), []
    stem: Any = model.stem
    if getattr(stem, "conv", None) is not None and stem.conv.kernel_size == (3, 3):
        found.append("stem/after/layers/0" if order.after_stem[:1] == (Norm,) else "stem/conv")
    units: list[Any] = [stack.stacked for stacks in model.stages for stack in stacks for _ in range(stack.count)]
    for number, unit in enumerate(units):
        convs = list(getattr(unit.branch, "convs", ()))
        for index, conv in enumerate(convs):
            last = index == len(convs) - 1
            after = order.after_last_convolution if last else order.after_convolution + order.before_convolution
            if conv.kernel_size == (3, 3):
                place = f"after/{index}/layers/0" if after[:1] == (Norm,) else f"convs/{index}"
                found.append(f"unit{number}/branch/{place}")
    return tuple(found)


@functools.partial(jax.jit, static_argnames=("apply", "names", "units"))
def _sums(variables: Any, constants: Preprocessing, images: Array, *, apply: Apply, names: tuple[str, ...], units: int) -> Any:
    looked_at = (*names, *(f"unit*{part}" for part in ("/branch", "/shortcut", activations.INPUT)))
    params, batch_stats = variables
    _, found = activations.of(apply, params, batch_stats, constants(images), looked_at)
    wide = {name: value.astype(jnp.float32) for name, value in found.items()}
    values, squares = (jnp.stack([(wide[name] ** power).sum() for name in names]) for power in (1, 2))
    ratios, cosines = [], []
    for unit in range(units):
        branch, merged, given = (wide[f"unit{unit}{part}"] for part in ("/branch", "/shortcut", activations.INPUT))
        ratios.append((length(branch) / length(given)).sum())
        beside = merged - branch if merged.shape == branch.shape else jnp.zeros_like(branch)
        along = (branch * beside).sum((1, 2, 3))
        cosines.append((along / (length(branch) * length(beside))).sum())
    return values, squares, jnp.asarray([wide[name].size for name in names]), jnp.stack(ratios), jnp.stack(cosines)


@functools.partial(jax.jit, static_argnames=("apply",))
def _gradient(variables: Any, constants: Preprocessing, images: Array, labels: Array, *, apply: Apply) -> Any:
    def loss(params: Any) -> Array:
        logits, _ = apply(params, variables[1], constants(images), train=True, key=jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.grad(loss)(variables[0])["stages"]


def _by_unit(slopes: Any) -> Float[np.ndarray, "units"]:
    """Lengths from gradients by stage and stack, whose arrays have the units of a stack along their first axis."""
    squares = [
        sum(np.square(np.float64(leaf)).reshape(len(leaf), -1).sum(1) for leaf in jax.tree.leaves(stack))
        for stacks in slopes.values()
        for stack in stacks.values()
    ]
    return np.sqrt(np.concatenate(squares))


def length(x: Float[Array, "n h w c"]) -> Float[Array, "n"]:
    """Of each image or activation, over all its values."""
    return jnp.sqrt(jnp.square(x).sum((1, 2, 3)))
