"""A folder ``SPLIT/CLASS/IMAGE`` as a data set, read in place; ``CLASS/IMAGE`` is a training split."""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
# Folder names to the split names of TFDS.
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


class Files(Sequence[tuple[bytes, int]]):
    """Encoded images and labels of a split, in the order of class and file names."""

    def __init__(self, files: tuple[str, ...], labels: tuple[int, ...]):
        self._files, self._labels = files, labels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        return self.file(index).read_bytes(), self._labels[index]

    def file(self, index: int) -> Path:
        """Path of an example."""
        return Path(self._files[index])


class _Scan(NamedTuple):
    classes: list[str]
    splits: dict[str, Files]
    version: str


def describe(root: Path) -> DatasetInfo:
    """Scans a folder, once per process. Its version is a hash of all names and sizes."""
    scan = _scan(str(root))
    return DatasetInfo(
        name=str(root) if os.sep in str(root) else f".{os.sep}{root}",
        version=scan.version,
        directory=root,
        examples={split: len(files) for split, files in scan.splits.items()},
        image_shape=(None, None, 3),
        num_classes=len(scan.classes),
    )


def opened(info: DatasetInfo, split: str) -> Files:
    """Random access to a split."""
    return _scan(str(info.directory)).splits[split]


def names(root: Path) -> list[str]:
    """Class names by label."""
    return _scan(str(root)).classes


@functools.lru_cache(maxsize=8)
def _scan(root: str) -> _Scan:
    try:
        # {split: {class: [(path, size)]}}
        tree = [(split, {name: _images(path) for name, path in _folders(path)}) for split, path in _folders(root)]
        if not any(classes for _, classes in tree) and not any(split in _SPLITS for split, _ in tree):
            tree = [("train", {name: _images(path) for name, path in _folders(root)})]
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error}). Give the path of a folder SPLIT/CLASS/IMAGE.") from error
    tree = [(_SPLITS.get(split, split), classes) for split, classes in tree if classes]
    classes = sorted({name for _, split in tree for name in split})
    digest, splits = hashlib.sha256(), {}
    for split, by_class in sorted(tree, key=lambda item: item[0]):
        if split in splits:
            raise UserError(f"{root} has two folders for the split {split!r}. Rename one of them.")
        if missing := sorted(set(classes) - by_class.keys()):
            raise UserError(
                f"split {split!r} of {root} lacks the class {missing[0]!r}. All splits need the same class folders, even if empty."
            )
        files = [(label, *file) for label, name in enumerate(classes) for file in by_class[name]]
        if not files:
            raise UserError(f"split {split!r} of {root} has no image ({', '.join(SUFFIXES)}) in folders SPLIT/CLASS.")
        lines = (f"{split}/{classes[label]}/{os.path.basename(path)} {size}\n" for label, path, size in files)
        digest.update("".join(lines).encode(errors="surrogateescape"))
        splits[split] = Files(tuple(path for _, path, _ in files), tuple(label for label, _, _ in files))
    if not splits:
        raise UserError(f"{root} has no images in folders SPLIT/CLASS, for example train/dog/1.jpg.")
    return _Scan(classes, splits, digest.hexdigest()[:16])


def _images(folder: str) -> list[tuple[str, int]]:
    """Paths and sizes. Names with a leading dot belong to systems, such as ._1.jpg of macOS."""
    with os.scandir(folder) as entries:
        images = (entry for entry in entries if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."))
        return sorted((entry.path, entry.stat().st_size) for entry in images if entry.is_file())


def _folders(parent: str) -> list[tuple[str, str]]:
    with os.scandir(parent) as entries:
        return sorted((entry.name, entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
