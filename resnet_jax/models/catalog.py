"""Networks of the papers by name, and their components by short names in text and JSON.

Keyword arguments of the families are fields of ``Architecture``.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from resnet_jax.errors import UserError, nearest
from resnet_jax.models import blocks, components, norms, orders, shortcuts, stems
from resnet_jax.models.blocks import Basic, Bottleneck, BottleneckV15, Branch, SingleLayer
from resnet_jax.models.components import (
    Component,
    Factory,
    component,
    known,
    name_of,
    parse,
    parts,
)
from resnet_jax.models.counts import count
from resnet_jax.models.orders import Fixup, FullPreactivation
from resnet_jax.models.resnet import Architecture
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


def _blocks_per_stage(depth: int, layers: int, others: int) -> int:
    number, rest = divmod(depth - others, layers)
    if number < 1 or rest:
        depths = ", ".join(str(layers * n + others) for n in range(1, 5))
        form = f"{layers}n+{others}: these networks have {depths}, ... layers"
        raise UserError(f"depth {depth} is not {form}.")
    return number


def _of_table(table: dict[int, Any], depth: int) -> Any:
    if depth not in table:
        raise UserError(f"depth {depth}: these networks have {', '.join(map(str, table))} layers.")
    return table[depth]


def cifar_architecture(
    depth: int, *, branch: Factory = Basic, shortcut: Factory = ZeroPad, **fields: Any
) -> Architecture:
    """Three equal stages of 16, 32 and 64 features for small images. He et al. 2015, Section 4.2.

    ``depth`` is 6n+2 for basic branches, 9n+2 for bottlenecks, 3n+2 for single layers.
    """
    number = _blocks_per_stage(depth, 3 * len(parts(branch)[1].get("kernels", (3, 3))), 2)
    network = {"stages": (number,) * 3, "features": (16, 32, 64)}
    return Architecture(branch=branch, shortcut=shortcut, **network | fields)


_preactivated = partial(cifar_architecture, order=FullPreactivation, shortcut=Projection)


def wide_architecture(depth: int, widen: int, **fields: Any) -> Architecture:
    """Wide ResNet (arXiv 1605.07146), Table 1, of ``depth`` 6n+4 and k = ``widen``."""
    widths = {"features": (16 * widen, 32 * widen, 64 * widen), "stem_features": 16}
    return _preactivated(6 * _blocks_per_stage(depth, 6, 4) + 2, **widths | fields)


def imagenet_architecture(
    depth: int, *, shortcut: Factory = Projection, stride_in_1x1: bool = True, **fields: Any
) -> Architecture:
    """18 to 200 layers for 224-pixel images. He et al. 2015, Table 1.

    ``stride_in_1x1``: bottlenecks are strided in the first 1x1 (the paper) or the 3x3 (v1.5).
    """
    branch, stages = _of_table(IMAGENET_STAGES, depth)
    if branch is Bottleneck and not stride_in_1x1:
        branch = BottleneckV15
    network = {"branch": branch, "features": (64, 128, 256, 512)} | _IMAGENET
    return Architecture(stages=stages, shortcut=shortcut, **network | fields)


_IMAGENET = {"stem": ImageNetStem, "input_shape": (224, 224, 3), "num_classes": 1000}


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
      depth: 6n+4 with bottlenecks, 3n+4 without; for ImageNet 121, 161, 169 or 201.
      growth: k, channels that each block adds; by default for ImageNet the paper's.
      bottleneck: BC: 1x1 convolutions to 4k channels, transitions that halve the width.
      imagenet: a network of Table 1, for 224-pixel images.
    """
    if imagenet:
        stages, of_paper = _of_table(DENSENET_STAGES, depth)
        growth = growth or of_paper
    else:
        stages = (_blocks_per_stage(depth, 6 if bottleneck else 3, 4),) * 3
    if not growth:
        raise UserError("a DenseNet for small images needs a growth rate.")
    # 256 / 64 times the growth: the bottleneck's 4k.
    dense = {"kernels": (1, 3), "base_width": 256} if bottleneck else {"kernels": (3,)}
    network = {
        "features": (growth,) * len(stages),
        "stem_features": 2 * growth if bottleneck else 16,
        "branch": component(Branch, **dense),
        "order": FullPreactivation,
        "shortcut": Concatenation,
        "transition": component(DenseTransition, compression=0.5 if bottleneck else 1.0),
    }
    return Architecture(stages=stages, **network | (_IMAGENET if imagenet else {}) | fields)


