"""The embedded data set is scikit-learn's, image for image."""

import hashlib
from importlib import resources

import numpy as np
from resnet_jax.data import datasets

# SHA-256 of images and int32 labels, computed with scikit-learn 1.9.1 alone: train_test_split(np.arange(1797), test_size=0.2,
# random_state=0) on load_digits(), values 0-16 scaled to 0-255, examples sorted by md5(f"{split}{index:04d}") as TFDS does.
SHA256 = {
    "train": (1437, "cca1b68852d5eb6d798eb4517c889b77521745004913b91d67ed847c598e7991"),
    "test": (360, "4510f1127715102683822f067d43c95ecfd3bfb1d9d9a850d4e5855c5e23ae77"),
}


def test_digits_equal_scikit_learns(digits_dir: str) -> None:
    info = datasets.describe("digits", digits_dir)
    counts = np.zeros(10, int)
    for split, (count, digest) in SHA256.items():
        examples = datasets.read(info, split)
        assert len(examples) == info.examples[split] == count
        assert hashlib.sha256(examples.images.tobytes() + examples.labels.tobytes()).hexdigest() == digest
        counts += np.bincount(examples.labels)
    # UCI's own documentation of the set.
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_file_is_small_and_licensed() -> None:
    folder = resources.files("resnet_jax") / "data"
    assert len((folder / "digits.npz").read_bytes()) < 100_000
    text = (folder / "digits.LICENSE.txt").read_text()
    assert "Optical Recognition of Handwritten Digits" in text
    assert "Creative Commons Attribution 4.0" in text
    assert "BSD 3-Clause License" in text
