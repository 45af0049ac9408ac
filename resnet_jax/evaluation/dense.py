"""Multi-scale evaluation: the network runs fully convolutionally over whole images."""

import functools
import math
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Array, Float, UInt8

from resnet_jax.data import augment_host, datasets, images
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.data.local import Items
from resnet_jax.evaluation import exact, protocols
from resnet_jax.evaluation.exact import Score
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.models import Apply
from resnet_jax.models.resnet import Variables


def shape(height: int, width: int, scale: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side is resized to ``scale``.

    The longer side is the nearest multiple of 32 (halves up), at least ``scale``. Squares stay so.
    """
    if height == width:
        return scale, scale
    short, long = min(height, width), max(height, width)
    # 32 is the stride of ImageNet networks, and bounds the number of compiled shapes.
    nearest = (scale * long + 16 * short) // (32 * short) * 32
    side = max(scale, nearest)
    return (side, scale) if height > width else (scale, side)


def evaluate(
    apply: Apply,
    params: Variables,
    batch_stats: Variables,
    preprocessing: Preprocessing,
    info: DatasetInfo,
    split: str,
    protocol: Protocol,
    *,
    pixels: int,
    sharding: Sharding | None = None,
) -> Score:
    """Scores the average of the softmax scores of each image and its mirror image at all scales.

    He et al. 2015, Section 3.4, "the fully-convolutional form". Batches hold images of one shape:
    ``pixels``, mirror images included, but at least one image per device. The host holds the summed
    scores (200 MB for ImageNet) and at most four batches. Without ``sharding``, one device is used.
    """
    source, count = datasets.encoded(info, split), info.examples[split]

    def load(place: _Place) -> tuple[np.ndarray, int]:
        record = datasets.example(source, info, split, place.number)
        image = augment_host.resample(record["image"], place.size, protocol.interpolation)
        return image, record["label"]

    with ThreadPoolExecutor() as pool:
        read_size = functools.partial(_size, source, info, split)
        sizes = list(pool.map(read_size, range(count)))
    shards = sharding.num_devices if sharding else 1
    labels, contributions = np.full(count, -1, np.int32), np.zeros(count, np.int64)
    total: np.ndarray | None = None
    for group, loaded in protocols.ahead(load, _batches(sizes, protocol.scales, pixels, shards)):
        indices = [place.number for place in group]
        stacked = np.stack([image for image, _ in loaded])
        batch = exact.place(stacked, group[0].capacity, sharding)
        scores = _scores(params, batch_stats, preprocessing, batch, apply=apply)
        # Every process adds up all scores.
        scores = multihost_utils.process_allgather(scores, tiled=True)
        if total is None:
            total = np.zeros((count, scores.shape[1]), np.float32)
        total[indices] += scores[: len(group)]
        labels[indices] = [label for _, label in loaded]
        contributions[indices] += 1
    scales = len(protocol.scales)
    if total is None or (contributions != scales).any():
        raise RuntimeError(f"not every image was scored at {scales} scales. Report this.")
    total /= np.float32(2 * scales)
    wrong, wrong5 = jax.jit(exact.errors)(total, labels)
    with np.errstate(divide="ignore"):
        loss = -np.log(total[np.arange(count), labels].astype(np.float64)).sum()
    return Score(int(wrong.sum()), float(loss), count, int(wrong5.sum()))


@functools.partial(jax.jit, static_argnames="apply")
def _scores(
    params: Variables,
    batch_stats: Variables,
    preprocessing: Preprocessing,
    images: UInt8[Array, "n h w c"],
    *,
    apply: Apply,
) -> Float[Array, "n classes"]:
    """Softmax scores of images plus those of their mirror images."""
    # Interleaved, so that a device keeps its images.
    both = jnp.stack([images, images[:, :, ::-1]], axis=1).reshape(-1, *images.shape[1:])
    logits, _ = apply(params, batch_stats, preprocessing(both), train=False)
    return jax.nn.softmax(logits).reshape(len(images), 2, -1).sum(1)


class _Place(NamedTuple):
    """An image at one scale, in batches of ``capacity`` rows."""

    number: int
    size: tuple[int, int]
    capacity: int


def _batches(
    sizes: list[tuple[int, int]], scales: tuple[int, ...], pixels: int, shards: int
) -> Iterator[list[_Place]]:
    """All images at all scales, in batches of one shape."""
    for scale in scales:
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, size in enumerate(sizes):
            by_shape[shape(*size, scale)].append(index)
        for size, indices in sorted(by_shape.items()):
            # Shapes of few images are not padded to the full batch.
            full = protocols.rows(pixels, 2 * math.prod(size), shards)
            capacity = min(full, protocols.rows(len(indices), 1, shards))
            places = [_Place(index, size, capacity) for index in indices]
            for start in range(0, len(places), capacity):
                yield places[start : start + capacity]


def _size(source: Items, info: DatasetInfo, split: str, index: int) -> tuple[int, int]:
    """Height and width of an image, from its header."""
    height, width, _ = info.image_shape
    if height and width:
        return height, width
    try:
        return images.header(source[index][0])[:2]
    except Exception:  # The decoder's error names the example.
        return datasets.example(source, info, split, index)["image"].shape[:2]
