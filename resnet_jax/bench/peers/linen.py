"""Peers in Flax Linen: the plain ResNet, written here as anyone would write it first, and the published jax-resnet where it is installed.

Unrolled units, ``nn.BatchNorm``, XLA's own gradients of convolutions. He et al. 2015: Section 4.2 for small images, Table 1 for ImageNet
(with the stride in the 3x3 where ours has it there).
"""

import functools
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from resnet_jax.bench.peers.peer import Peer, Work


class _Unit(nn.Module):
    features: int
    stride: int
    bottleneck: bool
    stride_in_1x1: bool
    project: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype, padding="SAME")
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        inner, outer = self.features, self.features * (4 if self.bottleneck else 1)
        shortcut = x
        if self.bottleneck:
            first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
            y = nn.relu(norm()(conv(inner, (1, 1), (first, first))(x)))
            y = nn.relu(norm()(conv(inner, (3, 3), (second, second), padding=[(1, 1), (1, 1)])(y)))
            y = norm()(conv(outer, (1, 1))(y))
        else:
            y = nn.relu(norm()(conv(inner, (3, 3), (self.stride, self.stride), padding=[(1, 1), (1, 1)])(x)))
            y = norm()(conv(outer, (3, 3), padding=[(1, 1), (1, 1)])(y))
        if x.shape != y.shape:
            if self.project:
                shortcut = norm()(conv(outer, (1, 1), (self.stride, self.stride))(x))
            else:
                shortcut = jnp.pad(x[:, :: self.stride, :: self.stride], [(0, 0)] * 3 + [(0, outer - x.shape[3])])
        return nn.relu(y + shortcut)


class ResNet(nn.Module):
    """Images (n, h, w, c) in float32 to logits (n, classes) in float32."""

    stages: tuple[int, ...]
    features: tuple[int, ...]
    imagenet: bool
    bottleneck: bool = False
    stride_in_1x1: bool = False
    classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)
        x = x.astype(self.dtype)
        if self.imagenet:
            x = nn.Conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], use_bias=False, dtype=self.dtype)(x)
            x = nn.max_pool(nn.relu(norm(x)), (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        else:
            x = nn.relu(norm(nn.Conv(self.features[0], (3, 3), use_bias=False, dtype=self.dtype)(x)))
        for stage, (count, features) in enumerate(zip(self.stages, self.features, strict=True)):
            for unit in range(count):
                stride = 2 if stage and not unit else 1
                x = _Unit(features, stride, self.bottleneck, self.stride_in_1x1, self.imagenet, self.dtype)(x, train)
        return nn.Dense(self.classes)(x.mean((1, 2)).astype(jnp.float32))


@dataclass(frozen=True)
class Network:
    """A Linen module and how it is called: training is where its statistics may change."""

    name: str
    version: str
    module: Any
    train: dict[str, Any]
    infer: dict[str, Any]


def plain(module: ResNet) -> Network:
    """Ours."""
    return Network("Flax Linen, plain (ours)", f"flax {importlib.metadata.version('flax')}", module, {"train": True}, {"train": False})


def published(name: str, classes: int, dtype: str) -> Network | None:
    """The network of jax-resnet, where that is installed and has it: its bottlenecks have the stride in the 3x3."""
    theirs = {"resnet18": "ResNet18", "resnet34": "ResNet34"} | {f"resnet{d}_v15": f"ResNet{d}" for d in (50, 101, 152, 200)}
    if name not in theirs or dtype != "float32" or importlib.util.find_spec("jax_resnet") is None:
        return None
    module = getattr(importlib.import_module("jax_resnet"), theirs[name])(n_classes=classes)
    version = f"jax-resnet {importlib.metadata.version('jax-resnet')}, flax {importlib.metadata.version('flax')}"
    return Network("jax-resnet (Flax Linen)", version, module, {}, {})


def peer(network: Network, input_shape: tuple[int, int, int], classes: int, batch_size: int, work: Work) -> Peer:
    """One step of it under SGD with momentum 0.9 and weight decay 1e-4, jitted, the state donated."""
    module = network.module
    images = jax.random.normal(jax.random.key(1), (batch_size, *input_shape))
    labels = jax.random.randint(jax.random.key(2), (batch_size,), 0, classes)
    variables = jax.jit(lambda key: module.init(key, images[:1], **network.infer))(jax.random.key(0))
    params, stats = variables["params"], variables["batch_stats"]
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))

    def loss_of(params: Any, stats: Any, images: Array, labels: Array) -> Any:
        logits, changed = module.apply({"params": params, "batch_stats": stats}, images, mutable=["batch_stats"], **network.train)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed["batch_stats"]  # pyright: ignore

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state: Any, images: Array, labels: Array) -> Any:
        params, stats, optimizer_state = state
        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, stats, images, labels)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), stats, optimizer_state), loss

    state = [(params, stats, optimizer.init(params))]
    infer = jax.jit(lambda params, stats, images: module.apply({"params": params, "batch_stats": stats}, images, **network.infer))

    def run() -> None:
        if work == "inference":
            jax.block_until_ready(infer(params, stats, images))
            return
        state[0], loss = train(state[0], images, labels)
        jax.block_until_ready(loss)

    return Peer(network.name, network.version, count, run)
