"""Configuration of a run: one frozen value with everything it depends on, except its seed."""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from resnet_jax.data.augment_device import Normalization
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import Fraction, Positive, Range, UserError, check
from resnet_jax.evaluation import protocols
from resnet_jax.models import Architecture, Execution, components
from resnet_jax.models.components import Component, Factory, constructor_parameters, parts
from resnet_jax.training.optimizer import Optimizer, Schedule

Fields = dict[str, Any]
Logits = Float[Array, "n classes"]
PerImage = Float[Array, "n"]


HELD_OUT = "held-out"
"""Split of the ``validation_examples``."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data set, and the preprocessing and augmentation of its images."""

    name: str
    """TFDS name of a prepared set (cifar10), path of SPLIT/CLASS/IMAGE, or FILE.py:SOURCE."""
    validation_examples: int = 0
    """Held out from the end of the training split (5000 in He et al. 2015), of sets that are not
    shuffled a share of every class."""
    test_split: str = "test"
    """Evaluated split: 'validation' for imagenet2012; 'held-out': the held-out training images
    alone, for choices that must not depend on the test images."""
    normalization: Normalization = "pixel_mean"
    """pixel_mean: subtract the mean image (the paper); channel: standardize each channel; imagenet:
    its usual constants; weights: those of the initial weights."""
    pad: int = 4
    """Pixels of padding on each side before a random crop; 0: no crop."""
    flip: bool = True
    """Random left-right flips."""
    crop: Factory | None = None
    """Crop of streamed images: RandomResizedCrop, ShorterSideCrop. none: device-resident images."""
    policy: Factory | None = None
    """Operations on cropped images: TrivialAugment, RandAugment, none."""
    color: Factory | None = None
    """Augmentation of images in [0, 1]: PcaLighting (AlexNet's), ColorJitter, none."""
    erasing: Factory | None = None
    """Augmentation of normalized images: RandomErasing, none."""
    mix: Factory | None = None
    """Augmentation of images and targets: Mix (mixup and cutmix), none."""
    repeats: Positive = 1
    """Copies of each streamed image in a batch (Hoffer et al. 2019, arXiv 1901.09335)."""
    damaged: Literal["stop", "replace"] = "stop"
    """Corrupt streamed training images: stop, or use the next one and count."""
    digest: str = ""
    """Hash of the names and sizes of images that are read in place. Set by the run."""
    classes: tuple[str, ...] = ()
    """Their classes. Set by the run."""


def softmax(logits: Logits, targets: Logits) -> PerImage:
    """Cross-entropy."""
    return optax.softmax_cross_entropy(logits, targets)


def binary(logits: Logits, targets: Logits) -> PerImage:
    """Mean of binary cross-entropies. Wightman et al. 2021, arXiv 2110.00476, Section 2.2."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def focal(logits: Logits, targets: Logits, *, gamma: float = 2.0) -> PerImage:
    """Cross-entropy with factors (1 - p)^gamma. Lin et al. 2017, arXiv 1708.02002, Equation 4."""
    check("gamma", Annotated[float, Range()], gamma)
    log_p = jax.nn.log_softmax(logits)
    # Positive, because powers below 1 have no derivative at 0.
    others = jnp.maximum(-jnp.expm1(log_p), 1e-12)
    return -jnp.sum(targets * others**gamma * log_p, axis=-1)


LOSSES = {"softmax": softmax, "binary": binary, "focal": focal}


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Loss of an image; its mean over the batch is minimized."""

    kind: str = "softmax"
    """softmax: cross-entropy; binary: mean of binary cross-entropies (Wightman et al. 2021);
    "focal(gamma=2)" (Lin et al. 2017); FILE.py:FUNCTION of (logits, targets), per image."""
    smoothing: Fraction = 0.0
    """Label smoothing e: targets t become (1 - e) t + e / classes, after mixing."""
    threshold: Fraction | None = None
    """binary: smoothed targets above it count as 1, others as 0; none: unchanged."""

    def __post_init__(self) -> None:
        check("loss", Loss, self)
        name = components.name_of(self.function, LOSSES).removesuffix("()")
        object.__setattr__(self, "kind", name)

    @property
    def function(self) -> Component:
        return components.parse_function(self.kind, LOSSES)

    @property
    def label(self) -> str:
        """Kind without the folder of a file."""
        return components.without_folder(self.kind)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Loss against the outputs of a trained network, the teacher.

    (1 - weight) loss + weight T^2 KL(teacher || student), of softmax(logits / T). Hinton et al.
    2015, arXiv 1503.02531, Section 2.
    """

    teacher: str = ""
    """A run, imported weights, or a name on the Hub; empty: no distillation."""
    digest: str = ""
    """sha256 of its weights. Set by the run."""
    temperature: Annotated[float, Range(ends="()")] = 4.0
    """T."""
    weight: Annotated[float, Range(0, 1, "[]")] = 0.9
    """Share of the teacher's soft labels."""
    maps: tuple[str, ...] = ()
    """Maps of ``features``, such as stage3, that match the teacher's, of equal shape: adds the mean
    squared difference (Romero et al. 2015, arXiv 1412.6550, without a regressor)."""
    maps_weight: float = 1.0
    """Factor of each squared difference."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation during training; every example counts exactly once."""

    every: Positive = 1000
    """Steps between evaluations."""
    batch_size: Annotated[int, Range(1, 2**16)] = 500
    statistics_batches: int = 0
    """Training batches of precise BatchNorm statistics, before evaluations and checkpoints; 0:
    moving averages."""
    training_images: bool = False
    """Also evaluate all training images, not augmented, after the last step."""
    protocol: str = ""
    """Crop: 256/224 (shorter side / central square), 236/224-bicubic. Empty: whole images."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Initial weights, see ``fine_tune.start_from``."""

    file: str = ""
    """Imported weights, or a run; empty: random initialization."""
    digest: str = ""
    """sha256 of the weights."""
    new_head: bool = False
    """Initialize the classifier at random."""


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Checkpoints; no part of the fingerprint."""

    every: Positive = 1000
    """Steps between checkpoints."""
    keep: Positive = 3
    """Newest checkpoints to keep."""
    best: int = 0
    """Checkpoints to keep with the lowest test error."""
    keep_every: int = 0
    """Keep every multiple of this step; 0: none."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Streaming of images; no part of the fingerprint."""

    threads: int = 0
    """Reading and decoding threads per process; 0: one per free core."""
    workers: int = 0
    """Reading and decoding processes; 0: threads of the training process."""
    memory_mb: int = 2048
    """Bound on waiting decoded batches, per training process."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Configuration of a run, except its seed."""

    name: str
    model: Architecture
    data: Data
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    steps: Positive = 64_000
    batch_size: Positive = 128
    """Images per step over all devices."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpointing: Checkpointing = field(default_factory=Checkpointing)
    execution: Execution = field(default_factory=Execution)
    loss: Loss = field(default_factory=Loss)
    distillation: Distillation = field(default_factory=Distillation)
    start: Start = field(default_factory=Start)
    loading: Loading = field(default_factory=Loading)

    def __post_init__(self) -> None:
        check("", Experiment, self)
        loss, optimizer, schedule = self.loss, self.optimizer, self.schedule
        if loss.threshold is not None and loss.kind != "binary":
            raise UserError("loss.threshold must be none without loss.kind 'binary'.")
        if len(dict(optimizer.rates)) < len(optimizer.rates):
            raise UserError("optimizer.rates must not repeat a prefix.")
        if schedule.linear_warmup and schedule.warmup_until_error < 1:
            raise UserError("schedule.warmup_until_error must be 1 with schedule.linear_warmup.")
        end = schedule.cosine_steps
        if end and (schedule.decay_steps or end <= schedule.warmup_steps):
            raise UserError(
                "schedule.cosine_steps must be 0, or above warmup_steps with empty decay_steps."
            )
        if end and schedule.final_learning_rate > schedule.learning_rate:
            raise UserError("schedule.final_learning_rate must be at most learning_rate.")

    def shortened(self, steps: int, explicit: Collection[str] = ()) -> "Experiment":
        """Returns the experiment with another number of steps, and the schedule scaled to it.

        The warm-up is at most a quarter of the run; evaluations are at most an eighth apart. Fields
        in ``explicit``, such as ``schedule.decay_steps``, keep their values.
        """
        if steps == self.steps:
            return self
        if self.schedule.rule and not {"schedule", "schedule.rule"} & {*explicit}:
            raise UserError(f"give --schedule with --steps: {self.schedule.rule} is not rescaled.")

        def scaled(step: int) -> int:
            return round(step * steps / self.steps)

        schedule, every = self.schedule, self.evaluation.every
        fields: Fields = {
            "decay_steps": tuple(max(1, scaled(step)) for step in schedule.decay_steps),
            "cosine_steps": scaled(schedule.cosine_steps),
            "warmup_steps": min(schedule.warmup_steps, steps // 4),
        }
        fields = {
            name: value
            for name, value in fields.items()
            if f"schedule.{name}" not in explicit and (name == "warmup_steps" or not schedule.rule)
        }
        if "evaluation.every" not in explicit:
            every = max(1, min(every, steps // 8))
        return replace(
            self,
            steps=steps,
            schedule=replace(schedule, **fields),
            evaluation=replace(self.evaluation, every=every),
        )

    def on(self, info: DatasetInfo) -> "Experiment":
        """Returns the experiment on another data set of images of one size."""
        data, evaluation, shape = self.data, self.evaluation, info.image_shape
        if info.name == data.name:
            return self
        test = "test" if "test" in info.examples else "validation"
        if not {"train", test} <= info.examples.keys():
            raise UserError(f"{info.name} must have splits train and test or validation.")
        if data.test_split == HELD_OUT:
            test = HELD_OUT
        changes: Fields = {"name": info.name, "test_split": test}
        if None in shape:
            if data.crop is None or shape[2] != self.model.input_shape[2]:
                needed = f"images of {self.model.input_shape}, or recipes with a data.crop"
                raise UserError(f"{info.name} has images of {shape}; the study needs {needed}.")
            model = replace(self.model, num_classes=info.num_classes)
            return replace(self, model=model, data=replace(data, **changes))
        changes |= {"crop": None, "policy": None, "repeats": 1, "damaged": "stop"}
        if data.crop is not None and data.normalization == "imagenet":
            changes["normalization"] = "channel"
        if info.name == "digits":
            # A mirrored digit is another digit, and a crop would remove up to half of its 8 pixels.
            changes |= {"pad": 0, "flip": False}
        if shape[2] != 3:
            changes["color"] = None
        batch_size = min(evaluation.batch_size, info.examples.get(test, data.validation_examples))
        return replace(
            self,
            model=replace(self.model, input_shape=shape, num_classes=info.num_classes),
            data=replace(data, **changes),
            evaluation=replace(evaluation, protocol="", batch_size=batch_size),
        )

    def with_data(self, info: DatasetInfo) -> tuple["Experiment", DatasetInfo]:
        """Returns the experiment with the contents of a set read in place, and what it holds out.

        Raises UserError for damaged images, unless they are replaced.
        """
        if info.problems and self.data.damaged == "stop":
            raise UserError(info.problems)
        data = self.data
        if not info.is_prepared:
            data = replace(data, name=info.name, digest=info.version, classes=info.classes)
        held_out, examples = data.validation_examples, info.examples
        if data.test_split == HELD_OUT:
            examples = examples | {HELD_OUT: held_out}
        return replace(self, data=data), replace(info, held_out=held_out, examples=examples)

    def check(self, info: DatasetInfo, devices: int = 1) -> None:
        """Raises UserError with the fields that do not fit the data, devices or other fields."""
        found = [*self._problems(info, devices)]
        options = " ".join(option for _, option in found if option)
        texts = "; ".join(text for text, _ in found)
        if found:
            raise UserError(f"{texts}. Use {options}" if options else f"{texts}.")

    def _problems(self, info: DatasetInfo, devices: int) -> Iterator[tuple[str, str]]:
        """Yields what does not fit, and the option that fixes it, if one value does."""
        data, model, size, examples = self.data, self.model, self.batch_size, info.examples
        protocol, shape, channels = self.evaluation.protocol, model.input_shape, info.image_shape[2]
        if (classes := info.num_classes) != model.num_classes:
            text = f"model.num_classes must be {classes}, got {model.num_classes}"
            yield text, f"--model.num-classes {classes}"
        for split in sorted({"train", data.test_split} - {*examples, HELD_OUT}):
            other = next((s for s in ("test", "validation") if s in examples), "")
            option = f"--data.test-split {other}" if other and split != "train" else ""
            yield f"{info.name} has no split {split!r}, but {', '.join(examples)}", option
        if "train" in examples and data.validation_examples >= examples["train"]:
            yield f"data.validation_examples must be below {examples['train']}", ""
        if data.test_split == HELD_OUT and not data.validation_examples:
            yield "data.test_split 'held-out' needs data.validation_examples above 0", ""
        if data.normalization == "weights" and not self.start.file:
            yield "data.normalization 'weights' needs initial weights (--init-from)", ""
        if data.normalization == "imagenet" and channels != 3:
            text = f"data.normalization 'imagenet' needs images of 3 channels, got {channels}"
            yield text, "--data.normalization channel"
        norm, options = parts(model.norm)
        has_averages = "momentum" in constructor_parameters(norm)[0]
        if self.evaluation.statistics_batches and not has_averages:
            yield f"evaluation.statistics_batches must be 0 for {norm.__name__}", ""
        free = self.optimizer.rule.startswith("schedule_free")
        if (self.optimizer.ema or free) and has_averages and not self.evaluation.statistics_batches:
            average = "optimizer.ema" if self.optimizer.ema else self.optimizer.rule
            yield f"{average} with {norm.__name__} needs evaluation.statistics_batches", ""
        if size % devices:
            yield f"batch_size must be a multiple of the {devices} devices, got {size}", ""
        group = options.get("group_size", 0) or 1
        if size % (multiple := self.optimizer.accumulation * group):
            text = f"batch_size must be a multiple of {multiple}, optimizer.accumulation"
            text += f" times the BatchNorm group size, got {size}"
            yield text, "--model.norm BatchNorm" if group > 1 else ""
        if data.crop is None:
            if None in info.image_shape:
                text = f"the images of {info.name} are of several sizes, of the model {shape}"
                yield (
                    f"{text}: set a data.crop such as RandomResizedCrop, or use a recipe with one",
                    "",
                )
            elif shape != info.image_shape:
                text = f"the images of {info.name} are {info.image_shape}, of the model {shape}"
                yield text, f"--model.input-shape {' '.join(map(str, info.image_shape))}"
            # The order of a device-resident set counts images in 31 bits.
            if (count := self.steps * size) >= 2**31:
                yield f"steps x batch_size must be at most {2**31 - 1}, got {count}", ""
            if protocol or data.policy is not None or data.repeats != 1 or data.damaged != "stop":
                fields = "evaluation.protocol, data.policy, data.repeats and data.damaged"
                yield f"{fields} need a data.crop", ""
            return
        if channels != shape[2]:
            yield f"model.input_shape must have {channels} channels, got {shape[2]}", ""
        crop = protocols.parse(protocol).crop if protocol else None
        if crop is None:
            yield f"evaluation.protocol must be one crop, as 256/224, got {protocol!r}", ""
        # Both have constants per pixel.
        elif data.normalization in ("pixel_mean", "weights") and shape[:2] != (crop, crop):
            yield f"evaluation.protocol must crop to {shape[:2]} for pixel constants", ""
        if data.pad:
            yield f"data.pad must be 0 with a data.crop, got {data.pad}", "--data.pad 0"


# Fields that change no result; ``start`` and ``distillation`` count by a digest.
NOT_IDENTITY = ("name", "checkpointing", "execution", "start", "loading", "distillation")


def resolve(value: Any, name: Callable[..., str] = components.text) -> Any:
    """Converts dataclasses and tuples to JSON; classes become ``module:Class(argument=value)``."""
    if isinstance(value, type | Component):
        return components.text(value, name)
    if dataclasses.is_dataclass(value):
        return {f.name: resolve(getattr(value, f.name), name) for f in dataclasses.fields(value)}
    return [resolve(item, name) for item in value] if isinstance(value, tuple) else value


def restore(annotation: Any, value: Any) -> Any:
    """Inverse of ``resolve``; raises UserError for fields and classes that do not exist."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if value is None:
        return None
    if origin is type or Component in arguments:
        return components.parse(value)
    if origin is tuple:
        return tuple(restore(arguments[0], item) for item in value)
    if not dataclasses.is_dataclass(annotation):
        return value
    hints = typing.get_type_hints(annotation)
    fields = {name: restore(hints.get(name), item) for name, item in value.items()}
    try:
        return typing.cast(Any, annotation)(**fields)
    except TypeError as error:
        raise UserError(f"{error}. Another version of resnet_jax wrote the run.") from error


