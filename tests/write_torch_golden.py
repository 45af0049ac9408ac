"""Write tests/golden/torch: logits of torch networks with drawn tensors, and small files of torch.save.

The packages below are no dependencies of the project, so it runs in an environment of its own:
``pip install torch torchvision timm transformers``, then ``python tests/write_torch_golden.py [NAME ...]``; without names it writes all.
The files of torch.save are called tiny, the names of pretrained weights names. ``check NAME FILE.safetensors`` loads an exported
file strictly into torchvision's network.
"""

import itertools
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from drawn import images, tensor

GOLDEN = Path(__file__).parent / "golden" / "torch"


class CifarBlock(nn.Module):
    """Two 3x3 convolutions; where the number of planes grows, shortcut A pads with zeros on both sides and B projects."""

    def __init__(self, inputs: int, planes: int, option: str):
        super().__init__()
        stride = planes // inputs
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.padding = planes // 4 if stride > 1 else 0
        self.shortcut = nn.Sequential()
        if stride > 1 and option == "B":
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding and not len(self.shortcut):
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """The CIFAR networks of He et al. (2015) with the tensor names of akamaster/pytorch_resnet_cifar10."""

    def __init__(self, blocks: int, option: str):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        planes = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
        layers = [CifarBlock(inputs, outputs, option) for inputs, outputs in itertools.pairwise(planes)]
        self.layer1, self.layer2, self.layer3 = (nn.Sequential(*layers[i * blocks : (i + 1) * blocks]) for i in range(3))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def transformers_resnet(**options: Any) -> nn.Module:
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**options))


def reason(name: str) -> str:
    """Returns why this project has no network of timm's ResNet family; empty if it has."""
    options: dict[str, Any] = {}
    for module, function in ((timm.models.resnet, "_create_resnet"), (timm.models.densenet, "_create_densenet")):
        mock.patch.object(module, function, lambda *_, **kwargs: options.update(kwargs)).start()
    timm.models.model_entrypoint(name)()
    mock.patch.stopall()
    attention = options.get("block_args", {}).get("attn_layer", "se")
    reasons = {
        "pruned": "pruned" in options,
        "of several kinds of blocks": isinstance(options.get("block"), list | tuple),
        "anti-aliased": "aa_layer" in options,
        "of efficient channel attention (ECA)": attention == "eca",
        "of another reduction than seresnet": attention != "se",
        "of a tiered stem": options.get("stem_type") == "deep_tiered",
        "of group normalization": "norm_layer" in options,
        "of wider first convolutions": "block_reduce_first" in options,
    }
    return next((text for text, holds in reasons.items() if holds), "")


def write_names() -> None:
    """Writes the names of pretrained weights: tags of timm, its networks that this project lacks, files of torchvision."""
    names = [name.split(".") for module in ("resnet", "densenet") for name in timm.list_models(module=module, pretrained=True)]
    loads: dict[str, list[str]] = {}
    files = {
        f"densenet{n}": f"densenet{n}-{h}.pth" for n, h in ((121, "a639ec97"), (161, "8d451a50"), (169, "b2777c0a"), (201, "c1103571"))
    }
    torchvision_names: dict[str, Any] = {}
    for name, tag in names:
        config = timm.get_pretrained_cfg(f"{name}.{tag}")
        if not reason(name) and config.num_classes:
            loads.setdefault(name, []).append(tag)
        if tag in ("tv_in1k", "tv2_in1k"):
            cls = re.sub(r"[a-z]+|\d+x\d+d", lambda m: WORDS.get(m[0], m[0].upper() if m[0][0].isdigit() else m[0].title()), name)
            version = "V2" if tag == "tv2_in1k" else "V1"
            resize = 232 if version == "V2" or name == "resnext101_64x4d" else 256
            file = config.url.rpartition("/")[2] or files[name]
            torchvision_names[f"{cls}_Weights.IMAGENET1K_{version}"] = [f"{name}.{tag}", file, resize]
    refused = {name: reason(name) for module in ("resnet", "densenet") for name in timm.list_models(module=module) if reason(name)}
    refused |= {name: text for module, text in OTHER_MODULES.items() for name in timm.list_models(module=module)}
    transformers = [f"microsoft/resnet-{depth}" for depth in (18, 26, 34, 50, 101, 152)]
    content = {"timm": loads, "refused": refused, "torchvision": torchvision_names, "transformers": transformers}
    NAMES.write_text(json.dumps(content, indent=1) + "\n")


