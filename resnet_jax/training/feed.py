"""Where a run's images come from: the device's memory, or storage. The loop knows no difference."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from resnet_jax.data import augmentation, integrity, sources, streaming, views
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.crops import CentreCrop
from resnet_jax.data.sources import DatasetInfo, Examples
from resnet_jax.data.streaming import Rows, Stream
from resnet_jax.errors import UserError
from resnet_jax.evaluation import protocols
from resnet_jax.training import program as program_lib
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.program import Program
from resnet_jax.training.step import Arrived, Resident

# Images on which the constants of a streamed set are measured: a mean over them is 1/100 of an image's deviation off.
_MEASURED = 10_000
# Of which so many are decoded at once, by threads.
_GROUP = 64


@runtime_checkable
class Feed(Protocol):
    """The training images of a run with one or more seeds, on its devices."""

    @property
    def most_steps(self) -> int | None:
        """Steps that one dispatch may have; None: any number."""
        ...

    @property
    def replaced(self) -> int:
        """Damaged images in whose place others stood, so far."""
        ...

    def steps(self, step: int) -> Any:
        """What ``Program.train`` takes for the steps from ``step`` on."""
        ...

    def settling(self, step: int) -> Any:
        """What ``Program.settle`` takes after ``step`` steps."""
        ...

    def examples(self, key: Key[Array, ""], step: int) -> list[int]:
        """The images of the batch after ``step`` steps by their number in the training split, from the key of the run's state."""
        ...

    def close(self) -> None:
        """Ends what reads ahead."""
        ...


@dataclass(frozen=True)
class Images:
    """The images of a run: what is trained on, what is scored, and the constants that normalise them."""

    measure: Callable[[], Preprocessing]
    scored: dict[str, tuple[Callable[[], Examples | Iterable[Examples]], int]]
    """What gives the images of each split, and their number according to the set's description."""
    feed: Callable[[Program, Preprocessing, int], Feed]
    """Program, constants and seed to a feed."""

    @functools.cached_property
    def preprocessing(self) -> Preprocessing:
        """For a run that begins: measured on the training images when it is first asked for. One that goes on has its own."""
        return self.measure()


def check(experiment: Experiment, info: DatasetInfo) -> None:
    """Looks at the input of a run before anything is written: files, memory, one image through the host's parts, shapes through
    the device's.

    Raises:
      UserError: for files that are missing or damaged, a bound on memory that is too low, or parts that do not fit the images.
    """
    if experiment.data.crop is not None:
        # What is read whole at the beginning is looked at then.
        for split in ("train", experiment.data.test_split):
            integrity.check(info, split)
        kept = info.examples["train"] - experiment.data.validation_examples
        rows = _rows(stream(experiment, info, kept, seed=0), 0, 1)
        streaming.reading_ahead(rows, **vars(experiment.loading))
        rows[0]
    images = jax.ShapeDtypeStruct((experiment.batch_size, *experiment.model.input_shape), np.uint8)
    labels = jax.ShapeDtypeStruct((experiment.batch_size,), np.int32)
    key, constants = jax.eval_shape(lambda: jax.random.key(0)), program_lib.abstract_preprocessing(experiment)
    jax.eval_shape(program_lib.batches_of(experiment, info.num_classes), key, constants, images, labels)


def load(experiment: Experiment, info: DatasetInfo, given: Preprocessing | None = None) -> Images:
    """Finds the images that an experiment trains on and scores, and how to measure what normalises them, unless it is ``given``."""
    data = experiment.data
    kept = info.examples["train"] - data.validation_examples
    wanted = {"test": (data.test_split, 0, info.examples[data.test_split])}
    if data.validation_examples:
        wanted["validation"] = ("train", kept, data.validation_examples)
    if experiment.evaluation.training_images:
        wanted["train"] = ("train", 0, kept)
    of = _resident if data.crop is None else _streamed
    return of(experiment, info, kept, wanted, given)


def _resident(
    experiment: Experiment, info: DatasetInfo, kept: int, wanted: dict[str, tuple[str, int, int]], given: Preprocessing | None
) -> Images:
    everything = sources.read(info, "train")
    train = Examples(everything.images[:kept], everything.labels[:kept])

    def part(split: str, first: int, count: int) -> Examples:
        # The same array for every run of a process that scores it whole.
        found = sources.read(info, split)
        return found if count == info.examples[split] else Examples(*(a[first : first + count] for a in (found.images, found.labels)))

    return Images(
        lambda: given or augmentation.fit(train.images, experiment.data.normalization),
        {name: (functools.partial(part, *place), place[2]) for name, place in wanted.items()},
        lambda program, preprocessing, _: ResidentFeed(program.place(train, preprocessing), experiment.batch_size),
    )


