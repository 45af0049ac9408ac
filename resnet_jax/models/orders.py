"""Order of normalization, activation and addition: He et al. 2016 (arXiv 1603.05027), Figure 4, Table 2.

An order is a subclass of ``Order`` whose tuples name layers: ``Norm``, the network's normalization, or classes called with
``(features, rngs=)``.
"""

from typing import ClassVar

from flax import nnx

from resnet_jax.errors import UserError
from resnet_jax.models import components
from resnet_jax.models.components import method_parameters
from resnet_jax.models.layers import Activation, Bias, Multiplier, NormFactory, ReLU


class Norm:
    """Placeholder for the network's normalization."""


Layers = tuple[type, ...]


class Order:
    """Base class of orders."""

    before_convolution: ClassVar[Layers] = ()
    """Before every convolution of a branch."""
    after_convolution: ClassVar[Layers] = ()
    """After every convolution of a branch but the last."""
    after_last_convolution: ClassVar[Layers] = ()
    after_addition: ClassVar[Layers] = ()
    after_stem: ClassVar[Layers] = (Norm, ReLU)
    before_pooling: ClassVar[Layers] = (Norm, ReLU)
    """After a stem's convolution that max pooling follows."""
    before_classifier: ClassVar[Layers] = ()
    shares_first: ClassVar[bool] = False
    """The network's first block applies ``before_convolution`` to its shortcut too."""
    zero_classifier: ClassVar[bool] = False
    """The classifier's weights are initially zero."""

    @classmethod
    def initial_scales(cls, convolutions: int, num_blocks: int) -> tuple[float, ...]:
        """Returns factors on the He-initialized weights of a branch in a network of ``num_blocks`` blocks."""
        del num_blocks
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
    """conv, BN, ReLU, conv, BN, ReLU, add. Figure 4 (c)."""

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

    The first block's pre-activation is shared by both paths, and one more follows the last block (Appendix). A
    projection's input is the pre-activation.
    """

    before_convolution = (Norm, ReLU)
    after_stem = ()
    before_classifier = (Norm, ReLU)
    shares_first = True


class Fixup(Order):
    """Scaled initialization, scalar biases and multipliers, no normalization (Zhang et al. 2019, arXiv 1901.09321).

    Section 3.2: branch weights times L^(-1/(2m-2)) for L blocks of m convolutions; the last of a branch and the
    classifier are zero. The authors train the scalars with a tenth of the learning rate; here all parameters have one.
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
    def initial_scales(cls, convolutions: int, num_blocks: int) -> tuple[float, ...]:
        if convolutions < 2:
            raise UserError(
                "Fixup's initialization L^(-1/(2m-2)) is undefined for branches of m = 1 convolution: use two or more."
            )
        return (*[num_blocks ** (-1 / (2 * convolutions - 2))] * (convolutions - 1), 0.0)


class Sequence(nnx.Module):
    """Layers of an order. One whose call names ``rectify`` also applies the ReLU behind it."""

    def __init__(self, layers: Layers, features: int, *, norm: NormFactory, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [(norm if layer is Norm else layer)(features, rngs=rngs) for layer in layers]
        )

    def __call__(self, x: Activation, *, train: bool) -> Activation:
        layers = list(self.layers)
        while layers:
            layer, *layers = layers
            options = {}
            if (
                layers
                and type(layers[0]) is ReLU
                and "rectify" in method_parameters(type(layer), "__call__")[0]
            ):
                options, layers = {"rectify": True}, layers[1:]
            x = components.call(layer, x, train=train, **options)
        return x
