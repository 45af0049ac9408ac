"""Training step beside Flax Linen, jax-resnet, torch, torchvision and timm, interleaved."""

import dataclasses
import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import optax

from resnet_jax import models
from resnet_jax.models import Architecture, Execution
from resnet_jax.models.blocks import Basic, Bottleneck
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.models.stems import SmallImageStem


@dataclass(frozen=True, kw_only=True)
class StepOptions(harness.Output):
    """Images per second of a training step (SGD, momentum 0.9, weight decay 1e-4).

    Peers are measured where they are installed: pip install 'resnet-jax-lab[benchmarks]'.
    """

    networks: tuple[str, ...] = ("cifar_resnet20",)
    """Of the catalog; torchvision's and timm's resnet50 is resnet50_v15."""
    batch_sizes: tuple[int, ...] = (128,)
    dtype: Literal["float32", "bfloat16"] = "float32"
    blocks: Literal["auto", "loop", "scan"] = "auto"
    peers: bool = True
    rounds: int = 9


class Candidate(NamedTuple):
    """One implementation. ``run`` executes one step and waits for it."""

    name: str
    version: str
    parameters: int
    run: Callable[[], None]


def measure(
    name: str, network: Architecture, batch_size: int, options: StepOptions
) -> list[dict[str, Any]]:
    """Returns a row per candidate. ``ours_over_this`` is a median ratio of throughputs."""
    candidates = [ours(network, batch_size, Execution(blocks=options.blocks))]
    for make in peers(name, network, batch_size) if options.peers else ():
        try:
            candidate = make()
            candidate.run()
        except Exception as error:  # The others are still measured.
            print(
                f"a peer of {name} failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            )
            continue
        if candidate.parameters != candidates[0].parameters:
            raise RuntimeError(
                f"{candidate.name} has {candidate.parameters} parameters, {name} has {candidates[0].parameters}."
            )
        candidates.append(candidate)
    seconds = harness.interleave([candidate.run for candidate in candidates], options.rounds)
    return [
        {
            "network": name,
            "batch_size": batch_size,
            "dtype": network.dtype,
            "what": candidate.name,
            "version": candidate.version,
            "parameters": candidate.parameters,
            **harness.summary(measured),
            "images_per_second": batch_size / harness.summary(measured)["seconds"],
            "ours_over_this": harness.ratio(measured, seconds[0]),
        }
        for candidate, measured in zip(candidates, seconds, strict=True)
    ]


def ours(network: Architecture, batch_size: int, execution: Execution) -> Candidate:
    training = harness.TrainingStep(network, batch_size, execution)
    state, batch = training.state(), training.batch()

    def run() -> None:
        nonlocal state
        state, metrics = training.step(state, batch)
        jax.block_until_ready(metrics)

    return Candidate("resnet-jax", f"jax {jax.__version__}", training.parameters, run)


def peers(name: str, network: Architecture, batch_size: int) -> Iterator[Callable[[], Candidate]]:
    """Yields makers of every installed implementation of the same network."""
    # He et al. 2015, Section 4.2: parts that the catalog's CIFAR networks of later papers change.
    plain = Architecture(
        stages=network.stages,
        features=network.features,
        stem=SmallImageStem,
        branch=Basic,
        shortcut=ZeroPad,
    )
    changeable = ("stem", "branch", "shortcut", "order", "norm", "transition", "stochastic_depth")
    small = all(getattr(network, part) == getattr(plain, part) for part in changeable)
    if small:
        module = LinenResNet(
            tuple(network.stages), tuple(network.features), network.num_classes, network.dtype
        )
        yield functools.partial(
            linen, "Flax Linen", version("flax"), module, {"train": True}, network, batch_size
        )
    theirs = {"resnet18": "ResNet18", "resnet34": "ResNet34"} | {
        f"resnet{depth}_v15": f"ResNet{depth}" for depth in (50, 101, 152)
    }
    if name in theirs and network.dtype == "float32" and installed("jax_resnet"):
        module = getattr(importlib.import_module("jax_resnet"), theirs[name])(
            n_classes=network.num_classes
        )
        yield functools.partial(
            linen, "jax-resnet", version("jax-resnet", "flax"), module, {}, network, batch_size
        )
    if not installed("torch"):
        return
    makers: dict[str, Callable[[], Any]] = (
        {"torch": functools.partial(torch_cifar, network)} if small else {}
    )
    # Their bottlenecks have the stride in the 3x3 convolution.
    same = network.branch != Bottleneck
    called = name.removesuffix("_v15")
    if (
        same
        and installed("torchvision")
        and (make := getattr(importlib.import_module("torchvision.models"), called, None))
    ):
        makers["torchvision"] = functools.partial(make, num_classes=network.num_classes)
    if same and installed("timm"):
        timm = importlib.import_module("timm")
        if timm.is_model(called := called.replace("_d", "d")):
            makers["timm"] = functools.partial(
                timm.create_model, called, num_classes=network.num_classes
            )
    for package, make in makers.items():
        for form in ("channels_last", "channels_last, torch.compile"):
            yield functools.partial(torch_step, package, make, form, network, batch_size)


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def version(*packages: str) -> str:
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


class LinenResNet(nn.Module):
    """Network of He et al. 2015, Section 4.2, with option A, built from Flax's own layers."""

    stages: tuple[int, ...]
    features: tuple[int, ...]
    classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        conv = functools.partial(
            nn.Conv, kernel_size=(3, 3), padding=[(1, 1), (1, 1)], use_bias=False, dtype=self.dtype
        )
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        x = nn.relu(norm()(conv(self.features[0])(x.astype(self.dtype))))
        for stage, (count, features) in enumerate(zip(self.stages, self.features, strict=True)):
            for block in range(count):
                stride = 2 if stage and not block else 1
                y = nn.relu(norm()(conv(features, strides=(stride, stride))(x)))
                y = norm()(conv(features)(y))
                shortcut = jnp.pad(
                    x[:, ::stride, ::stride], [(0, 0)] * 3 + [(0, features - x.shape[3])]
                )
                x = nn.relu(y + shortcut)
        return nn.Dense(self.classes)(x.mean((1, 2)).astype(jnp.float32))


def linen(
    name: str,
    version: str,
    module: Any,
    training: dict[str, Any],
    network: Architecture,
    batch_size: int,
) -> Candidate:
    """Returns a training step of a Linen module, called with ``**training``."""
    images = jax.random.normal(jax.random.key(1), (batch_size, *network.input_shape))
    labels = jax.random.randint(jax.random.key(2), (batch_size,), 0, network.num_classes)
    variables = jax.jit(lambda key: module.init(key, images[:1], **training))(jax.random.key(0))
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))

    def loss_of(params: Any, stats: Any, images: Any, labels: Any) -> Any:
        logits, changed = module.apply(
            {"params": params, "batch_stats": stats}, images, mutable=["batch_stats"], **training
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed[
            "batch_stats"
        ]

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: Any, labels: Any) -> Any:
        params, stats, moments = state
        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            params, stats, images, labels
        )
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), stats, moments), loss

    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state[0]))

    def run() -> None:
        nonlocal state
        state, loss = step(state, images, labels)
        jax.block_until_ready(loss)

    return Candidate(name, version, parameters, run)


