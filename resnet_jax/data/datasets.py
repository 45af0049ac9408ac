"""Image-classification sets: TFDS sets prepared on disk, read without TensorFlow, and ``local``."""

import contextlib
import functools
import json
import os
import re
from collections import ChainMap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from resnet_jax.data import local
from resnet_jax.data.images import decode
from resnet_jax.data.local import DatasetInfo, Items, Lazy
from resnet_jax.errors import UserError, require

HOME_DATA_DIR = Path("~/tensorflow_datasets")


@dataclass(frozen=True)
class Examples:
    """Images of a split or a batch in order, each in one view or several."""

    images: UInt8[np.ndarray, "n *views h w c"]
    labels: Int32[np.ndarray, "n"]
    """-1: padding of a batch."""

    def __len__(self) -> int:
        return len(self.labels)


def data_dirs(data_dir: str | None = None) -> list[Path]:
    """The argument, ``$TFDS_DATA_DIR``, the default of TFDS."""
    directories = (data_dir, os.environ.get("TFDS_DATA_DIR"), HOME_DATA_DIR)
    return [Path(os.path.expanduser(directory)) for directory in directories if directory]


def prepared(data_dir: str | None = None) -> dict[str, Path]:
    """Folder of every prepared set; the first of ``data_dirs`` and the newest version win."""
    return dict(ChainMap(*map(prepared_in, data_dirs(data_dir))))


def prepared_in(directory: Path) -> dict[str, Path]:
    """Folder of the newest version of every NAME and NAME/CONFIG in one directory."""
    files = [*directory.glob("*/*/dataset_info.json"), *directory.glob("*/*/*/dataset_info.json")]
    # An interrupted preparation leaves NAME/incomplete.XYZ_VERSION.
    folders = [file.parent for file in files if re.fullmatch(r"\d+\.\d+\.\d+", file.parent.name)]
    folders.sort(key=lambda folder: tuple(map(int, folder.name.split("."))))
    return {folder.parent.relative_to(directory).as_posix(): folder for folder in folders}


def describe(name: str, data_dir: str | None = None) -> DatasetInfo:
    """Describes a prepared set, a folder ``SPLIT/CLASS/IMAGE`` by its path, or ``FILE.py:SOURCE``.

    A prepared set is NAME or NAME/CONFIG, with :VERSION or the newest one.
    """
    if name not in prepared(data_dir) and local.is_local(name):
        info = local.describe(name)
    else:
        info = _describe_prepared(name, data_dir)
    single = f"{info.name} has a single class, {', '.join(info.classes)}; two are needed."
    require(info.num_classes > 1, single)
    return info


