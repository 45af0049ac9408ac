"""The embedded set is scikit-learn's, image for image."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from resnet_jax.data import sources


@pytest.fixture(scope="module")
def splits(digits_dir: str) -> dict[str, sources.Examples]:
    info = sources.describe("digits", digits_dir)
    return {split: sources.read(info, split) for split in ("train", "test")}


@pytest.fixture(scope="module")
def original() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's images, 0 to 16, and their labels."""
    bunch = load_digits()
    return bunch.images, bunch.target


def labelled(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    """One value an example, image and label together, in order of value."""
    return sorted(image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True))


def test_splits_together_are_scikit_learns_images_and_labels(
    splits: dict[str, sources.Examples], original: tuple[np.ndarray, np.ndarray]
) -> None:
    """All 1,797, each once, each with its own label, 0 to 16 scaled to 0 to 255 and rounded."""
    images = np.concatenate([splits[split].images for split in ("train", "test")])
    labels = np.concatenate([splits[split].labels for split in ("train", "test")])
    scaled = np.floor(original[0] * 255 / 16 + 0.5).astype(np.uint8)
    assert len(images) == 1797
    assert labelled(images[..., 0], labels) == labelled(scaled, original[1])


def test_no_test_image_is_a_training_image(splits: dict[str, sources.Examples]) -> None:
    train, test = ({image.tobytes() for image in splits[split].images} for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360), "scikit-learn's images differ from each other"
    assert not train & test


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_class_has_its_share_of_each_split(splits: dict[str, sources.Examples], split: str) -> None:
    """A draw at random: within four standard deviations of a binomial; scikit-learn has 174 to 183 of each digit."""
    counts = np.bincount(splits[split].labels, minlength=10)
    share = len(splits[split]) / 1797
    assert np.abs(counts - 179.7 * share).max() < 4 * np.sqrt(179.7 * share * (1 - share)) + 4


def test_labels_together_have_scikit_learns_counts(splits: dict[str, sources.Examples]) -> None:
    """The set's own documentation (UCI): 178, 182, 177, 183, 181, 182, 181, 179, 174, 180."""
    counts = sum(np.bincount(splits[split].labels) for split in ("train", "test"))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_order_is_not_scikit_learns(splits: dict[str, sources.Examples], original: tuple[np.ndarray, np.ndarray]) -> None:
    """There, labels run 0 1 2 ... 9 0 1 2 and the images of one writer stand together: the last of them would be no fair test."""
    assert splits["train"].labels[:30].tolist() != original[1][:30].tolist()
    place = {image.tobytes(): index for index, image in enumerate(np.floor(original[0] * 255 / 16 + 0.5).astype(np.uint8))}
    tested = [place[image[..., 0].tobytes()] for image in splits["test"].images]
    assert min(tested) < 100
    assert max(tested) > 1697