def torch_cifar(network: Architecture) -> Any:
    """Returns the network of ``LinenResNet`` as a torch module."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int):
            super().__init__()
            self.conv1, self.bn1 = (
                nn.Conv2d(before, after, 3, stride, 1, bias=False),
                nn.BatchNorm2d(after),
            )
            self.conv2, self.bn2 = (
                nn.Conv2d(after, after, 3, 1, 1, bias=False),
                nn.BatchNorm2d(after),
            )
            self.stride, self.added = stride, after - before

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            if self.added:
                x = nn.functional.pad(
                    x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added)
                )
            return torch.relu(y + x)

    before = network.features[0]
    layers: list[Any] = [
        nn.Conv2d(network.input_shape[2], before, 3, 1, 1, bias=False),
        nn.BatchNorm2d(before),
        nn.ReLU(),
    ]
    for stage, (count, after) in enumerate(zip(network.stages, network.features, strict=True)):
        for block in range(count):
            layers.append(Block(before, after, 2 if stage and not block else 1))
            before = after
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, network.num_classes)
    )


def torch_step(
    package: str, make: Callable[[], Any], form: str, network: Architecture, batch_size: int
) -> Candidate:
    """Returns a training step of a torch module; bfloat16 runs under autocast."""
    import torch  # pyright: ignore[reportMissingImports]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = make().to(device=device, memory_format=torch.channels_last)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    height, width, channels = network.input_shape
    images = torch.randn(batch_size, channels, height, width, device=device).to(
        memory_format=torch.channels_last
    )
    labels = torch.randint(0, network.num_classes, (batch_size,), device=device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    forward = torch.compile(module) if "compile" in form else module

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=network.dtype == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return Candidate(
        f"{package}, {form}", version(*dict.fromkeys((package, "torch"))), parameters, run
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options = harness.parse(StepOptions, arguments)
    networks = {
        name: dataclasses.replace(models.architecture(name), dtype=options.dtype)
        for name in options.networks
    }
    sizes = options.batch_sizes
    rows = [
        row
        for name, network in networks.items()
        for size in sizes
        for row in measure(name, network, size, options)
    ]
    harness.write("step", rows, options, arguments)


if __name__ == "__main__":
    main()
