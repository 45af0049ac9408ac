"""A smaller copy of a set of large images, as a set of its own: less to read and to decode. Not the same data: its name says so."""

import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import track
from tensorflow_datasets.core.utils.shard_utils import ShardConfig

from resnet_jax.data import decoding, folders, sources, views
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError, nearest

# Images that are read and encoded at once, by threads; two more of such groups wait for the writer.
_GROUP = 64


@dataclass(frozen=True, kw_only=True)
class Resize:
    """How images are made smaller.

    Raises:
      UserError: for values that are none.
    """

    side: int
    """Pixels of the shorter side."""
    filter: str = "bilinear"
    """Or bicubic; both antialiased. Bilinear is torchvision's own, and what most networks are scored with."""
    quality: int = 95
    """Of the JPEGs, 1 to 100; colours at half the resolution (4:2:0), as Pillow has it by default."""

    def __post_init__(self) -> None:
        if self.side < 1:
            raise UserError(f"--resize is {self.side}; give the pixels of the shorter side, as 256")
        if self.filter not in views.FILTERS:
            raise UserError(f"there is no --filter {self.filter!r}{nearest(self.filter, views.FILTERS)}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality is {self.quality}; JPEG has 1 to 100, of which 95 is hard to tell from the original")

    def __call__(self, encoded: bytes) -> bytes:
        """Encodes an image anew whose shorter side is longer; the longer one is rounded down. One that is no larger stays as it is.

        Raises:
          ValueError: as ``decoding.decode``.
        """
        pixels = decoding.decode(encoded)
        if min(pixels.shape[:2]) <= self.side:
            return encoded
        written = io.BytesIO()
        smaller = views.shown(pixels, views.Squares(resize=self.side, interpolation=self.filter))  # pyright: ignore[reportArgumentType]
        Image.fromarray(smaller).save(written, format="JPEG", quality=self.quality, subsampling="4:2:0")
        return written.getvalue()


def name_of(source: DatasetInfo, side: int) -> str:
    """``imagenet2012_256``; of a folder, by the folder's own name, as far as TFDS allows it."""
    if not sources.is_folder(source.name):
        return f"{source.name}_{side}"
    name = re.sub(r"\W", "_", source.directory.resolve().name, flags=re.ASCII)
    return f"{name if name[:1].isalpha() else f'folder_{name}'}_{side}"


def bytes_written(source: DatasetInfo, resize: Resize) -> int:
    """What the copy will take on the disk, from 32 images of each split, and a tenth more. Nothing is written twice.

    Raises:
      UserError: for a set whose images are of one size, or a damaged example.
    """
    if None not in source.image_shape[:2]:
        raise UserError(f"the images of {source.name} are all {source.image_shape[0]}x{source.image_shape[1]}: there is nothing to resize")
    return int(1.1 * sum(_split_bytes(source, split, resize) for split in source.examples))


def check_same(source: DatasetInfo, resize: Resize, folder: Path) -> None:
    """Looks whether the copy in ``folder`` is the one that is asked for.

    Raises:
      UserError: where it is made of something else, or in another way.
    """
    file = folder / "metadata.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    for field, wanted in _made_of(source, resize).items():
        if found.get(field) != wanted:
            raise UserError(
                f"{folder} is there, with {field} {found.get(field)!r}, not {wanted!r}: delete it, or choose another --data-dir"
            )


def prepare(source: DatasetInfo, resize: Resize, directory: Path) -> None:
    """Writes the copy into a data directory: splits, order, labels, names of classes and of files are those of the source.

    Raises:
      UserError: for a damaged example; nothing is left then.
    """
    version = source.version if re.fullmatch(r"\d+\.\d+\.\d+", source.version) else "1.0.0"
    fields = {"name": name_of(source, resize.side), "VERSION": tfds.core.Version(version)}
    builder = type("Resized", (_Resized,), fields, skip_registration=True)
    builder(source=source, resize=resize, data_dir=directory, file_format="array_record").download_and_prepare()


def _made_of(source: DatasetInfo, resize: Resize) -> dict[str, Any]:
    return {
        "source": source.directory.resolve().name if sources.is_folder(source.name) else source.name,
        "source_version": source.version,
        "shorter_side": resize.side,
        "filter": resize.filter,
        "jpeg_quality": resize.quality,
    }


def _split_bytes(source: DatasetInfo, split: str, resize: Resize) -> int:
    one = _reader(source, split, resize)
    chosen = np.unique(np.linspace(0, source.examples[split] - 1, 32, dtype=int))
    return int(source.examples[split] * np.mean([len(one(int(index))["image"].getvalue()) for index in chosen]))


def _reader(source: DatasetInfo, split: str, resize: Resize) -> Callable[[int], dict[str, Any]]:
    """A function of an index: the example of the copy."""
    encoded = sources.encoded(source, split)

    def one(index: int) -> dict[str, Any]:
        try:
            if isinstance(encoded, sources.Encoded):
                record = encoded.record(index)
                example = {field: record[field] for field in ("image", "label", "file_name") if field in record}
            else:
                content, label = encoded[index]
                example = {"image": content, "label": label, "file_name": folders.opened(source, split).file(index).name}
            return example | {"image": io.BytesIO(resize(example["image"]))}
        except Exception:
            # Says where the damage is.
            sources.example(encoded, source, split, index)
            raise

    return one


class _Resized(tfds.core.ShardBasedBuilder, skip_registration=True):
    # Shard by shard, since TFDS's other builder would sort what keeps its order in memory, all of a split at once.

    def __init__(self, *, source: DatasetInfo, resize: Resize, **of_tfds: Any):
        self._source, self._resize = source, resize
        super().__init__(**of_tfds)

    def _info(self) -> tfds.core.DatasetInfo:
        source, resize = self._source, self._resize
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=sources.class_names(source)),
        }
        if "file_name" in _reader(source, next(iter(source.examples)), resize)(0):
            features["file_name"] = tfds.features.Text()
        made_of = _made_of(source, resize)
        description = (
            f"{made_of['source']} {source.version}, the shorter side of every image resized to {resize.side} pixels where it was longer "
            f"({resize.filter}, antialiased; JPEG of quality {resize.quality}). A data set of its own, with results of its own."
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(made_of),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]]:
        del dl_manager
        return {split: self._shards(split) for split in self._source.examples}

    def _shards(self, split: str) -> list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]:
        count = self._source.examples[split]
        number = ShardConfig.calculate_number_shards(_split_bytes(self._source, split, self._resize), count)
        ends = [count * shard // number for shard in range(number + 1)]
        # They are written one after the other: each goes on where the last one stopped.
        stream = self._stream(split)
        return [lambda length=end - start: itertools.islice(stream, length) for start, end in itertools.pairwise(ends)]

    def _stream(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        count = self._source.examples[split]
        indices = iter(range(count))
        groups = iter(lambda: list(itertools.islice(indices, _GROUP)), [])
        made = views.ahead(_reader(self._source, split, self._resize), groups)
        console = Console(stderr=True)
        shown = {"transient": True, "console": console, "disable": not console.is_terminal}
        for (_, examples), first in zip(made, track(range(0, count, _GROUP), f"resizing {split}", **shown), strict=True):
            yield from enumerate(examples, first)
