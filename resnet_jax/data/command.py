"""``resnet-jax data``: a picture of augmented training images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from resnet_jax import options as options_lib
from resnet_jax.errors import UserError

if TYPE_CHECKING:
    from resnet_jax.training.preview import Shown


def preview(arguments: Sequence[str]) -> None:
    """A picture of the images of a training step after augmentation: resnet-jax data preview FILE.py:FUNCTION [--to FILE.png]"""
    from resnet_jax.training.experiment import Experiment

    reference, base, rest = options_lib.experiment_first("data preview", arguments)

    @dataclass(frozen=True, kw_only=True)
    class Preview:
        """A picture of the images of a training step, cropped, augmented and mixed, with their classes. Every field can be set."""

        to: Path = Path("preview.png")
        """File of the picture: .png, .pdf, .svg."""
        images: int = 32
        """Number of images, from the start of the batch."""
        seed: int = 0
        step: int = 0
        """Training step of the images, from 0."""
        data_dir: str | None = None
        """Folder of prepared data sets, searched before $TFDS_DATA_DIR and ~/tensorflow_datasets."""
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(default=base)

    options = options_lib.parse(f"data preview {reference}", Preview, rest)
    if options.images < 1 or options.step < 0:
        raise UserError(f"--images must be at least 1 and --step at least 0, got {options.images} and {options.step}.")
    if options.to.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--to must end in .png, .pdf or .svg, got {options.to}.")
    from resnet_jax.data import sources

    info = sources.describe(options.experiment.data.name, options.data_dir)
    options.experiment.check(info)
    from resnet_jax.training import preview as preview_lib

    shown = preview_lib.shown(options.experiment, info, seed=options.seed, step=options.step, count=options.images)
    _draw(shown, f"{options.experiment.name}, seed {options.seed}, step {options.step}", options.to)
    print(f"{len(shown.captions)} images of {info.name} are in {options.to}")


def _draw(shown: "Shown", title: str, to: Path) -> None:
    from matplotlib.figure import Figure

    columns = min(8, len(shown.captions))
    rows = -(-len(shown.captions) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.1 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, caption in zip(figure.axes, shown.images, shown.captions, strict=False):
        axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        axes.set_title(caption.replace(" + ", "\n"), fontsize=7)
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=100)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"preview": preview}


def run(arguments: Sequence[str]) -> None:
    """Dispatches to a command."""
    options_lib.dispatch("data", COMMANDS, arguments)
