"""Images of a run: device-resident or streamed."""

import functools
import itertools
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from resnet_jax.data import augment_device, datasets
from resnet_jax.data import stream as stream_lib
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.augment_host import CenterCrop
from resnet_jax.data.datasets import DatasetInfo, Examples
from resnet_jax.data.stream import Rows, Stream
from resnet_jax.errors import UserError
from resnet_jax.evaluation import protocols
from resnet_jax.training import program, sharding
from resnet_jax.training.config import Experiment
from resnet_jax.training.step import Batch

# Images that measure the constants of a streamed set: the mean is within 1/100 of a deviation.
_MEASURED = 10_000
# Those that are decoded concurrently.
_GROUP = 64


def check(experiment: Experiment, info: DatasetInfo) -> None:
    """Raises UserError for corrupt files, a low memory bound, or augmentation that does not fit."""
    if experiment.data.crop is not None:
        # Reading a device-resident set checks it.
        for split in ("train", experiment.data.test_split):
            datasets.check(info, split)
        rows = Rows(stream(experiment, info, seed=0), first_step=0, last_step=1, **_here())
        stream_lib.reading_ahead(rows, **vars(experiment.loading))
        rows[0]
    images = jax.ShapeDtypeStruct((experiment.batch_size, *experiment.model.input_shape), np.uint8)
    labels = jax.ShapeDtypeStruct((experiment.batch_size,), np.int32)
    constants = program.abstract_preprocessing(experiment)
    augment = functools.partial(program.augmentation(experiment), classes=info.num_classes)
    jax.eval_shape(augment, jax.random.key(0), constants, images, labels)


def parts(experiment: Experiment, info: DatasetInfo) -> dict[str, tuple[str, int, int]]:
    """Returns split, first example and count of ``test``, ``validation`` (if any) and ``train``."""
    test, held_out = experiment.data.test_split, experiment.data.validation_examples
    count = info.examples["train"] - held_out
    validation = {"validation": ("train", count, held_out)} if held_out else {}
    return {"test": (test, 0, info.examples[test]), **validation, "train": ("train", 0, count)}


def examples(
    experiment: Experiment, info: DatasetInfo, part: tuple[str, int, int]
) -> Examples | Iterable[Examples]:
    """Returns the images of a part, of a streamed set in batches as they are evaluated."""
    split, first, count = part
    if experiment.data.crop is None:
        whole = datasets.read(info, split)
        if count == info.examples[split]:
            return whole  # The same array for every run of a process.
        rows = slice(first, first + count)
        return Examples(whole.images[rows], whole.labels[rows])
    protocol = protocols.parse(experiment.evaluation.protocol)
    batch_size = experiment.evaluation.batch_size
    return protocols.batches(info, split, protocol, batch_size, first=first, count=count, **_here())


def training_set(experiment: Experiment, info: DatasetInfo) -> Any:
    """Returns the training images of a device-resident set."""
    return examples(experiment, info, parts(experiment, info)["train"])


def constants(experiment: Experiment, info: DatasetInfo) -> Preprocessing:
    """Measures the normalization constants, of a streamed set on central crops of some images."""
    normalization = experiment.data.normalization
    if experiment.data.crop is None:
        return augment_device.fit(training_set(experiment, info).images, normalization)
    size = experiment.model.input_shape[:2]
    crop = CenterCrop(shorter_side=round(max(size) * 8 / 7))
    source, (_, _, count) = datasets.encoded(info, "train"), parts(experiment, info)["train"]

    def load(index: int) -> np.ndarray | None:
        try:
            image = datasets.example(source, info, "train", index)["image"]
        except UserError:
            if experiment.data.damaged == "stop":
                raise
            return None
        return crop(image, size, np.random.default_rng(0))

    chosen = np.linspace(0, count - 1, min(count, _MEASURED), dtype=int).tolist()
    groups = (chosen[start : start + _GROUP] for start in range(0, len(chosen), _GROUP))
    loaded = (image for _, group in protocols.ahead(load, groups) for image in group)
    return augment_device.fit((image for image in loaded if image is not None), normalization)


def stream(experiment: Experiment, info: DatasetInfo, seed: int) -> Stream:
    """Returns the streamed training images of a seed."""
    data: Any = experiment.data
    return Stream(
        info=info,
        split="train",
        examples=parts(experiment, info)["train"][2],
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
    """Training batches on the devices from ``step`` on; the whole set, if it is device-resident."""

    replaced = 0
    """Corrupt images that were replaced."""

    def __init__(self, experiment: Experiment, info: DatasetInfo, mesh: Mesh, seed: int, step: int):
        self._experiment, self._seed, self._sharding = experiment, seed, sharding.batch(mesh)
        # Opening a set is slow.
        self._stream = functools.cache(functools.partial(stream, experiment, info))
        self._resident = None
        if experiment.data.crop is None:
            whole = training_set(experiment, info)
            whole = Batch(whole.images, whole.labels)
            self._resident = sharding.put(whole, sharding.replicated(mesh))
        self._batches = self._read(seed, step, experiment.steps)

    def next(self) -> Batch:
        """Returns the data of ``Program.train``."""
        return next(self._batches)

    def for_statistics(self, step: int) -> Iterator[Batch]:
        """Returns the data of ``Program.recompute_statistics`` after ``step`` steps."""
        count = self._experiment.evaluation.statistics_batches
        # Other batches than those of the steps.
        seed = np.random.SeedSequence([self._seed % 2**64, 1]).generate_state(1)[0]
        return self._read(int(seed), step * count, (step + 1) * count)

    def close(self) -> None:
        """Stops reading ahead."""
        self._batches.close()

    def _read(self, seed: int, first_step: int, last_step: int) -> Generator[Batch]:
        if self._resident is not None:
            yield from itertools.repeat(self._resident, last_step - first_step)
            return
        rows = Rows(self._stream(seed), first_step=first_step, last_step=last_step, **_here())
        put = functools.partial(jax.make_array_from_process_local_data, self._sharding)
        with closing(stream_lib.batches(rows, **vars(self._experiment.loading))) as batches:
            for batch in batches:
                self.replaced += int(batch.replaced.sum())
                yield Batch(put(batch.images), put(batch.labels))
