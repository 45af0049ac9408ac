"""What is minimised, image by image, where targets are shares of the classes."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from resnet_jax.training.learning import Loss


def of(logits: Float[Array, "n classes"], targets: Float[Array, "n classes"], loss: Loss) -> Float[Array, "n"]:
    """The loss of each image; targets are one-hot or, where images are mixed, shares of the classes.

    Softmax: cross-entropy of smoothed targets (Szegedy et al. 2015, arXiv 1512.00567, Section 7). Binary: the mean over classes of the
    sigmoid cross-entropy (Wightman et al. 2021, arXiv 2110.00476, Section 2.2), with timm's smoothing and threshold.
    """
    smoothed = optax.smooth_labels(targets, loss.smoothing) if loss.smoothing else targets
    if loss.kind == "softmax":
        return optax.softmax_cross_entropy(logits, smoothed)
    asked = smoothed if loss.threshold is None else (smoothed > loss.threshold).astype(smoothed.dtype)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, asked), axis=-1)