def _describe_prepared(name: str, data_dir: str | None) -> DatasetInfo:
    base, _, version = name.partition(":")
    sets, places = prepared(data_dir), data_dirs(data_dir)
    remedy = f"Run: resnet-jax prepare {name}"
    folder = sets.get(base)
    if version:
        versions = (place / base / version for place in places)
        folder = next((v for v in versions if (v / "dataset_info.json").is_file()), None)
    if folder is None:
        problem = f"data set {name!r} is not prepared in {', '.join(map(str, places))}"
        configs = ", ".join(other for other in sets if other.startswith(f"{base}/"))
        if Path(name).is_dir():
            remedy = f"The folder of that name is ./{name}"
        raise UserError(f"{problem}{configs and f', but {configs}'}. {remedy}")
    try:
        stored = json.loads((folder / "dataset_info.json").read_text())
        kind = stored.get("fileFormat")
        problem = f"{folder} holds {kind} files, not array_record. {remedy} --data-dir DIR"
        require(kind == "array_record", problem)
        features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
        image = features.get("image", {}).get("image")
        label = features.get("label", {}).get("classLabel")
        if image is None or label is None:
            kinds = {key: value["pythonClassName"] for key, value in features.items()}
            has = ", ".join(f"{key} ({kind.rpartition('.')[2]})" for key, kind in kinds.items())
            raise UserError(f"{name} has {has}; 'image' and a 'label' of one class are needed.")
        shape, count = map(int, image["shape"]["dimensions"]), int(label["numClasses"])
        file = folder / "label.labels.txt"
        names = file.read_text().splitlines() if file.is_file() else []
        splits = {split["name"]: sum(map(int, split["shardLengths"])) for split in stored["splits"]}
        return DatasetInfo(
            name=name,
            version=folder.name,
            directory=folder,
            examples=splits,
            image_shape=tuple(size if size > 0 else None for size in shape),
            num_classes=count,
            classes=tuple(names if len(names) == count else map(str, range(count))),
            is_shuffled=not stored.get("disableShuffling"),
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is corrupt ({error!r}). Delete it. {remedy}") from error


def encoded(info: DatasetInfo, split: str) -> Items:
    """Random access to the images, not yet decoded, and the labels of a split."""
    items, order = _stored(info, split), _order(info, split)
    return items if order is None else Lazy(order, items.__getitem__)


def _stored(info: DatasetInfo, split: str) -> Items:
    _require_split(info, split)
    if not info.is_prepared:
        return local.source(info.name)[split] if info.files is None else info.files[split]
    import tensorflow_datasets as tfds  # takes 0.8 s

    decoders = {"image": tfds.decode.SkipDecoding()}
    records = _builder(info.directory).as_data_source(split, decoders=decoders)
    return Lazy(records, lambda record: (record["image"], int(record["label"])))


@functools.lru_cache(maxsize=8)
def _builder(directory: Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(directory)


@functools.lru_cache(maxsize=8)
def labels(info: DatasetInfo, split: str) -> Int32[np.ndarray, "n"]:
    """Labels of a split as it is stored."""
    return np.array([label for _, label in _stored(info, split)], np.int32)


@functools.lru_cache(maxsize=8)
def _order(info: DatasetInfo, split: str) -> list[int] | None:
    """Indices of images with held-out ones last: of every class its share, up to one image."""
    if info.is_shuffled or not info.held_out or split != "train":
        return None
    stored = labels(info, split)
    counts = np.bincount(stored)
    shares = info.held_out * counts / len(stored)
    quotas = np.floor(shares)
    at_least_one = np.maximum(quotas, counts > 1)
    if at_least_one.sum() <= info.held_out:
        quotas = at_least_one
    # Largest remainders.
    rest = np.argsort(quotas - shares, kind="stable")[: round(info.held_out - quotas.sum())]
    quotas[rest] += 1
    by_class = np.argsort(stored, kind="stable")
    places = np.empty_like(by_class)  # of an image, from the end of its class
    places[by_class] = np.cumsum(counts)[stored[by_class]] - 1 - np.arange(len(stored))
    return np.argsort(places < quotas[stored], kind="stable").tolist()


def _require_split(info: DatasetInfo, split: str) -> None:
    splits = sorted(info.examples)
    require(split in splits, f"{info.name} has no split {split!r}; it has {splits}.")


def example(source: Items, info: DatasetInfo, split: str, index: int) -> dict[str, Any]:
    """Decodes an example of ``encoded`` to ``image`` and ``label``."""
    try:
        content, label = source[index]
        image = decode(content, info.image_shape[2] or 3)
        fits = None in info.image_shape or image.shape == info.image_shape
        require(fits, f"its image is {image.shape}, not {info.image_shape}")
        return {"image": image, "label": label}
    except Exception as error:  # ArrayRecord and the decoders raise many types.
        damaged = f"{shard_of(info, split, index)}: example {index} of split {split!r} is damaged"
        remedy = f"Prepare {info.name} again, or replace the file."
        raise UserError(f"{damaged} ({error}). {remedy}") from error


@functools.lru_cache(maxsize=4)
def read(info: DatasetInfo, split: str) -> Examples:
    """Decodes a split of images of one size into read-only arrays, once per process."""
    differ = f"the images of {info.name} differ in size. Give a crop to stream them."
    require(None not in info.image_shape, differ)
    source, count = encoded(info, split), info.examples[split]
    images = np.empty([count, *(size or 0 for size in info.image_shape)], np.uint8)
    labels = np.empty(count, np.int32)
    for index in range(count):
        images[index], labels[index] = example(source, info, split, index).values()
    images.flags.writeable = labels.flags.writeable = False
    return Examples(images, labels)


def shards(info: DatasetInfo, split: str) -> list[tuple[Path, int]]:
    """Files of a split of a TFDS set, and their numbers of examples."""
    stored = _builder(info.directory).info.splits[split]
    return list(zip(map(Path, stored.filepaths), stored.shard_lengths, strict=True))


def shard_of(info: DatasetInfo, split: str, index: int) -> Path:
    """File of an example."""
    if not info.is_prepared:
        return info.directory if info.files is None else Path(encoded(info, split)[index][0])
    order, files = _order(info, split), shards(info, split)
    ends = np.cumsum([length for _, length in files])
    place = order[index] if order else index
    return files[np.searchsorted(ends, place, side="right")][0]


def check(info: DatasetInfo, split: str) -> None:
    """Raises UserError for missing or damaged files of a TFDS split.

    Counts the records of up to 64 files and reads the first and the last of each.
    """
    _require_split(info, split)
    if not info.is_prepared:
        return
    from array_record.python import array_record_module as array_record  # pyright: ignore

    files = shards(info, split)
    # Opening a file takes a millisecond, and more over a network.
    for number in np.unique(np.linspace(0, len(files) - 1, 64, dtype=int)):
        file, length = files[number]
        try:
            with contextlib.closing(array_record.ArrayRecordReader(str(file))) as reader:
                count = reader.num_records()
                require(count == length, f"it holds {count} records, not {length}")
                is_whole = not length or all(reader.read([0, length - 1]))
                require(is_whole, "a record is empty")
        except Exception as error:  # UserError, ValueError, RuntimeError or IndexError
            state = f"is damaged ({error!s:.200})" if file.exists() else "is missing"
            remedy = f"Copy it again, or delete {info.directory} and run: resnet-jax prepare"
            problem = f"{file}, of split {split!r}, {state}. {remedy} {info.name}"
            raise UserError(problem) from error
