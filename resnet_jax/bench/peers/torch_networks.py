"""Peers in torch: torchvision's and timm's networks, and the paper's CIFAR network as a torch module, eager and compiled."""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from resnet_jax.bench.peers.peer import Peer, Work

# Name in the catalog to theirs. Their bottlenecks have the stride in the 3x3, as our resnet50_v15: He's own resnet50 is other work.
_BOTH = {
    **{name: name for name in ("resnet18", "resnet34", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")},
    **{f"resnet{depth}_v15": f"resnet{depth}" for depth in (50, 101, 152)},
    **{f"wide_resnet{depth}_2": f"wide_resnet{depth}_2" for depth in (50, 101)},
}
THEIRS = {"torchvision": _BOTH, "timm": _BOTH | {f"resnet{depth}_d": f"resnet{depth}d" for depth in (18, 34, 50, 101, 152, 200)}}


def installed(package: str = "torch") -> bool:
    """Whether a package of the extra ``bench`` is there. Nothing is imported."""
    return importlib.util.find_spec(package) is not None


def cifar(stages: tuple[int, ...], features: tuple[int, ...], classes: int) -> Any:
    """He et al. 2015, Section 4.2, with parameter-free shortcuts (option A), as a ``torch.nn.Module``."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    class Unit(nn.Module):
        def __init__(self, before: int, after: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(after)
            self.stride, self.added = stride, after - before

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
            if self.added:
                x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
            return functional.relu(y + x)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, features[0], 3, 1, 1, bias=False)
            self.bn = nn.BatchNorm2d(features[0])
            units, before = [], features[0]
            for stage, (count, after) in enumerate(zip(stages, features, strict=True)):
                for unit in range(count):
                    units.append(Unit(before, after, 2 if stage and not unit else 1))
                    before = after
            self.units = nn.Sequential(*units)
            self.head = nn.Linear(before, classes)

        def forward(self, x: Any) -> Any:
            x = self.units(functional.relu(self.bn(self.conv(x))))
            return self.head(torch.mean(x, (2, 3)))

    return Network()


def makers(name: str, stages: tuple[int, ...], features: tuple[int, ...], classes: int) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Name, version and maker of every torch network that does the work of the catalog's ``name``."""
    version = importlib.metadata.version
    if name.startswith("cifar_resnet"):
        yield "torch (ours)", f"torch {version('torch')}", functools.partial(cifar, stages, features, classes)
        return
    for package, theirs in THEIRS.items():
        if name not in theirs or not installed(package):
            continue
        try:
            found = importlib.import_module("torchvision.models" if package == "torchvision" else "timm")
        except (ImportError, RuntimeError):  # made for another torch
            continue
        make = getattr(found, theirs[name]) if package == "torchvision" else functools.partial(found.create_model, theirs[name])
        yield package, f"{package} {version(package)}, torch {version('torch')}", functools.partial(make, num_classes=classes)


def peers(
    make: Callable[[], Any], name: str, version: str, input_shape: tuple[int, int, int], batch_size: int, dtype: str, work: Work
) -> Iterator[Callable[[], Peer]]:
    """NCHW, channels_last, and channels_last compiled; under autocast to bfloat16 where that is the dtype."""
    for form in ("NCHW", "channels_last", "channels_last, torch.compile"):
        yield functools.partial(_peer, make, name, version, input_shape, batch_size, dtype, work, form)


def _peer(
    make: Callable[[], Any], name: str, version: str, shape: tuple[int, int, int], batch_size: int, dtype: str, work: Work, form: str
) -> Peer:
    import torch  # pyright: ignore[reportMissingImports]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if "channels_last" in form else torch.contiguous_format
    torch.manual_seed(0)
    network = make().to(device=device, memory_format=layout)
    count = sum(parameter.numel() for parameter in network.parameters())
    height, width, channels = shape
    images = torch.randn(batch_size, channels, height, width, device=device).to(memory_format=layout)
    classes = network(images[:2]).shape[1]
    labels = torch.randint(0, classes, (batch_size,), device=device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    network.train(work == "training")
    called = torch.compile(network) if "compile" in form else network
    cast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=dtype == "bfloat16")

    def run() -> None:
        if work == "inference":
            with torch.inference_mode(), cast():
                called(images)
        else:
            optimizer.zero_grad(set_to_none=True)
            with cast():
                loss = torch.nn.functional.cross_entropy(called(images), labels)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return Peer(f"{name}, {form}{', AMP' if dtype == 'bfloat16' else ''}", version, count, run)
