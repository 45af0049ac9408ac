"""Preparation of TFDS sets; ``digits`` and ``cifar10`` without TensorFlow."""

import contextlib
import importlib.util
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from resnet_jax.data import datasets, local
from resnet_jax.errors import UserError, nearest, require

# scikit-learn's copy of the set; see digits.LICENSE.txt.
_FILE = Path(__file__).with_name("digits.npz")
_TEST_IMAGES = 360
Records = Iterator[tuple[str | int, dict[str, object]]]


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """8x8 gray images of UCI "Optical Recognition of Handwritten Digits", as in scikit-learn.

    Divided by its ``train_test_split(test_size=0.2, random_state=0)``; values 0-16 become 0-255.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(8, 8, 1), encoding_format="png")
        label = tfds.features.ClassLabel(num_classes=10)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return self.dataset_info_from_configs(description=self.__doc__, features=features)

    def _split_generators(self, _: object) -> dict[str, Records]:
        shuffled = np.random.RandomState(0).permutation(1797)
        return {
            "train": self._generate_examples(shuffled[_TEST_IMAGES:]),
            "test": self._generate_examples(shuffled[:_TEST_IMAGES]),
        }

    def _generate_examples(self, indices: np.ndarray) -> Records:  # pyright: ignore
        with np.load(_FILE) as arrays:
            images = np.rint(arrays["images"] * (255 / 16)).astype(np.uint8)
            labels = arrays["labels"]
        for index in indices:
            yield f"{index:04d}", {"image": _png(images[index]), "label": int(labels[index])}


class Cifar10(tfds.image_classification.Cifar10, skip_registration=True):
    """TFDS's ``cifar10``: same name, version, keys and examples."""

    def _generate_examples(  # pyright: ignore
        self, split_prefix: str, filepaths: Iterable[str]
    ) -> Records:
        # Records: label, then the red, green and blue planes.
        files = [np.fromfile(path, np.uint8).reshape(-1, 1 + 3 * 32 * 32) for path in filepaths]
        for index, record in enumerate(np.concatenate(files)):
            image = _png(record[1:].reshape(3, 32, 32).transpose(1, 2, 0))
            label = int(record[0])
            yield index, {"id": f"{split_prefix}{index:05d}", "image": image, "label": label}


def _png(pixels: np.ndarray) -> io.BytesIO:
    # TFDS imports TensorFlow to encode arrays, but takes encoded files as they are.
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    file.seek(0)
    return file


_OURS = {"digits": Digits, "cifar10": Cifar10}


def prepare(
    name: str, data_dir: str | None = None, *, archives: Path | None = None
) -> datasets.DatasetInfo:
    """Prepares a set in the first of ``datasets.data_dirs(data_dir)``, unless it is there.

    Sets other than ``digits`` and ``cifar10`` need TensorFlow. ``archives``: TFDS's ``manual_dir``.
    """
    directory = datasets.data_dirs(data_dir)[0]
    in_place = f"{name} is read in place and needs no preparation."
    require(not local.is_local(name), in_place)
    with contextlib.suppress(UserError):
        info = datasets.describe(name, str(directory))
        if info.directory.is_relative_to(directory):
            return info
    builder = _builder(name, data_dir=directory, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=archives)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # of the HTTP client, the disk or TensorFlow
        problem = f"{name} could not be prepared in {directory}: {type(error).__name__}: {error}"
        raise UserError(problem) from error
    # Without a configuration, TFDS takes the first one.
    base = str(Path(builder.data_dir).relative_to(directory).parent)
    return datasets.describe(name if name.startswith(base) else base, str(directory))


def _builder(name: str, **options: Any) -> tfds.core.DatasetBuilder:
    base, _, version = name.partition(":")
    base, _, config = base.partition("/")
    builders = {*_OURS, *tfds.list_builders(with_community_datasets=False)}
    require(base in builders, f"TFDS has no data set {base!r}{nearest(base, builders)}")
    cls = _OURS.get(base) or tfds.builder_cls(base)
    configs = [one.name for one in cls.BUILDER_CONFIGS]
    is_known = not config or config in configs
    require(is_known, f"{base} has no configuration {config!r}{nearest(config, configs)}")
    needs_tensorflow = cls.__module__.startswith("tensorflow_datasets.")
    if needs_tensorflow and importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"TFDS needs TensorFlow to prepare {name}. Run: pip install tensorflow")
    try:
        return cls(config=config or None, version=version or None, **options)
    except AssertionError as error:  # an unsupported version
        raise UserError(f"{name} cannot be prepared: {error}") from error
