"""An experiment: one frozen, typed value that says everything a run depends on, but its seed."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from resnet_jax.configured import LATER, Factory, constructor_parameters, parts
from resnet_jax.data.augmentation import Normalization
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.evaluation import protocols
from resnet_jax.models import Architecture, Execution
from resnet_jax.training.learning import Loss, Optimizer, Schedule


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images, and what happens to them."""

    name: str
    """TFDS name of a prepared set: cifar10, imagenet2012; or a folder SPLIT/CLASS/IMAGE, by its path."""
    validation_examples: int = 0
    """Taken from the end of the training split and never trained on. He et al. 2015 chose their schedule with 5000 of CIFAR-10's."""
    test_split: str = "test"
    """Split that is scored; imagenet2012 calls it 'validation'."""
    normalization: Normalization = "pixel_mean"
    """pixel_mean: minus the mean image (the paper); channel: minus mean, over deviation, of each channel; imagenet: the same with the
    constants that everybody uses for ImageNet; weights: the constants of the weights that the run starts from."""
    pad: int = 4
    """Random crops out of images padded by this many pixels on each side; 0: none."""
    flip: bool = True
    """Random left-right flips."""
    crop: Factory | None = field(default=None, metadata={LATER: True})
    """What makes a training image of any size one of the network's: RandomResizedCrop, ShorterSideCrop; images then stream from storage.
    none: they are all of one size, and live on the device."""
    policy: Factory | None = field(default=None, metadata={LATER: True})
    """Operations on the cropped image: TrivialAugment, RandAugment; none. Streamed images only."""
    colour: Factory | None = field(default=None, metadata={LATER: True})
    """Of images between 0 and 1: PcaLighting (AlexNet's), ColorJitter; none."""
    erasing: Factory | None = field(default=None, metadata={LATER: True})
    """Of normalised images: RandomErasing; none."""
    mix: Factory | None = field(default=None, metadata={LATER: True})
    """Of images and their targets: Mix (mixup and cutmix); none."""
    repeats: int = field(default=1, metadata={LATER: True})
    """Repeated augmentation (Hoffer et al. 2019, arXiv 1901.09335): each image of a batch stands in it so many times. Streamed only."""
    damaged: Literal["stop", "replace"] = field(default="stop", metadata={LATER: True})
    """A streamed training image that cannot be decoded stops the run, or is replaced by the next one, and counted."""


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
    protocol: str = field(default="", metadata={LATER: True})
    """How an image of any size is shown: 256/224 (shorter side / central square), 236/224-bicubic, ten-crop. Empty: as it is."""


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
    non_finite: Literal["stop", "roll_back"] = field(default="stop", metadata={LATER: True})
    """A loss that is not finite stops the run; or takes it back to its last checkpoint, and on with other batches, up to three times."""
    best: int = field(default=0, metadata={LATER: True})
    """Also so many of the lowest test error, among those that were scored; one that is not finite is none."""
    keep_every: int = field(default=0, metadata={LATER: True})
    """Also every step that is a multiple of it, for ever; 0: none."""
    failed_save: Literal["stop", "continue"] = field(default="stop", metadata={LATER: True})
    """A checkpoint that cannot be written, on a full disk say, stops the run, or is said and left out; lines of metrics.jsonl then wait."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How images are streamed; never which, so it is no part of the fingerprint."""

    threads: int = 0
    """That read and decode, in each process; 0: one for each core that is left to it."""
    workers: int = 0
    """Processes that read and decode; 0: threads of the training process, which decode outside Python's lock."""
    memory_mb: int = 2048
    """Bound on the decoded batches that wait, over all threads and workers of a process."""


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
    loss: Loss = field(default=Loss(), metadata={LATER: True})
    start: Start = field(default=Start(), metadata={LATER: True})
    loading: Loading = field(default=Loading(), metadata={LATER: True})

    def shortened(self, steps: int) -> "Experiment":
        """The same experiment in another number of steps.

        Decay steps and the end of a cosine keep their places relative to the whole; a warm-up keeps its length, up to a quarter of the run;
        at least eight scores are taken, where there are eight steps.
        """
        if steps == self.steps:
            return self
        scaled = tuple(max(1, round(at * steps / self.steps)) for at in self.schedule.decay_steps)
        return replace(
            self,
            steps=steps,
            schedule=replace(
                self.schedule,
                decay_steps=scaled,
                cosine_steps=round(self.schedule.cosine_steps * steps / self.steps),
                warmup_steps=min(self.schedule.warmup_steps, steps // 4),
            ),
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
        changes: dict[str, Any] = {"name": info.name, "test_split": "test"}
        if self.data.crop is not None:
            # Images of one size live on the device, where nothing is resized, and constants are their own.
            changes |= {"crop": None, "policy": None, "repeats": 1, "damaged": "stop"}
            changes |= {"normalization": "channel"} if self.data.normalization == "imagenet" else {}
        # A digit mirrored is another digit, and of 8 pixels each is an eighth; a grey image has no colour.
        changes |= {"pad": 0, "flip": False} if info.name == "digits" else {}
        changes |= {"colour": None} if channels != 3 else {}
        return replace(
            self,
            model=replace(self.model, input_shape=(height, width, channels), num_classes=info.num_classes),
            data=replace(self.data, **changes),
            evaluation=replace(self.evaluation, protocol="", batch_size=min(self.evaluation.batch_size, info.examples["test"])),
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
        for name in ("best", "keep_every"):
            if getattr(self.checkpointing, name) < 0:
                raise UserError(f"checkpointing.{name} is {getattr(self.checkpointing, name)}; it must be at least 1, or 0 for none")
        if self.model.dtype not in ("float32", "bfloat16"):
            raise UserError(f"model.dtype is {self.model.dtype!r}; use 'float32' or 'bfloat16'")
        for name in ("batch_size", "evaluation.batch_size"):
            if positive[name] % devices:
                raise UserError(f"{name} is {positive[name]}, which {devices} devices cannot share equally; use a multiple of {devices}")
        if info.num_classes != self.model.num_classes:
            raise UserError(f"{info.name} has {info.num_classes} classes, the model {self.model.num_classes}: set model.num_classes")
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
        self._check_optimizer()
        if self.data.crop is None:
            self._check_resident(info)
        else:
            self._check_streamed(info)
        if self.data.pad < 0:
            raise UserError(f"data.pad is {self.data.pad}; it must be 0 or more pixels")

    def _check_resident(self, info: DatasetInfo) -> None:
        data = self.data
        if None in info.image_shape:
            raise UserError(
                f"the images of {info.name} differ in size: say how they become the network's, by data.crop (RandomResizedCrop, "
                "ShorterSideCrop) and evaluation.protocol (256/224)"
            )
        if info.image_shape != self.model.input_shape:
            raise UserError(
                f"the images of {info.name} are {info.image_shape} (height, width, channels), the model takes {self.model.input_shape}: "
                "set model.input_shape, or data.crop"
            )
        if self.steps * self.batch_size >= 2**31:
            raise UserError(
                f"steps x batch_size is {self.steps * self.batch_size}; the data order counts images in 31 bits: at most 2147483647"
            )
        for name, default in {"policy": None, "repeats": 1, "damaged": "stop"}.items():
            if getattr(data, name) != default:
                raise UserError(f"data.{name} is {getattr(data, name)}, which only streamed images have: set data.crop")

    def _check_streamed(self, info: DatasetInfo) -> None:
        data, (height, width, channels) = self.data, self.model.input_shape
        if info.image_shape[2] != channels:
            raise UserError(
                f"the images of {info.name} have {info.image_shape[2]} channels, the model takes {channels}: set model.input_shape"
            )
        if not self.evaluation.protocol:
            raise UserError("evaluation.protocol is empty, and streamed images differ in size: say how they are shown, as 256/224")
        protocol = protocols.parse(self.evaluation.protocol)
        if protocol.crop is None:
            raise UserError(
                f"evaluation.protocol is {protocol}, which is not for a run's own scores: give 256/224, and evaluate the run by it"
            )
        # Both have constants of every pixel.
        if data.normalization in ("pixel_mean", "weights") and (height, width) != (protocol.crop, protocol.crop):
            raise UserError(
                f"data.normalization is {data.normalization!r}, of {height}x{width} images, and evaluation.protocol "
                f"{self.evaluation.protocol}: use 'channel', or a crop of that size"
            )
        if data.pad:
            raise UserError(f"data.pad is {data.pad}, and streamed images are cropped by data.crop: set data.pad to 0")
        if not 1 <= data.repeats <= self.batch_size:
            raise UserError(f"data.repeats is {data.repeats}; it must be at least 1, and at most the batch_size of {self.batch_size}")

    def _check_optimizer(self) -> None:
        self.loss.check()
        self.optimizer.check()
        self.schedule.check()
        divided, group = self.optimizer.accumulation, parts(self.model.norm)[1].get("group_size", 0)
        if divided < 1 or self.batch_size % divided:
            raise UserError(f"optimizer.accumulation is {divided}; give a divisor of the batch_size of {self.batch_size}")
        if group and self.batch_size // divided % group:
            raise UserError(
                f"optimizer.accumulation is {divided}: a {divided}th of the batch_size of {self.batch_size} does not consist of BatchNorm "
                f"groups of {group}; give a divisor of {self.batch_size // group}"
            )

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
