"""How others name the tensors of residual networks, and what neither names nor shapes say: strides, padding, preprocessing."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resnet_jax.configured import Factory, configured
from resnet_jax.errors import UserError, nearest
from resnet_jax.models.pretrained.card import IMAGENET_VIEW, View
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.models.stems import CeilPooledStem, ImageNetStem

Stages = Sequence[int]

COUNTER = ".num_batches_tracked"
FIRST_KERNELS = ("conv1.weight", "conv1.0.weight")
FIRST_BIAS = "conv1.bias"


@dataclass(frozen=True, kw_only=True)
class Convention:
    """One code base's names for tensors, and its habits. Names go to and from torchvision's, as ``layer1.0.conv1.weight``."""

    name: str
    of: str
    """Whose it is."""
    to_torchvision: Callable[[str], str | None] = lambda name: name
    """None for a name that it does not have."""
    from_torchvision: Callable[[str, Stages], str] = lambda name, _: name
    """Takes the network's units per stage as well."""
    stride_at: int = 1
    """Which convolution of a bottleneck has the stride: 0, the first 1x1 (He et al. 2015), or 1, the 3x3 ("v1.5")."""
    stem: Factory = ImageNetStem
    """Behind a 7x7 convolution."""
    padded: Factory | None = None
    """The shortcut where no projection is stored; None: there always is one."""
    variants: frozenset[str] = frozenset()
    """What it has beyond basic units and bottlenecks: "deep stem", "pooled projection", "squeeze-and-excitation"."""
    view: View = IMAGENET_VIEW
    """How its networks are shown images."""
    data: tuple[tuple[int, str], ...] = ((1000, "imagenet2012"),)
    """Number of classes to the TFDS name of the set that its networks of so many are trained on, unless something else is said."""
    blue_first: bool = False
    """Its networks take blue, green, red: the first convolution's input channels are turned round on the way in and out."""
    divided: bool = False
    """What stands at ``num_batches_tracked`` is what running averages are to be divided by; and the first convolution may have a bias."""

    def is_beside(self, name: str) -> bool:
        """Whether a tensor is no weight of the network, and may be there or not."""
        return name.endswith(COUNTER) or (self.divided and name == FIRST_BIAS)

    def taken_in(self, name: str, array: np.ndarray, counters: Mapping[str, float], bias: np.ndarray | None) -> np.ndarray:
        """A tensor of a file, in its layout, as the network has it.

        Args:
          name: torchvision's.
          array: float32.
          counters: of the file, by their names.
          bias: of the first convolution, where the file has one: the normalisation after it takes it away again.
        """
        if self.blue_first and name in FIRST_KERNELS:
            return array[:, ::-1]
        if self.divided and ".running_" in name:
            divisor = counters.get(name.rpartition(".running_")[0] + COUNTER, 1.0)
            if divisor != 1:
                # What is not finite then, is refused by its name.
                with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                    array = array / np.float32(divisor) if divisor else np.zeros_like(array)
            if bias is not None and name == "bn1.running_mean":
                array = array - bias.astype(np.float32)
        return array

    def given_out(self, name: str, array: np.ndarray, counters: Mapping[str, float]) -> np.ndarray:
        """Undoes ``taken_in``, but for a bias: that stays in the running mean."""
        if self.blue_first and name in FIRST_KERNELS:
            return array[:, ::-1]
        divisor = counters.get(name.rpartition(".running_")[0] + COUNTER, 1.0) if self.divided and ".running_" in name else 1.0
        return array if divisor == 1 else array * np.float32(divisor)


def _caffe_module(stage: int, unit: int, stages: Stages) -> str:
    # ResNet-50: res4a to res4f; ResNet-101 and 152, in the stages of more than three: res4a, res4b1 to res4b22.
    letters = stages[stage] <= 3 or max(stages) <= 6
    return f"{stage + 2}" + (chr(ord("a") + unit) if letters else f"b{unit}" if unit else "a")


_CAFFE_BLOBS = {
    "running_mean": ("bn", 0),
    "running_var": ("bn", 1),
    "num_batches_tracked": ("bn", 2),
    "weight": ("scale", 0),
    "bias": ("scale", 1),
}


