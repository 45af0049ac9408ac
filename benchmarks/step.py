"""Training step beside Flax Linen, jax-resnet, torch, torchvision and timm, interleaved."""

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import optax

from resnet_jax import models
from resnet_jax.models import Architecture, Execution
from resnet_jax.models.blocks import Bottleneck
from resnet_jax.models.shortcuts import ZeroPad


class Candidate(NamedTuple):
    """One implementation. ``run`` executes one step and waits for it."""

    name: str
    version: str
    parameters: int
    run: Callable[[], None]


def measure(
    name: str,
    network: Architecture,
    batch_size: int,
    execution: Execution,
    peers: bool,
    rounds: int,
) -> Iterator[harness.Row]:
    """Yields a row per candidate. ``ours_over_this`` is a median ratio of throughputs."""
    step, arguments = harness.training_step(network, batch_size, execution)
    state, batch = arguments()
    ours = of_jax("resnet-jax", version("jax"), step, state, state.params, batch)
    candidates = [ours]
    for make in makers(name, network, batch_size) if peers else ():
        try:
            peer = make()
            peer.run()
        except Exception as error:  # The others are still measured.
            reason = str(error).partition("\n")[0]
            print(f"a peer of {name} failed: {type(error).__name__}: {reason}")
            continue
        if peer.parameters != ours.parameters:
            counts = f"{peer.parameters} parameters, not {ours.parameters}"
            raise RuntimeError(f"{peer.name} has {counts} as {name}.")
        candidates.append(peer)
    seconds = harness.interleave([candidate.run for candidate in candidates], rounds)
    for candidate, measured in zip(candidates, seconds, strict=True):
        row = {"network": name, "batch_size": batch_size, "dtype": network.dtype}
        row |= {"what": candidate.name, "version": candidate.version}
        row |= {"parameters": candidate.parameters, **harness.summary(measured)}
        row["images_per_second"] = batch_size / row["seconds"]
        yield row | {"ours_over_this": harness.ratio(measured, seconds[0])}


def of_jax(
    name: str, version: str, step: Callable[..., Any], state: Any, params: Any, *batch: Any
) -> Candidate:
    def run() -> None:
        nonlocal state
        state, metrics = step(state, *batch)
        jax.block_until_ready(metrics)

    return Candidate(name, version, sum(leaf.size for leaf in jax.tree.leaves(params)), run)


def makers(name: str, network: Architecture, batch_size: int) -> Iterator[Callable[[], Candidate]]:
    """Yields makers of every installed implementation of the same network."""
    stages, features, classes = network.stages, network.features, network.num_classes
    # He et al. 2015, Section 4.2.
    is_plain = network == Architecture(
        stages=stages,
        features=features,
        shortcut=ZeroPad,
        input_shape=network.input_shape,
        num_classes=classes,
        dtype=network.dtype,
    )
    # The bottlenecks of the others have the stride in the 3x3 convolution.
    comparable = network.branch != Bottleneck
    name = name.removesuffix("_v15")
    jax_resnet, torch, torchvision, timm = map(
        find, ("jax_resnet", "torch", "torchvision.models", "timm")
    )
    if is_plain:
        module = LinenResNet(stages, features, classes, network.dtype)
        yield partial(linen, "Flax Linen", version("flax"), module, network, batch_size, train=True)
    factory = getattr(jax_resnet, name.replace("resnet", "ResNet"), None)
    if factory and comparable and network.dtype == "float32":
        versions, module = version("jax-resnet", "flax"), factory(n_classes=classes)
        yield partial(linen, "jax-resnet", versions, module, network, batch_size)
    modules: dict[str, Callable[[], Any]] = {}
    if is_plain:
        modules["torch"] = partial(torch_cifar, network)
    if comparable and (factory := getattr(torchvision, name, None)):
        modules["torchvision"] = partial(factory, num_classes=classes)
    if comparable and timm and timm.is_model(name := name.replace("_d", "d")):
        modules["timm"] = partial(timm.create_model, name, num_classes=classes)
    for package, make in modules.items() if torch else ():
        for form in ("channels_last", "channels_last, torch.compile"):
            yield partial(torch_step, package, make, form, network, batch_size)


def find(package: str) -> Any:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module(package)


def version(*packages: str) -> str:
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


