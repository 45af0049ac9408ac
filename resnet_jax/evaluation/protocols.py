"""Evaluation protocols: one crop, ten crops, or whole images at several sizes."""

import re
from dataclasses import dataclass

from resnet_jax.errors import UserError
from resnet_jax.weights.card import Interpolation, View

# He et al. 2015, Section 3.4.
SCALES = (224, 256, 384, 480, 640)
_ABBREVIATIONS = {
    "ten-crop": "ten-crop-256/224",
    "multi-scale": f"multi-scale-{','.join(map(str, SCALES))}",
}
_EXAMPLES = "256/224, 236/224-bicubic, ten-crop-256/224 or multi-scale-224,256,384"
_MAX_PIXELS = 2**16


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """An evaluation protocol. Softmax scores are averaged over the views of an image."""

    resize: int | None = None
    """Length of the shorter side before the crop. None: no resizing."""
    crop: int | None = None
    """Side of the square. None: the whole image."""
    interpolation: Interpolation = "bilinear"
    crops: int = 1
    """1: the central crop. 10: the four corners, the center, and their mirror images."""
    scales: tuple[int, ...] = ()
    """Shorter sides of whole images and mirror images (``dense``), in place of the other fields."""

    def __str__(self) -> str:
        if self.scales:
            text = f"multi-scale-{','.join(map(str, self.scales))}"
        elif self.crop:
            text = "ten-crop-" * (self.crops > 1) + f"{self.resize}/{self.crop}"
        elif self.resize:
            text = f"whole images, shorter side {self.resize}"
        else:
            text = "images as they are"
        short = {long: name for name, long in _ABBREVIATIONS.items()}.get(text, text)
        return short + "-bicubic" * (self.interpolation == "bicubic")

    def view(self, height: int | None = None, width: int | None = None) -> str:
        """Text for result records, e.g. "single 224x224 of 256".

        Height and width are those of uncropped images.
        """
        if self.scales:
            scales = "" if self.scales == SCALES else " " + ", ".join(map(str, self.scales))
            text = "multi-scale" + scales
        else:
            number = f"{self.crops} crops" if self.crops > 1 else "single"
            text = f"{number} {self.crop or height}x{self.crop or width}"
            text += f" of {self.resize}" if self.resize else ""
        resized = bool(self.resize or self.scales)
        return text + ", bicubic" * (resized and self.interpolation == "bicubic")


def parse(text: str) -> Protocol:
    """Parses a protocol; raises UserError for an unknown one.

    - ``256/224``: shorter side resized to 256 pixels, then the central square of 224.
    - ``ten-crop`` or ``ten-crop-256/224``: ten squares (He et al. 2015, Section 3.4).
    - ``multi-scale`` or ``multi-scale-224,256,384``: whole images at several sizes (ibid.).

    Resizing is antialiased, bilinear or, with the suffix ``-bicubic``, bicubic.
    """
    name = text.removesuffix("-bicubic")
    interpolation = "bilinear" if name == text else "bicubic"
    name = _ABBREVIATIONS.get(name, name)
    if match := re.fullmatch(r"(ten-crop-)?([0-9]{1,6})/([0-9]{1,6})", name):
        resize, crop, crops = int(match[2]), int(match[3]), 10 if match[1] else 1
        if 0 < crop <= resize < _MAX_PIXELS:
            return Protocol(resize=resize, crop=crop, interpolation=interpolation, crops=crops)
    if match := re.fullmatch(r"multi-scale-([0-9]{1,6}(?:,[0-9]{1,6})*)", name):
        scales = tuple(map(int, match[1].split(",")))
        if all(0 < scale < _MAX_PIXELS for scale in scales) and len(set(scales)) == len(scales):
            return Protocol(scales=scales, interpolation=interpolation)
    raise UserError(f"{text!r} is no protocol. Give a shorter side and a crop, as {_EXAMPLES}.")


def of(view: View) -> Protocol:
    """The protocol of a weights card."""
    return Protocol(
        resize=view.resize or None, crop=view.crop or None, interpolation=view.interpolation
    )
