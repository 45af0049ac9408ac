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
from flax.training.train_state import TrainState

from resnet_jax import models
from resnet_jax.models import Architecture, Execution
from resnet_jax.models.blocks import Bottleneck
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.training.step import Batch


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
    ours = of_jax("resnet-jax", version("jax"), step, *arguments())
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
    name: str, version: str, step: Callable[..., Any], state: Any, batch: Batch
) -> Candidate:
    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Candidate(name, version, parameters, run)


def makers(name: str, network: Architecture, batch_size: int) -> Iterator[Callable[[], Candidate]]:
    """Yields makers of every installed implementation of the same network."""
    # He et al. 2015, Section 4.2.
    kept = ("stages", "features", "input_shape", "num_classes", "dtype")
    fields = {field: getattr(network, field) for field in kept}
    is_plain = network == Architecture(shortcut=ZeroPad, **fields)
    # The bottlenecks of the others have the stride in the 3x3 convolution.
    comparable = network.branch != Bottleneck
    name, classes = name.removesuffix("_v15"), network.num_classes
    if is_plain:
        module = LinenResNet(network)
        yield partial(linen, "Flax Linen", version("flax"), module, network, batch_size, train=True)
    factory = getattr(find("jax_resnet"), name.replace("resnet", "ResNet"), None)
    if factory and comparable and network.dtype == "float32":
        versions, module = version("jax-resnet", "flax"), factory(n_classes=classes)
        yield partial(linen, "jax-resnet", versions, module, network, batch_size)
    if not find("torch"):
        return
    modules: dict[str, Callable[[], Any]] = {"torch": partial(torch_cifar, network)}
    if not is_plain:
        del modules["torch"]
    if comparable and (factory := getattr(find("torchvision.models"), name, None)):
        modules["torchvision"] = partial(factory, num_classes=classes)
    timm, name = find("timm"), name.replace("_d", "d")
    if comparable and timm and timm.is_model(name):
        modules["timm"] = partial(timm.create_model, name, num_classes=classes)
    for package, make in modules.items():
        for form in ("channels_last", "channels_last, torch.compile"):
            yield partial(torch_step, package, make, form, network, batch_size)


def find(package: str) -> Any:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module(package)


def version(*packages: str) -> str:
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def blocks(network: Architecture) -> Iterator[tuple[int, int]]:
    """Yields features and stride of each block."""
    for stage, (count, features) in enumerate(zip(network.stages, network.features, strict=True)):
        yield features, 2 if stage else 1
        yield from [(features, 1)] * (count - 1)


class LinenResNet(nn.Module):
    """Network of He et al. 2015, Section 4.2, with option A, built from Flax's own layers."""

    network: Architecture

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        dtype = self.network.dtype
        conv = partial(nn.Conv, kernel_size=(3, 3), padding=1, use_bias=False, dtype=dtype)
        norm = partial(nn.BatchNorm, not train, momentum=0.9, dtype=dtype)
        x = nn.relu(norm()(conv(self.network.features[0])(x.astype(dtype))))
        for features, stride in blocks(self.network):
            y = nn.relu(norm()(conv(features, strides=stride)(x)))
            y = norm()(conv(features)(y))
            x = x[:, ::stride, ::stride]
            x = jnp.pad(x, [(0, 0)] * 3 + [(0, features - x.shape[3])])
            x = nn.relu(y + x)
        return nn.Dense(self.network.num_classes)(x.mean((1, 2)).astype(jnp.float32))


class LinenState(TrainState):
    batch_stats: Any


def linen(
    name: str, version: str, module: Any, network: Architecture, batch_size: int, **training: bool
) -> Candidate:
    """Returns a training step of a Linen module, called with ``**training``."""
    batch = harness.random_batch(network, batch_size)
    init = jax.jit(lambda key: module.init(key, batch.images[:1], **training))
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    state = LinenState.create(apply_fn=module.apply, tx=optimizer, **init(jax.random.key(0)))

    @partial(jax.jit, donate_argnums=0)
    def step(state: LinenState, batch: Batch) -> tuple[LinenState, jax.Array]:
        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            options = {"mutable": ["batch_stats"], **training}
            logits, updates = module.apply(variables, batch.images, **options)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
            return losses.mean(), updates

        (loss, updates), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients, **updates), loss

    return of_jax(name, version, step, state, batch)


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
    for after, stride in blocks(network):
        modules.append(Block(before, after, stride))
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
