"""Where normalisation and activation stand in a residual network: He et al. 2016 (arXiv 1603.05027), Figure 4 and Table 2.

An order is a class that says, by lists of layers, what stands before and after convolutions, the addition, the stem and the classifier.
``Norm`` stands for the network's own normalisation; any other layer is a class made with ``(features, rngs=)``. A user's order is
another such class.
"""

from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from resnet_jax.errors import UserError
from resnet_jax.models import asking
from resnet_jax.models.layers import Bias, Multiplier, NormFactory, ReLU


class Norm:
    """The place of the network's normalisation."""


Layers = tuple[type, ...]


class Order:
    """What an order says. Derive from it and set what differs."""

    before_convolution: ClassVar[Layers] = ()
    """Before every convolution of a branch."""
    after_convolution: ClassVar[Layers] = ()
    """After every convolution but the branch's last."""
    after_last_convolution: ClassVar[Layers] = ()
    after_addition: ClassVar[Layers] = ()
    after_stem: ClassVar[Layers] = (Norm, ReLU)
    before_pooling: ClassVar[Layers] = (Norm, ReLU)
    """After a stem's convolution where max-pooling follows."""
    before_classifier: ClassVar[Layers] = ()
    shares_first: ClassVar[bool] = False
    """Whether shortcut and branch of the network's first unit both see what stands before its first convolution."""
    zero_classifier: ClassVar[bool] = False
    """Whether the classifier begins at zero."""

    @classmethod
    def initial_scales(cls, convolutions: int, units: int) -> tuple[float, ...]:
        """Factors on the He-initialised kernels of a branch of so many convolutions in a network of so many units."""
        del units
        return (1.0,) * convolutions


class Original(Order):
    """conv, BN, ReLU, conv, BN, add, ReLU. Figure 4 (a); He et al. 2015."""

    after_convolution = (Norm, ReLU)
    after_last_convolution = (Norm,)
    after_addition = (ReLU,)


class NormAfterAddition(Order):
    """conv, BN, ReLU, conv, add, BN, ReLU. Figure 4 (b)."""

    after_convolution = (Norm, ReLU)
    after_addition = (Norm, ReLU)


class ReluBeforeAddition(Order):
    """conv, BN, ReLU, conv, BN, ReLU, add. Figure 4 (c): the branch is never negative."""

    after_convolution = (Norm, ReLU)
    after_last_convolution = (Norm, ReLU)


class ReluOnlyPreactivation(Order):
    """ReLU, conv, BN, ReLU, conv, BN, add. Figure 4 (d)."""

    before_convolution = (ReLU,)
    after_convolution = (Norm,)
    after_last_convolution = (Norm,)
    after_stem = (Norm,)
    before_classifier = (ReLU,)
    shares_first = True


class FullPreactivation(Order):
    """BN, ReLU, conv, BN, ReLU, conv, add. Figure 4 (e).

    "For the first Residual Unit [...] we adopt the first activation right after conv1 and before splitting into two paths; for the
    last Residual Unit [...] we adopt an extra activation right after its element-wise addition" (Appendix). A projection is fed the
    pre-activation, and is not normalised again.
    """

    before_convolution = (Norm, ReLU)
    after_stem = ()
    before_classifier = (Norm, ReLU)
    shares_first = True


class Fixup(Order):
    """No normalisation: scaled initialisation, scalar biases, one multiplier a branch (Zhang et al. 2019, arXiv 1901.09321, Section 3.2).

    The authors train the scalars with a tenth of the learning rate; here all parameters have one.
    Branch kernels are He-initialised times L^(-1/(2m-2)), L units of m convolutions; a branch's last kernel and the classifier are zero.
    """

    before_convolution = (Bias,)
    after_convolution = (Bias, ReLU)
    after_last_convolution = (Multiplier, Bias)
    after_addition = (ReLU,)
    after_stem = (Bias, ReLU)
    before_pooling = (Bias, ReLU)
    before_classifier = (Bias,)
    zero_classifier = True

    @classmethod
    def initial_scales(cls, convolutions: int, units: int) -> tuple[float, ...]:
        if convolutions < 2:
            raise UserError("Fixup's initialisation L^(-1/(2m-2)) is not defined for branches of m = 1 convolution: use two or more")
        return (*[units ** (-1 / (2 * convolutions - 2))] * (convolutions - 1), 0.0)


class Sequence(nnx.Module):
    """Some layers of an order, one after another; empty: the identity. A layer that names ``rectify`` does the work of a ReLU behind it."""

    def __init__(self, layers: Layers, features: int, *, norm: NormFactory, rngs: nnx.Rngs):
        self.layers = nnx.List([(norm if layer is Norm else layer)(features, rngs=rngs) for layer in layers])

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w c"]:
        layers = list(self.layers)
        while layers:
            layer, *layers = layers
            if layers and type(layers[0]) is ReLU and asking.names_in_call(layer, "rectify"):
                x = asking.call(layer, x, train=train, rectify=True)
                layers = layers[1:]
            else:
                x = asking.call(layer, x, train=train)
        return x