class LinenResNet(nn.Module):
    """Network of He et al. 2015, Section 4.2, with option A, built from Flax's own layers."""

    stages: tuple[int, ...]
    features: tuple[int, ...]
    classes: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        options = {"padding": [(1, 1)] * 2, "use_bias": False, "dtype": self.dtype}
        conv = partial(nn.Conv, kernel_size=(3, 3), **options)
        norm = partial(nn.BatchNorm, not train, momentum=0.9, dtype=self.dtype)
        x = nn.relu(norm()(conv(self.features[0])(x.astype(self.dtype))))
        for stage, (count, features) in enumerate(zip(self.stages, self.features, strict=True)):
            for block in range(count):
                stride = 2 if stage and not block else 1
                y = nn.relu(norm()(conv(features, strides=(stride, stride))(x)))
                y = norm()(conv(features)(y))
                x = x[:, ::stride, ::stride]
                x = jnp.pad(x, [(0, 0)] * 3 + [(0, features - x.shape[3])])
                x = nn.relu(y + x)
        return nn.Dense(self.classes)(x.mean((1, 2)).astype(jnp.float32))


def linen(
    name: str, version: str, module: Any, network: Architecture, batch_size: int, **training: bool
) -> Candidate:
    """Returns a training step of a Linen module, called with ``**training``."""
    images, labels, _ = harness.random_batch(network, batch_size)
    variables = jax.jit(lambda key: module.init(key, images[:1], **training))(jax.random.key(0))
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))

    def loss_of(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
        variables = {"params": params, "batch_stats": stats}
        logits, updates = module.apply(variables, images, mutable=["batch_stats"], **training)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updates["batch_stats"]

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, *batch: jax.Array) -> Any:
        params, stats, moments = state
        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, stats, *batch)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), stats, moments), loss

    params = variables["params"]
    state = params, variables["batch_stats"], optimizer.init(params)
    return of_jax(name, version, step, state, params, images, labels)


def torch_cifar(network: Architecture) -> Any:
    """Returns the network of ``LinenResNet`` as a torch module."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    def layers(before: int, after: int, stride: int = 1) -> list[Any]:
        return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)]

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int):
            super().__init__()
            self.stride, self.added = stride, after - before
            branch = *layers(before, after, stride), nn.ReLU(), *layers(after, after)
            self.branch = nn.Sequential(*branch)

        def forward(self, x: Any) -> Any:
            y = self.branch(x)
            if self.added:
                x = x[:, :, :: self.stride, :: self.stride]
                x = nn.functional.pad(x, (0, 0, 0, 0, 0, self.added))
            return torch.relu(y + x)

    before = network.features[0]
    modules = [*layers(network.input_shape[2], before), nn.ReLU()]
    for stage, (count, after) in enumerate(zip(network.stages, network.features, strict=True)):
        for block in range(count):
            modules.append(Block(before, after, 2 if stage and not block else 1))
            before = after
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, network.num_classes)
    return nn.Sequential(*modules, *head)


def torch_step(
    package: str, make: Callable[[], Any], form: str, network: Architecture, batch_size: int
) -> Candidate:
    """Returns a training step of a torch module; bfloat16 runs under autocast."""
    import torch  # pyright: ignore[reportMissingImports]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = {"device": device, "memory_format": torch.channels_last}
    module = make().to(**layout)
    height, width, channels = network.input_shape
    images = torch.randn(batch_size, channels, height, width).to(**layout)
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

    parameters = sum(parameter.numel() for parameter in module.parameters())
    versions = version(*dict.fromkeys((package, "torch")))
    return Candidate(f"{package}, {form}", versions, parameters, run)


def main(
    networks: tuple[str, ...] = ("cifar_resnet20",),
    batch_sizes: tuple[int, ...] = (128,),
    dtype: Literal["float32", "bfloat16"] = "float32",
    blocks: Literal["auto", "loop", "scan"] = "auto",
    peers: bool = True,
    rounds: int = 9,
    output: Path | None = None,
) -> None:
    """Images per second of a training step (SGD, momentum 0.9, weight decay 1e-4).

    Peers are measured where they are installed: pip install 'resnet-jax-lab[benchmarks]'.

    Args:
      networks: of the catalog; torchvision's and timm's resnet50 is resnet50_v15.
    """
    harness.check_positive(rounds=rounds, batch_sizes=min(batch_sizes, default=1))
    architectures = {n: dataclasses.replace(models.architecture(n), dtype=dtype) for n in networks}
    rows = (
        row
        for name, network in architectures.items()
        for batch_size in batch_sizes
        for row in measure(name, network, batch_size, Execution(blocks=blocks), peers, rounds)
    )
    harness.write(rows, output)


if __name__ == "__main__":
    harness.cli(main)
