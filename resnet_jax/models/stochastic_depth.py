"""Stochastic depth: residual branches dropped at random in training (Huang et al. 2016, arXiv 1603.09382)."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from resnet_jax.errors import UserError
from resnet_jax.models.layers import keep, needs_key


@dataclass(frozen=True, kw_only=True)
class StochasticDepth:
    """Survival probability of every residual branch."""

    survival: float = 1.0
    """p_L, survival probability of the last branch; 0.5 in the paper, 1 drops nothing."""
    rule: Literal["linear", "uniform"] = "linear"
    """linear: p_l = 1 - l/L (1 - p_L), eq. 4; uniform: p_L for every branch."""
    drops: Literal["batch", "image"] = "batch"
    """Drop a branch for the whole batch (the paper) or per image ("drop path")."""
    scaled: Literal["test", "training"] = "test"
    """Multiply branches by p_l in evaluation (eq. 5), or divide by it in training ("drop path")."""
    kept: int = 0
    """Keep exactly this many random branches per batch, in place of a survival probability
    (Veit et al. 2016, arXiv 1605.06431, Section 4.3). 0: draw each branch by itself."""

    def check(self, num_blocks: int) -> None:
        """Raises UserError for values that a network of this many blocks cannot have."""
        if not 0 < self.survival <= 1:
            raise UserError(
                f"stochastic_depth.survival is {self.survival}: give more than 0 and at most 1, which drops nothing."
            )
        if not 0 <= self.kept <= num_blocks:
            raise UserError(
                f"stochastic_depth.kept is {self.kept}: give 1 to {num_blocks}, the number of blocks, or 0."
            )
        if self.kept and (self.survival != 1 or self.drops != "batch"):
            raise UserError(
                "stochastic_depth.kept excludes a survival below 1 and drops='image': leave those at their defaults."
            )

    def probabilities(self, num_blocks: int) -> Float[Array, "blocks"]:
        """Returns p_1 to p_L."""
        if self.kept:
            return jnp.full(num_blocks, self.kept / num_blocks)
        if self.rule == "uniform":
            return jnp.full(num_blocks, self.survival)
        return 1 - jnp.arange(1, num_blocks + 1) / num_blocks * (1 - self.survival)

    def multipliers(
        self, num_blocks: int, images: int, *, train: bool, key: Key[Array, ""] | None
    ) -> Float[Array, "blocks _"] | None:
        """Returns factors on the branches, ``(num_blocks, 1)`` or ``(num_blocks, images)``; None if nothing is ever dropped."""
        if self.survival == 1 and not self.kept:
            return None
        kept = self.probabilities(num_blocks)[:, None]
        if not train:
            return kept if self.scaled == "test" else None
        if self.kept:
            key = needs_key(key, "stochastic depth")
            drawn = jax.random.permutation(key, jnp.arange(num_blocks) < self.kept)[:, None].astype(
                jnp.float32
            )
        else:
            drawn = keep(
                key,
                1 - kept,
                (num_blocks, images if self.drops == "image" else 1),
                "stochastic depth",
            )
        return drawn / kept if self.scaled == "training" else drawn
