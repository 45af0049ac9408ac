"""Training images streamed from storage. Which ones a step sees, and how they are cropped, is a function of (seed, step) and nothing else.

So there is no state of an iterator to save: any number of processes, workers and threads, begun at any step, give the same global batches.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Int32, UInt8

from resnet_jax.configured import Factory
from resnet_jax.data import sources
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError

# Beside the image that is being decoded (a few of ImageNet's have ten million pixels) each thread holds little.
_DECODING_MB = 32


class Streamed(NamedTuple):
    """One batch, or a process's part of it, in host memory."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, "n"]
    replaced: Int32[np.ndarray, "n"]
    """Of each image, how many damaged ones stood in its place."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The training images of a run, one after another without end."""

    info: DatasetInfo
    split: str
    examples: int
    """Only the first so many of the split."""
    seed: int
    batch_size: int
    """Images a step, over all processes."""
    size: tuple[int, int]
    """Height and width of a cropped image."""
    crop: Factory
    """See ``resnet_jax.data.crops``."""
    policy: Factory | None = None
    """See ``resnet_jax.data.policies``."""
    repeats: int = 1
    """Copies of an image that follow each other, each cropped by itself; an image is then drawn every ``repeats`` epochs."""
    replaces_damaged: bool = False
    """Whether a damaged image is replaced by the next one of the set, rather than an error."""

    def index(self, position: int) -> int:
        """Which example of the split stands at a position: every epoch holds each once, in an order of its own."""
        epoch, place = divmod(position // self.repeats, self.examples)
        return grain.experimental.index_shuffle(place, max_index=self.examples - 1, seed=self._seed(epoch), rounds=4)

    def generator(self, position: int) -> np.random.Generator:
        """What is random about the image at a position."""
        return np.random.Generator(np.random.Philox(key=[self.seed % 2**64, position]))

    def _seed(self, epoch: int) -> int:
        # Hashed: seeds and epochs that are neighbours would share their orders, shifted by one.
        return int(np.random.SeedSequence([self.seed % 2**64, epoch]).generate_state(1)[0])


class Rows:
    """The images of a stream that one process is responsible for, from a step on, by number: what Grain reads.

    A process has the same rows of every global batch: the first of two processes its first half.
    """

    def __init__(self, stream: Stream, *, first_step: int, last_step: int, process: int = 0, processes: int = 1):
        if stream.batch_size % processes:
            raise UserError(f"batch_size is {stream.batch_size}, which {processes} processes cannot share equally")
        self._stream, self._first, self._last = stream, first_step, last_step
        self._process, self.share = process, stream.batch_size // processes
        """Images of a batch that are this process's."""
        self.image_mb = math.prod(stream.size) * 3 / 2**20
        self._source = sources.encoded(stream.info, stream.split)
        self._crop = stream.crop()
        self._policy = None if stream.policy is None else stream.policy()

    def __len__(self) -> int:
        return (self._last - self._first) * self.share

    def __getitem__(self, index: int) -> Streamed:
        step, row = divmod(index, self.share)
        position = (self._first + step) * self._stream.batch_size + self._process * self.share + row
        image, label, replaced = self._decoded(self._stream.index(position))
        random = self._stream.generator(position)
        image = self._crop(image, self._stream.size, random)
        if self._policy is not None:
            image = self._policy(image, random)
        return Streamed(image, np.int32(label), np.int32(replaced))  # pyright: ignore[reportArgumentType]

    def _decoded(self, index: int) -> tuple[np.ndarray, int, int]:
        for replaced in range(self._stream.examples):
            try:
                found = sources.example(self._source, self._stream.info, self._stream.split, (index + replaced) % self._stream.examples)
                return found["image"], found["label"], replaced
            except UserError:
                if not self._stream.replaces_damaged:
                    raise
        raise UserError(f"every image of {self._stream.info.name}, split {self._stream.split!r}, is damaged: prepare the set again")


def reading_ahead(rows: Rows, *, threads: int = 0, workers: int = 0, memory_mb: int = 2048) -> grain.ReadOptions:
    """How far is read ahead; arguments as of ``batches``.

    Raises:
      UserError: where ``memory_mb`` does not hold what waits at the least.
    """
    batch_mb = rows.share * rows.image_mb
    # One is being put together, one waits, one is on its way to the devices.
    room = memory_mb - 3 * batch_mb
    threads = threads or (1 if workers else cores())
    if workers:
        # Whole batches: one for each thread of a worker, and one that each worker has ready.
        ahead, least = threads, workers * (threads + 1) * batch_mb
        who = f"{workers} workers that prepare whole batches of {rows.share}"
    else:
        ahead = min(int((room - threads * _DECODING_MB) / rows.image_mb), rows.share)
        least = threads * _DECODING_MB + min(threads, rows.share) * rows.image_mb
        who = f"batches of {rows.share} and {threads} threads"
    if least > room:
        raise UserError(f"loading.memory_mb is {memory_mb}; {who} need {math.ceil(least + 3 * batch_mb)} at least: give more, or use fewer")
    return grain.ReadOptions(threads, ahead)


def batches(rows: Rows, *, threads: int = 0, workers: int = 0, memory_mb: int = 2048) -> grain.DatasetIterator[Streamed]:
    """Reads rows ahead and gives them as batches, in order. To be closed.

    Args:
      rows: what is read.
      threads: that read and decode; 0: one for each core of this process. With ``workers``: in each of them, 0 being one.
      workers: processes that read and decode; 0: this one.
      memory_mb: bound on the decoded images that wait.

    Raises:
      UserError: as ``reading_ahead``; and while it is read, as ``sources.example``.
    """
    options = reading_ahead(rows, threads=threads, workers=workers, memory_mb=memory_mb)
    source = grain.MapDataset.source(rows)
    if not workers:
        read = source.to_iter_dataset(options).batch(rows.share, batch_fn=_stacked)
        return iter(grain.experimental.ThreadPrefetchIterDataset(read, prefetch_buffer_size=1))
    # Batches before workers: what a batch holds would else depend on their number.
    read = source.batch(rows.share, batch_fn=_stacked).to_iter_dataset(options)
    _parse_flags()
    return iter(read.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)))


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stacked(rows: Sequence[Streamed]) -> Streamed:
    return Streamed(*(np.stack(values) for values in zip(*rows, strict=True)))


def _parse_flags() -> None:
    # Grain hands absl's flags on to its workers, and they have to have been parsed for that (google/grain#1355).
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
