"""A small synthetic data set in the format of TFDS's ``imagenet2012``: 440 training and 220 validation images of many sizes."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

EXAMPLES = {"train": 440, "validation": 220}


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A smooth color picture with fine texture, which JPEG compresses about as well as a photograph."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8))


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the set; one gray, one CMYK JPEG and one PNG are among the training images, as in ImageNet."""

    name = "imagenet2012"
    VERSION = tfds.core.Version("5.1.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=[f"n{number:08d}" for number in range(1000)]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label"))

    def _split_generators(self, _: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in EXAMPLES}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        rng = np.random.default_rng(len(split))
        for number in range(EXAMPLES[split]):
            width, height = (int(size) for size in rng.integers(60, 180, 2))
            image = picture(rng, width, height)
            mode = {3: "L", 4: "CMYK"}.get(number, "RGB") if split == "train" else "RGB"
            file = io.BytesIO()
            image.convert(mode).save(file, format="PNG" if (split, number) == ("train", 5) else "JPEG", quality=90)
            file.seek(0)
            name = f"{split}_{number:08d}.JPEG"
            yield name, {"image": file, "label": int(rng.integers(1000)), "file_name": name}


def write(directory: Path) -> None:
    """Prepares the set in a data directory."""
    config = tfds.download.DownloadConfig(num_shards=2)
    Imagenet2012(data_dir=directory, file_format="array_record").download_and_prepare(download_config=config)
