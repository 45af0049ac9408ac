"""Training batches streamed from storage: a function of (seed, step), for any number of processes, workers and threads."""

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Int32, UInt8

from resnet_jax.data import datasets
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.models.components import Factory

# Per thread, beside the image that it decodes (the largest of ImageNet have ten million pixels).
_DECODING_MB = 32


class Streamed(NamedTuple):
    """One batch, or the part of one process, in host memory."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, "n"]
    replaced: Int32[np.ndarray, "n"]
    """Number of corrupt images that each image replaces."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The infinite sequence of a run's training images."""

    info: DatasetInfo
    split: str
    examples: int
    """Only this many examples of the split, from its start."""
    seed: int
    batch_size: int
    """Images per step, over all processes."""
    size: tuple[int, int]
    """Height and width of a crop."""
    crop: Factory
    """See ``resnet_jax.data.augment_host``."""
    policy: Factory | None = None
    """See ``resnet_jax.data.augment_host``."""
    repeats: int = 1
    """Consecutive copies of an image, each with its own crop (repeated augmentation, Hoffer et al. 2019)."""
    replaces_damaged: bool = False
    """Replace a corrupt image by the next one of the set, instead of raising."""

    def __getstate__(self) -> dict[str, Any]:
        # Without the cached data sets, which workers build for themselves.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def index(self, position: int) -> int:
        """Index in the split by position in the stream; every epoch is a permutation of its own."""
        return int(self._order[position])  # pyright: ignore[reportArgumentType]

    @functools.cached_property
    def _order(self) -> grain.MapDataset[int]:
        # Grain seeds are 32-bit. Hashing also separates the epochs of adjacent seeds.
        seed = np.random.SeedSequence(self.seed % 2**64).generate_state(1)[0]
        epoch = grain.MapDataset.range(self.examples).seed(int(seed)).shuffle()
        return grain.MapDataset.mix([epoch] * self.repeats).repeat()

    @functools.cached_property
    def images(self) -> grain.MapDataset[Streamed]:
        """The image at each position, cropped and augmented."""
        source, crop = datasets.encoded(self.info, self.split), self.crop()
        policy = None if self.policy is None else self.policy()

        def load(index: int, rng: np.random.Generator) -> Streamed:
            image, label, replaced = self._decoded(source, int(index))
            image = crop(image, self.size, rng)
            image = image if policy is None else policy(image, rng)
            return Streamed(image, np.int32(label), np.int32(replaced))  # pyright: ignore[reportArgumentType]

        return self._order.random_map(load)

    def _decoded(
        self, source: Sequence[tuple[bytes, int]], index: int
    ) -> tuple[np.ndarray, int, int]:
        for replaced in range(self.examples):
            try:
                record = datasets.example(
                    source, self.info, self.split, (index + replaced) % self.examples
                )
                return record["image"], record["label"], replaced
            except UserError:
                if not self.replaces_damaged:
                    raise
        raise UserError(
            f"every image of {self.info.name}, split {self.split!r}, is corrupt. Prepare the set again."
        )


class Rows:
    """The images of one process from ``first_step`` to ``last_step``: a contiguous share of every global batch."""

    def __init__(
        self,
        stream: Stream,
        *,
        first_step: int,
        last_step: int,
        process: int = 0,
        processes: int = 1,
    ):
        if stream.batch_size % processes:
            raise UserError(
                f"batch_size must be a multiple of the {processes} processes, got {stream.batch_size}."
            )
        self._stream, self._first, self._last, self._process = (
            stream,
            first_step,
            last_step,
            process,
        )
        self.share = stream.batch_size // processes
        """Images per step."""
        self.image_mb = math.prod(stream.size) * 3 / 2**20

    def __len__(self) -> int:
        return (self._last - self._first) * self.share

    def __getitem__(self, index: int) -> Streamed:
        step, row = divmod(index, self.share)
        return self._stream.images[
            (self._first + step) * self._stream.batch_size + self._process * self.share + row
        ]  # pyright: ignore[reportReturnType]


def reading_ahead(
    rows: Rows, *, threads: int = 0, workers: int = 0, memory_mb: int = 2048
) -> grain.ReadOptions:
    """Threads and prefetched elements within a memory bound. Arguments as of ``batches``."""
    batch_mb = rows.share * rows.image_mb
    # One batch is assembled, one waits, one is transferred.
    room = memory_mb - 3 * batch_mb
    threads = threads or (1 if workers else cores())
    if workers:
        # Whole batches: one per thread of a worker, and one ready in each worker.
        ahead, least = threads, workers * (threads + 1) * batch_mb
        needed_by = f"{workers} workers with whole batches of {rows.share}"
    else:
        ahead = min(int((room - threads * _DECODING_MB) / rows.image_mb), rows.share)
        least = threads * _DECODING_MB + min(threads, rows.share) * rows.image_mb
        needed_by = f"{threads} threads with batches of {rows.share}"
    if least > room:
        needed = math.ceil(least + 3 * batch_mb)
        raise UserError(
            f"loading.memory_mb is {memory_mb}, but {needed_by} need at least {needed}."
        )
    return grain.ReadOptions(threads, ahead)


def batches(
    rows: Rows, *, threads: int = 0, workers: int = 0, memory_mb: int = 2048
) -> grain.DatasetIterator[Streamed]:
    """Yields prefetched rows as batches, in order. Close the iterator.

    Args:
      threads: decoding threads; 0: one per core. With ``workers``: per worker, and 0 is one.
      workers: decoding processes; 0: this process.
      memory_mb: bound on prefetched decoded images.
    """
    options = reading_ahead(rows, threads=threads, workers=workers, memory_mb=memory_mb)
    source = grain.MapDataset.source(rows)
    if not workers:
        read = source.to_iter_dataset(options).batch(rows.share, batch_fn=_stacked)
        return iter(grain.experimental.ThreadPrefetchIterDataset(read, prefetch_buffer_size=1))
    # Batched before the workers, so that batches do not depend on their number.
    read = source.batch(rows.share, batch_fn=_stacked).to_iter_dataset(options)
    # Grain forwards absl's flags to its workers, which fails unless they are parsed (google/grain#1355).
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return iter(
        read.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        )
    )


def cores() -> int:
    """Number of cores of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stacked(rows: Sequence[Streamed]) -> Streamed:
    return Streamed(*(np.stack(values) for values in zip(*rows, strict=True)))
