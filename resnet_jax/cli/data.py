"""``resnet-jax data``: a picture of augmented training images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float

from resnet_jax.cli import options as options_lib
from resnet_jax.data import datasets
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.data.stream import Rows
from resnet_jax.errors import UserError
from resnet_jax.training import feed, program
from resnet_jax.training.config import Experiment
from resnet_jax.training.step import augmentation_key, batch_indices

if TYPE_CHECKING:
    pass


def preview(arguments: Sequence[str]) -> None:
    """A picture of the images of a training step after augmentation: resnet-jax data preview FILE.py:FUNCTION [--to FILE.png]"""
    from resnet_jax.training.config import Experiment

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
        raise UserError(
            f"--images must be at least 1 and --step at least 0, got {options.images} and {options.step}."
        )
    if options.to.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--to must end in .png, .pdf or .svg, got {options.to}.")
    from resnet_jax.data import datasets

    info = datasets.describe(options.experiment.data.name, options.data_dir)
    options.experiment.check(info)

    preview_images = shown(
        options.experiment, info, seed=options.seed, step=options.step, count=options.images
    )
    _draw(
        preview_images,
        f"{options.experiment.name}, seed {options.seed}, step {options.step}",
        options.to,
    )
    print(f"{len(preview_images.captions)} images of {info.name} are in {options.to}")


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


@dataclass(frozen=True)
class Shown:
    """Images of a training step."""

    images: Float[np.ndarray, "n h w c"]
    """Values 0 to 1."""
    captions: list[str]
    """Class names; of mixed images with their shares."""


def shown(
    experiment: Experiment, info: DatasetInfo, *, seed: int = 0, step: int = 0, count: int = 32
) -> Shown:
    """Returns the first ``count`` images of the batch after ``step`` steps, augmented as in training."""
    preprocessing, key = feed.constants(experiment, info), jax.random.key(seed)
    if experiment.data.crop is None:
        examples: Any = feed.training_set(experiment, info)
        (chosen,) = batch_indices(
            jax.random.fold_in(key, 1),
            jnp.int32(step),
            steps=1,
            batch_size=experiment.batch_size,
            examples=len(examples),
        )
        images, labels = examples.images[chosen], examples.labels[chosen]
    else:
        # The randomness of an image depends on the whole batch.
        stream = Rows(feed.stream(experiment, info, seed), first_step=step, last_step=step + 1)
        images, labels, _ = (
            np.stack(values)
            for values in zip(*(stream[i] for i in range(len(stream))), strict=True)
        )
    augment = jax.jit(program.augmentation(experiment), static_argnums=4)
    augmented, mixed = augment(
        augmentation_key(key, step), preprocessing, images, labels, info.num_classes
    )
    pixels = np.clip(
        np.asarray(augmented[:count]) * preprocessing.deviation + preprocessing.mean, 0, 1
    )
    names = datasets.class_names(info)
    if mixed is None:
        return Shown(pixels, [names[label] for label in labels[:count]])
    targets = np.asarray(mixed[:count])
    largest = np.argsort(-targets)[:, :2]
    shares = [
        [f"{row[label]:.2f} {names[label]}" for label in two if row[label] > 0]
        for row, two in zip(targets, largest, strict=True)
    ]
    return Shown(pixels, [" + ".join(parts) for parts in shares])
