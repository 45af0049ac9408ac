"""Card of a weight file: network, preprocessing and provenance, in the file's metadata."""

import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from resnet_jax import errors
from resnet_jax.errors import Range, UserError, require
from resnet_jax.kernels.typing import Float
from resnet_jax.models import catalog
from resnet_jax.models.resnet import Architecture

# Metadata keys of the card, in this project's files and in exported ones.
KEY, EXPORTED_KEY = "resnet_jax", "resnet_jax_exported"

Interpolation = Literal["bilinear", "bicubic"]
Pixels = Annotated[int, Range(high=2**16)]
if typing.TYPE_CHECKING:
    from PIL import Image

    Picture = str | Path | Image.Image | np.ndarray
else:  # models and weights do not need Pillow
    Picture = object
"""A file, an image of Pillow, or an (h, w, c) or (h, w) array of uint8."""


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class View:
    """Resize, crop, ``(image / 255 - mean) / deviation``. Channels are RGB."""

    mean: Sequence[Any]
    """One number per channel, or an (h, w, c) image of them; scale 0 to 1."""
    deviation: Sequence[float]
    """One number per channel; scale 0 to 1."""
    resize: Pixels = 0
    """Pixels of the shorter side before the crop. 0: no resize."""
    crop: Pixels = 0
    """Side of the central square. 0: the whole image."""
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _tuples(self.mean))
        object.__setattr__(self, "deviation", _tuples(self.deviation))


IMAGENET_VIEW = View(
    mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225), resize=256, crop=224
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything about weights except the numbers."""

    architecture: Architecture
    view: View
    source: str
    """File or run that the weights come from."""
    sha256: str = ""
    """Checksum of that file."""
    convention: str = ""
    """Convention of its names; empty: this project's."""
    data: str = ""
    """Name of the training set, if known."""
    classes: tuple[str, ...] = ()
    """Names of its classes, if the source has them."""
    claimed_error: Annotated[float, Range(0, 100, "[]")] | None = None
    """Published top-1 error on its test images, percent."""
    prefix: str = ""
    """Of every name in the file, such as ``module.``."""
    dtypes: dict[str, str] = field(default_factory=dict)
    """Of the file's tensors that are not float32."""
    counters: dict[str, float] = field(default_factory=dict)
    """torch's ``num_batches_tracked`` by torchvision's names; "": of all."""

    def text(self) -> str:
        """Returns the card as one line of JSON."""
        architecture = catalog.write(self.architecture)
        return json.dumps(vars(self) | {"view": vars(self.view), "architecture": architecture})

    def preprocess(self, image: Picture) -> Float[np.ndarray, "1 h w c"]:
        """Returns an image as the network takes it: resized, cropped and normalized.

        >>> card.preprocess("photograph.jpg").shape  # doctest: +SKIP
        (1, 224, 224, 3)
        """
        from resnet_jax.data import augment_host  # needs the packages of training

        view, pixels = self.view, _pixels(image, self.architecture.input_shape[2])
        sizes = view.resize, view.crop
        pixels = augment_host.resize_and_crop(pixels, *sizes, view.interpolation)
        mean, deviation = self.constants()
        return ((pixels.astype(np.float32) / 255 - mean) / deviation)[None]

    def constants(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation, float32."""
        return np.asarray(self.view.mean, np.float32), np.asarray(self.view.deviation, np.float32)

    def check(self) -> None:
        """Raises UserError for invalid fields."""
        errors.check("", Card, self)
        mean, deviation = self.constants()
        channels = self.architecture.input_shape[2]
        has_channels = mean.ndim in (1, 3) and mean.shape[-1] == channels
        is_positive = deviation.shape == (channels,) and (deviation > 0).all()
        counts = np.array([*self.counters.values()], np.float64)
        for holds, expected in (
            (has_channels and np.isfinite(mean).all(), f"mean: {channels} numbers (--mean)"),
            (is_positive and np.isfinite(deviation).all(), f"std: {channels} above 0 (--std)"),
            (((counts >= 0) & (counts < 2**63)).all(), "counters: numbers"),
        ):
            require(bool(holds), f"its card is invalid, expected {expected}")


def _pixels(image: Picture, channels: int) -> np.ndarray:
    if isinstance(image, str | Path):
        from resnet_jax.data import datasets

        try:
            return datasets.decode(Path(image).read_bytes(), channels)
        except OSError as error:
            raise UserError(f"{image} cannot be read: {error.strerror or error}") from error
    if not isinstance(image, np.ndarray):
        image = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    pixels = image[..., None] if image.ndim == 2 else image
    fits = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == channels
    expected = f"an image must be uint8 of (height, width, {channels})"
    require(fits, f"{expected}, got {image.dtype} of {image.shape}.")
    return pixels


def read(text: str, network: Architecture | None = None) -> Card:
    """Inverse of ``Card.text``. ``network`` replaces one with classes of the user's files."""
    try:
        fields = json.loads(text)
        description, view = fields.pop("architecture"), View(**fields.pop("view"))
        fields["classes"] = tuple(fields.get("classes", ()))
        card = Card(architecture=network or catalog.read(description), view=view, **fields)
        card.check()
    except UserError:
        raise
    except Exception as error:  # a file may hold anything
        raise UserError(f"its card is corrupt or of another version ({error!r:.200})") from error
    return card