# By the beginning of the name; the first that matches.
_PAPERS = {
    r"(cifar_)?seres": "Hu et al. 2018, arXiv 1709.01507",
    r"(cifar_)?densenet": "Huang et al. 2017, arXiv 1608.06993",
    r"cifar_stochastic": "Huang et al. 2016, arXiv 1603.09382",
    r"cifar_fixup": "Zhang et al. 2019, arXiv 1901.09321",
    r"wrn|wide": "Zagoruyko and Komodakis 2016, arXiv 1605.07146",
    r"resnext": "Xie et al. 2017, arXiv 1611.05431",
    r"resnet\d+_d": "He et al. 2018, arXiv 1812.01187",
    r"resnet\d+_v15": "fb.resnet.torch, torchvision",
    r"(cifar_)?preresnet|cifar_resnet(164|1001|110_single)": "He et al. 2016, arXiv 1603.05027",
    r"": "He et al. 2015, arXiv 1512.03385",
}

# Families that take any depth.
FAMILIES: dict[str, Callable[..., Architecture]] = {
    "cifar_resnet": cifar_architecture,
    "cifar_plain": partial(cifar_architecture, shortcut=NoShortcut),
    "cifar_preresnet": _preactivated,
    "imagenet_resnet": imagenet_architecture,
    "imagenet_plain": partial(imagenet_architecture, shortcut=NoShortcut),
    "imagenet_preresnet": partial(imagenet_architecture, order=FullPreactivation),
}


def _seresnet(depth: int) -> Architecture:
    return imagenet_architecture(depth, branch=component(IMAGENET_STAGES[depth][0], reduction=16))


def _resnext(depth: int, groups: int, width: int, **options: Any) -> Architecture:
    branch = component(BottleneckV15, groups=groups, base_width=width, **options)
    if depth == 29:
        widths = (64, 128, 256)
        return cifar_architecture(29, branch=branch, shortcut=Projection, features=widths)
    return imagenet_architecture(depth, branch=branch)


def _networks(
    name: str,
    build: Callable[..., Architecture],
    rows: Iterable[int | tuple[int, ...]],
    **options: Any,
) -> dict[str, Architecture]:
    """Returns a network for each row of arguments, under the name formatted with them."""
    arguments = [row if isinstance(row, tuple) else (row,) for row in rows]
    return {name.format(*row): build(*row, **options) for row in arguments}


_DEPTHS = tuple(IMAGENET_STAGES)
_CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)
_RESNEXT50 = ((50, 2, 40), (50, 4, 24), (50, 8, 14), (50, 32, 4))
_RESNEXT101 = ((101, 2, 40), (101, 4, 24), (101, 8, 14), (101, 32, 4))
_RESNEXT101_LARGE = ((101, 32, 8), (101, 2, 64), (101, 64, 4))
_WIDE = ((16, 4), (16, 8), (16, 10), (22, 8), (22, 10), (28, 10), (28, 12))
_WIDE_40 = ((40, 1), (40, 2), (40, 4), (40, 8), (40, 10), (52, 1))
_DENSE = ((40, 12), (100, 12), (100, 24))
_D = {"shortcut": PooledProjection, "stem": DeepStem, "stride_in_1x1": False}
_BOTTLENECK = {"branch": Bottleneck, "shortcut": Projection}
_STOCHASTIC = {"shortcut": PooledZeroPad, "stochastic_depth": StochasticDepth(survival=0.5)}
_DROPOUT = {"branch": component(Basic, dropout=0.3)}
_SE = {"branch": component(Basic, reduction=16)}
_SE_BOTTLENECK = {"branch": component(Bottleneck, reduction=16), "shortcut": Projection}
_TWICE_AS_WIDE = {"branch": component(BottleneckV15, base_width=128)}

