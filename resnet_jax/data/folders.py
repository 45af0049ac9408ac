"""A folder ``SPLIT/CLASS/IMAGE`` as a data set, read where it lies; of ``CLASS/IMAGE`` alone it is the training split."""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
# Names that TFDS has for the splits of others.
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


class Files(Sequence[tuple[bytes, int]]):
    """Encoded images of a split with their labels, classes and files in the order of their names."""

    def __init__(self, files: tuple[str, ...], labels: tuple[int, ...]):
        self._files, self._labels = files, labels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        return self.file(index).read_bytes(), self._labels[index]

    def file(self, index: int) -> Path:
        """Where an example lies."""
        return Path(self._files[index])


def describe(root: Path) -> DatasetInfo:
    """What a folder holds. ``val`` and ``valid`` are the split ``validation``; a version is made of all names and sizes.

    Scanned once a process: what changes afterwards is seen by the next.

    Raises:
      UserError: where there is no such folder, it cannot be read, a split lacks a class that another has, or there is no image.
    """
    found = _scanned(str(root))
    return DatasetInfo(
        name=str(root) if os.sep in str(root) else f".{os.sep}{root}",
        version=found.version,
        directory=root,
        examples={split: len(files) for split, files in found.splits.items()},
        image_shape=(None, None, 3),
        num_classes=len(found.classes),
    )


def opened(info: DatasetInfo, split: str) -> Files:
    """A split for random access."""
    return _scanned(str(info.directory)).splits[split]


def names(root: Path) -> list[str]:
    """Names of the classes, in the order of their numbers."""
    return list(_scanned(str(root)).classes)


class _Scanned(NamedTuple):
    classes: list[str]
    splits: dict[str, Files]
    version: str


@functools.lru_cache(maxsize=8)
def _scanned(root: str) -> _Scanned:
    if not os.path.isdir(root):
        raise UserError(f"there is no folder {root}: a data set is named as TFDS names it, or by the path of a folder SPLIT/CLASS/IMAGE")
    try:
        found = _splits(root)
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error}): a folder of images is read where it lies, all of its folders") from error
    classes = _classes_of_all(root, found)
    digest = hashlib.sha256()
    splits = {}
    for split, by_class in sorted(found.items()):
        files, labels = [], []
        for label, name in enumerate(classes):
            for file, size in by_class[name]:
                digest.update(f"{split}/{name}/{os.path.basename(file)} {size}\n".encode(errors="surrogateescape"))
                files.append(file)
                labels.append(label)
        if not files:
            raise UserError(f"{root}: split {split!r} holds no image ({', '.join(SUFFIXES)}) in its folders of classes")
        splits[split] = Files(tuple(files), tuple(labels))
    return _Scanned(classes, splits, digest.hexdigest()[:16])


_Images = dict[str, list[tuple[str, int]]]
"""Class -> paths and sizes."""


def _splits(root: str) -> dict[str, _Images]:
    children = _folders(root)
    found: dict[str, _Images] = {}
    for folder in children:
        classes = {each.name: _images(each.path) for each in _folders(folder.path)}
        split = _SPLITS.get(folder.name, folder.name)
        if classes and split in found:
            raise UserError(f"{root} holds split {split!r} twice, once as {folder.name!r}: rename one, as test")
        if classes:
            found[split] = classes
    if found or any(folder.name in _SPLITS for folder in children):
        return found
    # Classes without splits, unless nothing lies in them either.
    classes = {folder.name: _images(folder.path) for folder in children}
    return {"train": classes} if any(classes.values()) else {}


def _classes_of_all(root: str, splits: dict[str, _Images]) -> list[str]:
    if not splits:
        raise UserError(
            f"{root} holds no folders SPLIT/CLASS/IMAGE, as train/dog/1.jpg: put the folders of the classes into one of a split"
        )
    first, *others = splits
    for other in others:
        odd = sorted(splits[first].keys() ^ splits[other].keys())
        if odd:
            has, lacks = (first, other) if odd[0] in splits[first] else (other, first)
            raise UserError(f"{root}: split {has!r} has the class {odd[0]!r}, which {lacks!r} lacks: all have the same, if empty, folders")
    return sorted(splits[first])


def _images(folder: str) -> list[tuple[str, int]]:
    with os.scandir(folder) as entries:
        # What begins with a dot is a system's own, as macOS's ._1.jpg beside 1.jpg.
        named = (entry for entry in entries if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."))
        return sorted((entry.path, entry.stat().st_size) for entry in named if entry.is_file())


def _folders(parent: str) -> list[os.DirEntry[str]]:
    with os.scandir(parent) as entries:
        return sorted((entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")), key=lambda entry: entry.name)
