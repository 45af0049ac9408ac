"""The card of a file of weights: which network they are of, how it was shown images, where they come from. It travels inside the file."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from resnet_jax.errors import UserError, nearest
from resnet_jax.models import names
from resnet_jax.models.architecture import Architecture

# Keys in the metadata of a safetensors file: of the card, and, under names of others, of what they have no place for.
KEY = "resnet_jax"
SEEN_KEY = "resnet_jax_view"

Interpolation = Literal["bilinear", "bicubic"]
Numbers = tuple[Any, ...]

# More than any image has.
_PIXELS = 2**16


@dataclass(frozen=True, kw_only=True)
class View:
    """How an image becomes the network's input: resized, cropped, ``(image / 255 - mean) / deviation``; channels are red, green, blue."""

    mean: Numbers
    """One number a channel, or (h, w, c) of them; scale 0 to 1."""
    deviation: Numbers
    """One number a channel; scale 0 to 1."""
    resize: int = 0
    """Pixels of the shorter side, before the crop; 0: images are taken as they are."""
    crop: int = 0
    """Side of the central square; 0: the whole image."""
    interpolation: Interpolation = "bilinear"


IMAGENET_VIEW = View(mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225), resize=256, crop=224)


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything about weights but the numbers."""

    architecture: Architecture
    view: View
    source: str
    """File that they were read from, or run that trained them."""
    sha256: str = ""
    """Of that file."""
    convention: str = ""
    """Names of its tensors, one of ``conventions.CONVENTIONS``; empty: this project's."""
    data: str = ""
    """TFDS name of the set that they were trained on, where known."""
    claimed_error: float | None = None
    """Top-1 error on that set's test images that its authors state, percent."""
    prefix: str = ""
    """What the file had before every name, as ``module.``."""
    dtypes: dict[str, str] = field(default_factory=dict)
    """Of those tensors in the file that were not float32, by their names there."""
    counters: dict[str, float] = field(default_factory=dict)
    """torch's ``num_batches_tracked``, or Caffe's divisors, by their names in torchvision's convention; "": of all others."""

    def text(self) -> str:
        """As JSON, one line."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.dumps(plain | {"view": dataclasses.asdict(self.view), "architecture": names.write(self.architecture)})

    def constants(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of the images, float32, scale 0 to 1."""
        return np.asarray(self.view.mean, np.float32), np.asarray(self.view.deviation, np.float32)

    def seen(self) -> str:
        """As JSON, what a file under the names of others would lose: how images are shown, and what is claimed of it."""
        return json.dumps({"view": dataclasses.asdict(self.view), "data": self.data, "claimed_error": self.claimed_error})

    def as_seen(self, text: str) -> "Card":
        """Undoes ``seen``. Raises UserError for what is no such text."""
        try:
            given = json.loads(text)
            found = dataclasses.replace(self, view=_view(given["view"]), data=given["data"], claimed_error=given["claimed_error"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
            raise UserError(f"what the file says of its images is damaged ({error!r:.200})") from error
        found.check()
        return found

    def viewed(self, fields: Mapping[str, Any]) -> "Card":
        """With some fields of ``view`` changed. Raises UserError for an unknown one."""
        known = [field.name for field in dataclasses.fields(View)]
        for name in fields:
            if name not in known:
                raise UserError(f"view has no field {name!r}{nearest(name, known)}")
        return dataclasses.replace(self, view=_view(dataclasses.asdict(self.view) | dict(fields)))

    def check(self) -> None:
        """Raises UserError, naming it, for a field that is not of its kind: what a file says is anybody's."""
        view, numbers = self.view, [number for number in (self.claimed_error,) if number is not None]
        texts = (self.source, self.sha256, self.convention, self.data, self.prefix)
        channels = self.architecture.input_shape[2]
        sane = {
            f"mean: {channels} numbers, or as many for every pixel": _has_channels(view.mean, channels, (1, 3)),
            f"deviation: {channels} numbers above 0": _has_channels(view.deviation, channels, (1,)) and min(view.deviation) > 0,
            "resize and crop: pixels": all(type(size) is int and 0 <= size < _PIXELS for size in (view.resize, view.crop)),
            "interpolation: bilinear or bicubic": view.interpolation in ("bilinear", "bicubic"),
            "claimed_error: 0 to 100 percent": all(type(number) in (int, float) and 0 <= number <= 100 for number in numbers),
            "texts": all(isinstance(text, str) for text in texts),
            "dtypes: of tensors": isinstance(self.dtypes, dict) and all(isinstance(name, str) for name in self.dtypes.values()),
            "counters: numbers": isinstance(self.counters, dict) and all(map(_is_finite, self.counters.values())),
        }
        wrong = [field for field, is_sane in sane.items() if not is_sane]
        if wrong:
            raise UserError(f"what is said of these weights makes no sense; expected are {'; '.join(wrong)}")


def read(text: str, architecture: Architecture | None = None) -> Card:
    """Undoes ``Card.text``. Parts of the network that are not this package's are never imported for a file of weights.

    Args:
      text: JSON.
      architecture: taken in place of that of the card.

    Raises:
      UserError: for text that is no card, or one with parts of somebody's own where ``architecture`` is not given.
    """
    try:
        given = json.loads(text)
        described, view = given.pop("architecture"), _view(given.pop("view"))
        card = Card(architecture=architecture or names.read(described), view=view, **given)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the card of these weights is damaged or of another version ({error!r:.200}): convert them again") from error
    card.check()
    return card


def _view(fields: Mapping[str, Any]) -> View:
    return View(**{name: _frozen(value) for name, value in fields.items()})


def _has_channels(value: Any, channels: int, axes: tuple[int, ...]) -> bool:
    """Whether a tuple, or tuples of tuples, holds finite numbers, the last axis being channels."""
    try:
        array = np.asarray(value)
    except ValueError:
        return False
    return (
        array.ndim in axes
        and array.dtype.kind in "if"
        and array.shape[-1] == channels
        and array.size > 0
        and bool(np.isfinite(array).all())
    )


def _is_finite(number: Any) -> bool:
    return type(number) in (int, float) and abs(number) < 2.0**63


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
