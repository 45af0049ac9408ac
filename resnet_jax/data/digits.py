"""The embedded data set, as a TFDS builder that needs neither network nor TensorFlow."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

TEST_IMAGES = 360
# scikit-learn's copy of the set; licenses are stated in digits.LICENSE.txt.
_FILE = Path(__file__).with_name("digits.npz")


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 gray images of the digits 0-9 (UCI "Optical Recognition of Handwritten Digits", the part that scikit-learn ships).

    1,437 for training and 360 for testing, those of scikit-learn's ``train_test_split(test_size=0.2, random_state=0)``. Values 0-16 are
    stored as 0-255.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012  (TFDS reads it from the class)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"), "label": tfds.features.ClassLabel(num_classes=10)}
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        )

    def _split_generators(self, _: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        # train_test_split permutes with RandomState, whose stream NumPy keeps.
        shuffled = np.random.RandomState(0).permutation(1797)
        return {"train": self._generate_examples(shuffled[TEST_IMAGES:]), "test": self._generate_examples(shuffled[:TEST_IMAGES])}

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[str, dict[str, Any]]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with np.load(_FILE) as arrays:
            images, labels = np.rint(arrays["images"] * (255 / 16)).astype(np.uint8), arrays["labels"]
        for index in indices:
            # TFDS imports TensorFlow to encode arrays, but takes encoded files as they are.
            png = io.BytesIO()
            Image.fromarray(images[index]).save(png, format="PNG")
            png.seek(0)
            yield f"{index:04d}", {"image": png, "label": int(labels[index])}
