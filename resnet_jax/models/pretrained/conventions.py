"""Tensor names, option A's padding and preprocessing of other code bases."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from resnet_jax.configured import Factory, configured
from resnet_jax.errors import UserError, nearest
from resnet_jax.models.pretrained.card import IMAGENET_VIEW, View
from resnet_jax.models.shortcuts import ZeroPad

COUNTER = ".num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class Convention:
    """Names of one code base, mapped to and from torchvision's, such as ``layer1.0.conv1.weight``."""

    name: str
    description: str
    """For help texts."""
    to_torchvision: Callable[[str], str | None] = lambda name: name
    """None for a name that the code base does not have."""
    from_torchvision: Callable[[str], str] = lambda name: name
    padded: Factory | None = None
    """Shortcut if no projection is stored. None: there always is a projection."""
    variants: frozenset[str] = frozenset()
    """Beyond basic blocks and bottlenecks: "deep stem", "pooled projection", "squeeze-and-excitation"."""
    view: View = IMAGENET_VIEW
    data: tuple[tuple[int, str], ...] = ((1000, "imagenet2012"),)
    """Number of classes to TFDS name of the training set."""


def _to_cifar_torch(name: str) -> str:
    return re.sub(r"^fc\.", "linear.", name).replace(".downsample.", ".shortcut.")


def _from_cifar_torch(name: str) -> str | None:
    if name.startswith("fc.") or ".downsample." in name:
        return None
    return re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample.")


_ALL = (
    Convention(name="torchvision", description="torchvision's ResNet, ResNeXt and Wide ResNet (v1.5)"),
    Convention(
        name="timm",
        description="timm's resnets (v1.5), with deep stems, pooled projections (D) and squeeze-and-excitation",
        variants=frozenset({"deep stem", "pooled projection", "squeeze-and-excitation"}),
    ),
    Convention(
        name="cifar-torch",
        description="akamaster/pytorch_resnet_cifar10: option A, half of the missing channels on each side, or option B",
        to_torchvision=_from_cifar_torch,
        from_torchvision=_to_cifar_torch,
        padded=configured(ZeroPad, resize="pad-both"),
        view=View(mean=IMAGENET_VIEW.mean, deviation=IMAGENET_VIEW.deviation),
        data=((10, "cifar10"), (100, "cifar100")),
    ),
)
CONVENTIONS: dict[str, Convention] = {convention.name: convention for convention in _ALL}


def convention(name: str) -> Convention:
    """Returns a convention by its name. Raises UserError for an unknown one."""
    if name not in CONVENTIONS:
        raise UserError(f"{name!r} is not a known convention of tensor names{nearest(name, CONVENTIONS)}")
    return CONVENTIONS[name]
