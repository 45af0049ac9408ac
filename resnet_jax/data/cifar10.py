"""CIFAR-10 prepared without TensorFlow: TFDS's own builder, its two uses of TensorFlow (reading files, encoding PNG) replaced."""

import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_RECORD = 1 + 32 * 32 * 3  # label, then the red, green and blue planes


class Cifar10(tfds.image_classification.Cifar10, skip_registration=True):
    """The same name, version, keys and examples as TFDS's ``cifar10``, so that what it writes is read as such."""

    def _generate_examples(self, split_prefix: str, filepaths: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        index = 0
        for path in filepaths:
            for record in np.fromfile(path, np.uint8).reshape(-1, _RECORD):
                png = io.BytesIO()
                Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0)).save(png, format="PNG")
                png.seek(0)
                yield index, {"id": f"{split_prefix}{index:05d}", "image": png, "label": int(record[0])}
                index += 1
