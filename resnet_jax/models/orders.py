"""Order of normalization, activation and addition: He et al. 2016 (arXiv 1603.05027), Figure 4.

An order is a subclass of ``Order`` whose tuples name layers: ``Norm``, the network's normalization,
or classes called with ``(features, rngs=)``.
"""

from typing import ClassVar

from resnet_jax.errors import UserError
from resnet_jax.models.layers import Bias, Layers, Multiplier, Norm, ReLU


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
        """Returns factors on the He-initialized weights of a branch."""
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

    The first block's pre-activation is shared by both paths, and one more follows the last block
    (Appendix). A projection's input is the pre-activation.
    """

    before_convolution = (Norm, ReLU)
    after_stem = ()
    before_classifier = (Norm, ReLU)
    shares_first = True


class Fixup(Order):
    """Scaled initialization, scalars in place of normalization (Zhang et al. 2019, 1901.09321).

    Section 3.2: branch weights times L^(-1/(2m-2)) for L blocks of m convolutions; the last of a
    branch and the classifier are zero. The authors train the scalars with a tenth of the learning
    rate; here all parameters have one.
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
                "Fixup's factor L^(-1/(2m-2)) is undefined for m = 1 convolution: use two or more."
            )
        return (*[num_blocks ** (-1 / (2 * convolutions - 2))] * (convolutions - 1), 0.0)