OTHER_MODULES = {
    "sknet": "of selective kernels",
    "res2net": "of hierarchical convolutions (Res2Net)",
    "resnest": "of split attention (ResNeSt)",
    "resnetv2": "of other pre-activation (ResNetV2)",
}
WORDS = {"resnet": "ResNet", "resnext": "ResNeXt", "densenet": "DenseNet"}
NAMES = Path(__file__).parents[1] / "resnet_jax" / "weights" / "pretrained.json"
TORCHVISION = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_64x4d", "wide_resnet50_2"]
TIMM = ("resnet18d", "resnet50d", "seresnet50", "resnext50_32x4d", "densenet121")
TRANSFORMERS = {"resnet18": ("basic", [64, 128, 256, 512], [2, 2, 2, 2]), "resnet50": ("bottleneck", [256, 512, 1024, 2048], [3, 4, 6, 3])}
# timm repeats a name of torchvision's, so its own have a prefix.
CASES: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(torchvision.models.get_model, name, weights=None) for name in TORCHVISION},
    **{f"timm_{name}": partial(timm.create_model, name, pretrained=False) for name in TIMM},
    **{
        f"transformers_{name}": partial(transformers_resnet, layer_type=kind, hidden_sizes=widths, depths=depths, num_labels=1000)
        for name, (kind, widths, depths) in TRANSFORMERS.items()
    },
    "cifar_resnet20": partial(CifarResNet, 3, "A"),
    "cifar_resnet20_b": partial(CifarResNet, 3, "B"),
}


def fill(model: nn.Module) -> None:
    """Draws every tensor but num_batches_tracked, which strict loading does not require without torch's metadata."""
    counted = ("num_batches_tracked",)
    values = {
        name: torch.from_numpy(tensor(name, tuple(value.shape))) for name, value in model.state_dict().items() if not name.endswith(counted)
    }
    model.load_state_dict(values, strict=True)


def run(model: nn.Module, x: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Returns the logits and the root mean square of each layer's output."""
    sizes: list[float] = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output: sizes.append(output.double().square().mean().sqrt().item()))
        for layer in model.modules()
        if not list(layer.children())
    ]
    with torch.inference_mode():
        result = model(torch.from_numpy(x))
        logits = getattr(result, "logits", result).numpy()
    for hook in hooks:
        hook.remove()
    return logits, sizes


def write(name: str) -> None:
    model = CASES[name]().eval()
    fill(model)
    x = images(32 if name.startswith("cifar") else 128)
    logits, sizes = run(model, x)
    state = model.state_dict()
    shapes = [list(value.shape) for value in state.values()]
    exact, _ = run(model.double(), x.astype(np.float64))
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    if error > 1e-5:
        raise AssertionError(f"{name}: float32 is {error:.1e} away from float64")
    if not 1e-3 < min(sizes) < max(sizes) < 1e3:
        raise AssertionError(f"{name}: the outputs of layers are {min(sizes):.2g} to {max(sizes):.2g}, too far from 1 for float32")
    path = GOLDEN / f"{name}.npz"
    versions = {package.__name__: package.__version__ for package in (torch, torchvision, timm, transformers)}
    np.savez_compressed(path, logits=logits, names="\n".join(state), shapes=json.dumps(shapes), **versions)
    print(f"{name}: {len(state)} tensors, float32 within {error:.1e}, {path.stat().st_size} bytes", flush=True)


def write_tiny() -> None:
    """Writes one checkpoint in both formats of torch.save; the tests draw its numbers again."""
    drawn = np.random.default_rng(2016)
    full, half, weight = (torch.from_numpy(drawn.standard_normal(shape).astype(np.float32)) for shape in ((4, 6), 5, (2, 3)))
    state_dict = {
        "full": full,
        "transposed": full.t(),
        "sliced": full[1:, ::2],
        "half": half.half(),
        "bfloat": half.bfloat16(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(weight),
    }
    optimizer = {"state": {0: {"momentum_buffer": weight}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}]}
    checkpoint = {"state_dict": state_dict, "epoch": 90, "arch": "resnet", "best_prec1": torch.tensor(91.5), "lr": 0.1}
    checkpoint |= {"distributed": False, "optimizer": optimizer, "state_dict_ema": {"full": full}}
    torch.save(checkpoint, GOLDEN / "tiny.pth")
    torch.save(checkpoint, GOLDEN / "tiny_legacy.pth.tar", _use_new_zipfile_serialization=False)


def check(name: str, file: str) -> None:
    """Prints the logits of ``drawn.images(128)`` as JSON."""
    tensors = load_file(file)
    model = torchvision.models.get_model(name, weights=None, num_classes=tensors["fc.weight"].shape[0])
    model.load_state_dict(tensors, strict=True)
    print(json.dumps(run(model.eval(), images(128))[0].tolist()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if sys.argv[1:2] == ["check"]:
        sys.exit(check(*sys.argv[2:]))
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for case in sys.argv[1:] or (*CASES, "tiny", "names"):
        {"tiny": write_tiny, "names": write_names}.get(case, partial(write, case))()
