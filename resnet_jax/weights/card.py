"""The card of a weight file: network, preprocessing and provenance. It is stored in the file's metadata."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.models import catalog
from resnet_jax.models.resnet import Architecture

# Metadata keys of the card, in this project's files and in exported ones.
KEY, EXPORTED_KEY = "resnet_jax", "resnet_jax_exported"

Interpolation = Literal["bilinear", "bicubic"]
Numbers = tuple[Any, ...]

_MAX_PIXELS = 2**16


@dataclass(frozen=True, kw_only=True)
class View:
    """Preprocessing: resize, crop, ``(image / 255 - mean) / deviation``. Channels are RGB."""

    mean: Numbers
    """One number per channel, or an (h, w, c) image of them; scale 0 to 1."""
    deviation: Numbers
    """One number per channel; scale 0 to 1."""
    resize: int = 0
    """Pixels of the shorter side before the crop. 0: no resize."""
    crop: int = 0
    """Side of the central square. 0: the whole image."""
    interpolation: Interpolation = "bilinear"


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
    """Names of its tensors, one of ``conventions.CONVENTIONS``; empty: this project's."""
    data: str = ""
    """TFDS name of the training set, if known."""
    claimed_error: float | None = None
    """Published top-1 error on its test images, percent."""
    prefix: str = ""
    """Prefix of every name in the file, such as ``module.``."""
    dtypes: dict[str, str] = field(default_factory=dict)
    """Tensors of the file that are not float32, by their names there."""
    counters: dict[str, float] = field(default_factory=dict)
    """torch's ``num_batches_tracked`` by torchvision's names; "": of all others."""

    def text(self) -> str:
        """Returns the card as one line of JSON; ``read`` undoes it."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.dumps(
            fields
            | {
                "view": dataclasses.asdict(self.view),
                "architecture": catalog.write(self.architecture),
            }
        )

    def constants(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and deviation, float32."""
        return np.asarray(self.view.mean, np.float32), np.asarray(self.view.deviation, np.float32)

    def with_view(self, fields: Mapping[str, Any]) -> "Card":
        """Returns the card with some fields of its view changed."""
        return dataclasses.replace(self, view=_view(dataclasses.asdict(self.view) | dict(fields)))

    def check(self) -> None:
        """Raises UserError for invalid fields: a file may hold anything."""
        view, channels, error = self.view, self.architecture.input_shape[2], self.claimed_error
        sane = {
            f"mean: {channels} numbers, or as many for every pixel": _has_channels(
                view.mean, channels, (1, 3)
            ),
            f"deviation: {channels} numbers above 0": _has_channels(view.deviation, channels, (1,))
            and min(view.deviation) > 0,
            "resize and crop: pixels": all(
                type(size) is int and 0 <= size < _MAX_PIXELS for size in (view.resize, view.crop)
            ),
            "interpolation: bilinear or bicubic": view.interpolation
            in typing.get_args(Interpolation),
            "claimed_error: 0 to 100 percent": error is None
            or (_is_finite(error) and 0 <= error <= 100),
            "texts": all(
                isinstance(text, str)
                for text in (self.source, self.sha256, self.convention, self.data, self.prefix)
            ),
            "dtypes: of tensors": isinstance(self.dtypes, dict)
            and all(isinstance(name, str) for name in self.dtypes.values()),
            "counters: numbers": isinstance(self.counters, dict)
            and all(map(_is_finite, self.counters.values())),
        }
        if wrong := [field for field, is_sane in sane.items() if not is_sane]:
            raise UserError(f"its card is invalid; expected {'; '.join(wrong)}")


def read(text: str, architecture: Architecture | None = None) -> Card:
    """Returns the card that ``Card.text`` wrote, or with ``architecture`` in place of its own. Code named in a card is never imported."""
    try:
        fields = json.loads(text)
        description, view = fields.pop("architecture"), _view(fields.pop("view"))
        card = Card(architecture=architecture or catalog.read(description), view=view, **fields)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
        raise UserError(
            f"its card is corrupt or of another version ({error!r:.200}); convert the weights again"
        ) from error
    card.check()
    return card


def _view(fields: Mapping[str, Any]) -> View:
    return View(**{name: _frozen(value) for name, value in fields.items()})


def _has_channels(value: Any, channels: int, axes: tuple[int, ...]) -> bool:
    try:
        array = np.asarray(value)
        return (
            array.ndim in axes
            and array.shape[-1] == channels
            and array.size > 0
            and bool(np.isfinite(array).all())
        )
    except (ValueError, TypeError):  # ragged, or not numbers
        return False


def _is_finite(number: Any) -> bool:
    return type(number) in (int, float) and abs(number) < 2.0**63


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
