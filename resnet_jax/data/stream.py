"""Streamed training batches: a function of (seed, step), whatever the processes and workers."""

import functools
import math
import os
from dataclasses import KW_ONLY, dataclass, fields
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Int32, UInt8

from resnet_jax.data import datasets
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError, require
from resnet_jax.models.components import Factory

_DECODING_MB = 32  # per thread: the largest images of ImageNet have ten million pixels


class Streamed(NamedTuple):
    """A batch, or one image, in host memory."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, "n"]
    replaced: Int32[np.ndarray, "n"]
    """Corrupt images that an image replaces."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Infinite sequence of the training images of a run."""

    info: DatasetInfo
    split: str
    examples: int
    """Images used, the first ones of the split."""
    seed: int
    batch_size: int
    """Images per step, over all processes."""
    size: tuple[int, int]
    """Height and width of a crop."""
    crop: Factory
    """Of ``data.augment_host``, as ``policy``."""
    policy: Factory | None = None
    repeats: int = 1
    """Consecutive copies of an image, with crops of their own (Hoffer et al. 2019)."""
    replaces_damaged: bool = False
    """Replace a corrupt image by the next one of the set, instead of raising."""

    def __getstate__(self) -> dict[str, object]:
        # Workers build the cached data sets themselves.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @functools.cached_property
    def order(self) -> grain.MapDataset[int]:
        """Index in the split by position in the stream; every epoch has its own permutation."""
        # Grain seeds are 32-bit. Hashing also separates the epochs of adjacent seeds.
        seed = np.random.SeedSequence(self.seed).generate_state(1)[0]
        epoch = grain.MapDataset.range(self.examples).seed(int(seed)).shuffle()
        return grain.MapDataset.mix([epoch] * self.repeats).repeat()

    @functools.cached_property
    def images(self) -> grain.MapDataset[Streamed]:
        """The image at each position, cropped and augmented."""
        source, crop = datasets.encoded(self.info, self.split), self.crop()
        policy = self.policy() if self.policy else None

        def load(index: int, rng: np.random.Generator) -> Streamed:
            replaced = 0
            while True:
                place = (int(index) + replaced) % self.examples
                try:
                    record = datasets.example(source, self.info, self.split, place)
                    break
                except UserError:
                    replaced += 1
                    if not self.replaces_damaged or replaced == self.examples:
                        raise
            image = crop(record["image"], self.size, rng)
            image = policy(image, rng) if policy else image
            return Streamed(image, *np.array([record["label"], replaced], np.int32))

        return self.order.random_map(load)


@dataclass(frozen=True)
class Rows:
    """Images of one process in a range of steps: a contiguous part of every batch."""

    stream: Stream
    _: KW_ONLY
    first_step: int
    last_step: int
    process: int = 0
    processes: int = 1

    @property
    def share(self) -> int:
        """Images per step."""
        return self.stream.batch_size // self.processes

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.share

    def __getitem__(self, index: int) -> Streamed:
        step, row = divmod(index, self.share)
        batch = (self.first_step + step) * self.stream.batch_size
        return self.stream.images[batch + self.process * self.share + row]  # pyright: ignore


def reading_ahead(
    rows: Rows, *, threads: int = 0, workers: int = 0, memory_mb: int = 2048
) -> grain.ReadOptions:
    """Returns the threads and the prefetched elements of ``batches``.

    Args:
      threads: decoding threads, per worker if there are any; 0: one per core, or one per worker.
      workers: decoding processes; 0: this process.
      memory_mb: bound on prefetched decoded images.
    """
    allowed = "loading.threads and loading.workers must be at least 0"
    require(min(threads, workers) >= 0, f"{allowed}, got {threads} and {workers}.")
    image_mb = math.prod(rows.stream.size) * 3 / 2**20
    batch_mb = rows.share * image_mb
    # One batch is assembled, one waits, one is transferred.
    room = memory_mb - 3 * batch_mb
    if workers:
        threads, readers = threads or 1, f"{workers} workers"
        # Whole batches: one per thread of a worker, and one ready in each worker.
        ahead, least = threads, workers * (threads + 1) * batch_mb
    else:
        threads = threads or _cores()
        ahead = min(int((room - threads * _DECODING_MB) / image_mb), rows.share)
        least = threads * _DECODING_MB + min(threads, rows.share) * image_mb
        readers = f"{threads} threads"
    needed = f"{readers} need at least {math.ceil(least + 3 * batch_mb)}"
    require(least <= room, f"loading.memory_mb is {memory_mb}, but {needed}.")
    return grain.ReadOptions(threads, ahead)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batches(rows: Rows, *, workers: int = 0, **loading: int) -> grain.DatasetIterator[Streamed]:
    """Yields prefetched batches in order, see ``reading_ahead``. Close the iterator."""
    options = reading_ahead(rows, workers=workers, **loading)
    source = grain.MapDataset.source(rows)
    if not workers:
        read = source.to_iter_dataset(options).batch(rows.share)
        return iter(grain.experimental.ThreadPrefetchIterDataset(read, prefetch_buffer_size=1))
    # Grain's workers need absl's flags to be parsed (google/grain#1355).
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # Batched first, so that batches do not depend on the number of workers.
    read = source.batch(rows.share).to_iter_dataset(options)
    multiprocessing = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    return iter(read.mp_prefetch(multiprocessing))
