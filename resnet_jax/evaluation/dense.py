"""Multi-scale scores: the network runs over whole images, fully convolutionally, at several sizes; every image once at each."""

import functools
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8
from PIL import Image

from resnet_jax.data import sources, views
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.evaluation import exact
from resnet_jax.evaluation.exact import Score
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.models import Apply
from resnet_jax.models.architecture import Variables

# Longer sides are multiples of it, so that few shapes are compiled: what the strides of a network of ImageNet come to.
MULTIPLE = 32

# Images whose averaged scores are held against their labels at once.
_CHUNK = 4096


def shape(height: int, width: int, scale: int) -> tuple[int, int]:
    """Height and width that an image is resized to: its shorter side ``scale``, the longer one the nearest multiple of 32.

    That changes its aspect, by at most 16 pixels. A half is rounded up, and no longer side is below ``scale``; a square stays one.
    """
    if height == width:
        return scale, scale
    short, long = min(height, width), max(height, width)
    side = max(scale, (2 * scale * long + MULTIPLE * short) // (2 * MULTIPLE * short) * MULTIPLE)
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
    sharding: jax.sharding.Sharding | None = None,
) -> Score:
    """Averages the softmax scores of each image and its mirror image over ``protocol.scales``, and scores the average.

    He et al. 2015, Section 3.4: "the fully-convolutional form"; the classifier sees the mean over the whole map. Images of one shape make
    batches; a batch has as many as ``pixels`` allow, their mirror images counted, or one for each device. In the host's memory lie the
    summed scores, four bytes an image and class (200 MB for ImageNet's validation images), and at most four batches.

    Args:
      apply, params, batch_stats: the network and its variables.
      preprocessing: the constants it was trained with, those of channels.
      info, split: the images.
      protocol: with scales.
      pixels: of a batch.
      sharding: of a batch.

    Raises:
      UserError: for an example that cannot be read.
      RuntimeError: where an image was not scored once at each scale and in each mirror image.
    """
    source = sources.encoded(info, split)
    shards = 1 if sharding is None else sharding.num_devices
    # Every process adds up all scores, wherever they were computed.
    gathered = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None

    def size(index: int) -> tuple[int, int]:
        return _size(source, info, split, index)

    def one(place: _Place) -> tuple[np.ndarray, int]:
        example = sources.example(source, info, split, place.number)
        return views.stretched(example["image"], place.height, place.width, protocol.interpolation), example["label"]

    count = info.examples[split]
    sizes = list(itertools.chain.from_iterable(found for _, found in views.ahead(size, _groups(list(range(count)), _CHUNK))))
    labels, contributions = np.full(count, -1, np.int32), np.zeros(count, np.int64)
    summed: np.ndarray | None = None
    for group, found in views.ahead(one, _batches(sizes, protocol.scales, pixels, shards)):
        first, indices = group[0], [place.number for place in group]
        images = np.zeros((first.room, *found[0][0].shape), np.uint8)
        images[: len(group)] = [image for image, _ in found]
        scores = np.asarray(_scores(params, batch_stats, preprocessing, jax.device_put(images, sharding), apply=apply, gathered=gathered))
        summed = np.zeros((count, scores.shape[1]), np.float32) if summed is None else summed
        summed[indices] += scores[: len(group)]
        labels[indices] = [label for _, label in found]
        contributions[indices] += 2
    if summed is None or not (contributions == 2 * len(protocol.scales)).all():
        raise RuntimeError(f"not every image was scored {2 * len(protocol.scales)} times: this is a defect, please report it")
    return _score(summed / np.float32(2 * len(protocol.scales)), labels)


@functools.partial(jax.jit, static_argnames=("apply", "gathered"))
def _scores(
    params: Variables,
    batch_stats: Variables,
    preprocessing: Preprocessing,
    images: UInt8[Array, "n h w c"],
    *,
    apply: Apply,
    gathered: NamedSharding | None,
) -> Float[Array, "n classes"]:
    """Sums of the softmax scores of images and their mirror images."""
    # Beside each other: a device keeps its images.
    both = jnp.stack([images, images[:, :, ::-1]], axis=1).reshape(-1, *images.shape[1:])
    logits, _ = apply(params, batch_stats, preprocessing(both), train=False)
    scores = jax.nn.softmax(logits).reshape(len(images), 2, -1).sum(1)
    return scores if gathered is None else jax.lax.with_sharding_constraint(scores, gathered)


def _score(scores: np.ndarray, labels: np.ndarray) -> Score:
    errors = top5_errors = 0
    loss = 0.0
    for group in _groups(list(range(len(labels))), _CHUNK):
        wrong, wrong5 = exact.errors(jnp.asarray(scores[group]), jnp.asarray(labels[group]))
        errors, top5_errors = errors + int(wrong.sum()), top5_errors + int(wrong5.sum())
        with np.errstate(divide="ignore"):
            loss -= np.log(scores[group, labels[group]].astype(np.float64)).sum()
    return Score(errors, float(loss), len(labels), top5_errors)


class _Place(NamedTuple):
    number: int
    height: int
    width: int
    room: int
    """Images of the batch that it is in, with what fills it up."""


def _batches(sizes: list[tuple[int, int]], scales: tuple[int, ...], pixels: int, shards: int) -> Iterator[list[_Place]]:
    """Every image at every scale, in batches of one shape."""
    for scale in scales:
        alike: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            alike.setdefault(shape(*size, scale), []).append(index)
        for (height, width), indices in sorted(alike.items()):
            # Where few images have a shape, they need not be filled up to many.
            room = min(views.rows(pixels, 2 * height * width, shards), views.rows(len(indices), 1, shards))
            for group in _groups(indices, room):
                yield [_Place(index, height, width, room) for index in group]


def _groups(indices: list[int], size: int) -> Iterator[list[int]]:
    return (indices[start : start + size] for start in range(0, len(indices), size))


def _size(source: Sequence[Any], info: DatasetInfo, split: str, index: int) -> tuple[int, int]:
    """Height and width of an image, from its header alone."""
    if None not in info.image_shape:
        return info.image_shape[0], info.image_shape[1]  # pyright: ignore[reportReturnType]
    try:
        with Image.open(io.BytesIO(source[index][0])) as header:
            return header.height, header.width
    except Exception:
        # What cannot be opened is said by what decodes it.
        height, width, _ = sources.example(source, info, split, index)["image"].shape
        return height, width
