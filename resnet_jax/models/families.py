"""Families of networks by the papers' rules. Further keyword arguments are fields of ``Architecture``."""

from typing import Any

from resnet_jax.configured import Factory, configured, parts
from resnet_jax.errors import UserError
from resnet_jax.models.architecture import Architecture
from resnet_jax.models.branches import Basic, Bottleneck, BottleneckV15, Branch
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.models.shortcuts import Concatenation, Projection, ZeroPad
from resnet_jax.models.stems import DenseTransition, ImageNetStem

# He et al. 2015, Table 1; He et al. 2016, Table 5.
IMAGENET_STAGES: dict[int, tuple[Factory, tuple[int, ...]]] = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}

# Huang et al. 2017, Table 1: blocks per stage; growth rate.
DENSENET_STAGES: dict[int, tuple[tuple[int, ...], int]] = {
    121: ((6, 12, 24, 16), 32),
    161: ((6, 12, 36, 24), 48),
    169: ((6, 12, 32, 32), 32),
    201: ((6, 12, 48, 32), 32),
}

_IMAGENET: dict[str, Any] = {"stem": ImageNetStem, "input_shape": (224, 224, 3), "num_classes": 1000}


def cifar_architecture(depth: int, *, branch: Factory = Basic, shortcut: Factory = ZeroPad, **fields: Any) -> Architecture:
    """Three equal stages with 16, 32 and 64 features, for small images. He et al. 2015, Section 4.2.

    ``depth`` is 6n+2 for basic branches (20, 32, 44, 56, 110 and 1202 in the paper), 9n+2 for bottlenecks (164 and 1001
    in He et al. 2016), 3n+2 for single layers.
    """
    layers = 3 * len(parts(branch)[1].get("kernels", (3, 3)))
    if depth < layers + 2 or (depth - 2) % layers:
        depths = ", ".join(str(layers * n + 2) for n in range(1, 5))
        raise UserError(f"depth {depth} is not {layers}n+2: CIFAR networks of this branch have {depths}, ... layers")
    defaults: dict[str, Any] = {"stages": ((depth - 2) // layers,) * 3, "features": (16, 32, 64)}
    return Architecture(branch=branch, shortcut=shortcut, **(defaults | fields))


def wide_architecture(depth: int, widen: int, **fields: Any) -> Architecture:
    """Wide ResNet (arXiv 1605.07146), Table 1, of ``depth`` 6n+4 and k = ``widen``: full pre-activation, a stem of 16 features."""
    if depth < 10 or (depth - 4) % 6:
        raise UserError(f"depth {depth} is not 6n+4: Wide ResNets have 10, 16, 22, 28, 34, 40, ... layers")
    defaults: dict[str, Any] = {
        "stages": ((depth - 4) // 6,) * 3,
        "features": tuple(widen * width for width in (16, 32, 64)),
        "stem_features": 16,
        "order": FullPreactivation,
        "shortcut": Projection,
    }
    return Architecture(**(defaults | fields))


def imagenet_architecture(depth: int, *, shortcut: Factory = Projection, stride_in_1x1: bool = True, **fields: Any) -> Architecture:
    """18 to 200 layers for 224-pixel images, by default with option B. He et al. 2015, Table 1.

    Args:
      depth: 18, 34, 50, 101, 152 or 200.
      shortcut: class of the shortcuts.
      stride_in_1x1: a bottleneck's stride in its first 1x1 convolution (the paper) or its 3x3 ("v1.5").
    """
    if depth not in IMAGENET_STAGES:
        raise UserError(f"depth {depth}: the ImageNet networks have {', '.join(map(str, IMAGENET_STAGES))} layers")
    branch, stages = IMAGENET_STAGES[depth]
    if branch is Bottleneck and not stride_in_1x1:
        branch = BottleneckV15
    defaults = {**_IMAGENET, "stages": stages, "features": (64, 128, 256, 512), "branch": branch}
    return Architecture(shortcut=shortcut, **(defaults | fields))


def densenet_architecture(
    depth: int, growth: int | None = None, *, bottleneck: bool = True, imagenet: bool = False, **fields: Any
) -> Architecture:
    """DenseNet (arXiv 1608.06993): full pre-activation blocks whose shortcut is a concatenation.

    Args:
      depth: 6n+4 with bottlenecks (BC), 3n+4 without; for ImageNet 121, 161, 169 or 201.
      growth: k, channels that each block adds; by default for ImageNet the paper's.
      bottleneck: DenseNet-BC: 1x1 convolutions to 4k channels, transitions that halve the width.
      imagenet: a network of Table 1, for 224-pixel images.
    """
    defaults: dict[str, Any] = {}
    if imagenet:
        if depth not in DENSENET_STAGES:
            raise UserError(f"depth {depth}: the ImageNet DenseNets have {', '.join(map(str, DENSENET_STAGES))} layers")
        stages, of_paper = DENSENET_STAGES[depth]
        growth, defaults = growth or of_paper, _IMAGENET
    else:
        layers = 6 if bottleneck else 3
        if depth < layers + 4 or (depth - 4) % layers or growth is None:
            kind = "-BC" if bottleneck else ""
            raise UserError(f"depth {depth}, growth {growth}: a DenseNet{kind} for small images has {layers}n+4 layers and a growth rate")
        stages = ((depth - 4) // layers,) * 3
    defaults = defaults | {
        "stages": stages,
        "features": (growth,) * len(stages),
        "stem_features": 2 * growth if bottleneck else 16,
        # 256 / 64 times the growth: the bottleneck's 4k.
        "branch": configured(Branch, kernels=(1, 3), base_width=256) if bottleneck else configured(Branch, kernels=(3,)),
        "order": FullPreactivation,
        "shortcut": Concatenation,
        "transition": configured(DenseTransition, compression=0.5 if bottleneck else 1.0),
    }
    return Architecture(**(defaults | fields))
