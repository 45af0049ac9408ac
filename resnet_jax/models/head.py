"""The classifier."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from resnet_jax.models.layers import NormFactory, he_normal
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Order, Original, Sequence


class Head(nnx.Module):
    """What an order puts before the classifier, global average pooling, a fully connected layer. Logits are float32 whatever the
    network computes in.
    """

    def __init__(self, in_features: int, num_classes: int, *, order: type[Order] = Original, norm: NormFactory = BatchNorm, rngs: nnx.Rngs):
        self.before = Sequence(order.before_classifier, in_features, norm=norm, rngs=rngs)
        init = jax.nn.initializers.zeros if order.zero_classifier else he_normal
        self.linear = nnx.Linear(in_features, num_classes, kernel_init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n classes"]:
        return self.linear(jnp.mean(self.before(x, train=train), axis=(1, 2), dtype=jnp.float32))
