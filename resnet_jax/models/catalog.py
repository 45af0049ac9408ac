"""The networks of He et al. 2015 by name: Table 1 (ImageNet) and Section 4.2 (CIFAR-10)."""

from typing import Any, Protocol, runtime_checkable

from flax import nnx

from resnet_jax.errors import UserError, nearest
from resnet_jax.models.architecture import Architecture
from resnet_jax.models.blocks import BasicBlock, Bottleneck, BottleneckV15
from resnet_jax.models.execution import Execution
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import NoShortcut, Projection, ZeroPad
from resnet_jax.models.stems import ImageNetStem, SmallImageStem

CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)

# Table 1. The block type belongs to the table: ResNet-34 and ResNet-50 have the same stages.
IMAGENET_STAGES: dict[int, tuple[type[nnx.Module], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def cifar_architecture(depth: int, *, shortcut: type[nnx.Module] = ZeroPad, **fields: Any) -> Architecture:
    """6n+2 layers for small images: a 3x3 stem and n basic units each at 16, 32 and 64 features. Section 4.2: option A.

    Args:
      depth: 6n+2; the paper trains 20, 32, 44, 56, 110 and 1202.
      shortcut: class of the shortcuts.
      **fields: further fields of ``Architecture``.
    """
    if depth < 8 or (depth - 2) % 6:
        raise UserError(f"depth {depth} is not 6n+2: the CIFAR networks have 8, 14, 20, 26, ... layers, the paper's {CIFAR_DEPTHS}")
    units = (depth - 2) // 6
    defaults: dict[str, Any] = {
        "stages": (units,) * 3,
        "features": (16, 32, 64),
        "stem": SmallImageStem,
        "input_shape": (32, 32, 3),
        "num_classes": 10,
    }
    return Architecture(shortcut=shortcut, **(defaults | fields))


def imagenet_architecture(
    depth: int, *, shortcut: type[nnx.Module] = Projection, stride_in_1x1: bool = True, **fields: Any
) -> Architecture:
    """18 to 152 layers for 224-pixel images. Table 1; option B where nothing else is said (Section 4.1).

    Args:
      depth: 18, 34, 50, 101 or 152.
      shortcut: class of the shortcuts.
      stride_in_1x1: a bottleneck's stride in its first 1x1 convolution (the paper) or in its 3x3 ("v1.5", torchvision).
      **fields: further fields of ``Architecture``.
    """
    if depth not in IMAGENET_STAGES:
        raise UserError(f"depth {depth}: the ImageNet networks of Table 1 have {', '.join(map(str, IMAGENET_STAGES))} layers")
    block, stages = IMAGENET_STAGES[depth]
    if block is Bottleneck and not stride_in_1x1:
        block = BottleneckV15
    defaults: dict[str, Any] = {
        "stages": stages,
        "features": (64, 128, 256, 512),
        "block": block,
        "stem": ImageNetStem,
        "input_shape": (224, 224, 3),
        "num_classes": 1000,
    }
    return Architecture(shortcut=shortcut, **(defaults | fields))


def cifar_resnet(depth: int, *, rngs: nnx.Rngs, execution: Execution = Execution(), **fields: Any) -> ResNet:
    """Builds ``cifar_architecture(depth, **fields)``."""
    return cifar_architecture(depth, **fields).build(rngs=rngs, execution=execution)


def imagenet_resnet(depth: int, *, rngs: nnx.Rngs, execution: Execution = Execution(), **fields: Any) -> ResNet:
    """Builds ``imagenet_architecture(depth, **fields)``."""
    return imagenet_architecture(depth, **fields).build(rngs=rngs, execution=execution)


@runtime_checkable
class _Named(Protocol):
    def __call__(self, *, rngs: nnx.Rngs, execution: Execution = Execution(), **fields: Any) -> ResNet: ...


def _named(depth: int) -> _Named:
    def build(*, rngs: nnx.Rngs, execution: Execution = Execution(), **fields: Any) -> ResNet:
        return imagenet_resnet(depth, rngs=rngs, execution=execution, **fields)

    build.__doc__ = f"Builds ``imagenet_architecture({depth}, **fields)``."
    build.__name__ = build.__qualname__ = f"resnet{depth}"
    return build


resnet18, resnet34, resnet50, resnet101, resnet152 = map(_named, IMAGENET_STAGES)


def architecture(name: str, depth: int | None = None) -> Architecture:
    """Looks up a network as the command line names it: ``cifar_resnet``, ``cifar_plain``, ``imagenet_resnet``, ``imagenet_plain``
    with a depth, or both in one: ``resnet50``, ``plain34``, ``cifar_resnet110``.

    Raises:
      UserError: for an unknown name, or a family without its depth.
    """
    stem, digits = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
    families = {
        "cifar_resnet": lambda d: cifar_architecture(d),
        "cifar_plain": lambda d: cifar_architecture(d, shortcut=NoShortcut),
        "imagenet_resnet": lambda d: imagenet_architecture(d),
        "imagenet_plain": lambda d: imagenet_architecture(d, shortcut=NoShortcut),
    }
    family = families.get({"resnet": "imagenet_resnet", "plain": "imagenet_plain"}.get(stem, stem))
    if family is None:
        known = [*families, *(f"resnet{d}" for d in IMAGENET_STAGES), *(f"plain{d}" for d in IMAGENET_STAGES)]
        raise UserError(f"no network is called {name!r}{nearest(name, known)}")
    if (depth is None) == (not digits):
        raise UserError(f"{name!r}: give the depth once, as in 'cifar_resnet --depth 110' or 'resnet50'")
    return family(int(digits) if depth is None else depth)
