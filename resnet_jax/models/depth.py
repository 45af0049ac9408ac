"""Stochastic depth: branches dropped at random while a network trains. Huang et al. 2016 (arXiv 1603.09382)."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from resnet_jax.errors import UserError
from resnet_jax.models.layers import keep


@dataclass(frozen=True, kw_only=True)
class StochasticDepth:
    """With what probability each unit's branch is kept, and how that is made up for."""

    survival: float = 1.0
    """p_L, the probability that the last unit's branch is kept; 1: nothing is dropped. 0.5 in the paper."""
    rule: Literal["linear", "uniform"] = "linear"
    """linear: p_l = 1 - l/L (1 - p_L), eq. 4; uniform: p_L for every unit."""
    drops: Literal["batch", "image"] = "batch"
    """A branch is dropped for the whole batch (the paper), or for each image by itself ("drop path")."""
    scaled: Literal["test", "training"] = "test"
    """Branches are multiplied by p_l at test time (eq. 5), or divided by it while training ("drop path")."""

    def check(self) -> None:
        """Raises UserError for a survival outside (0, 1]."""
        if not 0 < self.survival <= 1:
            raise UserError(f"stochastic_depth.survival is {self.survival}; give more than 0 and at most 1 (1 drops nothing)")

    def probabilities(self, units: int) -> Float[Array, "units"]:
        """p_1 to p_L."""
        if self.rule == "uniform":
            return jnp.full(units, self.survival)
        return 1 - jnp.arange(1, units + 1) / units * (1 - self.survival)

    def multipliers(self, units: int, images: int, *, train: bool, key: Key[Array, ""] | None) -> Float[Array, "units _"] | None:
        """Factors on the branches, ``(units, 1)`` or ``(units, images)``; None where nothing is ever dropped.

        Raises:
          UserError: while training, without a key.
        """
        if self.survival == 1:
            return None
        kept = self.probabilities(units)[:, None]
        if not train:
            return kept if self.scaled == "test" else None
        drawn = keep(key, 1 - kept, (units, images if self.drops == "image" else 1), "stochastic depth")
        return drawn / kept if self.scaled == "training" else drawn
