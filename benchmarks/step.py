"""Training beside Flax Linen, jax-resnet, torch, torchvision and timm, in interleaved rounds."""

import contextlib
import hashlib
import importlib.metadata
import statistics
import time
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax.training.train_state import TrainState

from resnet_jax import models
from resnet_jax.data.augment_device import fit
from resnet_jax.models import Architecture, Execution
from resnet_jax.models.blocks import Bottleneck
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.training import sharding
from resnet_jax.training.config import Data, Experiment
from resnet_jax.training.step import Batch

Peer = Literal["linen", "jax-resnet", "torch", "torchvision", "timm"]
Form = Literal["eager", "compile"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a measurement."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    blocks: Literal["auto", "loop", "scan"] = "auto"
    size: int = 0
    """Height and width of the images; 0: the network's."""
    steps: int = 0
    """Steps per call; 0: as in training, 100 on an accelerator and 1 on CPU."""
    calls: int = 1
    """Calls until the host waits."""
    peers: tuple[Peer, ...] = typing.get_args(Peer)
    """Other implementations, where they are installed: resnet-jax-lab[benchmarks]."""
    forms: tuple[Form, ...] = typing.get_args(Form)
    """Forms of torch's networks."""
    rounds: int = 9
    variants: tuple[str, ...] = ()
    """Further programs of ours: kernels=plain, or compiler options, OPTION=VALUE;OPTION=VALUE."""
    trace: bool = False
    """Also measure when the device is busy, and its most expensive kernels, for ours."""


class Work(NamedTuple):
    """A network, and the steps that a run starts before it waits."""

    network: Architecture
    batch_size: int
    all_steps: int


class Candidate(NamedTuple):
    """One implementation; ``fields`` are more of its row."""

    name: str
    version: str
    parameters: int
    run: Callable[[], None]
    fields: dict[str, Any]


def measure(
    name: str, network: Architecture, batch_size: int, options: Options
) -> Iterator[harness.Row]:
    """Yields a row per candidate. ``ours_over_this`` is a median ratio of throughputs.

    A last row has the trace of ours.
    """
    execution = Execution(blocks=options.blocks, steps_per_dispatch=options.steps)
    steps = execution.steps_per_call()
    height, width, channels = network.input_shape
    shape = options.size or height, options.size or width, channels
    network = replace(network, dtype=options.dtype, input_shape=shape)
    work = Work(network, batch_size, steps * options.calls)
    candidates = [first] = [ours(work, execution, options.calls)]
    variants = [partial(ours, work, execution, options.calls, text) for text in options.variants]
    for make in (*variants, *makers(name, work, options)):
        try:
            peer = make()
            if peer.parameters != first.parameters:
                raise ValueError(f"{peer.parameters} parameters, not {first.parameters}")
            peer.run()
        except Exception as error:  # The others are still measured.
            reason = str(error).partition("\n")[0]
            print(f"a candidate beside {name} failed: {type(error).__name__}: {reason}")
        else:
            candidates.append(peer)
    runs = harness.interleave([candidate.run for candidate in candidates], options.rounds)
    common = {"network": name, "batch_size": batch_size, "dtype": network.dtype}
    common |= {"steps": steps, "calls": options.calls}
    for candidate, measured in zip(candidates, runs, strict=True):
        row: harness.Row = {"what": candidate.name, "version": candidate.version}
        row |= {"parameters": candidate.parameters, **harness.summary(measured, work.all_steps)}
        row["images_per_second"] = batch_size / row["seconds"]
        row["ours_over_this"] = harness.ratio(measured, runs[0])
        yield common | row | candidate.fields
    if options.trace:
        yield common | {"what": "trace", **harness.trace(first.run, work.all_steps)}


def ours(work: Work, execution: Execution, calls: int, variant: str = "") -> Candidate:
    """Returns the trainer's program on a device-resident set, or a variant of it.

    Its row has the seconds of each stage of compilation, those of the host per call, and a digest
    of the losses of the first call.
    """
    network, batch_size, _ = work
    xla: Any = dict(pair.split("=", 1) for pair in variant.split(";") if pair)
    execution = replace(execution, kernels=xla.pop("kernels", execution.kernels))
    data = Data(name="", normalization="channel", pad=0, flip=False)
    fields: Any = {"model": network, "data": data, "batch_size": batch_size}
    program = sharding.compiled(Experiment(name="", execution=execution, **fields), 1)
    random: Any = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, *network.input_shape), np.uint8)
    labels = random.integers(0, network.num_classes, batch_size).astype(np.int32)
    inputs = program.put((Batch(images, labels), fit(images[:16], "channel")))
    state, row = program.init(jax.random.key(0)), {}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    stage, arguments = program.train, (state, *inputs, execution.steps_per_call())
    for name in ("trace", "lower", "compile"):
        start = time.perf_counter()
        stage = getattr(stage, name)(*arguments)
        row[f"{name}_seconds"] = time.perf_counter() - start
        arguments = (xla,) if name == "lower" else ()
    row["temporary_bytes"] = stage.memory_analysis().temp_size_in_bytes
    host: harness.Seconds = []

    def run() -> None:
        nonlocal state
        metrics: Any = None
        start = time.perf_counter()
        with jax.transfer_guard("disallow"):
            for _ in range(calls):
                state, metrics = stage(state, *inputs)
        host.append((time.perf_counter() - start) / calls)
        losses = np.asarray(metrics.loss)
        row.setdefault("losses", hashlib.sha256(losses.tobytes()).hexdigest()[:12])
        row["host_seconds"] = statistics.median(host)

    name = " ".join(["resnet-jax", variant]).strip()
    return Candidate(name, version("jax"), parameters, run, row)


