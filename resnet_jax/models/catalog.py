"""Families of networks by the papers' rules. Further keyword arguments are fields of ``Architecture``."""

import functools
from dataclasses import replace
from typing import Any

from flax import nnx

from resnet_jax.errors import UserError, nearest
from resnet_jax.models.architecture import Architecture
from resnet_jax.models.blocks import Basic, Bottleneck, BottleneckV15, Branch, SingleLayer
from resnet_jax.models.components import Factory, component, parts
from resnet_jax.models.execution import Execution
from resnet_jax.models.orders import Fixup, FullPreactivation
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import (
    Concatenation,
    NoShortcut,
    PooledProjection,
    PooledZeroPad,
    Projection,
    ZeroPad,
)
from resnet_jax.models.stems import DeepStem, DenseTransition, ImageNetStem
from resnet_jax.models.stochastic_depth import StochasticDepth

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

_IMAGENET: dict[str, Any] = {
    "stem": ImageNetStem,
    "input_shape": (224, 224, 3),
    "num_classes": 1000,
}


def cifar_architecture(
    depth: int, *, branch: Factory = Basic, shortcut: Factory = ZeroPad, **fields: Any
) -> Architecture:
    """Three equal stages with 16, 32 and 64 features, for small images. He et al. 2015, Section 4.2.

    ``depth`` is 6n+2 for basic branches (20, 32, 44, 56, 110 and 1202 in the paper), 9n+2 for bottlenecks (164 and 1001
    in He et al. 2016), 3n+2 for single layers.
    """
    layers = 3 * len(parts(branch)[1].get("kernels", (3, 3)))
    if depth < layers + 2 or (depth - 2) % layers:
        depths = ", ".join(str(layers * n + 2) for n in range(1, 5))
        raise UserError(
            f"depth {depth} is not {layers}n+2: CIFAR networks of this branch have {depths}, ... layers"
        )
    defaults: dict[str, Any] = {"stages": ((depth - 2) // layers,) * 3, "features": (16, 32, 64)}
    return Architecture(branch=branch, shortcut=shortcut, **(defaults | fields))


def wide_architecture(depth: int, widen: int, **fields: Any) -> Architecture:
    """Wide ResNet (arXiv 1605.07146), Table 1, of ``depth`` 6n+4 and k = ``widen``: full pre-activation, a stem of 16 features."""
    if depth < 10 or (depth - 4) % 6:
        raise UserError(
            f"depth {depth} is not 6n+4: Wide ResNets have 10, 16, 22, 28, 34, 40, ... layers"
        )
    defaults: dict[str, Any] = {
        "stages": ((depth - 4) // 6,) * 3,
        "features": tuple(widen * width for width in (16, 32, 64)),
        "stem_features": 16,
        "order": FullPreactivation,
        "shortcut": Projection,
    }
    return Architecture(**(defaults | fields))


def imagenet_architecture(
    depth: int, *, shortcut: Factory = Projection, stride_in_1x1: bool = True, **fields: Any
) -> Architecture:
    """18 to 200 layers for 224-pixel images, by default with option B. He et al. 2015, Table 1.

    Args:
      depth: 18, 34, 50, 101, 152 or 200.
      shortcut: class of the shortcuts.
      stride_in_1x1: a bottleneck's stride in its first 1x1 convolution (the paper) or its 3x3 ("v1.5").
    """
    if depth not in IMAGENET_STAGES:
        raise UserError(
            f"depth {depth}: the ImageNet networks have {', '.join(map(str, IMAGENET_STAGES))} layers"
        )
    branch, stages = IMAGENET_STAGES[depth]
    if branch is Bottleneck and not stride_in_1x1:
        branch = BottleneckV15
    defaults = {**_IMAGENET, "stages": stages, "features": (64, 128, 256, 512), "branch": branch}
    return Architecture(shortcut=shortcut, **(defaults | fields))


def densenet_architecture(
    depth: int,
    growth: int | None = None,
    *,
    bottleneck: bool = True,
    imagenet: bool = False,
    **fields: Any,
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
            raise UserError(
                f"depth {depth}: the ImageNet DenseNets have {', '.join(map(str, DENSENET_STAGES))} layers"
            )
        stages, of_paper = DENSENET_STAGES[depth]
        growth, defaults = growth or of_paper, _IMAGENET
    else:
        layers = 6 if bottleneck else 3
        if depth < layers + 4 or (depth - 4) % layers or growth is None:
            kind = "-BC" if bottleneck else ""
            raise UserError(
                f"depth {depth}, growth {growth}: a DenseNet{kind} for small images has {layers}n+4 layers and a growth rate"
            )
        stages = ((depth - 4) // layers,) * 3
    defaults = defaults | {
        "stages": stages,
        "features": (growth,) * len(stages),
        "stem_features": 2 * growth if bottleneck else 16,
        # 256 / 64 times the growth: the bottleneck's 4k.
        "branch": component(Branch, kernels=(1, 3), base_width=256)
        if bottleneck
        else component(Branch, kernels=(3,)),
        "order": FullPreactivation,
        "shortcut": Concatenation,
        "transition": component(DenseTransition, compression=0.5 if bottleneck else 1.0),
    }
    return Architecture(**(defaults | fields))


_CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)
# ResNeXt (arXiv 1611.05431), Tables 3 and 4: cardinality x width.
_RESNEXT = {
    50: ((2, 40), (4, 24), (8, 14), (32, 4)),
    101: ((2, 40), (4, 24), (8, 14), (32, 4), (32, 8), (2, 64), (64, 4)),
}
_WIDE = (
    (16, 4),
    (16, 8),
    (16, 10),
    (22, 8),
    (22, 10),
    (28, 10),
    (28, 12),
    (40, 1),
    (40, 2),
    (40, 4),
    (40, 8),
    (40, 10),
    (52, 1),
)

_preactivated = functools.partial(cifar_architecture, order=FullPreactivation, shortcut=Projection)


def _resnext(depth: int, groups: int, width: int, **options: Any) -> Architecture:
    return imagenet_architecture(
        depth, branch=component(BottleneckV15, groups=groups, base_width=width, **options)
    )


def _resnext29(groups: int, width: int) -> Architecture:
    branch = component(BottleneckV15, groups=groups, base_width=width)
    return cifar_architecture(29, branch=branch, shortcut=Projection, features=(64, 128, 256))


NETWORKS: dict[str, Architecture] = {
    # He et al. 2015, Table 1: the stride in the first 1x1.
    **{f"resnet{d}": imagenet_architecture(d) for d in IMAGENET_STAGES},
    **{f"plain{d}": imagenet_architecture(d, shortcut=NoShortcut) for d in IMAGENET_STAGES},
    # fb.resnet.torch, torchvision: the stride in the 3x3.
    **{
        f"resnet{d}_v15": imagenet_architecture(d, stride_in_1x1=False) for d in (50, 101, 152, 200)
    },
    # He et al. 2018 (1812.01187), Figure 2: deep stem, average pooling in the shortcut.
    **{
        f"resnet{d}_d": imagenet_architecture(
            d, stride_in_1x1=False, shortcut=PooledProjection, stem=DeepStem
        )
        for d in (18, 34, 50, 101, 152, 200)
    },
    # Hu et al. 2018 (1709.01507), Table 1.
    **{
        f"seresnet{d}": imagenet_architecture(
            d, branch=component(IMAGENET_STAGES[d][0], reduction=16)
        )
        for d in (18, 34, 50, 101, 152)
    },
    **{f"seresnext{d}_32x4d": _resnext(d, 32, 4, reduction=16) for d in (50, 101)},
    # He et al. 2016, Table 5.
    **{f"preresnet{d}": imagenet_architecture(d, order=FullPreactivation) for d in IMAGENET_STAGES},
    # Zagoruyko and Komodakis 2016, Section 3 (ImageNet): the bottleneck's inside twice as wide.
    **{
        f"wide_resnet{d}_2": imagenet_architecture(
            d, branch=component(BottleneckV15, base_width=128)
        )
        for d in (50, 101)
    },
    **{
        f"resnext{depth}_{c}x{w}d": _resnext(depth, c, w)
        for depth, rows in _RESNEXT.items()
        for c, w in rows
    },
    **{f"densenet{d}": densenet_architecture(d, imagenet=True) for d in DENSENET_STAGES},
    # Small images. He et al. 2015, Section 4.2.
    **{f"cifar_resnet{d}": cifar_architecture(d) for d in _CIFAR_DEPTHS},
    **{f"cifar_plain{d}": cifar_architecture(d, shortcut=NoShortcut) for d in _CIFAR_DEPTHS},
    # He et al. 2016, Tables 2 to 4.
    **{
        f"cifar_resnet{d}": cifar_architecture(d, branch=Bottleneck, shortcut=Projection)
        for d in (164, 1001)
    },
    "cifar_preresnet110": _preactivated(110),
    **{f"cifar_preresnet{d}": _preactivated(d, branch=Bottleneck) for d in (164, 1001)},
    "cifar_resnet110_single": cifar_architecture(110, branch=SingleLayer),
    "cifar_preresnet110_single": _preactivated(110, branch=SingleLayer),
    # Huang et al. 2016, Section 4.
    **{
        f"cifar_stochastic{d}": cifar_architecture(
            d, shortcut=PooledZeroPad, stochastic_depth=StochasticDepth(survival=0.5)
        )
        for d in (110, 1202)
    },
    **{f"wrn{d}_{k}": wide_architecture(d, k) for d, k in _WIDE},
    **{
        f"wrn{d}_{k}_dropout": wide_architecture(d, k, branch=component(Basic, dropout=0.3))
        for d, k in ((16, 8), (28, 10), (40, 10))
    },
    **{f"resnext29_{c}x{w}d": _resnext29(c, w) for c, w in ((32, 4), (8, 64), (16, 64))},
    "cifar_seresnet110": cifar_architecture(110, branch=component(Basic, reduction=16)),
    "cifar_seresnet164": cifar_architecture(
        164, branch=component(Bottleneck, reduction=16), shortcut=Projection
    ),
    "cifar_fixup110": cifar_architecture(110, order=Fixup),
    # Huang et al. 2017, Table 2.
    **{
        f"cifar_densenet{d}_{k}": densenet_architecture(d, k, bottleneck=False)
        for d, k in ((40, 12), (100, 12), (100, 24))
    },
    **{
        f"cifar_densenet_bc{d}_{k}": densenet_architecture(d, k)
        for d, k in ((100, 12), (190, 40), (250, 24))
    },
}

# Families that take any depth.
FAMILIES: dict[str, Any] = {
    "cifar_resnet": cifar_architecture,
    "cifar_plain": lambda d: cifar_architecture(d, shortcut=NoShortcut),
    "cifar_preresnet": _preactivated,
    "imagenet_resnet": imagenet_architecture,
    "imagenet_plain": lambda d: imagenet_architecture(d, shortcut=NoShortcut),
    "imagenet_preresnet": lambda d: imagenet_architecture(d, order=FullPreactivation),
}


def architecture(name: str, depth: int | None = None) -> Architecture:
    """Returns a network of ``NETWORKS``, or of ``FAMILIES`` by depth: ``cifar_resnet``, 26 or ``cifar_resnet26``."""
    if depth is None and name in NETWORKS:
        return NETWORKS[name]
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    family = {
        "resnet": "imagenet_resnet",
        "plain": "imagenet_plain",
        "preresnet": "imagenet_preresnet",
    }.get(stem, stem)
    if family not in FAMILIES:
        if name in NETWORKS:
            raise UserError(f"{name!r} has its depth in its name: leave out --depth {depth}")
        raise UserError(f"no network is called {name!r}{nearest(name, [*NETWORKS, *FAMILIES])}")
    if (depth is None) == (not digits):
        raise UserError(
            f"{name!r}: give the depth once, as in 'cifar_resnet --depth 110' or 'resnet50'"
        )
    wanted = int(digits) if depth is None else depth
    known = f"{stem}{wanted}"
    return NETWORKS[known] if known in NETWORKS else FAMILIES[family](wanted)


def build(
    name: str, *, rngs: nnx.Rngs, execution: Execution = Execution(), **fields: Any
) -> ResNet:
    """Builds a network by name: ``build("resnext50_32x4d", num_classes=7, rngs=nnx.Rngs(0))``."""
    return replace(architecture(name), **fields).build(rngs=rngs, execution=execution)


def cifar_resnet(
    depth: int, *, rngs: nnx.Rngs, execution: Execution = Execution(), **fields: Any
) -> ResNet:
    """Builds ``cifar_architecture(depth, **fields)``."""
    return cifar_architecture(depth, **fields).build(rngs=rngs, execution=execution)


def imagenet_resnet(
    depth: int, *, rngs: nnx.Rngs, execution: Execution = Execution(), **fields: Any
) -> ResNet:
    """Builds ``imagenet_architecture(depth, **fields)``."""
    return imagenet_architecture(depth, **fields).build(rngs=rngs, execution=execution)


resnet18 = functools.partial(imagenet_resnet, 18)
resnet34 = functools.partial(imagenet_resnet, 34)
resnet50 = functools.partial(imagenet_resnet, 50)
resnet101 = functools.partial(imagenet_resnet, 101)
resnet152 = functools.partial(imagenet_resnet, 152)
resnet200 = functools.partial(imagenet_resnet, 200)