def _to_caffe(name: str, stages: Stages) -> str:
    *modules, leaf = name.split(".")
    if modules == ["fc"]:
        return f"fc1000/{0 if leaf == 'weight' else 1}"
    if modules == ["conv1"]:
        return f"conv1/{0 if leaf == 'weight' else 1}"
    if modules == ["bn1"]:
        kind, blob = _CAFFE_BLOBS[leaf]
        return f"{kind}_conv1/{blob}"
    stage, unit = int(modules[0].removeprefix("layer")) - 1, int(modules[1])
    layer = modules[2]
    branch = "branch1" if layer == "downsample" else f"branch2{'abc'[int(layer[-1]) - 1]}"
    is_norm = layer.startswith("bn") or modules[3:] == ["1"]
    kind, blob = _CAFFE_BLOBS[leaf] if is_norm else ("res", 0)
    return f"{kind}{_caffe_module(stage, unit, stages)}_{branch}/{blob}"


_CAFFE = re.compile(r"(?P<kind>res|bn|scale)(?P<stage>[2-5])(?P<unit>[a-z]|b\d{1,4})_branch(?P<branch>1|2[abc])/(?P<blob>\d)")


def _from_caffe(name: str) -> str | None:
    whole = {"conv1/0": "conv1.weight", "conv1/1": "conv1.bias", "fc1000/0": "fc.weight", "fc1000/1": "fc.bias"}
    if name in whole:
        return whole[name]
    leaves = {blob: leaf for leaf, blob in _CAFFE_BLOBS.items()}
    first = re.fullmatch(r"(bn|scale)_conv1/(\d)", name)
    if first:
        leaf = leaves.get((first[1], int(first[2])))
        return leaf and f"bn1.{leaf}"
    match = _CAFFE.fullmatch(name)
    if match is None:
        return None
    kind, written, branch, blob = match["kind"], match["unit"], match["branch"], int(match["blob"])
    unit = ord(written) - ord("a") if len(written) == 1 else int(written[1:])
    leaf = leaves.get((kind, blob)) if kind != "res" else "weight" if blob == 0 else None
    number = "downsample" if branch == "1" else "abc".index(branch[1]) + 1
    module = f"downsample.{int(kind != 'res')}" if branch == "1" else f"{'conv' if kind == 'res' else 'bn'}{number}"
    return leaf and f"layer{int(match['stage']) - 1}.{unit}.{module}.{leaf}"


def _to_cifar_torch(name: str, _: Stages) -> str:
    return re.sub(r"^fc\.", "linear.", name).replace(".downsample.", ".shortcut.")


def _from_cifar_torch(name: str) -> str | None:
    if name.startswith("fc.") or ".downsample." in name:
        return None
    return re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample.")


# Mean of BGR images of 0 to 255, subtracted and not divided: Caffe's, in this project's scale and order.
_CAFFE_VIEW = View(
    mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), deviation=(1 / 255, 1 / 255, 1 / 255), resize=256, crop=224, interpolation="bilinear"
)

CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(name="torchvision", of="torchvision's ResNet, ResNeXt and Wide ResNet (v1.5)"),
        Convention(
            name="timm",
            of="timm's resnets (v1.5), with deep stems, pooled projections (D) and squeeze-and-excitation",
            variants=frozenset({"deep stem", "pooled projection", "squeeze-and-excitation"}),
        ),
        Convention(
            name="cifar-torch",
            of="akamaster/pytorch_resnet_cifar10: option A with the missing channels on both sides, or option B",
            to_torchvision=_from_cifar_torch,
            from_torchvision=_to_cifar_torch,
            padded=configured(ZeroPad, resize="pad-both"),
            view=View(mean=IMAGENET_VIEW.mean, deviation=IMAGENET_VIEW.deviation),
            data=((10, "cifar10"), (100, "cifar100")),
        ),
        Convention(
            name="caffe",
            of="the released Caffe models of He et al. (LAYER/BLOB, res2a_branch2a/0): stride in the 1x1, blue first, pooling rounded up",
            to_torchvision=_from_caffe,
            from_torchvision=_to_caffe,
            stride_at=0,
            stem=CeilPooledStem,
            view=_CAFFE_VIEW,
            blue_first=True,
            divided=True,
        ),
        Convention(
            name="caffe-torch",
            of="those models under torchvision's names, as converted for torch",
            stride_at=0,
            stem=CeilPooledStem,
            view=_CAFFE_VIEW,
            blue_first=True,
        ),
    )
}


def convention(name: str) -> Convention:
    """Looks one up. Raises UserError for an unknown name."""
    if name not in CONVENTIONS:
        raise UserError(f"{name!r} is no naming of weights that is known{nearest(name, CONVENTIONS)}")
    return CONVENTIONS[name]