def identity(experiment: Experiment, seed: int) -> Fields:
    """Returns the fields that decide every bit of a result, and the seed."""
    start = experiment.start
    # A class of a file is named without its folder, so that a project can be moved.
    fields = resolve(experiment, lambda cls: Path(components.text(cls)).name)
    identity = {name: value for name, value in fields.items() if name not in NOT_IDENTITY}
    for part in (experiment.optimizer, experiment.schedule):
        identity[type(part).__name__.lower()]["rule"] = components.without_folder(part.rule)
    # The digest includes the names of classes; a folder can be moved.
    data = identity["data"]
    del data["classes"]
    if data["digest"]:
        data["name"] = Path(data["name"]).name
    else:
        del data["digest"]
    if start.file:
        identity["start"] = {"digest": start.digest, "new_head": start.new_head}
    identity["loss"]["kind"] = experiment.loss.label
    if experiment.distillation.teacher:
        identity["distillation"] = {
            k: v for k, v in fields["distillation"].items() if k != "teacher"
        }
    return identity | {"seed": seed}


def fingerprint(identity: Fields) -> str:
    """Returns the sha256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def group(identity: Fields) -> str:
    """Returns the fingerprint without the seed."""
    return fingerprint({name: value for name, value in identity.items() if name != "seed"})


def differences(ours: object, theirs: object, path: str = "") -> Iterator[str]:
    """Yields ``field: OURS asked for, THEIRS in the run`` for every leaf that differs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            yield from differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
    elif ours != theirs:
        yield f"{path}: {ours!r} asked for, {theirs!r} in the run"
