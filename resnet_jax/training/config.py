"""Configuration of a run: one frozen value with everything that it depends on, except its seed."""

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from resnet_jax.data.augment_device import Normalization
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError, at_least
from resnet_jax.evaluation import protocols
from resnet_jax.models import Architecture, Execution, components
from resnet_jax.models.components import Component, Factory, constructor_parameters, parts


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data set, and the preprocessing and augmentation of its images."""

    name: str
    """TFDS name of a prepared set: cifar10, imagenet2012; or a folder SPLIT/CLASS/IMAGE, by its path."""
    validation_examples: int = 0
    """Held out from the end of the training split: 5000 in He et al. 2015."""
    test_split: str = "test"
    """Split that is evaluated; imagenet2012 calls it 'validation'."""
    normalization: Normalization = "pixel_mean"
    """pixel_mean: subtract the mean image (the paper); channel: standardize each channel; imagenet: with ImageNet's usual constants;
    weights: with those of the weights that the run starts from."""
    pad: int = 4
    """Random crops out of images padded by this many pixels on each side; 0: none."""
    flip: bool = True
    """Random left-right flips."""
    crop: Factory | None = None
    """Crop of images of any size, which stream from storage: RandomResizedCrop, ShorterSideCrop. none: device-resident images of one
    size."""
    policy: Factory | None = None
    """Operations on cropped streamed images: TrivialAugment, RandAugment, none."""
    color: Factory | None = None
    """Augmentation of images in [0, 1]: PcaLighting (AlexNet's), ColorJitter, none."""
    erasing: Factory | None = None
    """Augmentation of normalized images: RandomErasing, none."""
    mix: Factory | None = None
    """Augmentation of images and targets: Mix (mixup and cutmix), none."""
    repeats: int = 1
    """Copies of each streamed image in a batch (repeated augmentation, Hoffer et al. 2019, arXiv 1901.09335)."""
    damaged: Literal["stop", "replace"] = "stop"
    """A streamed training image that cannot be decoded stops the run, or is replaced by the next one and counted."""

    def __post_init__(self) -> None:
        at_least(self, 0, "validation_examples", "pad")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Loss of an image; its mean over the batch is minimized."""

    kind: Literal["softmax", "binary"] = "softmax"
    """softmax: cross-entropy over the classes; binary: mean over classes of binary cross-entropies (Wightman et al. 2021)."""
    smoothing: float = 0.0
    """Label smoothing e: targets t become (1 - e) t + e / classes, after mixing."""
    threshold: float | None = None
    """binary: smoothed targets above it count as 1, others as 0; none: as they are."""

    def __post_init__(self) -> None:
        at_least(self, 0, "smoothing", below=1)
        if self.threshold is None:
            return
        at_least(self, 0, "threshold", below=1)
        if self.kind != "binary":
            raise UserError(
                f"loss.threshold is {self.threshold} and loss.kind '{self.kind}': a threshold needs kind 'binary'"
            )


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Stochastic gradient descent with momentum, or a rule for large batches."""

    momentum: float = 0.9
    """lamb: beta_1."""
    nesterov: bool = False
    weight_decay: float = 1e-4
    """Multiple of the parameter that is added to the gradient (L2); lamb: to Adam's direction."""
    decay: Literal["all", "kernels"] = "all"
    """Parameters that decay: all (fb.resnet.torch), or convolution and classifier kernels only."""
    ema: float = 0.0
    """Decay of a moving average of the parameters, which is then evaluated; 0: none."""
    frozen: tuple[str, ...] = ()
    """Path prefixes of parameters that are not trained: stem stages, or stages/0."""
    rates: tuple[tuple[str, float], ...] = ()
    """Factors on the learning rate by path prefix, the longest match: stages 0.1 stages/2 0.3."""
    rule: Literal["sgd", "lars", "lamb"] = "sgd"
    """lars, lamb: the rate of each layer is proportional to the norm of its kernel."""
    clip: float = 0.0
    """Largest global norm of the gradient; 0: no limit."""
    accumulation: int = 1
    """Microbatches per batch (gradient accumulation)."""

    def __post_init__(self) -> None:
        at_least(self, 0, "clip")
        at_least(self, 0, "ema", below=1)
        at_least(self, 1, "accumulation")
        for prefix, factor in self.rates:
            if not 0 <= factor < math.inf:
                raise UserError(
                    f"optimizer.rates: the factor of {prefix!r} is {factor}; it must be 0 or more, and finite"
                )
        if self.nesterov and self.rule == "lamb":
            raise UserError(
                "optimizer.nesterov is True, and optimizer.rule 'lamb' has no such momentum: set it to False"
            )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate after a warm-up, piecewise constant or half a cosine; lengths in steps."""

    learning_rate: float = 0.1
    decay_steps: tuple[int, ...] = (32_000, 48_000)
    decay_factor: float = 0.1
    warmup_learning_rate: float = 0.01
    warmup_steps: int = 0
    """400 in He et al. 2016."""
    warmup_until_error: float = 1.0
    """The warm-up also lasts until the training error is below this fraction: 0.8 for the 110-layer net of He et al. 2015."""
    linear_warmup: bool = False
    """Rise linearly from the warm-up rate to the learning rate (Goyal et al. 2017, arXiv 1706.02677, Section 2.2)."""
    cosine_steps: int = 0
    """Step at which half a cosine ends (Loshchilov and Hutter 2016, arXiv 1608.03983), with empty decay_steps; 0: piecewise constant."""
    cosine_from: Literal["start", "warmup"] = "start"
    """start: the warm-up replaces the cosine's first steps (timm); warmup: the cosine begins after it (torchvision)."""
    final_learning_rate: float = 0.0
    """Rate from the end of the cosine on."""

    def __post_init__(self) -> None:
        if self.linear_warmup and self.warmup_until_error < 1:
            raise UserError(
                f"schedule.linear_warmup is True and warmup_until_error {self.warmup_until_error}: set one to False or 1"
            )
        if not self.cosine_steps:
            return
        if self.cosine_steps <= self.warmup_steps:
            raise UserError(
                f"schedule.cosine_steps is {self.cosine_steps}; give 0, or more than the {self.warmup_steps} steps of the warm-up"
            )
        if self.decay_steps:
            raise UserError(
                f"schedule.cosine_steps is {self.cosine_steps} and decay_steps {self.decay_steps}: set one to 0 or ()"
            )
        if not 0 <= self.final_learning_rate <= self.learning_rate or not self.learning_rate:
            raise UserError(
                f"schedule.final_learning_rate is {self.final_learning_rate} and learning_rate {self.learning_rate}: a "
                "cosine needs a rate above 0, and ends in [0, learning_rate]"
            )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation during training; every example counts exactly once."""

    every: int = 1000
    """Steps between evaluations."""
    batch_size: int = 500
    statistics_batches: int = 0
    """Training batches that BatchNorm's statistics are recomputed over before every evaluation and checkpoint; 0: moving averages."""
    training_images: bool = False
    """Also evaluate all training images, without augmentation, after the last step."""
    protocol: str = ""
    """Crop of images of any size: 256/224 (shorter side / central square), 236/224-bicubic. Empty: whole images."""

    def __post_init__(self) -> None:
        at_least(self, 1, "every", "batch_size")
        at_least(self, 0, "statistics_batches")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights that a run starts from, see ``start.start_from``."""

    file: str = ""
    """Imported weights, or a run; empty: random initialization."""
    digest: str = ""
    """sha256 of the weights."""
    new_head: bool = False
    """Initialize the classifier at random."""


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Saved states; no part of the fingerprint."""

    every: int = 1000
    """Steps between checkpoints."""
    keep: int = 3
    """Newest checkpoints to keep."""
    best: int = 0
    """Checkpoints to keep for their low test error."""
    keep_every: int = 0
    """Keep every multiple of this step; 0: none."""

    def __post_init__(self) -> None:
        at_least(self, 1, "every", "keep")
        at_least(self, 0, "best", "keep_every")


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Streaming of images; no part of the fingerprint."""

    threads: int = 0
    """Threads that read and decode, in each process; 0: one per free core."""
    workers: int = 0
    """Processes that read and decode; 0: threads of the training process."""
    memory_mb: int = 2048
    """Bound on the decoded batches that wait, in each training process."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Configuration of a run, except its seed. Derive one from another with ``dataclasses.replace``."""

    name: str
    model: Architecture
    data: Data
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    steps: int = 64_000
    batch_size: int = 128
    """Images per step over all devices. BatchNorm normalizes over all of them, or in groups: see ``norm``."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpointing: Checkpointing = field(default_factory=Checkpointing)
    execution: Execution = field(default_factory=Execution)
    loss: Loss = field(default_factory=Loss)
    start: Start = field(default_factory=Start)
    loading: Loading = field(default_factory=Loading)

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size")

    def shortened(self, steps: int) -> "Experiment":
        """Returns the experiment with another number of steps, to which the schedule is scaled.

        A warm-up keeps its length, up to a quarter of the run. Evaluations are at most an eighth of the run apart.
        """
        if steps == self.steps:
            return self
        schedule = replace(
            self.schedule,
            decay_steps=tuple(
                max(1, round(at * steps / self.steps)) for at in self.schedule.decay_steps
            ),
            cosine_steps=round(self.schedule.cosine_steps * steps / self.steps),
            warmup_steps=min(self.schedule.warmup_steps, steps // 4),
        )
        every = max(1, min(self.evaluation.every, steps // 8))
        return replace(
            self, steps=steps, schedule=schedule, evaluation=replace(self.evaluation, every=every)
        )

    def on(self, info: DatasetInfo) -> "Experiment":
        """Returns the experiment on another data set, with its input shape and classes.

        Raises:
          UserError: without the splits 'train' and 'test', or with images of different sizes.
        """
        if info.name == self.data.name:
            return self
        height, width, channels = info.image_shape
        if (
            not {"train", "test"} <= info.examples.keys()
            or height is None
            or width is None
            or channels is None
        ):
            raise UserError(
                f"{info.name} cannot stand in for {self.data.name}: that needs the splits 'train' and 'test', and images of one size"
            )
        changes: dict[str, Any] = {"name": info.name, "test_split": "test"}
        if self.data.crop is not None:
            changes |= {"crop": None, "policy": None, "repeats": 1, "damaged": "stop"}
            changes |= {"normalization": "channel"} if self.data.normalization == "imagenet" else {}
        # A mirrored digit is another digit, and a crop would remove up to half of its 8 pixels.
        changes |= {"pad": 0, "flip": False} if info.name == "digits" else {}
        changes |= {"color": None} if channels != 3 else {}
        return replace(
            self,
            model=replace(
                self.model, input_shape=(height, width, channels), num_classes=info.num_classes
            ),
            data=replace(self.data, **changes),
            evaluation=replace(
                self.evaluation,
                protocol="",
                batch_size=min(self.evaluation.batch_size, info.examples["test"]),
            ),
        )

    def check(self, info: DatasetInfo, devices: int = 1) -> None:
        """Raises UserError where a field does not fit the data or the devices."""
        for wrong, message in self._checks(info, devices):
            if wrong:
                raise UserError(message)

    def _checks(self, info: DatasetInfo, devices: int) -> Iterator[tuple[bool, str]]:
        data, model, examples = self.data, self.model, info.examples
        for name, size in {
            "batch_size": self.batch_size,
            "evaluation.batch_size": self.evaluation.batch_size,
        }.items():
            yield (
                size % devices > 0,
                f"{name} is {size}, which {devices} devices cannot share equally; use a multiple of {devices}",
            )
        yield (
            info.num_classes != model.num_classes,
            f"{info.name} has {info.num_classes} classes, the model {model.num_classes}: set model.num_classes",
        )
        for split in ("train", data.test_split):
            splits = " or ".join(sorted(examples))
            yield (
                split not in examples,
                f"{info.name} has no split {split!r}; data.test_split can be {splits}",
            )
        yield (
            data.validation_examples >= examples["train"],
            f"data.validation_examples is {data.validation_examples}; {info.name} has {examples['train']} training images",
        )
        yield (
            data.normalization == "weights" and not self.start.file,
            "data.normalization is 'weights', and the run starts from none (--init-from): use 'pixel_mean' or 'channel'",
        )
        yield from self._norm_checks()
        yield from self._resident_checks(info) if data.crop is None else self._streamed_checks(info)

    def _norm_checks(self) -> Iterator[tuple[bool, str]]:
        norm, options = parts(self.model.norm)
        batches, ema = self.evaluation.statistics_batches, self.optimizer.ema
        averages = "momentum" in constructor_parameters(norm)[0]
        yield (
            batches > 0 and not averages,
            f"evaluation.statistics_batches is {batches} and model.norm {norm.__name__}: give 0, or use BatchNorm",
        )
        yield (
            ema > 0 and averages and not batches,
            f"optimizer.ema is {ema}: averaged parameters need recomputed statistics: set evaluation.statistics_batches",
        )
        size, group, divided = (
            self.batch_size,
            options.get("group_size", 0) or 1,
            self.optimizer.accumulation,
        )
        yield (
            size % group > 0,
            f"batch_size is {size}, which BatchNorm groups of {group} do not divide; use a multiple of {group}",
        )
        yield (
            size % (divided * group) > 0,
            f"optimizer.accumulation is {divided}: microbatches of a batch of {size} would not be whole BatchNorm groups of {group}; "
            f"give a divisor of {size // group}",
        )

    def _resident_checks(self, info: DatasetInfo) -> Iterator[tuple[bool, str]]:
        shape, ours, numbers = (
            info.image_shape,
            self.model.input_shape,
            self.steps * self.batch_size,
        )
        yield (
            None in shape,
            f"the images of {info.name} differ in size: set data.crop, as RandomResizedCrop, and evaluation.protocol, as 256/224",
        )
        yield (
            shape != ours,
            f"the images of {info.name} are {shape} (height, width, channels), the model takes {ours}: set model.input_shape or data.crop",
        )
        # The order of a device-resident set numbers images in 31 bits.
        yield numbers >= 2**31, f"steps x batch_size is {numbers}; it must be at most {2**31 - 1}"
        for name, default in {"policy": None, "repeats": 1, "damaged": "stop"}.items():
            value = getattr(self.data, name)
            yield (
                value != default,
                f"data.{name} is {value}, which only streamed images have: set data.crop",
            )

    def _streamed_checks(self, info: DatasetInfo) -> Iterator[tuple[bool, str]]:
        data, name, (height, width, channels) = (
            self.data,
            self.evaluation.protocol,
            self.model.input_shape,
        )
        yield (
            info.image_shape[2] != channels,
            f"{info.name} has images of {info.image_shape[2]} channels, the model takes {channels}: set model.input_shape",
        )
        yield (
            not name,
            "evaluation.protocol is empty, and streamed images differ in size: give a crop, as 256/224",
        )
        crop = protocols.parse(name).crop
        yield (
            crop is None,
            f"evaluation.protocol is {name}, which 'resnet-jax evaluate' takes, and no run: give one crop, as 256/224",
        )
        # Both normalizations have constants per pixel.
        yield (
            data.normalization in ("pixel_mean", "weights") and (height, width) != (crop, crop),
            f"data.normalization is {data.normalization!r}, of {height}x{width} images, and evaluation.protocol {name}: use 'channel', "
            "or a crop of that size",
        )
        yield (
            data.pad > 0,
            f"data.pad is {data.pad}, and streamed images are cropped by data.crop: set data.pad to 0",
        )
        yield (
            not 1 <= data.repeats <= self.batch_size,
            f"data.repeats is {data.repeats}; it must be at least 1, and at most the batch_size of {self.batch_size}",
        )


# Name and execution do not change what an experiment computes.
NOT_IDENTITY = ("name", "checkpointing", "execution", "start", "loading")


def resolve(value: Any) -> Any:
    """Converts dataclasses, tuples and classes to JSON values; a class becomes ``module:Class`` or ``module:Class(arg=value)``."""
    if isinstance(value, type | Component):
        return components.text(value)
    if dataclasses.is_dataclass(value):
        return {
            field.name: resolve(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple | list):
        return [resolve(item) for item in value]
    return value


def identity(experiment: Experiment, seed: int) -> dict[str, Any]:
    """Returns the fields that decide every bit of a result, and the seed. Folders of files are left out."""
    start = experiment.start
    kept = {
        name: _without_folders(value)
        for name, value in resolve(experiment).items()
        if name not in NOT_IDENTITY
    }
    return (
        kept
        | ({"start": {"digest": start.digest, "new_head": start.new_head}} if start.file else {})
        | {"seed": seed}
    )


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return re.sub(r"^.*/(?=[^/]+\.py:\w)", "", value) if isinstance(value, str) else value


def fingerprint(identity: dict[str, Any]) -> str:
    """sha256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def group(identity: dict[str, Any]) -> str:
    """Fingerprint of an identity without its seed."""
    return fingerprint({name: value for name, value in identity.items() if name != "seed"})


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Yields ``field: OURS asked for, THEIRS in the run`` for every leaf that differs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            yield from differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
    elif ours != theirs:
        yield f"{path}: {ours!r} asked for, {theirs!r} in the run"


def restore(annotation: Any, value: Any) -> Any:
    """Inverse of ``resolve``. Raises UserError for an unknown or missing field, or a class that cannot be found."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if value is None:
        return None
    if origin is type or Component in arguments:
        return components.parse(value)
    if origin in (typing.Union, types.UnionType):
        return restore(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        return tuple(restore(arguments[0], item) for item in value)
    if not dataclasses.is_dataclass(annotation):
        return value
    hints = typing.get_type_hints(annotation)
    try:
        return annotation(**{name: restore(hints.get(name), item) for name, item in value.items()})  # pyright: ignore[reportCallIssue]
    except TypeError as error:
        raise UserError(f"{error}: the run was made by another version of resnet_jax") from error
