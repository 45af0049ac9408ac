"""A residual network of three blocks with nontrivial statistics, its plain twin, and images."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from resnet_jax import models
from resnet_jax.data.datasets import Examples
from resnet_jax.models import components
from resnet_jax.models.shortcuts import NoShortcut, ZeroPad
from resnet_jax.weights.card import Card, View
from resnet_jax.weights.loading import Pretrained

from oracle import modules_of_blocks

SMALL = models.Architecture(stages=(2, 1), features=(3, 4), shortcut=ZeroPad, input_shape=(6, 6, 3), num_classes=4)
SMALL_PLAIN = replace(SMALL, shortcut=NoShortcut)
_DRAWN = np.random.default_rng(0)
EXAMPLES = Examples(_DRAWN.integers(0, 256, (5, 6, 6, 3), np.uint8), np.array([0, 1, 2, 3, 0], np.int32))
MANY = Examples(_DRAWN.integers(0, 256, (70, 6, 6, 3), np.uint8), _DRAWN.integers(0, 4, 70, np.int32))


@functools.cache
def weights_of(network: models.Architecture, seed: int = 0) -> Pretrained:
    _, params, stats = network.init(jax.random.key(seed))
    drawn = np.random.default_rng(1)
    stats = jax.tree.map(lambda leaf: leaf + np.float32(drawn.uniform(0.1, 0.5, leaf.shape)), stats)
    view = View(mean=(0.4, 0.5, 0.6), deviation=(0.2, 0.25, 0.3))
    return Pretrained(Card(architecture=network, view=view, source="synthetic"), params, stats)


def normalized(images: np.ndarray) -> Any:
    return jnp.asarray((images / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.3], jnp.float32)


def blocks_of(weights: Pretrained) -> tuple[Any, list[Any]]:
    """Returns the module and its blocks in order."""
    model: Any = weights.build()
    return model, modules_of_blocks(model)


def block_parts(weights: Pretrained, images: Any) -> list[tuple[np.ndarray, ...]]:
    """Returns (input, branch, output before ReLU) of each block, one row per image."""
    model, blocks = blocks_of(weights)
    x, rows = model.stem(images), []
    for block in blocks:
        branch = block.branch(x)
        output = block.shortcut(x, branch, **components.accepted(block.shortcut, train=False))
        rows.append(tuple(np.float64(value).reshape(len(x), -1) for value in (x, branch, output)))
        x = jax.nn.relu(output)
    return rows


def walk(weights: Pretrained, images: np.ndarray, call: Callable[[int, Any, Any], Any]) -> Any:
    """Returns the logits; ``call(number, block, x)`` computes each block."""
    model, blocks = blocks_of(weights)
    x = model.stem(normalized(images))
    for number, block in enumerate(blocks):
        x = call(number, block, x)
    return model.head(x)