class ResidentFeed:
    """Images that live on the devices; which of them a step sees is decided there."""

    most_steps = None
    replaced = 0

    def __init__(self, data: Resident, batch_size: int):
        self._data, self._batch_size = data, batch_size

    def steps(self, step: int) -> Resident:
        del step
        return self._data

    settling = steps

    def examples(self, key: Key[Array, ""], step: int) -> list[int]:
        return np.asarray(self._data.order(key, jnp.int32(step), 1, self._batch_size)[0]).tolist()

    def close(self) -> None:
        pass


def _streamed(
    experiment: Experiment, info: DatasetInfo, kept: int, wanted: dict[str, tuple[str, int, int]], given: Preprocessing | None
) -> Images:
    protocol = protocols.parse(experiment.evaluation.protocol)

    def part(split: str, first: int, count: int) -> Iterator[Examples]:
        here = {"process": jax.process_index(), "processes": jax.process_count()}
        return views.batches(info, split, protocol, experiment.evaluation.batch_size, first=first, count=count, **here)

    return Images(
        lambda: given or measured(experiment, info, kept),
        {name: (functools.partial(part, *place), place[2]) for name, place in wanted.items()},
        functools.partial(StreamFeed, experiment, info, kept),
    )


def measured(experiment: Experiment, info: DatasetInfo, kept: int) -> Preprocessing:
    """Constants of a streamed set, from at most 10,000 of its training images, evenly spread: their central seven eighths."""
    height, width, _ = experiment.model.input_shape
    crop = CentreCrop(shorter_side=round(max(height, width) * 8 / 7))
    source = sources.encoded(info, "train")

    def one(index: int) -> np.ndarray | None:
        try:
            image = sources.example(source, info, "train", index)["image"]
        except UserError:
            if experiment.data.damaged == "stop":
                raise
            return None
        return crop(image, (height, width), np.random.default_rng(0))

    chosen = np.linspace(0, kept - 1, min(kept, _MEASURED), dtype=int).tolist()
    groups = (chosen[start : start + _GROUP] for start in range(0, len(chosen), _GROUP))
    images = (image for _, found in views.ahead(one, groups) for image in found if image is not None)
    return augmentation.fit_each(images, experiment.data.normalization)


def stream(experiment: Experiment, info: DatasetInfo, kept: int, seed: int) -> Stream:
    """The training images of a seed, in their order."""
    data = experiment.data
    assert data.crop is not None
    return Stream(
        info=info,
        split="train",
        examples=kept,
        seed=seed,
        batch_size=experiment.batch_size,
        size=experiment.model.input_shape[:2],
        crop=data.crop,
        policy=data.policy,
        repeats=data.repeats,
        replaces_damaged=data.damaged == "replace",
    )


def _rows(of: Stream, first_step: int, last_step: int) -> Rows:
    return Rows(of, first_step=first_step, last_step=last_step, process=jax.process_index(), processes=jax.process_count())


class StreamFeed:
    """Images that are read, decoded and cropped while the devices compute."""

    most_steps = 1

    def __init__(self, experiment: Experiment, info: DatasetInfo, kept: int, program: Program, preprocessing: Preprocessing, seed: int):
        self._experiment, self._program, self._preprocessing = experiment, program, preprocessing
        self._stream = stream(experiment, info, kept, seed)
        # Batches that statistics are measured on are others than those of the steps.
        self._apart = stream(experiment, info, kept, int(np.random.SeedSequence([seed % 2**64, 1]).generate_state(1)[0]))
        self._reading: Any = None
        self._next = -1
        self.replaced = 0

    def steps(self, step: int) -> Arrived:
        if step != self._next:
            self.close()
            self._reading = self._read(self._stream, step, self._experiment.steps)
        self._next = step + 1
        return self._arrived(next(self._reading))

    def settling(self, step: int) -> Iterator[Arrived]:
        count = self._experiment.evaluation.statistics_batches
        with closing(self._read(self._apart, step * count, (step + 1) * count)) as reading:
            yield from map(self._arrived, itertools.islice(reading, count))

    def examples(self, key: Key[Array, ""], step: int) -> list[int]:
        del key
        size = self._experiment.batch_size
        return [int(self._stream.index(position)) for position in range(step * size, (step + 1) * size)]

    def close(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _read(self, of: Stream, first_step: int, last_step: int) -> Any:
        return streaming.batches(_rows(of, first_step, last_step), **vars(self._experiment.loading))

    def _arrived(self, batch: streaming.Streamed) -> Arrived:
        self.replaced += int(batch.replaced.sum())
        return self._program.arrive(batch, self._preprocessing)
