"""How published scores show images to a network: one crop, ten, or whole images at several sizes."""

import re
from dataclasses import dataclass

from resnet_jax.data.views import Squares
from resnet_jax.errors import UserError
from resnet_jax.models.pretrained.card import View

# He et al. 2015, Section 3.4.
SCALES = (224, 256, 384, 480, 640)
_NAMED = {"ten-crop": "ten-crop-256/224", "multi-scale": f"multi-scale-{','.join(map(str, SCALES))}"}
_EXAMPLES = "256/224 (shorter side / central square), 236/224-bicubic, ten-crop, ten-crop-256/224, multi-scale or multi-scale-224,256,384"
# More than any image has.
_PIXELS = 2**16


@dataclass(frozen=True, kw_only=True)
class Protocol(Squares):
    """A way of showing images. Softmax scores are averaged where one image is shown several times."""

    scales: tuple[int, ...] = ()
    """Shorter sides of whole images and their mirror images, over which the network runs fully convolutionally; ``resize`` and ``crop`` are
    None then."""

    def __str__(self) -> str:
        if self.scales:
            text = f"multi-scale-{','.join(map(str, self.scales))}"
        elif self.crop:
            text = "ten-crop-" * (self.crops > 1) + f"{self.resize}/{self.crop}"
        else:
            text = f"whole images, shorter side {self.resize}" if self.resize else "images as they are"
        short = next((name for name, long in _NAMED.items() if text == long), text)
        return short + "-bicubic" * (self.interpolation == "bicubic")

    def view(self, height: int | None = None, width: int | None = None) -> str:
        """What records of results say of it, as "single 224x224 of 256"; height and width are those of images that are not cropped."""
        if self.scales:
            text = "multi-scale" if self.scales == SCALES else f"multi-scale {', '.join(map(str, self.scales))}"
        else:
            text = f"{self.crops} crops" if self.crops > 1 else "single"
            text += f" {self.crop or height}x{self.crop or width}" + (f" of {self.resize}" if self.resize else "")
        return text + ", bicubic" * (self.interpolation == "bicubic" and bool(self.resize or self.scales))


def parse(text: str) -> Protocol:
    """Reads a protocol.

    - ``256/224``: the shorter side resized to 256 pixels, the central square of 224; ``320/320``, and any other sizes.
    - ``ten-crop``: four corners, centre and their mirror images, 224 of 256 (He et al. 2015, Section 3.4; that softmax scores are averaged
      is said of their released models). ``ten-crop-256/224``: with other sizes.
    - ``multi-scale``: whole images and their mirror images, the shorter side at 224, 256, 384, 480 and 640 (He et al. 2015, Section 3.4),
      see ``evaluation.dense``. ``multi-scale-224,256,384``: at others.

    Images are resized bilinearly and antialiased; ``-bicubic`` behind any of them: bicubically.

    Raises:
      UserError: for anything else.
    """
    name = text.removesuffix("-bicubic")
    interpolation = "bilinear" if name == text else "bicubic"
    name = _NAMED.get(name, name)
    if found := re.fullmatch(r"(ten-crop-)?([0-9]{1,6})/([0-9]{1,6})", name):
        resize, crop = int(found[2]), int(found[3])
        if not 0 < crop <= resize < _PIXELS:
            raise UserError(f"protocol {text!r}: a shorter side of {resize} pixels has no square of {crop}; give 256/224, say")
        return Protocol(resize=resize, crop=crop, interpolation=interpolation, crops=10 if found[1] else 1)
    if found := re.fullmatch(r"multi-scale-([0-9]{1,6}(?:,[0-9]{1,6})*)", name):
        scales = tuple(map(int, found[1].split(",")))
        if not all(0 < scale < _PIXELS for scale in scales) or len(set(scales)) < len(scales):
            raise UserError(f"protocol {text!r}: give sizes in pixels, each once, as multi-scale-224,256,384")
        return Protocol(scales=scales, interpolation=interpolation)
    raise UserError(f"there is no protocol {text!r}: give {_EXAMPLES}")


def of(view: View) -> Protocol:
    """What a card says of its weights."""
    return Protocol(resize=view.resize or None, crop=view.crop or None, interpolation=view.interpolation)
