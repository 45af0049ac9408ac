"""A fast check of the files of a prepared set, before training starts."""

import bisect
import itertools
import json
from pathlib import Path

import numpy as np

from resnet_jax.data import sources
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError

# Opening a file takes a millisecond, and more over a network.
_OPENED = 64


def shards(info: DatasetInfo, split: str) -> list[tuple[Path, int]]:
    """Files of a split of a TFDS set with their numbers of examples, from its metadata."""
    metadata = json.loads((info.directory / "dataset_info.json").read_text())
    (lengths,) = [[int(n) for n in entry["shardLengths"]] for entry in metadata["splits"] if entry["name"] == split]
    # Named as TFDS names them; the template in the metadata could lead anywhere.
    prefix = f"{info.directory.parent.name}-{split}.array_record"
    return [(info.directory / f"{prefix}-{number:05d}-of-{len(lengths):05d}", length) for number, length in enumerate(lengths)]


def shard_of(info: DatasetInfo, split: str, index: int) -> Path:
    """File of an example."""
    if sources.is_folder(info.name):
        from resnet_jax.data import folders

        return folders.opened(info, split).file(index)
    files = shards(info, split)
    return files[bisect.bisect_right(list(itertools.accumulate(length for _, length in files)), index)][0]


def check(info: DatasetInfo, split: str) -> None:
    """Checks that all files of a split exist; opens up to 64 of them, counts their records and reads the first and the last.

    Truncated and missing files are found. A flipped bit in another record is found when that record is read.
    """
    sources.encoded(info, split)
    if sources.is_folder(info.name):
        return
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    files = shards(info, split)
    remedy = f"Copy it again, or delete {info.directory} and run: resnet-jax prepare {info.name}"
    present = {path.name for path in info.directory.iterdir()}
    missing = [file for file, _ in files if file.name not in present]
    if missing:
        raise UserError(f"{missing[0]} is missing ({len(missing)} of the {len(files)} files of split {split!r}). {remedy}")
    for number in np.unique(np.linspace(0, len(files) - 1, _OPENED, dtype=int)):
        file, length = files[number]
        try:
            reader = array_record_module.ArrayRecordReader(str(file))
            try:
                if reader.num_records() != length:
                    raise ValueError(f"it holds {reader.num_records()} records, not {length}")
                if length and not all(reader.read([0, length - 1])):
                    raise ValueError("a record is empty")
            finally:
                reader.close()
        except Exception as error:
            # ArrayRecord raises ValueError, RuntimeError or IndexError.
            raise UserError(f"{file}, of split {split!r}, is damaged ({str(error).splitlines()[0]:.200}). {remedy}") from error
