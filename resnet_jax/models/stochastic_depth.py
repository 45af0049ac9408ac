"""Residual branches dropped at random in training (Huang et al. 2016, arXiv 1603.09382)."""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from resnet_jax.errors import Range, UserError
from resnet_jax.kernels.typing import Array, Float, Key
from resnet_jax.models.layers import keep, needs_key


@dataclass(frozen=True, kw_only=True)
class StochasticDepth:
    """Survival probability of every residual branch."""

    survival: Annotated[float, Range(0, 1, "(]")] = 1.0
    """p_L, that of the last branch; 0.5 in the paper, 1 drops nothing."""
    rule: Literal["linear", "uniform"] = "linear"
    """linear: p_l = 1 - l/L (1 - p_L), eq. 4; uniform: p_L for every branch."""
    drops: Literal["batch", "image"] = "batch"
    """Drop a branch for the whole batch (the paper) or per image ("drop path")."""
    scaled: Literal["test", "training"] = "test"
    """Multiply branches by p_l in evaluation (eq. 5), or divide by it in training ("drop path")."""
    kept: int = 0
    """Keep exactly this many random branches per batch (Veit et al. 2016, arXiv 1605.06431,
    Section 4.3). 0: draw each branch by itself."""

    def check(self, num_blocks: int) -> None:
        """Raises UserError for values that a network of this many blocks cannot have."""
        alone = self.survival == 1 and self.drops == "batch"
        if self.kept > (num_blocks if alone else 0):
            raise UserError(
                f"stochastic_depth.kept must be 0 to {num_blocks}, got {self.kept}; it excludes "
                "survival below 1 and drops='image'."
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
        """Returns factors on branches, ``(blocks, 1 or images)``; None if only training scales."""
        probability = self.probabilities(num_blocks)[:, None]
        if not train:
            return probability if self.scaled == "test" else None
        if self.kept:
            kept = jnp.arange(num_blocks) < self.kept
            drawn = jax.random.permutation(needs_key(key, "stochastic depth"), kept)
            drawn = drawn[:, None].astype(jnp.float32)
        else:
            shape = (num_blocks, images if self.drops == "image" else 1)
            drawn = keep(key, 1 - probability, shape, "stochastic depth")
        return drawn / probability if self.scaled == "training" else drawn
