"""Distance of residual blocks from the identity (He et al. 2015, Section 3.1).

A block that maps 5 to 5.1 has the branch F(5) = 0.1: 5.2 is 2 % more output, 100 % more branch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from matplotlib.figure import Figure

from resnet_jax.analysis import subjects
from resnet_jax.analysis.responses import EXECUTION, forward, norm
from resnet_jax.analysis.subjects import Columns, Network
from resnet_jax.data.datasets import Examples
from resnet_jax.training.config import Range
from resnet_jax.training.run_dir import Record
from resnet_jax.weights.loading import Pretrained


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Options):
    """Distance of each block from the identity; changes of branch and output under image noise."""

    change: Annotated[float, Range(1e-3)] = 2.0
    """Norm of the noise, in percent of the image's norm."""
    seed: int = 0


def run(options: Options) -> subjects.Outcome:
    return subjects.analyze(
        options,
        measure,
        draw,
        title="Distance from the identity",
        heading="medians over blocks",
        caption="Per block: distance of the output from the shortcut; norm of the output over that "
        "of the branch; change of the branch over that of the output for "
        f"{options.change:g} % of noise on the image. After He et al. 2015, Section 3.1.",
    )


class Identity(NamedTuple):
    """Ratios of norms per block in inference mode, means over images; NaN for concatenation.

    The output is the branch merged with the shortcut, before what the order places after it.
    """

    change: float
    """Norm of the noise in percent of that of the image."""
    distance: Float[np.ndarray, "blocks"]
    """Distance of the output from the shortcut over the norm of the shortcut; NaN without one."""
    leverage: Float[np.ndarray, "blocks"]
    """Norm of the output over that of the branch: % of the branch per % of the output."""
    branch_change: Float[np.ndarray, "blocks"]
    """Relative change of the branch under the noise."""
    output_change: Float[np.ndarray, "blocks"]

    def ratios(self) -> dict[str, Float[np.ndarray, "blocks"]]:
        return {
            "distance from the identity": self.distance,
            f"branch change for {self.change:g} % of the output, %": self.change * self.leverage,
            "branch changed, %": 100 * self.branch_change,
            "output changed, %": 100 * self.output_change,
            "branch over output": self.branch_change / self.output_change,
        }

    def summary(self) -> Record:
        return {name: np.nanmedian(values) for name, values in self.ratios().items()}

    def columns(self) -> Columns:
        return {"block": range(len(self.distance)), **self.ratios()}


def measure(weights: Pretrained, examples: Examples, options: Options = Options()) -> Identity:
    network, key = subjects.network(weights, EXECUTION), jax.random.key(options.seed)
    size, change = options.batch_size, options.change / 100
    ratios = subjects.mean(
        _ratios(network, images, jax.random.fold_in(key, number * size), change)
        for number, (images, _) in enumerate(subjects.batches(examples, size))
    )
    return Identity(options.change, *ratios)


@jax.jit
def _ratios(
    network: Network, images: Array, key: Key[Array, ""], change: Float[Array, ""]
) -> Float[Array, "4 blocks n"]:
    images = network.constants(images)
    noise = jax.random.normal(key, images.shape)
    noise *= (change * norm(images) / norm(noise)).reshape(-1, 1, 1, 1)
    _, clean = forward(network, images)
    _, noisy = forward(network, images + noise)
    ratios = []
    for (branch, output, x), (noisy_branch, noisy_output, _) in zip(clean, noisy, strict=True):
        branch_change = norm(noisy_branch - branch) / norm(branch)
        if output.shape != branch.shape:
            nan = jnp.full_like(branch_change, jnp.nan)
            ratios.append((nan, nan, branch_change, nan))
            continue
        # A plain block that changes the shape has a shortcut of 0.
        shortcut = x if x.shape == output.shape else output - branch
        size = norm(shortcut)
        distance = jnp.where(size > 0, norm(output - shortcut) / size, jnp.nan)
        output_change = norm(noisy_output - output) / norm(output)
        ratios.append((distance, norm(output) / norm(branch), branch_change, output_change))
    return jnp.swapaxes(jnp.asarray(ratios), 0, 1)


def draw(results: Mapping[str, Identity]) -> Figure:
    ylabels = "distance from the identity", "output over branch", "branch change over output change"
    figure, panels = subjects.panels(["block"] * 3, ylabels)
    for (name, result), style in subjects.styled(results.items()):
        changes = result.branch_change / result.output_change
        for panel, values in zip(panels, (result.distance, result.leverage, changes), strict=True):
            panel.plot(values, label=name, **style)
    for panel in panels:
        panel.set_ylim(bottom=0)
    panels[0].legend()
    return figure
