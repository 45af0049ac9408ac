"""Paths through residual networks: their lengths, and the gradient they carry. Veit et al. 2016 (arXiv 1605.06431), Section 4.3."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure
from scipy import special

from resnet_jax.analysis import plots, subjects
from resnet_jax.analysis import subjects as subjects_lib
from resnet_jax.analysis.subjects import Switched
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.studies import figures
from resnet_jax.studies.findings import Finding, Table
from resnet_jax.weights.loading import Pretrained

# Share of the gradient that effective paths carry; the paper says "almost all".
EFFECTIVE_SHARE = 0.95


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Options):
    """Lengths of paths through a residual network, and the gradient they carry (Veit et al. 2016, Figure 6)."""

    images: int = 100
    draws: int = 10
    """Random paths per length."""
    seed: int = 0


def run(options: Options, arguments: Sequence[str]) -> None:
    """Runs ``resnet-jax analyze paths``."""
    if options.draws < 1:
        raise UserError(f"--draws must be at least 1, got {options.draws}.")
    numbers = {name: getattr(options, name) for name in ("draws", "batch_size", "seed")}
    subjects.analyze(options, arguments, functools.partial(measure, **numbers), describe, draw)


class Paths(NamedTuple):
    """The 2^n paths through a network of n blocks by length, the number of branches they pass."""

    lengths: Int[np.ndarray, "lengths"]
    """0 to n."""
    share: Float[np.ndarray, "lengths"]
    """Share of all paths (Figure 6a)."""
    gradient: Float[np.ndarray, "draws lengths"]
    """Norm of the gradient that one path carries to an image, mean over images; one row per draw (Figure 6b)."""
    carried: Float[np.ndarray, "lengths"]
    """Share of the gradient: mean norm times the number of paths, normalized (Figure 6c)."""

    @property
    def effective(self) -> range:
        """Lengths of the effective paths."""
        return shortest_range(self.carried, EFFECTIVE_SHARE)


def measure(
    weights: Pretrained,
    examples: Examples,
    *,
    draws: int = 10,
    batch_size: int = 200,
    seed: int = 0,
) -> Paths:
    """Samples the gradients of paths of every length with one compiled program.

    As in the paper, the forward pass is that of the whole network. In the backward pass k random blocks propagate
    through their branch alone, all others through their shortcut alone. The gradient is that of an image's
    cross-entropy by the normalized image, in inference mode; all images share the draws.
    """
    network, count, source = weights.architecture, len(examples), weights.card.source
    if not count or min(draws, batch_size) < 1:
        raise UserError(
            f"images, batch size and draws must be at least 1, got {count}, {batch_size} and {draws}."
        )
    if subjects_lib.is_plain(network):
        raise UserError(
            f"{source} is a plain network, which has a single path. Name a residual network."
        )
    blocks, size = sum(network.stages), min(batch_size, count)
    apply = subjects_lib.network(network, subjects_lib.routed(network.shortcut))
    variables, constants = subjects.inputs(weights, examples)
    # The last batch is padded with the first images; their second norms are dropped.
    rows = [np.arange(start, start + size) % count for start in range(0, count, size)]
    batches = [jax.device_put((examples.images[row], examples.labels[row])) for row in rows]
    means = []
    for switches in subjects.track(
        list(draw_paths(blocks, draws, seed).reshape(-1, blocks)), source
    ):
        norms = [_norms(variables, constants, *batch, switches, apply=apply) for batch in batches]
        means.append(np.concatenate(jax.device_get(norms))[:count].mean(dtype=np.float64))
    gradient = np.reshape(means, (draws, blocks + 1))
    if not np.isfinite(gradient).all():
        length = int(np.argmin(np.isfinite(gradient).all(0)))
        raise UserError(
            f"paths of length {length} through {source} carry a non-finite gradient. The network may have diverged."
        )
    if not gradient.any():
        raise UserError(
            f"no path through {source} carries any gradient from {count} images. Use more or other images."
        )
    return Paths(
        np.arange(blocks + 1), path_shares(blocks), gradient, gradient_shares(gradient.mean(0))
    )


def draw_paths(blocks: int, draws: int, seed: int) -> Float[np.ndarray, "draws lengths blocks"]:
    """Draws paths of each length: 1 for blocks whose branch they pass, 0 for the others."""
    positions = np.tile(np.arange(blocks), (draws, blocks + 1, 1))
    ranks = np.random.default_rng(seed).permuted(positions, axis=-1)
    return (ranks < np.arange(blocks + 1)[:, None]).astype(np.float32)


def path_shares(blocks: int) -> Float[np.ndarray, "lengths"]:
    """Returns C(n, k) / 2^n."""
    # Python's integers do not overflow.
    return np.asarray([math.comb(blocks, length) / 2**blocks for length in range(blocks + 1)])


def gradient_shares(gradient: Float[np.ndarray, "lengths"]) -> Float[np.ndarray, "lengths"]:
    """Returns C(n, k) times the norm of one path, normalized."""
    blocks = len(gradient) - 1
    with np.errstate(divide="ignore"):
        logs = np.log(gradient) + [
            math.log(math.comb(blocks, length)) for length in range(blocks + 1)
        ]
    return special.softmax(logs)


def shortest_range(parts: Float[np.ndarray, "lengths"], least: float) -> range:
    """Returns the shortest range with a sum of at least ``least``; of several, that with the largest."""
    cumulative = np.concatenate([[0.0], np.cumsum(parts)])
    for size in range(1, len(parts) + 1):
        sums = cumulative[size:] - cumulative[:-size]
        # Rounding may separate sums that are equal on paper.
        if sums.max() >= least - 1e-12:
            start = int(sums.argmax())
            return range(start, start + size)
    return range(len(parts))


@functools.partial(jax.jit, static_argnames=("apply",))
def _norms(
    variables: tuple[Any, Any],
    constants: Preprocessing,
    images: Array,
    labels: Array,
    switches: Float[Array, "blocks"],
    *,
    apply: Switched,
) -> Float[Array, "n"]:
    def loss(normalized: Float[Array, "n h w c"]) -> Float[Array, ""]:
        logits = apply(*variables, normalized, switches)
        # Images are independent in inference mode: the gradient of the sum holds that of each.
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    gradient = jax.grad(loss)(constants(images)).reshape(len(images), -1)
    # Scaling avoids underflow: long paths carry less than the square root of float32's minimum.
    largest = jnp.abs(gradient).max(1)
    return largest * jnp.linalg.norm(gradient / jnp.where(largest > 0, largest, 1)[:, None], axis=1)


def describe(results: Mapping[str, Paths], images: int, seconds: Mapping[str, float]) -> Finding:
    """Returns table and numbers."""
    summary = []
    for name, result in results.items():
        lengths, blocks = result.effective, len(result.lengths) - 1
        shares = (
            100 * float(values[lengths.start : lengths.stop].sum())
            for values in (result.share, result.carried)
        )
        summary.append(
            (
                name,
                images,
                blocks,
                f"{lengths[0]} to {lengths[-1]}",
                *shares,
                blocks / 2,
                seconds[name],
            )
        )
    headings = (
        "network",
        "images",
        "blocks",
        "effective paths, length",
        "of all paths, %",
        "of the gradient, %",
        "mean length",
        "seconds",
    )
    return Finding(
        name="paths",
        title="Paths",
        caption="Share of all paths by length, the number of branches they pass; norm of the gradient that one path carries to an image "
        "(mean, range over draws); share of the gradient that all paths of a length carry (shaded: the effective paths, the shortest "
        f"range of lengths with {100 * EFFECTIVE_SHARE:g} %); {images:,} images. After Veit et al. 2016, Figure 6.",
        tables=(Table("effective paths", headings, tuple(summary)),),
        rows=[
            {
                "network": name,
                "length": length,
                "draw": draw,
                "share of paths": share,
                "gradient of one path": gradient,
            }
            | {"share of the gradient": carried}
            for name, result in results.items()
            for length, (share, carried) in enumerate(
                zip(result.share.tolist(), result.carried.tolist(), strict=True)
            )
            for draw, gradient in enumerate(result.gradient[:, length].tolist())
        ],
    )


def draw(results: Mapping[str, Paths]) -> Figure:
    """Draws Figure 6 of Veit et al. 2016."""
    figure, panels = plots.panels(*["length (branches passed)"] * 3)
    for name, result, style in plots.styled(results):
        panels[0].plot(result.lengths, 100 * result.share, label=figures.shortened(name), **style)
        # A logarithmic axis cannot show zeros.
        positive = result.gradient.min(0) > 0
        lengths, gradient = result.lengths[positive], result.gradient[:, positive]
        panels[1].plot(lengths, gradient.mean(0), **style)
        plots.fill(panels[1], lengths, gradient.min(0), gradient.max(0), style)
        panels[2].plot(result.lengths, 100 * result.carried, **style)
        effective = slice(result.effective.start, result.effective.stop)
        plots.fill(panels[2], result.lengths[effective], 0, 100 * result.carried[effective], style)
    titles = (
        "share of all paths (%)",
        "norm of the gradient of one path",
        "share of the gradient (%)",
    )
    for panel, title in zip(panels, titles, strict=True):
        panel.set_ylabel(title)
    for panel in (panels[0], panels[2]):
        panel.set_ylim(bottom=0)
    panels[1].set_yscale("log")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure
