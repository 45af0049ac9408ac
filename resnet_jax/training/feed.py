"""Images of a run: device-resident or streamed."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import jax
import numpy as np

from resnet_jax.data import augment_device, datasets
from resnet_jax.data import stream as stream_lib
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.augment_host import CenterCrop
from resnet_jax.data.datasets import DatasetInfo, Examples
from resnet_jax.data.stream import Rows, Stream
from resnet_jax.errors import UserError
from resnet_jax.evaluation import protocols
from resnet_jax.training import program as program_lib
from resnet_jax.training import sharding
from resnet_jax.training.config import Experiment
from resnet_jax.training.program import Program
from resnet_jax.training.step import ResidentData, StreamedBatch

# Images that the constants of a streamed set are measured on: the mean is within 1/100 of a deviation.
_MEASURED = 10_000
# Images that are decoded concurrently for it.
_GROUP = 64


def check(experiment: Experiment, info: DatasetInfo) -> None:
    """Raises UserError for damaged files, a low memory bound, or augmentation that does not fit the images."""
    if experiment.data.crop is not None:
        # Reading a device-resident set checks it.
        for split in ("train", experiment.data.test_split):
            datasets.check(info, split)
        rows = Rows(stream(experiment, info, seed=0), first_step=0, last_step=1, **_here())
        stream_lib.reading_ahead(rows, **vars(experiment.loading))
        rows[0]
    images = jax.ShapeDtypeStruct((experiment.batch_size, *experiment.model.input_shape), np.uint8)
    labels = jax.ShapeDtypeStruct((experiment.batch_size,), np.int32)
    key, constants = (
        jax.eval_shape(lambda: jax.random.key(0)),
        program_lib.abstract_preprocessing(experiment),
    )
    jax.eval_shape(
        program_lib.batches_of(experiment, info.num_classes), key, constants, images, labels
    )


def training_images(experiment: Experiment, info: DatasetInfo) -> int:
    """Returns the number of training images without the validation images."""
    return info.examples["train"] - experiment.data.validation_examples


def training_set(experiment: Experiment, info: DatasetInfo) -> Examples:
    """Returns the training images of a device-resident set."""
    return _part(info, "train", 0, training_images(experiment, info))


def _part(info: DatasetInfo, split: str, first: int, count: int) -> Examples:
    whole = datasets.read(info, split)
    # A whole split is the same array for every run of a process.
    return (
        whole
        if count == info.examples[split]
        else Examples(*(a[first : first + count] for a in (whole.images, whole.labels)))
    )


def scored(
    experiment: Experiment, info: DatasetInfo
) -> dict[str, tuple[Callable[[], Examples | Iterable[Examples]], int]]:
    """Returns, for each of ``test``, ``validation`` and ``train`` that is evaluated, a function to its images and their number."""
    data, count = experiment.data, training_images(experiment, info)
    places = {"test": (data.test_split, 0, info.examples[data.test_split])}
    if data.validation_examples:
        places["validation"] = ("train", count, data.validation_examples)
    if experiment.evaluation.training_images:
        places["train"] = ("train", 0, count)

    def images(split: str, first: int, count: int) -> Examples | Iterable[Examples]:
        if data.crop is None:
            return _part(info, split, first, count)
        protocol, batch_size = (
            protocols.parse(experiment.evaluation.protocol),
            experiment.evaluation.batch_size,
        )
        return protocols.batches(
            info, split, protocol, batch_size, first=first, count=count, **_here()
        )

    return {name: (functools.partial(images, *place), place[2]) for name, place in places.items()}


def constants(experiment: Experiment, info: DatasetInfo) -> Preprocessing:
    """Measures the normalization constants, of a streamed set on central crops of 10,000 evenly spaced images."""
    if experiment.data.crop is None:
        return augment_device.fit(
            training_set(experiment, info).images, experiment.data.normalization
        )
    height, width, _ = experiment.model.input_shape
    crop = CenterCrop(shorter_side=round(max(height, width) * 8 / 7))
    source, count = datasets.encoded(info, "train"), training_images(experiment, info)

    def one(index: int) -> np.ndarray | None:
        try:
            image = datasets.example(source, info, "train", index)["image"]
        except UserError:
            if experiment.data.damaged == "stop":
                raise
            return None
        return crop(image, (height, width), np.random.default_rng(0))

    chosen = np.linspace(0, count - 1, min(count, _MEASURED), dtype=int).tolist()
    groups = (chosen[start : start + _GROUP] for start in range(0, len(chosen), _GROUP))
    images = (
        image for _, group in protocols.ahead(one, groups) for image in group if image is not None
    )
    return augment_device.fit(images, experiment.data.normalization)


def stream(experiment: Experiment, info: DatasetInfo, seed: int) -> Stream:
    """Returns the streamed training images of a seed."""
    data = experiment.data
    assert data.crop is not None
    return Stream(
        info=info,
        split="train",
        examples=training_images(experiment, info),
        seed=seed,
        batch_size=experiment.batch_size,
        size=experiment.model.input_shape[:2],
        crop=data.crop,
        policy=data.policy,
        repeats=data.repeats,
        replaces_damaged=data.damaged == "replace",
    )


def _here() -> dict[str, int]:
    return {"process": jax.process_index(), "processes": jax.process_count()}


class Feed:
    """Device-resident training images; the compiled step chooses the batches."""

    max_steps: int | None = None
    """Largest number of steps per dispatch; None: any."""
    replaced = 0
    """Damaged images that were replaced."""

    def __init__(self, data: ResidentData | None):
        self._data = data

    def next(self) -> Any:
        """Returns the input of ``Program.train`` for the next steps."""
        return self._data

    def statistics_batches(self, step: int) -> Any:
        """Returns the input of ``Program.recompute_statistics`` after ``step`` steps."""
        del step
        return self._data

    def close(self) -> None:
        """Stops reading ahead."""


class StreamFeed(Feed):
    """Streamed training images, read ahead."""

    max_steps = 1

    def __init__(
        self,
        experiment: Experiment,
        info: DatasetInfo,
        program: Program,
        preprocessing: Preprocessing,
        seed: int,
        step: int,
    ):
        super().__init__(None)
        self._loading, self._count = (
            vars(experiment.loading),
            experiment.evaluation.statistics_batches,
        )
        self._sharding, self._preprocessing = sharding.batch(program.mesh), preprocessing
        # Other batches than those of the steps.
        self._other = stream(
            experiment, info, int(np.random.SeedSequence([seed % 2**64, 1]).generate_state(1)[0])
        )
        self._reading = self._read(stream(experiment, info, seed), step, experiment.steps)

    def next(self) -> StreamedBatch:
        return self._arrived(next(self._reading))

    def statistics_batches(self, step: int) -> Iterator[StreamedBatch]:
        with closing(
            self._read(self._other, step * self._count, (step + 1) * self._count)
        ) as reading:
            yield from map(self._arrived, itertools.islice(reading, self._count))

    def close(self) -> None:
        self._reading.close()

    def _read(self, images: Stream, first_step: int, last_step: int) -> Any:
        return stream_lib.batches(
            Rows(images, first_step=first_step, last_step=last_step, **_here()), **self._loading
        )

    def _arrived(self, batch: stream_lib.Streamed) -> StreamedBatch:
        self.replaced += int(batch.replaced.sum())
        images, labels = (
            jax.make_array_from_process_local_data(self._sharding, array)
            for array in (batch.images, batch.labels)
        )
        return StreamedBatch(images, labels, self._preprocessing)


def training(
    experiment: Experiment,
    info: DatasetInfo,
    program: Program,
    preprocessing: Preprocessing,
    seed: int,
    step: int,
) -> Feed:
    """Returns the training images from ``step`` on; ``preprocessing`` is on the devices."""
    if experiment.data.crop is None:
        return Feed(program.place(training_set(experiment, info), preprocessing))
    return StreamFeed(experiment, info, program, preprocessing, seed, step)
