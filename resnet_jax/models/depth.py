"""Stochastic depth: branches dropped at random while a network trains. Huang et al. 2016 (arXiv 1603.09382)."""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from resnet_jax.configured import LATER
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
    kept: int = field(default=0, metadata={LATER: True})
    """Exactly so many units a batch, drawn at random, have their branch, so that every p_l is ``kept / L`` and there is no other survival
    (Veit et al. 2016, arXiv 1605.06431, Section 4.3). 0: each unit is drawn by itself."""

    def check(self, units: int) -> None:
        """Raises UserError for a survival outside (0, 1], and for a number kept that the units are not, or beside a survival or images."""
        if not 0 < self.survival <= 1:
            raise UserError(f"stochastic_depth.survival is {self.survival}; give more than 0 and at most 1 (1 drops nothing)")
        if not 0 <= self.kept <= units:
            raise UserError(f"stochastic_depth.kept is {self.kept}; give 1 to {units}, the number of units, or 0 to draw each by itself")
        if self.kept and (self.survival != 1 or self.drops != "batch"):
            given = f"stochastic_depth.kept is {self.kept}, survival {self.survival} and drops {self.drops!r}"
            raise UserError(f"{given}: exactly so many are kept of a whole batch; leave survival at 1 and drops at 'batch', or kept at 0")

    def probabilities(self, units: int) -> Float[Array, "units"]:
        """p_1 to p_L."""
        if self.kept:
            return jnp.full(units, self.kept / units)
        if self.rule == "uniform":
            return jnp.full(units, self.survival)
        return 1 - jnp.arange(1, units + 1) / units * (1 - self.survival)

    def multipliers(self, units: int, images: int, *, train: bool, key: Key[Array, ""] | None) -> Float[Array, "units _"] | None:
        """Factors on the branches, ``(units, 1)`` or ``(units, images)``; None where nothing is ever dropped.

        Raises:
          UserError: while training, without a key.
        """
        if self.survival == 1 and not self.kept:
            return None
        kept = self.probabilities(units)[:, None]
        if not train:
            return kept if self.scaled == "test" else None
        if self.kept:
            drawn = _exactly(self.kept, units, key)
        else:
            drawn = keep(key, 1 - kept, (units, images if self.drops == "image" else 1), "stochastic depth")
        return drawn / kept if self.scaled == "training" else drawn


def _exactly(kept: int, units: int, key: Key[Array, ""] | None) -> Float[Array, "units 1"]:
    if key is None:
        raise UserError("stochastic depth is random while training: call the network with key=jax.random.key(...)")
    return jax.random.permutation(key, jnp.arange(units) < kept)[:, None].astype(jnp.float32)
