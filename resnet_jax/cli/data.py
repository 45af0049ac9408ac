"""``resnet-jax prepare``, ``resnet-jax data check`` and ``resnet-jax data preview``."""

import functools
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from resnet_jax.cli.options import AsJson, DataDir, Fields, Reference, check_suffix
from resnet_jax.data import datasets, local
from resnet_jax.data import images as images_lib
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.data.local import Items
from resnet_jax.errors import Positive, Seed, UserError, require
from resnet_jax.terminal import Table, show
from resnet_jax.training.loggers import draw_images
from resnet_jax.training.train import images_of_step


def prepare(
    name: Positional[str],
    *,
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    data_dir: str | None = None,
) -> None:
    """Write a TFDS data set into the data directory. Training never downloads.

    Args:
      name: digits (embedded, no network), cifar10, imagenet2012, or another TFDS set of classes.
      from_: Folder of files that TFDS cannot download, such as ILSVRC2012_img_train.tar.
      data_dir: Folder to write to; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    """
    from resnet_jax.data.prepare import prepare as prepare_set

    info = prepare_set(name, data_dir, archives=from_)
    examples = ", ".join(f"{count} {split}" for split, count in info.examples.items())
    print(f"{info.name} {info.version} is in {info.directory}: {examples}")


def check(name: Positional[str], *, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Decode every image of a data set and print its classes, sizes, formats and problems.

    Args:
      name: A prepared set, the path of a folder SPLIT/CLASS/IMAGE, or FILE.py:SOURCE.
    """
    info = datasets.describe(name, data_dir)
    if info.files is not None:
        info = local.describe_folder(info.name, thorough=True)
    splits, problems = [], [*filter(None, (info.notes, info.problems))]
    classes: list[dict[str, Any]] = [{"class": one} for one in info.classes]
    for split, count in info.examples.items():
        decode = functools.partial(_decoded, info, split, datasets.encoded(info, split))
        with ThreadPoolExecutor() as pool:
            decoded = list(pool.map(decode, range(count)))
        good = [one for one in decoded if not isinstance(one, str)]
        problems += [one for one in decoded if isinstance(one, str) and not info.problems]
        labels, sizes, kinds = map(Counter, zip(*good, strict=True) if good else ([], [], []))
        for label, row in enumerate(classes):
            row[split] = labels[label]
        shapes = sorted(sizes, key=math.prod)[:: len(sizes) - 1 or 1]
        row = {"split": split, "images": count, "damaged": count - len(good)}
        row["height x width"] = " to ".join("{}x{}".format(*shape) for shape in shapes)
        row["formats"] = ", ".join(f"{kind} {kinds[kind]}" for kind in sorted(kinds))
        splits.append(row)
    report = {"name": info.name, "splits": splits, "classes": classes, "problems": problems}
    tables = Table.from_rows(info.name, splits), Table.from_rows("", classes)
    show(as_json, report, *tables, *problems[:10])
    is_good = not info.problems and not any(row["damaged"] for row in splits)
    require(is_good, f"{info.name} has problems, see above.")


def _decoded(info: DatasetInfo, split: str, source: Items, index: int) -> tuple[Any, ...] | str:
    """Returns label, size and format of an image, or the problem."""
    try:
        record = datasets.example(source, info, split, index)
        kind = images_lib.header(source[index][0]).format
        return record["label"], record["image"].shape[:2], kind
    except UserError as error:
        return str(error)


def preview(
    reference: Reference,  # noqa: ARG001
    *,
    experiment: Fields,
    to: Path = Path("preview.png"),
    images: Positive = 32,
    seed: Seed = 0,
    step: int = 0,
    data_dir: DataDir = None,
) -> None:
    """Draw the images of a training step, cropped, augmented and mixed, with their classes.

    Every field of the experiment is an option; --help-all lists all of them.

    Args:
      to: File of the picture: .png, .pdf, .svg.
      images: Number of images, from the start of the batch.
      step: Training step, from 0.
    """
    check_suffix("--to", to, ".png", ".pdf", ".svg")
    info = datasets.describe(experiment.data.name, data_dir)
    experiment.check(info)
    experiment, info = experiment.with_data(info)
    to.parent.mkdir(parents=True, exist_ok=True)
    pixels, captions = images_of_step(experiment, info, seed=seed, step=step, count=images)
    figure = draw_images(pixels, captions)
    figure.suptitle(f"{experiment.name}, seed {seed}, step {step}")
    figure.savefig(to, dpi=100)
    print(f"{len(captions)} images of {info.name} are in {to}")