def makers(name: str, work: Work, options: Options) -> Iterator[Callable[[], Candidate]]:
    """Yields makers of every installed peer of the same network."""
    network, peers = work.network, options.peers
    # He et al. 2015, Section 4.2.
    kept = ("stages", "features", "input_shape", "num_classes", "dtype")
    fields = {field: getattr(network, field) for field in kept}
    is_plain = network == Architecture(shortcut=ZeroPad, **fields)
    # The bottlenecks of the others have the stride in the 3x3 convolution.
    comparable = network.branch != Bottleneck
    name, classes = name.removesuffix("_v15"), network.num_classes
    if is_plain and "linen" in peers:
        yield partial(linen, "flax", LinenResNet(network), work, train=True)
    factory = getattr(find("jax_resnet"), name.replace("resnet", "ResNet"), None)
    if factory and comparable and network.dtype == "float32" and "jax-resnet" in peers:
        yield partial(linen, "jax-resnet", factory(n_classes=classes), work)
    if not find("torch"):
        return
    modules: dict[str, Callable[[], Any]] = {}
    if is_plain:
        modules["torch"] = partial(torch_cifar, network)
    if comparable and (factory := getattr(find("torchvision.models"), name, None)):
        modules["torchvision"] = partial(factory, num_classes=classes)
    timm, name = find("timm"), name.replace("_d", "d")
    if comparable and timm and timm.is_model(name):
        modules["timm"] = partial(timm.create_model, name, num_classes=classes)
    for package, make in modules.items():
        for form in options.forms if package in peers else ():
            yield partial(torch_step, package, make, form, work)


def find(package: str) -> Any:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module(package)


def version(*packages: str) -> str:
    versions = {package: importlib.metadata.version(package) for package in packages}
    return ", ".join(f"{package} {number}" for package, number in versions.items())


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


def linen(package: str, module: Any, work: Work, **training: bool) -> Candidate:
    """Returns a training step of a Linen module, called with ``**training``."""
    key, shape = jax.random.key(1), (work.batch_size, *work.network.input_shape)
    labels = jax.random.randint(key, shape[:1], 0, work.network.num_classes)
    batch = Batch(jax.random.normal(key, shape), labels)
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

    def run() -> None:
        nonlocal state
        loss = None
        for _ in range(work.all_steps):
            state, loss = step(state, batch)
        jax.block_until_ready(loss)

    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Candidate(package, version(package, "flax"), parameters, run, {})


def torch_cifar(network: Architecture) -> Any:
    """Returns the network of ``LinenResNet`` as a torch module."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    def layers(before: int, after: int, stride: int = 1) -> list[Any]:
        return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)]

    class Block(nn.Sequential):
        def __init__(self, before: int, after: int, stride: int):
            super().__init__(*layers(before, after, stride), nn.ReLU(), *layers(after, after))
            self.stride, self.added = stride, after - before

        def forward(self, x: Any) -> Any:
            y = super().forward(x)
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


def torch_step(package: str, make: Callable[[], Any], form: Form, work: Work) -> Candidate:
    """Returns a training step of a torch module, channels last; bfloat16 runs under autocast."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = {"device": device, "memory_format": torch.channels_last}
    module, network = make().to(**layout), work.network
    height, width, channels = network.input_shape
    images = torch.randn(work.batch_size, channels, height, width).to(**layout)
    labels = torch.randint(0, network.num_classes, (work.batch_size,), device=device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    forward = torch.compile(module) if form == "compile" else module

    def run() -> None:
        for _ in range(work.all_steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=network.dtype == "bfloat16"):
                loss = torch.nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    parameters = sum(parameter.numel() for parameter in module.parameters())
    name = f"{package}, channels_last, {form}"
    return Candidate(name, version(package, "torch"), parameters, run, {})


def main(
    networks: tuple[str, ...] = ("cifar_resnet20",),
    batch_sizes: tuple[int, ...] = (128,),
    *,
    options: Annotated[Options, tyro.conf.arg(name="")],
    output: Path | None = None,
) -> None:
    """Images per second in training (SGD, momentum 0.9, weight decay 1e-4), and compilation.

    Args:
      networks: Of the catalog; torchvision's and timm's resnet50 is resnet50_v15.
    """
    least = {"rounds": options.rounds, "calls": options.calls}
    harness.check_positive(**least, batch_sizes=min(batch_sizes, default=1))
    jax.config.update("jax_enable_compilation_cache", False)
    architectures = [models.architecture(name) for name in networks]
    rows = (
        row
        for name, network in zip(networks, architectures, strict=True)
        for batch_size in batch_sizes
        for row in measure(name, network, batch_size, options)
    )
    harness.write(rows, output)


if __name__ == "__main__":
    harness.cli(main)
