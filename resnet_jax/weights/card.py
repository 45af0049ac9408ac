"""Card of a weight file: network, preprocessing and provenance, in the file's metadata."""

import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.models import catalog
from resnet_jax.models.resnet import Architecture

# Metadata keys of the card, in this project's files and in exported ones.
KEY, EXPORTED_KEY = "resnet_jax", "resnet_jax_exported"

Interpolation = Literal["bilinear", "bicubic"]


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class View:
    """Resize, crop, ``(image / 255 - mean) / deviation``. Channels are RGB."""

    mean: Sequence[Any]
    """One number per channel, or an (h, w, c) image of them; scale 0 to 1."""
    deviation: Sequence[float]
    """One number per channel; scale 0 to 1."""
    resize: int = 0
    """Pixels of the shorter side before the crop. 0: no resize."""
    crop: int = 0
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
    """TFDS name of the training set, if known."""
    claimed_error: float | None = None
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

    def constants(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation, float32."""
        return np.asarray(self.view.mean, np.float32), np.asarray(self.view.deviation, np.float32)

    def check(self) -> None:
        """Raises UserError for invalid fields."""
        view, error, channels = self.view, self.claimed_error, self.architecture.input_shape[2]
        mean, deviation = self.constants()
        has_channels = mean.ndim in (1, 3) and mean.shape[-1] == channels
        sizes = view.resize, view.crop
        texts = self.source, self.convention, self.data, self.prefix, *self.dtypes.values()
        is_valid = {
            f"mean: {channels} numbers (--mean)": has_channels and np.isfinite(mean).all(),
            f"deviation: {channels} numbers above 0 (--deviation)": deviation.shape == (channels,)
            and all(0 < number < np.inf for number in deviation),
            "resize and crop: pixels": all(type(n) is int and 0 <= n < 2**16 for n in sizes),
            "interpolation": view.interpolation in typing.get_args(Interpolation),
            "claimed_error: 0 to 100 percent": error is None or 0 <= error <= 100,
            "texts": all(isinstance(text, str) for text in texts),
            "counters: numbers": all(0 <= count < 2**63 for count in self.counters.values()),
        }
        if invalid := [expected for expected, holds in is_valid.items() if not holds]:
            raise UserError(f"its card is invalid, expected {'; '.join(invalid)}")


def read(text: str, network: Architecture | None = None) -> Card:
    """Inverse of ``Card.text``. ``network`` replaces one with classes of the user's files."""
    try:
        fields = json.loads(text)
        description, view = fields.pop("architecture"), View(**fields.pop("view"))
        card = Card(architecture=network or catalog.read(description), view=view, **fields)
        card.check()
    except UserError:
        raise
    except Exception as error:  # a file may hold anything
        raise UserError(f"its card is corrupt or of another version ({error!r:.200})") from error
    return card