NETWORKS: dict[str, Architecture] = (
    # He et al. 2015, Table 1: the stride in the first 1x1.
    _networks("resnet{}", imagenet_architecture, _DEPTHS)
    | _networks("plain{}", imagenet_architecture, _DEPTHS, shortcut=NoShortcut)
    # fb.resnet.torch, torchvision: the stride in the 3x3.
    | _networks("resnet{}_v15", imagenet_architecture, (50, 101, 152, 200), stride_in_1x1=False)
    # He et al. 2018 (1812.01187), Figure 2: deep stem, average pooling in the shortcut.
    | _networks("resnet{}_d", imagenet_architecture, _DEPTHS, **_D)
    # Hu et al. 2018 (1709.01507), Table 1.
    | _networks("seresnet{}", _seresnet, (18, 34, 50, 101, 152))
    | _networks("seresnext{}_{}x{}d", _resnext, ((50, 32, 4), (101, 32, 4)), reduction=16)
    # He et al. 2016, Table 5.
    | _networks("preresnet{}", imagenet_architecture, _DEPTHS, order=FullPreactivation)
    # Zagoruyko and Komodakis 2016, Section 3 (ImageNet).
    | _networks("wide_resnet{}_2", imagenet_architecture, (50, 101), **_TWICE_AS_WIDE)
    # ResNeXt (arXiv 1611.05431), Tables 3 and 4: cardinality x width.
    | _networks("resnext{}_{}x{}d", _resnext, _RESNEXT50 + _RESNEXT101 + _RESNEXT101_LARGE)
    | _networks("densenet{}", densenet_architecture, DENSENET_STAGES, imagenet=True)
    # Small images. He et al. 2015, Section 4.2.
    | _networks("cifar_resnet{}", cifar_architecture, _CIFAR_DEPTHS)
    | _networks("cifar_plain{}", cifar_architecture, _CIFAR_DEPTHS, shortcut=NoShortcut)
    # He et al. 2016, Tables 2 to 4.
    | _networks("cifar_resnet{}", cifar_architecture, (164, 1001), **_BOTTLENECK)
    | _networks("cifar_preresnet{}", _preactivated, (110,))
    | _networks("cifar_preresnet{}", _preactivated, (164, 1001), branch=Bottleneck)
    | _networks("cifar_resnet{}_single", cifar_architecture, (110,), branch=SingleLayer)
    | _networks("cifar_preresnet{}_single", _preactivated, (110,), branch=SingleLayer)
    # Huang et al. 2016, Section 4.
    | _networks("cifar_stochastic{}", cifar_architecture, (110, 1202), **_STOCHASTIC)
    | _networks("wrn{}_{}", wide_architecture, _WIDE + _WIDE_40)
    | _networks("wrn{}_{}_dropout", wide_architecture, ((16, 8), (28, 10), (40, 10)), **_DROPOUT)
    | _networks("resnext{}_{}x{}d", _resnext, ((29, 32, 4), (29, 8, 64), (29, 16, 64)))
    | _networks("cifar_seresnet{}", cifar_architecture, (110,), **_SE)
    | _networks("cifar_seresnet{}", cifar_architecture, (164,), **_SE_BOTTLENECK)
    | _networks("cifar_fixup{}", cifar_architecture, (110,), order=Fixup)
    # Huang et al. 2017, Table 2.
    | _networks("cifar_densenet{}_{}", densenet_architecture, _DENSE, bottleneck=False)
    | _networks("cifar_densenet_bc{}_{}", densenet_architecture, ((100, 12), (190, 40), (250, 24)))
)


