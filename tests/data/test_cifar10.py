"""The CIFAR-10 builder reads the binary files as their documentation describes them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.cifar10 import Cifar10


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Cifar10:
    return Cifar10(data_dir=tmp_path_factory.mktemp("cifar10"), file_format="array_record")


def test_it_is_tfds_cifar10_by_name_and_version(builder: Cifar10) -> None:
    """What it writes is found and read as TFDS's own."""
    assert builder.name == "cifar10"
    assert str(builder.version).startswith("3.")
    assert sorted(builder.info.features) == ["id", "image", "label"]
    assert builder.info.features["label"].num_classes == 10
    assert builder.info.features["image"].shape == (32, 32, 3)


def test_records_are_a_label_and_three_planes(builder: Cifar10, tmp_path: Path) -> None:
    """cs.toronto.edu/~kriz/cifar.html: byte 0 the label; then 1024 red, 1024 green, 1024 blue values, each plane row by row."""
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (5, 3073), dtype=np.uint8)
    records[:, 0] = [3, 0, 9, 1, 7]
    records[:3].tofile(tmp_path / "one.bin")
    records[3:].tofile(tmp_path / "two.bin")
    found = list(builder._generate_examples("train_", [str(tmp_path / "one.bin"), str(tmp_path / "two.bin")]))
    assert [key for key, _ in found] == [0, 1, 2, 3, 4], "keys go on from file to file"
    for record, (key, example) in zip(records, found, strict=True):
        image = np.asarray(Image.open(io.BytesIO(example["image"].read())))
        assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
        assert example["label"] == record[0]
        assert example["id"] == f"train_{key:05d}"
        for y, x, channel in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (31, 31, 2), (5, 17, 1), (17, 5, 1)]:
            assert image[y, x, channel] == record[1 + 1024 * channel + 32 * y + x]
        expected = [[[record[1 + 1024 * c + 32 * y + x] for c in range(3)] for x in range(32)] for y in range(32)]
        assert image.tolist() == np.array(expected).tolist()


def test_a_cut_off_file_is_an_error(builder: Cifar10, tmp_path: Path) -> None:
    """Not fewer images."""
    np.zeros(3073 + 100, np.uint8).tofile(tmp_path / "cut.bin")
    with pytest.raises(ValueError, match="reshape"):
        list(builder._generate_examples("train_", [str(tmp_path / "cut.bin")]))
