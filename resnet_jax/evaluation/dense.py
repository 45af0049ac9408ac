"""Multi-scale evaluation: the network runs fully convolutionally over whole images at several sizes."""

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

from resnet_jax.data import augment_host, datasets
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.evaluation import exact, views
from resnet_jax.evaluation.exact import Score
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.models import Apply
from resnet_jax.models.resnet import Variables

# Longer sides are multiples of the total stride of ImageNet networks, which bounds the number of compiled shapes.
MULTIPLE = 32
# Images per group of header reads and of the final scoring.
_CHUNK = 4096


def shape(height: int, width: int, scale: int) -> tuple[int, int]:
    """Height and width of a resized image: the shorter side is ``scale``, the longer one the nearest multiple of 32.

    Halves are rounded up, no longer side is below ``scale``, and squares stay square.
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

    He et al. 2015, Section 3.4, "the fully-convolutional form". Batches hold images of one shape. The host holds the summed scores
    (200 MB for ImageNet's validation set) and at most four batches.

    Args:
      pixels: per batch, mirror images included; a batch has at least one image per device.
      sharding: of a batch.
      Others: the network, its per-channel normalization, the set, and a protocol with scales.

    Raises:
      UserError: if an example is corrupt.
      RuntimeError: if an image was not scored exactly once at each scale and in each mirror image.
    """
    source = datasets.encoded(info, split)
    shards = 1 if sharding is None else sharding.num_devices
    # Every process adds up all scores.
    gathered = (
        NamedSharding(sharding.mesh, PartitionSpec())
        if isinstance(sharding, NamedSharding)
        else None
    )

    def size(index: int) -> tuple[int, int]:
        return _size(source, info, split, index)

    def load(place: _Place) -> tuple[np.ndarray, int]:
        example = datasets.example(source, info, split, place.number)
        return augment_host.resample(
            example["image"], None, (place.height, place.width), protocol.interpolation
        ), example["label"]

    count = info.examples[split]
    sizes = list(
        itertools.chain.from_iterable(
            group for _, group in views.ahead(size, _groups(list(range(count)), _CHUNK))
        )
    )
    labels, contributions = np.full(count, -1, np.int32), np.zeros(count, np.int64)
    summed: np.ndarray | None = None
    for group, loaded in views.ahead(load, _batches(sizes, protocol.scales, pixels, shards)):
        indices = [place.number for place in group]
        images = np.zeros((group[0].capacity, *loaded[0][0].shape), np.uint8)
        images[: len(group)] = [image for image, _ in loaded]
        scores = np.asarray(
            _scores(
                params,
                batch_stats,
                preprocessing,
                jax.device_put(images, sharding),
                apply=apply,
                gathered=gathered,
            )
        )
        summed = np.zeros((count, scores.shape[1]), np.float32) if summed is None else summed
        summed[indices] += scores[: len(group)]
        labels[indices] = [label for _, label in loaded]
        contributions[indices] += 2
    if summed is None or not (contributions == 2 * len(protocol.scales)).all():
        raise RuntimeError(
            f"not every image was scored {2 * len(protocol.scales)} times: this is a defect, please report it"
        )
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
    # Interleaved, so that a device keeps its images.
    both = jnp.stack([images, images[:, :, ::-1]], axis=1).reshape(-1, *images.shape[1:])
    logits, _ = apply(params, batch_stats, preprocessing(both), train=False)
    scores = jax.nn.softmax(logits).reshape(len(images), 2, -1).sum(1)
    return scores if gathered is None else jax.lax.with_sharding_constraint(scores, gathered)


def _score(scores: np.ndarray, labels: np.ndarray) -> Score:
    errors = top5_errors = 0
    for group in _groups(list(range(len(labels))), _CHUNK):
        wrong, wrong5 = exact.errors(jnp.asarray(scores[group]), jnp.asarray(labels[group]))
        errors, top5_errors = errors + int(wrong.sum()), top5_errors + int(wrong5.sum())
    with np.errstate(divide="ignore"):
        loss = -np.log(scores[np.arange(len(labels)), labels].astype(np.float64)).sum()
    return Score(errors, float(loss), len(labels), top5_errors)


class _Place(NamedTuple):
    """An image at one scale."""

    number: int
    height: int
    width: int
    capacity: int
    """Images per batch of this shape, padding included."""


def _batches(
    sizes: list[tuple[int, int]], scales: tuple[int, ...], pixels: int, shards: int
) -> Iterator[list[_Place]]:
    """Every image at every scale, in batches of one shape."""
    for scale in scales:
        alike: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            alike.setdefault(shape(*size, scale), []).append(index)
        for (height, width), indices in sorted(alike.items()):
            # Shapes of few images are not padded to the full batch.
            capacity = min(
                views.rows(pixels, 2 * height * width, shards), views.rows(len(indices), 1, shards)
            )
            for group in _groups(indices, capacity):
                yield [_Place(index, height, width, capacity) for index in group]


def _groups(indices: list[int], size: int) -> Iterator[list[int]]:
    return (indices[start : start + size] for start in range(0, len(indices), size))


def _size(source: Sequence[Any], info: DatasetInfo, split: str, index: int) -> tuple[int, int]:
    """Height and width of an image, from its header."""
    if None not in info.image_shape:
        return info.image_shape[0], info.image_shape[1]  # pyright: ignore[reportReturnType]
    try:
        with Image.open(io.BytesIO(source[index][0])) as header:
            return header.height, header.width
    except Exception:
        # The decoder's error names the example.
        height, width, _ = datasets.example(source, info, split, index)["image"].shape
        return height, width
