"""Paths through residual networks: Veit et al. 2016 (arXiv 1605.06431), Section 4.3."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from scipy import stats

from resnet_jax.analysis import subjects
from resnet_jax.analysis.subjects import Columns, Network, Shortcut
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.studies import figures
from resnet_jax.training.config import Positive
from resnet_jax.training.run_dir import Record
from resnet_jax.weights.loading import Pretrained

# Share of the gradient that effective paths carry; the paper says "almost all".
EFFECTIVE_SHARE = 0.95


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Options):
    """Lengths of paths, and the gradient that they carry (Veit et al. 2016, Figure 6)."""

    images: Positive = 100
    draws: Positive = 10
    """Random paths per length."""
    seed: int = 0


def run(options: Options) -> subjects.Outcome:
    return subjects.analyze(
        options,
        measure,
        draw,
        title="Paths",
        heading="effective paths",
        caption="Share of all paths by length, the number of branches they pass; norm of the "
        "gradient that one path carries to an image (mean, range over draws); share of the "
        "gradient that all paths of a length carry (shaded: the effective paths, the shortest "
        f"range of lengths with {100 * EFFECTIVE_SHARE:g} %). After Veit et al. 2016, Figure 6.",
    )


class Paths(NamedTuple):
    """The 2^n paths through n blocks by length, the number of branches they pass: 0 to n."""

    gradient: Float[np.ndarray, "draws lengths"]
    """Norm of the gradient that one path carries to an image, mean over images (Figure 6b)."""

    @property
    def blocks(self) -> int:
        return self.gradient.shape[1] - 1

    @property
    def share(self) -> Float[np.ndarray, "lengths"]:
        """Share of all paths, C(n, k) / 2^n (Figure 6a)."""
        return stats.binom.pmf(np.arange(self.blocks + 1), self.blocks, 0.5)

    @property
    def carried(self) -> Float[np.ndarray, "lengths"]:
        """Share of the gradient: mean norm times the number of paths, normalized (Figure 6c)."""
        carried = self.share * self.gradient.mean(axis=0)
        return carried / carried.sum()

    @property
    def effective(self) -> slice:
        return shortest_range(self.carried, EFFECTIVE_SHARE)

    def summary(self) -> Record:
        effective = self.effective
        return {
            "blocks": self.blocks,
            "effective paths, length": f"{effective.start} to {effective.stop - 1}",
            "of all paths, %": 100 * self.share[effective].sum(),
            "of the gradient, %": 100 * self.carried[effective].sum(),
            "mean length": self.blocks / 2,
        }

    def columns(self) -> Columns:
        draws, lengths = map(np.arange, self.gradient.shape)
        return {
            "length": lengths[:, None],
            "draw": draws,
            "share of paths": self.share[:, None],
            "gradient of one path": self.gradient.T,
            "share of the gradient": self.carried[:, None],
        }


def shortest_range(shares: Float[np.ndarray, "lengths"], least: float) -> slice:
    """Returns the shortest range with a sum of at least ``least``; of several, the largest sum."""
    cumulative = np.concatenate([[0.0], np.cumsum(shares)])
    for size in range(1, len(shares) + 1):
        sums = cumulative[size:] - cumulative[:-size]
        # Rounding may separate sums that are equal on paper.
        if sums.max() >= least - 1e-12:
            start = int(sums.argmax())
            return slice(start, start + size)
    return slice(len(shares))


def measure(weights: Pretrained, examples: Examples, options: Options = Options()) -> Paths:
    """Samples the gradients of paths of every length, by the normalized image.

    The forward pass is that of the network, in inference mode. In the backward pass k random blocks
    propagate through their branch alone, the others through their shortcut alone: the Jacobian of a
    block is a sum, so the gradients of all paths add up to that of the network.
    """
    source, blocks = weights.card.source, sum(weights.architecture.stages)
    if subjects.is_plain(weights):
        raise UserError(f"{source} is a plain network, which has a single path.")
    shortcut = weights.architecture.shortcut
    switched = subjects.switched(weights, shortcut, route)
    paths = list(draw_paths(blocks, options.draws, options.seed).reshape(-1, blocks))
    batches = subjects.batches(examples, options.batch_size)
    means = [
        subjects.mean(_norms(switched(path), *batch) for batch in batches)
        for path in subjects.track(paths, source)
    ]
    gradient = np.reshape(means, (options.draws, blocks + 1))
    if not 0 < gradient.sum() < np.inf:
        problem = "carry are all 0, or some are non-finite. The network may have diverged."
        raise UserError(f"the gradients that paths through {source} {problem}")
    return Paths(gradient)


def draw_paths(blocks: int, draws: int, seed: int) -> Float[np.ndarray, "draws lengths blocks"]:
    """Draws paths of each length: 1 for blocks whose branch they pass, 0 for the others."""
    positions = np.tile(np.arange(blocks), (draws, blocks + 1, 1))
    ranks = np.random.default_rng(seed).permuted(positions, axis=-1)
    return (ranks < np.arange(blocks + 1)[:, None]).astype(np.float32)


def route(shortcut: Shortcut, x: Array, branch: Array, by_branch: Array) -> Array:
    def differentiable(value: Array, where: Array) -> Array:
        return jnp.where(where, value, lax.stop_gradient(value))

    return shortcut(differentiable(x, ~by_branch), differentiable(branch, by_branch))


@jax.jit
def _norms(network: Network, images: Array, labels: Array) -> Float[Array, "n"]:
    apply, params, batch_stats, constants = network

    def loss(normalized: Float[Array, "n h w c"]) -> Float[Array, ""]:
        logits, _ = apply(params, batch_stats, normalized, train=False)
        # Images are independent in inference mode: the gradient of the sum holds that of each.
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    gradient = jax.grad(loss)(constants(images)).reshape(len(images), -1)
    # Scaling avoids underflow: long paths carry less than the square root of float32's minimum.
    largest = jnp.abs(gradient).max(axis=1)
    scaled = gradient / jnp.where(largest > 0, largest, 1)[:, None]
    return largest * jnp.linalg.norm(scaled, axis=1)


def draw(results: Mapping[str, Paths]) -> Figure:
    """Draws Figure 6 of Veit et al. 2016."""
    xlabels = ["length (branches passed)"] * 3
    ylabels = ["share of all paths (%)", "norm of the gradient of one path"]
    ylabels += ["share of the gradient (%)"]
    figure, (shares, norms, carried) = subjects.panels(xlabels, ylabels)
    for (name, result), style in subjects.styled(results.items()):
        lengths, effective = np.arange(result.blocks + 1), result.effective
        shares.plot(lengths, 100 * result.share, label=figures.shortened(name), **style)
        # A logarithmic axis cannot show zeros.
        positive = result.gradient.min(axis=0) > 0
        gradient = result.gradient[:, positive]
        norms.plot(lengths[positive], gradient.mean(axis=0), **style)
        subjects.fill(norms, lengths[positive], gradient.min(axis=0), gradient.max(axis=0), style)
        carried.plot(lengths, 100 * result.carried, **style)
        subjects.fill(carried, lengths[effective], 0, 100 * result.carried[effective], style)
    shares.set_ylim(bottom=0)
    carried.set_ylim(bottom=0)
    norms.set_yscale("log")
    # The default writes formulas, which the style does not render.
    norms.yaxis.set_major_formatter(LogFormatter())
    norms.yaxis.set_minor_formatter(LogFormatter())
    figure.legend(loc="outside upper center", ncols=2)
    return figure
