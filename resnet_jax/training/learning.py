"""How a network learns: what is minimised, by which rule, at which rate. Parts of an experiment."""

import math
from dataclasses import dataclass, field
from typing import Literal

from resnet_jax.configured import LATER
from resnet_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is minimised, averaged over the images of a batch."""

    kind: Literal["softmax", "binary"] = "softmax"
    """softmax: cross-entropy of one distribution over the classes; binary: the mean over classes of as many yes-or-no questions
    (Wightman et al. 2021, arXiv 2110.00476, Section 2.2)."""
    smoothing: float = 0.0
    """Label smoothing e: targets t become (1 - e) t + e / classes (Szegedy et al. 2015, arXiv 1512.00567, Section 7), after mixing."""
    threshold: float | None = None
    """Binary: smoothed targets above it count as 1, others as 0. None: as they are."""

    def check(self) -> None:
        """Raises UserError for values that are none."""
        if not 0 <= self.smoothing < 1:
            raise UserError(f"loss.smoothing is {self.smoothing}; give 0 or more and less than 1")
        if self.threshold is not None and (self.kind != "binary" or not 0 <= self.threshold < 1):
            raise UserError(
                f"loss.threshold is {self.threshold} and loss.kind '{self.kind}': give 0 or more, less than 1, and only for 'binary'"
            )


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Stochastic gradient descent with momentum, or a rule for large batches, through optax."""

    momentum: float = 0.9
    """For lamb that of the gradients' average, beta_1."""
    nesterov: bool = False
    weight_decay: float = 1e-4
    """Added to the gradient (L2), times the parameter; for lamb to what Adam makes of the gradient."""
    decay: Literal["all", "kernels"] = "all"
    """What decays: all parameters (fb.resnet.torch, "weight decay on all params"), or convolution and classifier kernels only."""
    ema: float = 0.0
    """Decay of the moving average of the parameters, which is then what is scored; 0: none."""
    frozen: tuple[str, ...] = ()
    """Parameters that are not trained, by the beginnings of their paths: stem stages, or stages/0."""
    rates: tuple[tuple[str, float], ...] = field(default=(), metadata={LATER: True})
    """Factors on the learning rate of parameters, by the beginnings of their paths, the longest counting: stages 0.1 stages/2 0.3."""
    rule: Literal["sgd", "lars", "lamb"] = field(default="sgd", metadata={LATER: True})
    """lars (You et al. 2017, arXiv 1708.03888) and lamb (You et al. 2019, arXiv 1904.00962) give each layer's kernel a rate in proportion
    to its norm."""
    clip: float = field(default=0.0, metadata={LATER: True})
    """Greatest norm of the gradient of all trained parameters together, before anything else; 0: any."""
    accumulation: int = field(default=1, metadata={LATER: True})
    """Parts of a batch that are computed one after another and added up, where memory is short."""

    def check(self) -> None:
        """Raises UserError for values that are none, or do not go together."""
        if not 0 <= self.clip < math.inf:
            raise UserError(f"optimizer.clip is {self.clip}; give the greatest norm of a gradient, or 0 for any")
        if self.nesterov and self.rule == "lamb":
            raise UserError("optimizer.nesterov is True, and optimizer.rule 'lamb' knows no such momentum: set it to False")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate after a warm-up, piecewise constant or half a cosine; all in steps (the papers' iterations)."""

    learning_rate: float = 0.1
    decay_steps: tuple[int, ...] = (32_000, 48_000)
    decay_factor: float = 0.1
    warmup_learning_rate: float = 0.01
    warmup_steps: int = 0
    """Steps at the warm-up rate: 400 in He et al. 2016."""
    warmup_until_error: float = 1.0
    """Stay at the warm-up rate until the training error is below this fraction: 0.8 for the 110-layer net of He et al. 2015."""
    linear_warmup: bool = field(default=False, metadata={LATER: True})
    """Rise from the warm-up rate at the first step to the learning rate at step warmup_steps (Goyal et al. 2017, arXiv 1706.02677, Section
    2.2), instead of staying at it."""
    cosine_steps: int = field(default=0, metadata={LATER: True})
    """Step at which half a cosine ends, counted from the run's beginning, warm-up included; decay_steps are empty then. 0: piecewise
    constant. Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts."""
    cosine_from: Literal["start", "warmup"] = field(default="start", metadata={LATER: True})
    """Where the cosine begins: start, its first steps being replaced by the warm-up (timm); warmup, at the full rate behind it
    (torchvision)."""
    final_learning_rate: float = field(default=0.0, metadata={LATER: True})
    """That the cosine ends at, and stays at."""

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if self.linear_warmup and self.warmup_until_error < 1:
            raise UserError(
                f"schedule.linear_warmup goes by steps, and schedule.warmup_until_error is {self.warmup_until_error}: set one of them, "
                "the other to False or 1"
            )
        if not self.cosine_steps:
            return
        if self.cosine_steps <= self.warmup_steps:
            raise UserError(
                f"schedule.cosine_steps is {self.cosine_steps}, counted from the run's beginning: give more than the {self.warmup_steps} "
                "steps of the warm-up, or 0 for a piecewise constant rate"
            )
        if self.decay_steps:
            raise UserError(
                f"schedule.cosine_steps is {self.cosine_steps} and schedule.decay_steps {self.decay_steps}: set one of them, the other to "
                "0 or ()"
            )
        if not 0 <= self.final_learning_rate <= self.learning_rate or not self.learning_rate:
            raise UserError(
                f"schedule.final_learning_rate is {self.final_learning_rate}; give at least 0, and at most the learning_rate, which is "
                f"{self.learning_rate} and must be more than 0"
            )