def architecture(name: str, depth: int | None = None) -> Architecture:
    """Returns a network of ``NETWORKS``, or of ``FAMILIES`` by depth: ``cifar_resnet26``."""
    if depth is not None and (name in NETWORKS or name[-1:].isdigit()):
        raise UserError(f"{name!r}: give the depth once, leave out --depth {depth}")
    full = name if depth is None else f"{name}{depth}"
    if full in NETWORKS:
        return NETWORKS[full]
    stem = full.rstrip("0123456789")
    family = FAMILIES.get(stem) or FAMILIES.get(f"imagenet_{stem}")
    if not family or len(full) > len(stem) + 9:
        raise UserError(f"no network is called {name!r}{nearest(name, [*NETWORKS, *FAMILIES])}")
    if f"cifar_{full}" in NETWORKS:
        raise UserError(f"no network is called {full!r}; did you mean cifar_{full}?")
    if full == stem:
        raise UserError(f"{name!r}: give the depth once, as in 'cifar_resnet110' or 'resnet50'")
    return family(int(full.removeprefix(stem)))


def variant(name: str | Architecture, **fields: Any) -> Architecture:
    """Returns a network with fields changed: ``variant("cifar_resnet110", shortcut="B")``.

    ``in_features``, the channels of images, changes the last size of ``input_shape``.
    """
    network = architecture(name) if isinstance(name, str) else name
    if not isinstance(network, Architecture):
        raise UserError(f"a network is a name or an Architecture, got {name!r:.80}.")
    if isinstance(fields.get("dtype"), type | np.dtype):
        fields["dtype"] = np.dtype(fields["dtype"]).name
    if "in_features" in fields:
        fields["input_shape"] = (*network.input_shape[:2], fields.pop("in_features"))
    return replace(network, **_fields(fields, parse))


def paper(name: str) -> str:
    """Returns the publication of a network of ``NETWORKS``."""
    return next(source for start, source in _PAPERS.items() if re.match(start, name))


def model_info(name: str) -> dict[str, int | str]:
    """Returns parameters, multiply-adds for one image and the paper of a network of ``NETWORKS``.

    Example:
      >>> model_info("cifar_resnet20")["parameters"]
      269722
    """
    counts = count(architecture(name))
    sizes = {"parameters": counts.parameters, "multiply_adds": counts.multiply_adds}
    return {"name": name, **sizes, "paper": paper(name)}


def parts_of(*modules: ModuleType) -> dict[str, Factory]:
    """Returns the public classes that modules define, and the components in them, by name."""
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Component) or getattr(value, "__module__", None) == module.__name__
        if isinstance(value, Factory) and not name.startswith("_")
    }


known().update(parts_of(blocks, norms, orders, shortcuts, stems) | shortcuts.OPTIONS)
del known()["ResidualBlock"]


def write(architecture: Architecture) -> dict[str, Any]:
    """Returns a network as plain JSON, components by their short names."""
    fields = {
        name: name_of(value) if isinstance(value, Factory) else value
        for name, value in vars(architecture).items()
    }
    return fields | {"stochastic_depth": dataclasses.asdict(architecture.stochastic_depth)}


def read(written: dict[str, Any]) -> Architecture:
    """Undoes ``write`` of an untrusted description; imports nothing.

    Raises:
      UserError: for a missing, unknown or invalid field, or a class that is not the package's.
    """

    def find_known(name: str) -> Factory:
        if ":" in name:
            raise UserError(f"{name}: a file cannot bring code along, so give the network itself")
        return components.find(name)

    def load(text: str) -> Factory:
        # Python's parser needs memory and time for long texts.
        if len(text) > 300:
            raise UserError(f"{text[:60]}... is {len(text)} characters long: give at most 300")
        return parse(text, find_known)

    try:
        return Architecture(**_fields(written, load))
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"this describes no network: {error!s:.400}") from error


def _fields(written: Mapping[str, Any], load: Callable[[str], Factory]) -> dict[str, Any]:
    fields, known_fields = dict(written), Architecture.__dataclass_fields__
    for name, value in fields.items():
        if name not in known_fields:
            raise UserError(f"Architecture has no field {name!r}{nearest(name, known_fields)}")
        if isinstance(value, str) and name != "dtype":
            fields[name] = load(value)
        elif isinstance(value, list):
            fields[name] = tuple(value)
        elif isinstance(value, dict):
            fields[name] = StochasticDepth(**value)
    return fields
