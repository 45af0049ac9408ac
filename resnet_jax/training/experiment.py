"""An experiment: one frozen, typed value that says everything a run depends on, but its seed."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from resnet_jax.configured import constructor_parameters, parts
from resnet_jax.data.augmentation import Normalization
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.models import Architecture, Execution

# Metadata of a field that runs were written without: at its default it is not said, so that they stay the runs that they were.
LATER = "later"


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images, and what happens to them."""

    name: str
    """TFDS name of a prepared set: cifar10, digits."""
    validation_examples: int = 0
    """Taken from the end of the training split and never trained on. He et al. 2015 chose their schedule with 5000 of CIFAR-10's."""
    test_split: str = "test"
    """Split that is scored; imagenet2012 calls it 'validation'."""
    normalization: Normalization = "pixel_mean"
    """pixel_mean: minus the mean image (the paper); channel: minus mean, over deviation, of each channel; weights: the constants of the
    weights that the run starts from."""
    pad: int = 4
    """Random crops out of images padded by this many pixels on each side; 0: none."""
    flip: bool = True
    """Random left-right flips."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Stochastic gradient descent with momentum, through optax."""

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    """Added to the gradient (L2), times the parameter."""
    decay: Literal["all", "kernels"] = "all"
    """What decays: all parameters (fb.resnet.torch, "weight decay on all params"), or convolution and classifier kernels only."""
    ema: float = 0.0
    """Decay of the moving average of the parameters, which is then what is scored; 0: none."""
    frozen: tuple[str, ...] = ()
    """Parameters that are not trained, by the beginnings of their paths: stem stages, or stages/0."""
    rates: tuple[tuple[str, float], ...] = field(default=(), metadata={LATER: True})
    """Factors on the learning rate of parameters, by the beginnings of their paths, the longest counting: stages 0.1 stages/2 0.3."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Piecewise-constant learning rate after a warm-up; all in steps (the papers' iterations)."""

    learning_rate: float = 0.1
    decay_steps: tuple[int, ...] = (32_000, 48_000)
    decay_factor: float = 0.1
    warmup_learning_rate: float = 0.01
    warmup_steps: int = 0
    """Steps at the warm-up rate: 400 in He et al. 2016."""
    warmup_until_error: float = 1.0
    """Stay at the warm-up rate until the training error is below this fraction: 0.8 for the 110-layer net of He et al. 2015."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is scored, and when. Every example counts exactly once."""

    every: int = 1000
    """Steps between scores of the test (and validation) images."""
    batch_size: int = 500
    statistics_batches: int = 0
    """BatchNorm's statistics are averaged anew over this many training batches before every score and checkpoint, as He et al.'s released
    models had them; 0: moving averages."""
    training_images: bool = False
    """Also score all training images, without augmentation, after the last step."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights that a run begins with, see ``resnet_jax.training.start.start_from``."""

    file: str = ""
    """Imported weights, or a run; empty: weights are drawn."""
    digest: str = ""
    """sha256 over them; the run refuses others."""
    new_head: bool = False
    """Whether the classifier is drawn anew."""


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """When the state is saved; no part of the fingerprint."""

    every: int = 1000
    """Steps between checkpoints."""
    keep: int = 3
    """Newest checkpoints kept."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything a run depends on, but its seed. Derive one from another with ``dataclasses.replace``."""

    name: str
    model: Architecture
    data: Data
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    steps: int = 64_000
    batch_size: int = 128
    """Images per step over all devices; BatchNorm sees them all, or groups of them: ``norm``."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpointing: Checkpointing = field(default_factory=Checkpointing)
    execution: Execution = field(default_factory=Execution)
    start: Start = field(default=Start(), metadata={LATER: True})

    def shortened(self, steps: int) -> "Experiment":
        """The same experiment in another number of steps.

        Decay steps keep their places relative to the whole; a warm-up keeps its length, up to a quarter of the run; at least eight scores
        are taken, where there are eight steps.
        """
        if steps == self.steps:
            return self
        scaled = tuple(max(1, round(at * steps / self.steps)) for at in self.schedule.decay_steps)
        return replace(
            self,
            steps=steps,
            schedule=replace(self.schedule, decay_steps=scaled, warmup_steps=min(self.schedule.warmup_steps, steps // 4)),
            evaluation=replace(self.evaluation, every=max(1, min(self.evaluation.every, steps // 8))),
        )

    def on(self, info: DatasetInfo) -> "Experiment":
        """The same experiment on another data set, in as many steps. Input shape and classes become the set's; digits are not augmented.

        Raises:
          UserError: for a set without the splits 'train' and 'test', or with images of different sizes.
        """
        if info.name == self.data.name:
            return self
        height, width, channels = info.image_shape
        if not {"train", "test"} <= info.examples.keys() or height is None or width is None or channels is None:
            raise UserError(
                f"{info.name} cannot stand in for {self.data.name}: that needs the splits 'train' and 'test', and images of one size"
            )
        # A digit mirrored is another digit, and of 8 pixels each is an eighth.
        augmentation = {"pad": 0, "flip": False} if info.name == "digits" else {}
        return replace(
            self,
            model=replace(self.model, input_shape=(height, width, channels), num_classes=info.num_classes),
            data=replace(self.data, name=info.name, test_split="test", **augmentation),
            evaluation=replace(self.evaluation, batch_size=min(self.evaluation.batch_size, info.examples["test"])),
        )

    def check(self, info: DatasetInfo, devices: int = 1) -> None:
        """Holds the experiment against the data and the machine, before anything is compiled or written.

        Raises:
          UserError: naming the field, its value, and what would do.
        """
        positive = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "evaluation.every": self.evaluation.every,
            "evaluation.batch_size": self.evaluation.batch_size,
            "checkpointing.every": self.checkpointing.every,
            "checkpointing.keep": self.checkpointing.keep,
        }
        for name, value in positive.items():
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.steps * self.batch_size >= 2**31:
            raise UserError(
                f"steps x batch_size is {self.steps * self.batch_size}; the data order counts images in 31 bits: at most 2147483647"
            )
        if self.model.dtype not in ("float32", "bfloat16"):
            raise UserError(f"model.dtype is {self.model.dtype!r}; use 'float32' or 'bfloat16'")
        for name in ("batch_size", "evaluation.batch_size"):
            if positive[name] % devices:
                raise UserError(f"{name} is {positive[name]}, which {devices} devices cannot share equally; use a multiple of {devices}")
        if info.num_classes != self.model.num_classes:
            raise UserError(f"{info.name} has {info.num_classes} classes, the model {self.model.num_classes}: set model.num_classes")
        if None in info.image_shape:
            raise UserError(f"the images of {info.name} differ in size: training on them needs the streaming input, which is not there yet")
        if info.image_shape != self.model.input_shape:
            raise UserError(
                f"the images of {info.name} are {info.image_shape} (height, width, channels), the model takes {self.model.input_shape}: "
                "set model.input_shape"
            )
        if self.data.test_split not in info.examples:
            raise UserError(
                f"{info.name} has no split {self.data.test_split!r}; data.test_split can be {' or '.join(sorted(info.examples))}"
            )
        if "train" not in info.examples:
            raise UserError(f"{info.name} has no split 'train', only {', '.join(sorted(info.examples))}: there is nothing to train on")
        if not 0 <= self.data.validation_examples < info.examples["train"]:
            raise UserError(
                f"data.validation_examples is {self.data.validation_examples}; {info.name} has {info.examples['train']} training images"
            )
        if self.data.normalization == "weights" and not self.start.file:
            raise UserError("data.normalization is 'weights', and the run starts from none (--init-from): use 'pixel_mean' or 'channel'")
        for beginning, factor in self.optimizer.rates:
            if not 0 <= factor < math.inf:
                raise UserError(f"optimizer.rates: the factor of {beginning!r} is {factor}; it must be 0 or more, and finite")
        self._check_statistics()
        if self.data.pad < 0:
            raise UserError(f"data.pad is {self.data.pad}; it must be 0 or more pixels")

    def _check_statistics(self) -> None:
        norm, options = parts(self.model.norm)
        averages = "momentum" in constructor_parameters(norm)[0]
        batches, decay = self.evaluation.statistics_batches, self.optimizer.ema
        if batches < 0 or (batches and not averages):
            raise UserError(
                f"evaluation.statistics_batches is {batches} and model.norm {norm.__name__}: give 0, or BatchNorm and a number of batches"
            )
        if not 0 <= decay < 1:
            raise UserError(f"optimizer.ema is {decay}; give a decay below 1, or 0 for none")
        if decay and averages and not batches:
            raise UserError(
                f"optimizer.ema is {decay}: averaged parameters need BatchNorm statistics of their own: set evaluation.statistics_batches"
            )
        group = options.get("group_size", 0)
        if group and self.batch_size % group:
            raise UserError(f"batch_size is {self.batch_size}, which BatchNorm groups of {group} do not divide; use a multiple of {group}")
