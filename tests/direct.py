"""Scores of a small network on photographs, computed slowly: one image at a time, every crop written out, NumPy alone after the logits."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.models import Architecture
from resnet_jax.models.stems import ImageNetStem

NETWORK = Architecture(stages=(1, 1), features=(8, 16), stem=ImageNetStem, num_classes=20, input_shape=(32, 32, 3))
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PREPROCESSING = Preprocessing(MEAN.astype(np.float32), DEVIATION.astype(np.float32))


@functools.cache
def network() -> tuple[Any, Any, Any]:
    """Function, parameters and statistics; the classifier is sharper than a drawn one, so that answers differ."""
    apply, params, batch_stats = jax.jit(NETWORK.init)(jax.random.key(3))
    linear = {name: 3 * values for name, values in params["head"]["linear"].items()}
    return apply, params | {"head": params["head"] | {"linear": linear}}, batch_stats


def softmax(picture: Image.Image) -> np.ndarray:
    """Probabilities of one image of any size, float64."""
    apply, params, batch_stats = network()
    pixels = ((np.asarray(picture).astype(np.float64) / 255 - MEAN) / DEVIATION).astype(np.float32)
    logits = np.asarray(_logits(apply, params, batch_stats, pixels[None]), np.float64)[0]
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


@functools.partial(jax.jit, static_argnums=0)
def _logits(apply: Any, params: Any, batch_stats: Any, images: Any) -> Any:
    return apply(params, batch_stats, images, train=False)[0]


def mirrored(picture: Image.Image) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def resized(picture: Image.Image, side: int) -> Image.Image:
    width, height = picture.size
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    return picture.resize(size, Image.Resampling.BILINEAR)


def ten_crops(picture: Image.Image, side: int, crop: int) -> np.ndarray:
    """Average over four corners, the center and their mirror images."""
    whole = resized(picture, side)
    right, bottom = whole.width - crop, whole.height - crop
    places = [(0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2))]
    crops = [whole.crop((x, y, x + crop, y + crop)) for x, y in places]
    return np.mean([softmax(each) for each in crops + [mirrored(each) for each in crops]], axis=0)


def multi_scale(picture: Image.Image, sides: tuple[int, ...]) -> np.ndarray:
    """Average over sizes and mirror images; the longer side is the multiple of 32 that is nearest, the larger of two."""
    found = []
    for side in sides:
        longer = 32 * int(side * max(picture.size) / min(picture.size) / 32 + 0.5)
        size = (side, longer) if picture.width <= picture.height else (longer, side)
        size = (side, side) if picture.width == picture.height else size
        whole = picture.resize(size, Image.Resampling.BILINEAR)
        found += [softmax(whole), softmax(mirrored(whole))]
    return np.mean(found, axis=0)


class Ranked:
    """The first photographs of a split, labeled by the network itself: the label of photograph i is the answer (i mod 10) places below its
    best. So of every ten one is answered rightly, and five are among the five best answers.
    """

    def __init__(self, info: DatasetInfo, split: str, count: int, probabilities: Any):
        encoded = datasets.encoded(info, split)
        self.pictures = [Image.fromarray(datasets.decode(encoded[index][0])) for index in range(count)]
        self.probabilities = np.stack([probabilities(each) for each in self.pictures])
        self.labels = np.argsort(-self.probabilities, axis=1)[np.arange(count), np.arange(count) % 10]
        self.items = [(encoded[index][0], int(label)) for index, label in enumerate(self.labels)]
        ordered = np.sort(self.probabilities, axis=1)[:, ::-1]
        # Between the first and the second, and the fifth and the sixth, runs the line of what counts as an error.
        for place, labeled in ((0, (0, 1)), (4, (4, 5))):
            near = ordered[np.isin(np.arange(count) % 10, labeled), place : place + 2]
            assert (near[:, 1] < 0.999 * near[:, 0]).all(), "no two answers are so close that rounding decides"

    @property
    def loss(self) -> float:
        """Sum of the losses."""
        return float(-np.log(self.probabilities[np.arange(len(self.labels)), self.labels]).sum())

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes them what ``sources.encoded`` gives."""
        monkeypatch.setattr(datasets, "encoded", lambda info, split: self.items)
