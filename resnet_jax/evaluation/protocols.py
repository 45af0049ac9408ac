"""Evaluation protocols: one crop, ten crops, or whole images at several sizes."""

import re
from dataclasses import dataclass

from resnet_jax.errors import UserError
from resnet_jax.evaluation.views import Squares
from resnet_jax.weights.card import View

# He et al. 2015, Section 3.4.
SCALES = (224, 256, 384, 480, 640)
_NAMED = {
    "ten-crop": "ten-crop-256/224",
    "multi-scale": f"multi-scale-{','.join(map(str, SCALES))}",
}
_EXAMPLES = "256/224 (shorter side / central square), 236/224-bicubic, ten-crop, ten-crop-256/224, multi-scale or multi-scale-224,256,384"
_PIXELS = 2**16


@dataclass(frozen=True, kw_only=True)
class Protocol(Squares):
    """An evaluation protocol. Softmax scores are averaged over the views of an image."""

    scales: tuple[int, ...] = ()
    """Shorter sides of whole images and their mirror images (``evaluation.dense``), instead of ``resize`` and ``crop``."""

    def __str__(self) -> str:
        if self.scales:
            text = f"multi-scale-{','.join(map(str, self.scales))}"
        elif self.crop:
            text = "ten-crop-" * (self.crops > 1) + f"{self.resize}/{self.crop}"
        else:
            text = (
                f"whole images, shorter side {self.resize}" if self.resize else "images as they are"
            )
        short = next((name for name, long in _NAMED.items() if text == long), text)
        return short + "-bicubic" * (self.interpolation == "bicubic")

    def view(self, height: int | None = None, width: int | None = None) -> str:
        """Text for result records, e.g. "single 224x224 of 256"; height and width are those of uncropped images."""
        if self.scales:
            text = (
                "multi-scale"
                if self.scales == SCALES
                else f"multi-scale {', '.join(map(str, self.scales))}"
            )
        else:
            text = f"{self.crops} crops" if self.crops > 1 else "single"
            text += f" {self.crop or height}x{self.crop or width}" + (
                f" of {self.resize}" if self.resize else ""
            )
        return text + ", bicubic" * (
            self.interpolation == "bicubic" and bool(self.resize or self.scales)
        )


def parse(text: str) -> Protocol:
    """Parses a protocol; raises UserError for an unknown one.

    - ``256/224``: the shorter side resized to 256 pixels, then the central square of 224.
    - ``ten-crop`` or ``ten-crop-256/224``: corners, center and mirror images (He et al. 2015, Section 3.4).
    - ``multi-scale`` or ``multi-scale-224,256,384``: whole images and mirror images at several shorter sides (ibid.).

    Resizing is antialiased, bilinear or, with the suffix ``-bicubic``, bicubic.
    """
    name = text.removesuffix("-bicubic")
    interpolation = "bilinear" if name == text else "bicubic"
    name = _NAMED.get(name, name)
    if match := re.fullmatch(r"(ten-crop-)?([0-9]{1,6})/([0-9]{1,6})", name):
        resize, crop = int(match[2]), int(match[3])
        if not 0 < crop <= resize < _PIXELS:
            raise UserError(
                f"protocol {text!r}: the crop must be in [1, shorter side], for example 256/224."
            )
        return Protocol(
            resize=resize, crop=crop, interpolation=interpolation, crops=10 if match[1] else 1
        )
    if match := re.fullmatch(r"multi-scale-([0-9]{1,6}(?:,[0-9]{1,6})*)", name):
        scales = tuple(map(int, match[1].split(",")))
        if not all(0 < scale < _PIXELS for scale in scales) or len(set(scales)) < len(scales):
            raise UserError(
                f"protocol {text!r}: give each size in pixels once, for example multi-scale-224,256,384."
            )
        return Protocol(scales=scales, interpolation=interpolation)
    raise UserError(f"there is no protocol {text!r}: give {_EXAMPLES}")


def of(view: View) -> Protocol:
    """The protocol of a weights card."""
    return Protocol(
        resize=view.resize or None, crop=view.crop or None, interpolation=view.interpolation
    )
