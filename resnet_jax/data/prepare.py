"""The embedded data set, as a TFDS builder that needs neither network nor TensorFlow."""

import importlib.util
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from resnet_jax.data import datasets
from resnet_jax.errors import UserError, nearest

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
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        )

    def _split_generators(self, _: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        # train_test_split permutes with RandomState, whose stream NumPy keeps.
        shuffled = np.random.RandomState(0).permutation(1797)
        return {
            "train": self._generate_examples(shuffled[TEST_IMAGES:]),
            "test": self._generate_examples(shuffled[:TEST_IMAGES]),
        }

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[str, dict[str, Any]]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with np.load(_FILE) as arrays:
            images, labels = (
                np.rint(arrays["images"] * (255 / 16)).astype(np.uint8),
                arrays["labels"],
            )
        for index in indices:
            # TFDS imports TensorFlow to encode arrays, but takes encoded files as they are.
            png = io.BytesIO()
            Image.fromarray(images[index]).save(png, format="PNG")
            png.seek(0)
            yield f"{index:04d}", {"image": png, "label": int(labels[index])}


_SUGGESTED = (
    "cifar100",
    "svhn_cropped",
    "imagenet2012",
    "oxford_flowers102",
    "oxford_iiit_pet",
    "mnist",
    "fashion_mnist",
    "imagenette",
)
_RECORD = 1 + 32 * 32 * 3  # label, then the red, green and blue planes


class Cifar10(tfds.image_classification.Cifar10, skip_registration=True):
    """TFDS's ``cifar10`` (same name, version, keys and examples), written without TensorFlow."""

    def _generate_examples(self, split_prefix: str, filepaths: Iterable[str]) -> Any:
        index = 0
        for path in filepaths:
            for record in np.fromfile(path, np.uint8).reshape(-1, _RECORD):
                png = io.BytesIO()
                Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0)).save(
                    png, format="PNG"
                )
                png.seek(0)
                yield (
                    index,
                    {"id": f"{split_prefix}{index:05d}", "image": png, "label": int(record[0])},
                )
                index += 1


def prepare(
    name: str, data_dir: str | None = None, *, archives: Path | None = None
) -> datasets.DatasetInfo:
    """Prepares a TFDS set in the first of ``sources.data_dirs(data_dir)``, unless it is there already.

    ``digits`` needs neither network nor TensorFlow, and ``cifar10`` no TensorFlow. TFDS prepares all others, with TensorFlow.

    ``archives`` is the folder of files that TFDS cannot download (its ``manual_dir``), such as those of ``imagenet2012``.
    """
    directory = datasets.data_dirs(data_dir)[0]
    if datasets.is_folder(name):
        raise UserError(f"{name} is a folder, which is read in place and needs no preparation.")
    if name in datasets.prepared_in(directory):
        return datasets.describe(name, str(directory))
    existing = next(
        parent for parent in [directory, *directory.absolute().parents] if parent.exists()
    )
    if not os.access(existing, os.W_OK) or not existing.stat().st_mode & 0o222:
        raise UserError(
            f"{directory} cannot be written. Name another directory with --data-dir, or set TFDS_DATA_DIR."
        )
    builder = _builder(name, directory)
    config = tfds.download.DownloadConfig(manual_dir=archives) if archives is not None else None
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:
        # TFDS raises whatever its HTTP client, the disk or TensorFlow does.
        raise UserError(
            f"{name} could not be prepared in {directory}: {type(error).__name__}: {error}"
        ) from error
    return datasets.describe(name, str(directory))


def _builder(name: str, directory: Path) -> Any:
    ours = {"digits": Digits, "cifar10": Cifar10}
    if name in ours:
        return ours[name](data_dir=directory, file_format="array_record")
    if name not in tfds.list_builders(with_community_datasets=False):
        raise UserError(f"TFDS has no data set {name!r}{nearest(name, [*ours, *_SUGGESTED])}")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"TFDS needs TensorFlow to prepare {name}. Run pip install tensorflow, then this command again."
        )
    return tfds.builder(name, data_dir=directory, file_format="array_record")
